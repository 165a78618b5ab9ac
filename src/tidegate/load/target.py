"""What a server says of a model, asked over the protocol that will be measured."""

from __future__ import annotations

import asyncio
import http.client
import urllib.parse

from tidegate.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidAnswer,
    ServerUnreachable,
    TidegateError,
)
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load, split_target
from tidegate.protocols.open_inference import MODEL_METADATA, grpc_caller, rest_caller
from tidegate.protocols.statuses import GrpcCode, error_of_grpc, error_of_http
from tidegate.types import Signature

_TIMEOUT = 10.0
_LARGEST = 16 * 2**20


async def signature_of(target: str, model: str, version: str, *, grpc: bool) -> Signature:
    """Return the model's tensors as its metadata gives them.

    Raises:
        ConfigurationError: ``target`` is not ``HOST:PORT``.
        ServerUnreachable: nobody answers there.
        ConnectionLost: the server broke off.
        InvalidAnswer: what answers there does not speak the protocol.
        DeadlineExceeded: there was no answer in ten seconds.
        RequestError: the server says that something is wrong; ModelNotFound, as a rule.
    """
    if grpc:
        return await _over_grpc(target, model, version)
    return await asyncio.to_thread(_over_rest, target, model, version)


async def _over_grpc(target: str, model: str, version: str) -> Signature:
    kept: list[bytes] = []

    def keep(message: bytes) -> bool:
        kept.append(message)
        return True

    result = await grpc_load(
        target, MODEL_METADATA, grpc_caller.encode_model(model, version), connections=1,
        in_flight=1, calls=1, timeout=_TIMEOUT, check=keep,
    )  # fmt: skip
    if not kept:
        raise _refused(target, model, result)
    return grpc_caller.decode_model_metadata(kept[0]).signature


def _refused(target: str, model: str, result: Result) -> TidegateError:
    failure = result.failures[0]
    if not result.connections:
        return _unreachable(target, failure.message)
    if failure.code == GrpcCode.DEADLINE_EXCEEDED.name:
        return _late(target)
    known = failure.code in GrpcCode.__members__
    code = GrpcCode[failure.code] if known else GrpcCode.UNKNOWN
    words = failure.message or failure.code
    if code in (GrpcCode.UNIMPLEMENTED, GrpcCode.UNKNOWN):
        words += "; does it speak the Open Inference Protocol v2 over gRPC?"
    return error_of_grpc(code, f"{target} says of the model {model!r}: {words}")


def _over_rest(target: str, model: str, version: str) -> Signature:
    host, port = split_target(target)
    # No proxy: what is measured is the server itself.
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        try:
            connection.connect()
        except TimeoutError as error:
            raise _late(target) from error
        except OSError as error:
            raise _unreachable(target, str(error)) from error
        try:
            connection.request("GET", infer_path(model, version).removesuffix("/infer"))
            response = connection.getresponse()
            body = response.read(_LARGEST)
        except TimeoutError as error:
            raise _late(target) from error
        except OSError as error:
            raise ConnectionLost(f"{target} broke off: {error}") from error
        except http.client.HTTPException as error:
            fault = f"{type(error).__name__} {error}"
            raise InvalidAnswer(f"{target} does not speak HTTP: {fault}") from error
    finally:
        connection.close()
    if response.status >= 300:
        words = rest_caller.decode_error(body) or f"the HTTP status {response.status}"
        raise error_of_http(response.status, f"{target} says of the model {model!r}: {words}")
    return rest_caller.decode_model_metadata(body).signature


def _unreachable(target: str, reason: str) -> ServerUnreachable:
    return ServerUnreachable(
        f"nobody answers at {target}: {reason}; start a server, or name another HOST:PORT"
    )


def _late(target: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{target} did not answer within {_TIMEOUT:.0f} s")


def infer_path(model: str, version: str) -> str:
    """Return the URL path of a model's inference."""
    part = f"/versions/{urllib.parse.quote(version, safe='')}" if version else ""
    return f"/v2/models/{urllib.parse.quote(model, safe='')}{part}/infer"
