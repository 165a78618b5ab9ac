"""``ModelService``: the states of a model's versions, and which models are to be served.

Source: ``get_model_status.proto``, ``model_management.proto`` and ``model_server_config.proto`` of
TensorFlow Serving.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.routing import check_model
from tidegate.protocols.statuses import GrpcCode
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.tensorflow_serving.model_spec import Spec, spec_of


class State(enum.IntEnum):
    """Where a version stands."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50
    """It is not served: it could not be loaded, was unloaded or is not selected."""


class VersionStatus(NamedTuple):
    """What is said of one version; ``message`` is why it cannot be served."""

    version: int
    state: State
    code: GrpcCode = GrpcCode.OK
    message: str = ""


class WantedModel(NamedTuple):
    """An entry of a ``ModelConfigList``."""

    name: str
    base_path: str
    versions: str | tuple[int, ...] | int | None
    """``"all"``, the newest so many, just these; ``None``: as before."""
    labels: Mapping[str, int]


class Reload(NamedTuple):
    """What ``HandleReloadConfigRequest`` asks for."""

    models: tuple[WantedModel, ...]
    metrics: tuple[str, ...]
    """The metrics whose growth is asked for."""


def decode_status(message: Buffer) -> Spec:
    """Return whose status a ``GetModelStatusRequest`` asks for.

    Raises:
        InvalidInput: it is malformed, or names no model.
    """
    return spec_of(parsed(messages.GetModelStatusRequest, message).model_spec)


def encode_status(statuses: Sequence[VersionStatus]) -> bytes:
    """Return a ``GetModelStatusResponse``."""
    response = messages.GetModelStatusResponse()
    for found in statuses:
        entry = response.model_version_status.add(version=found.version, state=int(found.state))
        entry.status.SetInParent()
        entry.status.error_code = int(found.code)
        entry.status.error_message = found.message
    return bytes(response.SerializeToString())


def encode_status_body(statuses: Sequence[VersionStatus]) -> bytes:
    """Return the same as JSON."""
    return orjson.dumps(
        {
            "model_version_status": [
                {
                    "version": str(found.version),
                    "state": found.state.name,
                    "status": {"error_code": found.code.name, "error_message": found.message},
                }
                for found in statuses
            ]
        }
    )


def decode_reload(message: Buffer) -> Reload:
    """Return what a ``ReloadConfigRequest`` asks for.

    Raises:
        InvalidInput: it is malformed, has no list of models, or one twice.
    """
    request = parsed(messages.ReloadConfigRequest, message)
    if request.config.WhichOneof("config") != "model_config_list":
        raise InvalidInput(
            "the request has no model_config_list, which is all that can be reloaded"
        )
    models: dict[str, WantedModel] = {}
    for config in request.config.model_config_list.config:
        check_model(config.name)
        if config.name in models:
            raise InvalidInput(f"the model {config.name!r} is there twice; name it once")
        models[config.name] = WantedModel(
            config.name,
            config.base_path,
            _versions(config.model_version_policy),
            dict(config.version_labels),
        )
    return Reload(tuple(models.values()), tuple(request.metric_names))


def encode_reload(metrics: Sequence[str]) -> bytes:
    """Return the ``ReloadConfigResponse`` of a success; no metric of that name has grown."""
    response = messages.ReloadConfigResponse()
    response.status.SetInParent()
    for name in metrics:
        response.metric.add(name=name, int64_value_increase=0)
    return bytes(response.SerializeToString())


def _versions(policy: Any) -> str | tuple[int, ...] | int | None:
    choice = policy.WhichOneof("policy_choice")
    if choice is None:
        return None
    if choice == "all":
        return "all"
    chosen = getattr(policy, choice)
    if choice == "latest":
        return int(chosen.num_versions) or 1
    versions = tuple(sorted(set(chosen.versions)))
    if not versions or versions[0] < 1:
        raise InvalidInput(
            f"the specific versions are {shown(list(versions))}; name at least one, and only "
            "positive numbers"
        )
    return versions
