"""What a node answers of TensorFlow Serving's protocol: states of versions, and reloading.

The models of a node are those of its repository, and ``model.yaml`` says which of their versions
are served. So ``HandleReloadConfigRequest`` loads the models that it lists and unloads the others;
what it says beside their names must be so already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.errors import InvalidInput, ModelNotFound, Unsupported
from tidegate.node.fleet import Fleet, Generation
from tidegate.node.model_control import ModelControl
from tidegate.protocols import tensorflow_serving
from tidegate.protocols.statuses import GrpcCode
from tidegate.protocols.tensorflow_serving.model_spec import version_of_label
from tidegate.protocols.tensorflow_serving.status import (
    State,
    VersionStatus,
    WantedModel,
    decode_reload,
    decode_status,
    encode_reload,
    encode_status,
    encode_status_body,
)
from tidegate.repository.entries import ModelEntry

_PATH = "/v1/models/{model}"
_SCHEMA = {
    "type": "object",
    "properties": {
        "model_version_status": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "version": {"type": "string"},
                    "state": {"type": "string", "enum": [state.name for state in State]},
                    "status": {"type": "object"},
                },
            },
        }
    },
}


class TensorFlowServingCalls:
    """Answers the calls; ``control`` loads and unloads, and knows who may."""

    def __init__(self, fleet: Fleet, control: ModelControl, repository: Path) -> None:
        self._fleet = fleet
        self._control = control
        self._repository = repository

    def extension(self) -> Extension:
        """Return the calls."""
        summary = "The states of a model's versions, as TensorFlow Serving gives them"
        return Extension(
            endpoints=tuple(
                Endpoint("GET", _PATH + rest, self._status_rest, summary, _SCHEMA)
                for rest in ("", "/versions/{version}", "/labels/{label}")
            ),
            methods={
                tensorflow_serving.GET_MODEL_STATUS: self._status_grpc,
                tensorflow_serving.RELOAD_CONFIG: self._reload,
            },
        )

    def statuses(self, model: str, version: str = "", label: str = "") -> list[VersionStatus]:
        """Return the states of the versions of ``model`` that are, were or will be served.

        Raises:
            ModelNotFound: there is no such model or version.
            InvalidInput: no version has this label.
        """
        entry = self._fleet.models.get(model)
        if entry is None:
            raise ModelNotFound(f"there is no model {model!r} here")
        if label:
            version = version_of_label(label, _labels(entry))
        found = _statuses(self._fleet, entry)
        if version:
            found = [status for status in found if str(status.version) == version]
        if not found:
            if version:
                why = "it is not there, or `versions` in model.yaml leaves it out"
                raise ModelNotFound(f"version {version} of {model!r} is not served: {why}")
            why = "; ".join(map(str, entry.problems)) or "no version of it is selected"
            raise ModelNotFound(f"no version of {model!r} is served: {why}")
        return found

    async def reload(self, models: Sequence[WantedModel]) -> None:
        """Load these models, and unload all others.

        Raises:
            ModelNotFound: one is not in the repository.
            InvalidInput: one is not where its path says.
            Unsupported: versions or labels are asked for that ``model.yaml`` does not say.
            LoadFailed: one cannot be loaded; the others stay as they were.
        """
        for wanted in models:
            self._check(wanted)
        for wanted in models:
            await self._control.load(wanted.name)
        names = {wanted.name for wanted in models}
        for name in sorted(self._fleet.models.keys() - names - self._fleet.unloaded):
            await self._control.unload(name)

    def _check(self, wanted: WantedModel) -> None:
        path = self._repository / wanted.name
        if wanted.base_path and Path(wanted.base_path).resolve() != path.resolve():
            raise InvalidInput(
                f"the model {wanted.name!r} lies in {path}, not in {wanted.base_path!r}: models "
                "come from the repository of the node; leave base_path out"
            )
        entry = self._fleet.models.get(wanted.name)
        if entry is None:
            return  # it may have been put there just now: loading it will tell
        versions = entry.config.versions
        only = None if versions.only is None else tuple(sorted(versions.only))
        said = "all" if versions.all else only if only is not None else versions.latest or 1
        if wanted.versions not in (None, said):
            raise Unsupported(
                f"the versions of {wanted.name!r} are {said} by its model.yaml, not "
                f"{wanted.versions}: change `versions` there"
            )
        if wanted.labels and wanted.labels != versions.labels:
            raise Unsupported(
                f"the labels of {wanted.name!r} are {dict(versions.labels)} by its model.yaml, "
                f"not {dict(wanted.labels)}: change `versions.labels` there"
            )

    async def _status_rest(self, call: Call) -> bytes:
        return encode_status_body(self.statuses(**call.parameters))

    async def _status_grpc(self, call: Call) -> bytes:
        spec = decode_status(call.body)
        return encode_status(self.statuses(spec.model, spec.version, spec.label))

    async def _reload(self, call: Call) -> bytes:
        self._control.allow(call)
        request = decode_reload(call.body)
        await self.reload(request.models)
        return encode_reload(request.metrics)


def _labels(entry: ModelEntry) -> Mapping[str, str]:
    return {label: str(version) for label, version in entry.config.versions.labels.items()}


def _statuses(fleet: Fleet, entry: ModelEntry) -> list[VersionStatus]:
    running: dict[int, list[Generation]] = {}
    for generation in fleet.generations(entry.name):
        running.setdefault(generation.version, []).append(generation)
    if entry.name in fleet.unloaded:
        ended = running.keys() or entry.config.versions.select(list(entry.versions))
        state = State.UNLOADING if running else State.END
        return [VersionStatus(version, state) for version in sorted(ended)]
    return [_status(version, running[version]) for version in sorted(running)]


def _status(version: int, generations: Sequence[Generation]) -> VersionStatus:
    """Return where a version stands that has these contents, old and new."""
    if any(g.live and g.ready for g in generations):
        return VersionStatus(version, State.AVAILABLE)
    for generation in generations:
        if generation.failure is not None:
            return VersionStatus(version, State.END, GrpcCode.UNKNOWN, generation.failure)
    if not any(g.desired for g in generations):
        return VersionStatus(version, State.UNLOADING)
    begun = any(g.replicas for g in generations)
    return VersionStatus(version, State.LOADING if begun else State.START)
