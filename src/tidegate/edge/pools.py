"""What a gateway's controller tells its edge: the models, their servers and how calls travel.

A :class:`Pool` is a set of servers that share the calls of a model. The edge makes one or more
of Envoy's clusters of each; :func:`tidegate.edge.plan.plan` says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tidegate.balancing.verdict import MAX_WEIGHT

Protocol: TypeAlias = Literal["tidegate", "tensorflow-serving", "open-inference", "seldon"]


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a pool.

    Attributes:
        address: numeric ``HOST:PORT`` of its gRPC, and of its REST calls if ``protocol`` is
            ``tidegate``.
        protocol: what it speaks; ``tidegate`` speaks all protocols.
        rest: ``HOST:PORT`` of its REST calls; ``None`` for another server than ours: it has none.
        weight: its share of the calls, from 1.
        priority: 0 is asked first; the next when too few of those are healthy.
        ejected: whether it gets no calls now, by the controller's verdict.
        last_resort: whether it gets calls all the same where nobody else passes his checks.
        versions: those that it serves; ``None``: it may be asked for any.
        labels: those that it knows; ``None``: it may be asked for any.
        secure: whether it is spoken to over TLS.
        name: how people call it; TLS asks for a certificate of this name.
    """

    address: str
    protocol: Protocol = "tidegate"
    rest: str | None = None
    weight: int = 100
    priority: int = 0
    ejected: bool = False
    last_resort: bool = False
    versions: frozenset[int] | None = None
    labels: frozenset[str] | None = None
    secure: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"the weight of {self.address} is {self.weight}: use 1 to {MAX_WEIGHT}"
            )

    def speaks(self, protocol: Protocol, *, rest: bool) -> bool:
        """Whether calls of a protocol, over REST or gRPC, can be sent to it as they are."""
        if self.protocol == "tidegate":
            return True
        return self.protocol == protocol and (not rest or self.rest is not None)


class Servers(tuple[Server, ...]):
    """Servers, and how many of them there are of each kind; they are counted once."""

    _kinds: Mapping[Server, int] | None = None

    @property
    def kinds(self) -> Mapping[Server, int]:
        """How many servers there are of each kind that gets different calls.

        Of hundreds of servers, most are of one kind. It stands as a server without an address, a
        weight and a verdict; its priority is 0, or 1 for all overflow pools.
        """
        if self._kinds is None:
            self._kinds = _counted(self)
        return self._kinds

    def that(self, can: Callable[[Server], bool]) -> Servers:
        """Return those which ``can``; it says the same of all servers of a kind."""
        kinds = {kind: count for kind, count in self.kinds.items() if can(kind)}
        if len(kinds) == len(self.kinds):
            return self
        found = Servers(filter(can, self))
        found._kinds = kinds
        return found

    def renewed(self, servers: Iterable[Server]) -> Servers:
        """Return ``servers``, which differ from these in weights and verdicts alone."""
        found = Servers(servers)
        found._kinds = self._kinds
        return found


def _counted(servers: Iterable[Server]) -> Mapping[Server, int]:
    counts = Counter(
        (s.protocol, s.rest is None, s.versions, s.labels, s.secure, s.priority > 0)
        for s in servers
    )
    return {
        Server(
            "",
            protocol,
            rest=None if without_rest else "",
            priority=int(overflow),
            versions=versions,
            labels=labels,
            secure=secure,
        ): count
        for (protocol, without_rest, versions, labels, secure, overflow), count in counts.items()
    }


@dataclass(frozen=True, slots=True)
class Pool:
    """Servers that share calls; ``name`` is unique, as ``digits`` or ``digits/canary``."""

    name: str
    servers: Servers


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """How the calls of a model travel; times are seconds. See ``Traffic`` in the schema."""

    timeout: float | None = None
    per_try_timeout: float | None = None
    retries: int = 1
    retry_budget: float = 20.0
    max_in_flight: int | None = None
    health_interval: float | None = None
    health_path: str | None = None
    known: bool = True
    """Whether servers know the model by its name; a task of a nodefile has one here alone."""


@dataclass(frozen=True, slots=True)
class HeaderPool:
    """The pool of calls that carry a header; ``value`` ``None``: whatever it says."""

    header: str
    value: str | None
    pool: Pool


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """One model behind the gateway."""

    name: str
    pool: Pool
    traffic: TrafficPolicy = TrafficPolicy()
    canary: tuple[float, Pool] | None = None
    """Percent of the calls, and where they go."""
    mirror: tuple[float, Pool] | None = None
    """Percent of the calls that are copied, and where to."""
    headers: tuple[HeaderPool, ...] = ()

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of its pools."""
        others = [self.canary, self.mirror]
        return (
            self.pool,
            *(each[1] for each in others if each is not None),
            *(each.pool for each in self.headers),
        )


@dataclass(frozen=True, slots=True)
class GatewayTopology:
    """All that an edge must know of a gateway, at one moment.

    Attributes:
        models: the models, by name. One whose pool is empty is known, and nobody serves it.
        ready: the answer of ``/v2/health/ready``.
        server_metadata: the JSON body of ``GET /v2``.
        tasks: the model of each task's id.
    """

    models: Mapping[str, RoutedModel]
    ready: bool
    server_metadata: bytes
    tasks: Mapping[str, str] = field(default_factory=dict)
