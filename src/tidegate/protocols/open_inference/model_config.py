"""The model configuration extension: what a server does with a model.

Source: ``extension_model_configuration.md`` of Triton's protocol documents, and its
``model_config.proto``, of which the fields are given that say something true here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.schedule_policy import DEFAULT_PRIORITY, PRIORITY_LEVELS
from tidegate.types import DType, ModelMetadata, TensorSpec


@dataclass(frozen=True, slots=True)
class ModelConfiguration:
    """What is served of a model, and how.

    ``max_batch_size`` is 0 for a model whose requests run alone. ``versions`` is the policy: the
    newest so many, exactly these, or ``None`` for all. Times are seconds.
    """

    metadata: ModelMetadata
    backend: str
    device: str
    replicas: int
    max_batch_size: int
    max_queue_delay: float
    max_queue_size: int
    timeout: float | None
    versions: int | tuple[int, ...] | None


def encode_model_config_body(configuration: ModelConfiguration) -> bytes:
    """Return the JSON form of a ``ModelConfig``."""
    return orjson.dumps(_described(configuration))


def encode_model_config(configuration: ModelConfiguration) -> bytes:
    """Return a ``ModelConfigResponse``."""
    message = messages.ModelConfigResponse(config=_described(configuration))
    return bytes(message.SerializeToString())


def _described(configuration: ModelConfiguration) -> dict[str, Any]:
    """Return the fields of the message, by their names."""
    metadata = configuration.metadata
    batched = configuration.max_batch_size > 0

    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {
                "name": spec.name,
                "data_type": _data_type(spec.dtype),
                "dims": list(spec.wire_shape[1:] if batched else spec.wire_shape),
            }
            for spec in specs
        ]

    described: dict[str, Any] = {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": configuration.backend,
        "version_policy": _version_policy(configuration.versions),
        "max_batch_size": configuration.max_batch_size,
        "input": tensors(metadata.signature.inputs),
        "output": tensors(metadata.signature.outputs),
        "instance_group": [_instances(configuration)],
        "model_transaction_policy": {"decoupled": False},
    }
    if batched:
        described["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(configuration.max_queue_delay * 1e6),
            "preserve_ordering": False,
            "priority_levels": PRIORITY_LEVELS,
            "default_priority_level": DEFAULT_PRIORITY,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round((configuration.timeout or 0) * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": configuration.max_queue_size,
            },
        }
    return described


def _data_type(dtype: DType) -> str:
    return "TYPE_STRING" if dtype is DType.BYTES else f"TYPE_{dtype.value}"


def _version_policy(versions: int | tuple[int, ...] | None) -> dict[str, Any]:
    if versions is None:
        return {"all": {}}
    if isinstance(versions, int):
        return {"latest": {"num_versions": versions}}
    return {"specific": {"versions": list(versions)}}


def _instances(configuration: ModelConfiguration) -> dict[str, Any]:
    kind, _, number = configuration.device.partition(":")
    gpu = kind != "cpu"
    return {
        "name": f"{configuration.metadata.name}_0",
        "kind": "KIND_GPU" if gpu else "KIND_CPU",
        "count": configuration.replicas,
        "gpus": [int(number or 0)] if gpu else [],
    }
