"""A gateway that tells of endpoints, and machines to be told of, over real HTTP.

They can be stopped as a machine that dies, and started again at the same port.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.ports import free_port


class Machine:
    """Answers requests by ``respond``; what is ``None`` is a connection that is reset."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.port = free_port()
        self.changed = threading.Condition()
        self.heads: list[dict[str, str]] = []
        """The headers of every request, in lower case."""
        self._connections: list[socket.socket] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it is, for HTTP."""
        return f"http{'s' * (self.tls is not None)}://{self.address}"

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        machine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                head = {name.lower(): value for name, value in self.headers.items()}
                with machine.changed:
                    machine.heads.append(head)
                    machine.changed.notify_all()
                answer = machine.respond(self.path, head)
                with machine.changed:
                    machine.changed.notify_all()
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("content-length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request: Any, client_address: Any) -> None:
                machine._connections.append(request)
                super().process_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Die: nobody listens, and what was connected is reset."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        while self._connections:
            with contextlib.suppress(OSError):
                self._connections.pop().shutdown(socket.SHUT_RDWR)

    def respond(self, path: str, head: dict[str, str]) -> tuple[int, bytes] | None:
        """Return status and body."""
        raise NotImplementedError


class Gateway(Machine):
    """Answers ``/v2/models/NAME/endpoints`` from ``endpoints``, and 404 to all else.

    ``answer`` is given instead of what is in ``endpoints``, if set: a status and a body.
    ``asked`` counts the questions for endpoints, ``calls`` has the paths of all other requests.
    """

    def __init__(
        self, *endpoints: Any, ttl_ms: int = 60_000, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls)
        self.ttl_ms = ttl_ms
        self.endpoints: list[Any] = list(endpoints)
        self.of_model: dict[str, list[Any]] = {}
        self.answer: tuple[int, bytes] | None = None
        self.asked = 0
        self.calls: list[str] = []

    def respond(self, path: str, head: dict[str, str]) -> tuple[int, bytes] | None:
        """Tell of endpoints."""
        parts = path.split("/")
        if len(parts) != 5 or parts[4] != "endpoints":
            self.calls.append(path)
            return 404, b'{"error":"the gateway has no such model"}'
        self.asked += 1
        if self.answer is not None:
            return self.answer
        found = self.of_model.get(parts[3], self.endpoints)
        document = {
            "model_name": parts[3],
            "ttl_ms": self.ttl_ms,
            "endpoints": [{"address": e} if isinstance(e, str) else e for e in found],
        }
        return 200, json.dumps(document).encode()

    def until_asked(self, times: int) -> None:
        """Wait until it has been asked so many times."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked >= times, 60), self.asked


class Node(Machine):
    """Answers every request as an inference of a model without outputs, or with ``answer``.

    ``calls`` has the paths of the requests. While ``hanging`` is set, none is answered, and while
    ``frozen`` is set, not even whether it lives; ``checks`` counts who asks that.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.calls: list[str] = []
        self.answer: tuple[int, bytes] | None = (200, b'{"model_name":"m","outputs":[]}')
        self.of_model: dict[str, tuple[int, bytes]] = {}
        self.hanging = self.frozen = False
        self.checks = 0
        self._woken = threading.Condition()

    def respond(self, path: str, head: dict[str, str]) -> tuple[int, bytes] | None:
        """Answer an inference."""
        if path == "/v2/health/live":
            with self.changed:
                self.checks += 1
                self.changed.notify_all()
            with self._woken:
                self._woken.wait_for(lambda: not self.frozen, 60)
            return 200, b""
        self.calls.append(path)
        with self._woken:
            self._woken.wait_for(lambda: not self.hanging, 60)
        return self.of_model.get(path.split("/")[3], self.answer)

    def wake(self) -> None:
        """Answer those that hang."""
        with self._woken:
            self.hanging = self.frozen = False
            self._woken.notify_all()

    def until_checked(self, times: int) -> None:
        """Wait until it was asked so often whether it lives."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.checks >= times, 60), self.checks


def served(nodes: list[Node]) -> list[int]:
    """How many calls each has got."""
    return [len(node.calls) for node in nodes]
