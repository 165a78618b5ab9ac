"""The model repository extension of a node: its index, loading and unloading."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.errors import LoadFailed, ModelNotFound, PermissionDenied
from tidegate.node.fleet import Fleet, Generation
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import repository
from tidegate.protocols.open_inference.repository import IndexEntry, State
from tidegate.repository.entries import ModelEntry

_INDEX = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "state": {"type": "string", "enum": [state.value for state in State]},
            "reason": {"type": "string"},
        },
    },
}
_PARAMETERS = {"type": "object", "properties": {"parameters": {"type": "object"}}}


class ModelHolder(Protocol):
    """What the extension needs of a controller."""

    @property
    def fleet(self) -> Fleet:
        """The models and what runs of them."""

    async def take(self, model: str, *, unloaded: bool) -> None:
        """Look at a model now, and serve it or not from now on."""

    def apply_soon(self) -> None:
        """Tell the edge anew."""

    async def applied(self) -> None:
        """Wait until the edge has been told of the next change."""


class ModelControl:
    """Answers the calls; ``public`` lets every client load and unload."""

    def __init__(self, holder: ModelHolder, *, public: bool) -> None:
        self._holder = holder
        self._public = public

    def extension(self) -> Extension:
        """Return the calls."""
        model = "/v2/repository/models/{model}"
        ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
        return Extension(
            ("model_repository", "model_repository(unload_dependents)"),
            (
                Endpoint(
                    "POST", "/v2/repository/index", self._index_rest,
                    "The models of the repository and their states", _INDEX, ready,
                ),
                Endpoint(
                    "POST", f"{model}/load", self._load_rest,
                    "Read a model again and load it; answered when it is ready", {}, _PARAMETERS,
                ),
                Endpoint(
                    "POST", f"{model}/unload", self._unload_rest,
                    "Take a model out until it is loaded again", {}, _PARAMETERS,
                ),
            ),
            {
                open_inference.REPOSITORY_INDEX: self._index_grpc,
                open_inference.REPOSITORY_LOAD: self._load_grpc,
                open_inference.REPOSITORY_UNLOAD: self._unload_grpc,
            },
        )  # fmt: skip

    async def load(self, model: str) -> None:
        """Read ``model`` again and serve it; return when it gets traffic.

        A version that runs already and has not changed goes on as it is; one that could not be
        loaded is tried again.

        Raises:
            ModelNotFound: it is not in the repository.
            LoadFailed: a version cannot be loaded; what was served before still is.
        """
        holder = self._holder
        await holder.take(model, unloaded=False)
        while not self._settled(model):
            await holder.applied()
        await self._told()

    async def unload(self, model: str) -> None:
        """Serve ``model`` no more; return when no call can reach it.

        Its replicas answer what they have, and end.

        Raises:
            ModelNotFound: it is not in the repository.
        """
        await self._holder.take(model, unloaded=True)
        await self._told()

    async def _told(self) -> None:
        self._holder.apply_soon()
        await self._holder.applied()

    def _settled(self, model: str) -> bool:
        """Whether the selected versions of ``model`` have come to be served."""
        fleet = self._holder.fleet
        entry = fleet.models.get(model)
        if entry is None:
            raise ModelNotFound(f"the model {model!r} was removed from the repository")
        if model in fleet.unloaded:
            raise LoadFailed(f"the model {model!r} was unloaded while it was being loaded")
        selected = entry.config.versions.select(list(entry.versions))
        if not selected:
            why = "; ".join(map(str, entry.problems)) or "no version of it is selected"
            raise LoadFailed(f"the model {model!r} cannot be loaded: {why}")
        awaited = [g for g in fleet.generations(model) if g.desired]
        for generation in awaited:
            if generation.failure is not None and not generation.ready:
                raise LoadFailed(
                    f"version {generation.version} of the model {model!r} cannot be loaded: "
                    f"{generation.failure}"
                )
        return all(generation.live for generation in awaited)

    def index(self, *, ready: bool = False) -> list[IndexEntry]:
        """Return every version in the repository, or those that are ready."""
        fleet = self._holder.fleet
        return [
            entry
            for name in sorted(fleet.models)
            for entry in _entries(fleet, fleet.models[name])
            if entry.state is State.READY or not ready
        ]

    def allow(self, call: Call) -> None:
        """Let pass what may load and unload models.

        Raises:
            PermissionDenied: this may not.
        """
        if not (call.trusted or self._public):
            raise PermissionDenied(
                "models are loaded and unloaded by the admin port only: call that, or start the "
                "node with --public-control"
            )

    async def _index_rest(self, call: Call) -> bytes:
        ready = repository.decode_index_body(call.body)
        return repository.encode_index_body(self.index(ready=ready))

    async def _index_grpc(self, call: Call) -> bytes:
        return repository.encode_index(self.index(ready=repository.decode_index(call.body)))

    async def _load_rest(self, call: Call) -> bytes:
        self.allow(call)
        repository.decode_load_body(call.body)
        await self.load(call.parameters["model"])
        return b"{}"

    async def _load_grpc(self, call: Call) -> bytes:
        return await self._control(call, repository.decode_load, self.load)

    async def _unload_rest(self, call: Call) -> bytes:
        self.allow(call)
        repository.decode_unload_body(call.body)
        await self.unload(call.parameters["model"])
        return b"{}"

    async def _unload_grpc(self, call: Call) -> bytes:
        return await self._control(call, repository.decode_unload, self.unload)

    async def _control(
        self, call: Call, decode: Callable[[bytes], str], act: Callable[[str], Awaitable[None]]
    ) -> bytes:
        self.allow(call)
        await act(decode(call.body))
        return b""


def _entries(fleet: Fleet, entry: ModelEntry) -> Iterator[IndexEntry]:
    name = entry.name
    if name in fleet.unloaded:
        for version in sorted(entry.versions) or ("",):
            yield IndexEntry(name, str(version), State.UNAVAILABLE, "unloaded")
        return
    running: dict[int, list[Generation]] = {}
    for generation in fleet.generations(name):
        running.setdefault(generation.version, []).append(generation)
    versions = sorted(running.keys() | entry.versions.keys())
    for version in versions:
        state, reason = _state(running.get(version, []))
        yield IndexEntry(name, str(version), state, reason)
    if not versions:
        reason = "; ".join(map(str, entry.problems)) or "it has no version"
        yield IndexEntry(name, "", State.UNAVAILABLE, reason)


def _state(generations: list[Generation]) -> tuple[State, str]:
    """Return where a version stands that has these contents, old and new."""
    if not generations:
        return State.UNAVAILABLE, "not selected by versions in model.yaml"
    failures = [g.failure for g in generations if g.failure is not None and not g.ready]
    if any(g.live and g.ready for g in generations):
        return State.READY, f"its new content is not served: {failures[0]}" if failures else ""
    if failures:
        return State.UNAVAILABLE, failures[0]
    if not any(g.desired for g in generations):
        return State.UNLOADING, "it is being replaced"
    return State.LOADING, "it is being loaded"
