"""Takes the steps of calls in threads that wait."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tidegate.client.calls import Incoming, T
from tidegate.client.connection import Connection, Transport
from tidegate.client.steps import PATIENCE, Ask, Beside, Retire, Steps
from tidegate.client.watch import Watch

_log = logging.getLogger(__name__)


class BlockingDriver:
    """Keeps the connections of one client.

    Args:
        connection: to the client's own server.
        name: how errors call the client.
        forked: is called in a forked process before its first call.
    """

    def __init__(self, connection: Connection, name: str, forked: Callable[[], None]) -> None:
        self._connection = connection
        self._name = name
        self._forked = forked
        self._transports: dict[Connection, Transport] = {}
        self._process = os.getpid()
        self._running: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._watch = Watch(PATIENCE, self._beside)
        self._closed = False

    def drive(self, steps: Steps[T]) -> T:
        """Take ``steps`` to their end and return their value."""
        self._check_process()
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._take(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    def close(self) -> None:
        """Close the connections; there are no more calls."""
        with self._lock:
            self._closed = True
            transports, self._transports = self._transports, {}
        for transport in transports.values():
            transport.close()

    def _take(self, step: Any) -> Incoming | None:
        if isinstance(step, Ask):
            transport = self._opened(step.connection or self._connection)
            if step.worry is None:
                return transport.exchange(step.outgoing, step.timeout)
            with self._watch.waiting(step.worry):
                return transport.exchange(step.outgoing, step.timeout)
        if isinstance(step, Beside):
            self._beside(step)
        elif isinstance(step, Retire):
            self._retire(step.gone)
        else:
            time.sleep(step.seconds)
        return None

    def _opened(self, connection: Connection) -> Transport:
        transport = self._transports.get(connection)
        if transport is not None:
            return transport
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} is closed; make another client")
            transport = self._transports.get(connection)
            if transport is None:
                transport = self._transports[connection] = _open(connection)
            return transport

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # The connections and the threads are the parent's, and so is who holds the lock.
            self._lock = threading.Lock()
            self._watch = Watch(PATIENCE, self._beside)
            self._transports, self._running = {}, {}
            self._process = os.getpid()
            self._forked()

    def _beside(self, step: Beside) -> None:
        with self._lock:
            if self._closed:
                return
            thread = self._running.get(step.key)
            if thread is None:
                thread = threading.Thread(
                    target=self._run, args=(step,), name="tidegate-client", daemon=True
                )
                self._running[step.key] = thread
                try:
                    thread.start()
                except RuntimeError:  # there can be no more threads, as when the program ends
                    del self._running[step.key]
                    thread = None
        if thread is None:
            self._run(step)
        elif step.wait:
            thread.join(None if math.isinf(step.wait) else step.wait)

    def _run(self, step: Beside) -> None:
        try:
            self.drive(step.begin())
        except Exception:
            # What servers do is in what the steps keep. A client that was closed does not mind.
            if not self._closed:
                _log.exception("what was to be done beside calls of %s", self._name)
        finally:
            with self._lock:
                self._running.pop(step.key, None)

    def _retire(self, gone: tuple[Connection, ...]) -> None:
        with self._lock:
            transports = [self._transports.pop(connection, None) for connection in gone]
        for transport in transports:
            if transport is not None:
                transport.close()


def _open(connection: Connection) -> Transport:
    """Make the transport, whose library is imported only now."""
    if connection.address.grpc:
        from tidegate.client.grpc_transport import GrpcTransport

        return GrpcTransport(connection)
    from tidegate.client.http_transport import HttpTransport

    return HttpTransport(connection)
