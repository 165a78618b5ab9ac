"""Backends as processes, seen from the case that makes them sick.

:mod:`bench.backend` is the process itself. With network namespaces (root, ``ip``, ``nft``) each
has a network of its own, as a machine has, and packets to it can vanish; without them everything
but :meth:`Node.cut` works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).parent.parent
_PATIENCE = 30.0
_NETWORK = "10.213.{}.{}"
"""Where the namespaces' addresses lie, a network of two for each."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a backend can do."""

    service_ms: float = 0.0
    """How long a call takes; 0: it is answered at once."""
    slots: int = 1
    """Calls that it serves at a time."""
    idle: float = 0.0
    """Seconds without a call after which it closes a connection; 0: never."""

    @property
    def capacity(self) -> float:
        """Calls per second."""
        return self.slots / self.service_ms * 1e3 if self.service_ms else float("inf")


class Node:
    """One backend. It keeps its address when it is killed and started again."""

    def __init__(self, name: str, kind: Kind, namespace: Namespace | None = None) -> None:
        self.name = name
        self.kind = kind
        self.host = namespace.address if namespace else "127.0.0.1"
        self.port = 0
        self._namespace = namespace
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def process(self) -> psutil.Process:
        """The process, to be measured."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def can_be_cut(self) -> bool:
        """Whether :meth:`cut` works."""
        return self._namespace is not None

    async def start(self, hosts: Sequence[str] = ()) -> None:
        """Start it; return when it listens."""
        command = [sys.executable, "-m", "bench.backend", "--name", self.name]
        command += ["--port", str(self.port), "--service-ms", str(self.kind.service_ms)]
        command += ["--slots", str(self.kind.slots), "--idle", str(self.kind.idle)]
        command += ["--host", *(hosts or [self.host])]
        if self._namespace:
            command = ["ip", "netns", "exec", self._namespace.name, *command]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=_ROOT
        )
        line = await self._line()
        found = re.fullmatch(r"listening on (\d+)\n", line)
        if found is None:
            raise RuntimeError(f"the backend {self.name} ended: {line!r}")
        self.port = int(found[1])

    async def tell(self, command: str) -> Any:
        """Give a command; see :mod:`bench.backend`."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        answer = json.loads(await self._line())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    async def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def freeze(self) -> None:
        """Stop the process: the system goes on accepting connections, and nobody reads them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """Drop every packet to and from it: a machine that lost its network."""
        assert self._namespace is not None
        self._namespace.cut()

    def join(self) -> None:
        """End :meth:`cut`."""
        assert self._namespace is not None
        self._namespace.join()

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(_PATIENCE):
            return (await self._process.stdout.readline()).decode()


@contextlib.asynccontextmanager
async def nodes(
    kinds: dict[str, Kind], *, namespaces: bool = False, hosts: Sequence[str] = ()
) -> AsyncIterator[dict[str, Node]]:
    """Run backends, by their names; in namespaces of their own if that is asked and can be.

    They listen on ``hosts``, or on loopback, each on a port of its own.
    """
    found: dict[str, Node] = {}
    async with contextlib.AsyncExitStack() as stack:
        for index, (name, kind) in enumerate(kinds.items()):
            space = None
            if namespaces and can_have_namespaces():
                space = stack.enter_context(Namespace(f"tgb{os.getpid()}-{index}", index))
            node = found[name] = Node(name, kind, space)
            stack.push_async_callback(_end, node)
            await node.start(hosts)
        yield found


async def _end(node: Node) -> None:
    if node._process is not None and node._process.returncode is None:
        await node.kill()


class Namespace(contextlib.AbstractContextManager["Namespace"]):
    """A network namespace with one address, joined to ours by a pair of interfaces."""

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        network = os.getpid() % 250
        # Two addresses of a network of four, the others of which are its own and broadcast.
        self.gateway = _NETWORK.format(network, 4 * index + 1)
        self.address = _NETWORK.format(network, 4 * index + 2)
        self._outside = f"tgb{os.getpid() % 100_000}o{index}"
        self._inside = f"tgb{os.getpid() % 100_000}i{index}"

    def __enter__(self) -> Namespace:
        """Make it."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._outside, "type", "veth", "peer", "name", self._inside)
        _ip("link", "set", self._inside, "netns", self.name)
        _ip("addr", "add", f"{self.gateway}/30", "dev", self._outside)
        _ip("link", "set", self._outside, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/30", "dev", self._inside)
        _ip("-n", self.name, "link", "set", self._inside, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove it, and the interfaces with it."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._outside)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.name)

    def cut(self) -> None:
        """Drop what goes in and out; who sends to it hears nothing."""
        rules = "add table inet cut; "
        for hook in ("input", "output"):
            rules += (
                f"add chain inet cut {hook} "
                f"{{ type filter hook {hook} priority 0; policy drop; }}; "
            )
        self._nft(rules)

    def join(self) -> None:
        """Let packets pass again."""
        self._nft("delete table inet cut")

    def _nft(self, rules: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, "nft", rules], check=True)


def can_have_namespaces() -> bool:
    """Whether this process may make namespaces, and drop packets in them."""
    if not all(shutil.which(tool) for tool in ("ip", "nft")) or os.geteuid() != 0:
        return False
    name = f"tgb{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            listed = ["ip", "netns", "exec", name, "nft", "list", "tables"]
            subprocess.run(listed, check=True, capture_output=True)
        finally:
            _ip("netns", "del", name)
    except (subprocess.CalledProcessError, OSError):
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
