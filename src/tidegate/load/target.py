"""What a server says of a model, asked over the protocol that will be measured."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.parse
from typing import Any

from tidegate.errors import (
    DeadlineExceeded,
    MethodNotFound,
    ModelNotFound,
    ModelNotReady,
    NodeNotFound,
    RequestError,
)
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load, split_target
from tidegate.protocols.open_inference import MODEL_METADATA, messages
from tidegate.protocols.open_inference.tensors import DTYPES
from tidegate.types import Signature, TensorSpec

_TIMEOUT = 10.0
_LARGEST = 16 * 2**20


async def signature_of(target: str, model: str, version: str, *, grpc: bool) -> Signature:
    """Return the model's tensors as its metadata gives them; a dimension of -1 is ``None``.

    Raises:
        ConfigurationError: ``target`` is not ``HOST:PORT``.
        NodeNotFound: nothing there speaks the protocol, or nothing is there.
        ModelNotFound: the server does not know the model.
        ModelNotReady: the server cannot say now.
        DeadlineExceeded: there was no answer in ten seconds.
        RequestError: it answers with another error.
    """
    if grpc:
        return await _over_grpc(target, model, version)
    return await asyncio.to_thread(_over_rest, target, model, version)


async def _over_grpc(target: str, model: str, version: str) -> Signature:
    kept: list[bytes] = []

    def keep(message: bytes) -> bool:
        kept.append(message)
        return True

    # A request for metadata has the fields of one for readiness: name and version.
    question = messages.ModelReadyRequest(name=model, version=version).SerializeToString()
    result = await grpc_load(
        target, MODEL_METADATA, question, connections=1, in_flight=1, calls=1,
        timeout=_TIMEOUT, check=keep,
    )  # fmt: skip
    if not kept:
        raise _refused(target, model, result)
    try:
        answer = messages.ModelMetadataResponse.FromString(kept[0])
    except Exception as error:
        raise NodeNotFound(
            f"what answers at {target} does not speak the Open Inference Protocol: {error}"
        ) from error
    return Signature(
        tuple(_spec(t.name, t.datatype, list(t.shape)) for t in answer.inputs),
        tuple(_spec(t.name, t.datatype, list(t.shape)) for t in answer.outputs),
    )


def _refused(target: str, model: str, result: Result) -> Exception:
    failure = result.failures[0]
    words = f"{failure.code}: {failure.message}"
    if not result.connections:
        return _unreachable(target, failure.message)
    if failure.code == "NOT_FOUND":
        return ModelNotFound(f"the server at {target} does not know {model!r}: {failure.message}")
    if failure.code == "UNAVAILABLE":
        return ModelNotReady(f"the server at {target} cannot answer for {model!r} now: {words}")
    if failure.code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"{target} did not answer within {_TIMEOUT:.0f} s")
    if failure.code in ("UNIMPLEMENTED", "UNKNOWN"):
        return MethodNotFound(
            f"{target} does not speak the Open Inference Protocol over gRPC: {words}"
        )
    return RequestError(f"{target} refused to describe {model!r}: {words}")


def _unreachable(target: str, reason: str) -> NodeNotFound:
    return NodeNotFound(
        f"nothing answers at {target}: {reason}; start a server, or name another HOST:PORT"
    )


def _over_rest(target: str, model: str, version: str) -> Signature:
    host, port = split_target(target)
    path = infer_path(model, version).removesuffix("/infer")
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(_LARGEST)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{target} did not answer within {_TIMEOUT:.0f} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(target, str(error) or type(error).__name__) from error
    finally:
        connection.close()
    words = f"{response.status} {body[:300].decode(errors='replace')}"
    if response.status == 404:
        raise ModelNotFound(f"the server at {target} does not know {model!r}: {words}")
    if response.status == 503:
        raise ModelNotReady(f"the server at {target} cannot answer for {model!r} now: {words}")
    if response.status != 200:
        raise RequestError(f"{target} refused to describe {model!r}: {words}")
    try:
        found = json.loads(body)
        inputs, outputs = (_specs(found.get(role) or []) for role in ("inputs", "outputs"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MethodNotFound(
            f"what answers at {target} does not speak the Open Inference Protocol: {words}"
        ) from error
    return Signature(inputs, outputs)


def infer_path(model: str, version: str) -> str:
    """Return the URL path of a model's inference."""
    part = f"/versions/{urllib.parse.quote(version, safe='')}" if version else ""
    return f"/v2/models/{urllib.parse.quote(model, safe='')}{part}/infer"


def _specs(found: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(item["name"], item["datatype"], item["shape"]) for item in found)


def _spec(name: str, datatype: str, shape: list[int]) -> TensorSpec:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise RequestError(f"the tensor {name!r} has the datatype {datatype!r}, which is unknown")
    return TensorSpec(name, dtype, tuple(None if d < 0 else d for d in map(int, shape)))
