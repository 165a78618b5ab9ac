"""The REST calls of the protocol as an OpenAPI document.

Source: https://spec.openapis.org/oas/v3.1.0 and ``inference_rest.md`` of
https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tidegate.protocols.open_inference.tensors import DTYPES
from tidegate.protocols.routing import NAME_PATTERN, VERSION_PATTERN

Schema: TypeAlias = Mapping[str, object]
_TEXT: Schema = {"type": "string"}
_PARAMETERS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}
_DESCRIBED: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": _TEXT,
        "datatype": {"type": "string", "enum": list(DTYPES)},
        "shape": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "-1 for a dimension that differs from call to call",
        },
    },
}
_SCHEMAS: Mapping[str, Schema] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
    "ServerMetadata": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "version": _TEXT,
            "extensions": {"type": "array", "items": _TEXT},
        },
    },
    "ModelMetadata": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "versions": {"type": "array", "items": _TEXT},
            "platform": _TEXT,
            "inputs": {"type": "array", "items": _DESCRIBED},
            "outputs": {"type": "array", "items": _DESCRIBED},
        },
    },
    "Tensor": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": _TEXT,
            "datatype": {"type": "string", "enum": list(DTYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "parameters": _PARAMETERS,
            "data": {"type": "array", "description": "flat or nested; null stands for NaN"},
        },
    },
    "RequestedOutput": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": _TEXT, "parameters": _PARAMETERS},
    },
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/RequestedOutput"},
            },
        },
    },
    "InferResponse": {
        "type": "object",
        "properties": {
            "model_name": _TEXT,
            "model_version": _TEXT,
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
}
_FLAG: Schema = {"type": "boolean"}
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: ``takes`` and ``gives`` are the schemas of its bodies, empty for none."""

    method: str
    path: str
    summary: str
    gives: Schema
    takes: Schema


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def model_operations() -> list[Operation]:
    """Return the calls that the edge and the replicas answer."""
    ready: Schema = {"type": "object", "properties": {"name": _TEXT, "ready": _FLAG}}
    found = [
        Operation("GET", "/v2", "What the server is", _named("ServerMetadata"), {}),
        Operation(
            "GET", "/v2/health/live", "Whether the server runs",
            {"type": "object", "properties": {"live": _FLAG}}, {},
        ),
        Operation(
            "GET", "/v2/health/ready", "Whether all models that can be loaded are ready",
            {"type": "object", "properties": {"ready": _FLAG}}, {},
        ),
    ]  # fmt: skip
    for path, whose in ((_MODEL, "of a model"), (_VERSION, "of a version of a model")):
        found += [
            Operation("GET", path, f"The inputs and outputs {whose}", _named("ModelMetadata"), {}),
            Operation("GET", f"{path}/ready", f"The readiness {whose}", ready, {}),
            Operation(
                "GET", f"{path}/config", f"The configuration {whose}", {"type": "object"}, {}
            ),
            Operation(
                "POST", f"{path}/infer", f"Inference {whose}",
                _named("InferResponse"), _named("InferRequest"),
            ),
        ]  # fmt: skip
    return found


def inference_of(metadata: Mapping[str, Any]) -> Operation:
    """Return inference of the model with this metadata, as ``GET /v2/models/NAME`` gives it."""
    inputs = [_exactly(tensor) for tensor in metadata["inputs"]]
    takes: dict[str, object] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "inputs": {
                "type": "array",
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "items": {"oneOf": inputs} if inputs else {},
            },
            "outputs": {"type": "array", "items": _named("RequestedOutput")},
        },
    }
    outputs = ", ".join(tensor["name"] for tensor in metadata["outputs"])
    name = metadata["name"]
    return Operation(
        "POST", f"/v2/models/{name}/infer", f"Inference of {name}: {outputs}",
        _named("InferResponse"), takes,
    )  # fmt: skip


def document(
    title: str, version: str, operations: Iterable[Operation], models: Sequence[str]
) -> dict[str, Any]:
    """Return the document; ``models`` are the names that a path may have."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        found = paths.setdefault(operation.path, {})
        names = re.findall(r"\{(\w+)\}", operation.path)
        if names:
            found["parameters"] = [_parameter(name, models) for name in names]
        found[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": dict(_SCHEMAS)},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    written: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identity(operation),
        "responses": {
            "200": {"description": "done", "content": _json(operation.gives)},
            "default": {"description": "an error", "content": _json(_named("Error"))},
        },
    }
    if operation.takes:
        written["requestBody"] = {"content": _json(operation.takes)}
    return written


def _identity(operation: Operation) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{operation.method.lower()}{operation.path}").strip("_")


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": dict(schema)}}


def _parameter(name: str, models: Sequence[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name == "model":
        schema["pattern"] = f"^{NAME_PATTERN}$"
        if models:
            schema["enum"] = list(models)
    elif name == "version":
        schema["pattern"] = f"^{VERSION_PATTERN}$"
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _exactly(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of this very input."""
    sizes = [{"type": "integer", "minimum": 0} if d < 0 else {"const": d} for d in tensor["shape"]]
    shape: dict[str, object] = {"type": "array", "items": {"type": "integer"}}
    if sizes:
        shape = {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "items": False}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": tensor["name"]},
            "datatype": {"const": tensor["datatype"]},
            "shape": shape,
            "parameters": _PARAMETERS,
            "data": {"type": "array"},
        },
    }
