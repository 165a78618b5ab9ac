"""gRPC's own services of a node: health checking and server reflection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tidegate.controller.server_calls import Call, Extension
from tidegate.errors import ModelNotFound
from tidegate.protocols import grpc_health, grpc_reflection
from tidegate.protocols.grpc_health import Health
from tidegate.protocols.grpc_reflection import Reflection
from tidegate.protocols.registry import FILES
from tidegate.replica.streams import Outgoing


class HealthCalls:
    """Tells how the whole node and its models feel.

    The names that can be asked for are those of the gRPC services, for the whole node, and those
    of the models. ``ready`` is the node's, ``models`` that of each model; ``look`` is awaited
    before a question about models is answered.
    """

    def __init__(
        self,
        ready: Callable[[], bool],
        models: Callable[[], dict[str, bool]],
        look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._ready = ready
        self._models = models
        self._look = look
        self._services = frozenset(("", *Reflection(FILES).services))
        self._watchers: set[_Watcher] = set()

    def extension(self) -> Extension:
        """Return the calls."""
        return Extension(
            methods={grpc_health.CHECK: self._check, grpc_health.LIST: self._list},
            streams={grpc_health.WATCH: self._watch},
        )

    def health(self, service: str) -> Health:
        """Return how ``service`` feels."""
        if service in self._services:
            return Health.SERVING if self._ready() else Health.NOT_SERVING
        ready = self._models().get(service)
        if ready is None:
            return Health.SERVICE_UNKNOWN
        return Health.SERVING if ready else Health.NOT_SERVING

    def changed(self) -> None:
        """Tell those who watch, if it is something new for them."""
        for watcher in tuple(self._watchers):
            watcher.look()

    async def _check(self, call: Call) -> bytes:
        service = grpc_health.decode_check(call.body)
        if self._look is not None and service not in self._services:
            await self._look()
        health = self.health(service)
        if health is Health.SERVICE_UNKNOWN:
            raise ModelNotFound(f"there is no service and no model {service[:256]!r} here")
        return grpc_health.encode_health(health)

    async def _list(self, call: Call) -> bytes:
        if self._look is not None:
            await self._look()
        found = {name: self.health(name) for name in sorted(self._services)}
        for name, ready in sorted(self._models().items()):
            found.setdefault(name, Health.SERVING if ready else Health.NOT_SERVING)
        return grpc_health.encode_list(found)

    def _watch(self, outgoing: Outgoing) -> _Watcher:
        watcher = _Watcher(outgoing, self.health, self._watchers.discard)
        self._watchers.add(watcher)
        return watcher


class _Watcher:
    """One call of ``Watch``: it is told at once, and again after each change."""

    def __init__(
        self,
        outgoing: Outgoing,
        health: Callable[[str], Health],
        ended: Callable[[_Watcher], None],
    ) -> None:
        self._outgoing = outgoing
        self._health = health
        self._ended = ended
        self._service: str | None = None
        self._told: Health | None = None

    def message(self, message: bytes) -> None:
        """Take the name of the service."""
        self._service = grpc_health.decode_check(message)
        self.look()

    def look(self) -> None:
        """Tell what is new."""
        if self._service is None:
            return
        health = self._health(self._service)
        if health is not self._told:
            self._told = health
            self._outgoing.send(grpc_health.encode_health(health))

    def half_closed(self) -> None:
        """Go on: the caller has said all that there is to say."""

    def gone(self) -> None:
        """Tell nothing more."""
        self._ended(self)


class ReflectionCalls:
    """Describes the services that are served."""

    def __init__(self) -> None:
        self._reflection = Reflection(FILES)

    def extension(self) -> Extension:
        """Return the calls."""
        return Extension(streams=dict.fromkeys(grpc_reflection.INFO, self._begin))

    def _begin(self, outgoing: Outgoing) -> _Questions:
        return _Questions(outgoing, self._reflection)


class _Questions:
    """One call: each message is answered as it comes."""

    def __init__(self, outgoing: Outgoing, reflection: Reflection) -> None:
        self._outgoing = outgoing
        self._reflection = reflection

    def message(self, message: bytes) -> None:
        """Answer a question."""
        self._outgoing.send(self._reflection.answer(message))

    def half_closed(self) -> None:
        """All questions are answered."""
        self._outgoing.end()

    def gone(self) -> None:
        """Nothing is left to do."""
