"""What a controller answers behind the edge.

Calls about the whole server, and why a model that is asked for is not served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from tidegate import __version__
from tidegate.controller.server_calls import Call, Extension, ServerCalls
from tidegate.edge.names import CLUSTER_HEADER, MODEL_PREFIX, SOLE, TASK_PREFIX
from tidegate.errors import (
    InferenceFailed,
    InvalidInput,
    MessageTooLarge,
    MethodNotFound,
    ModelNotFound,
    TidegateError,
)
from tidegate.protocols import open_inference
from tidegate.protocols.grpc_frames import unframe
from tidegate.protocols.open_inference import metadata as metadata_codec
from tidegate.protocols.open_inference.documents import LARGEST
from tidegate.replica.dialects import send
from tidegate.replica.exchange import Exchange

log = logging.getLogger(__name__)

NAME = "tidegate"
_REPLICAS = ("binary_tensor_data", "model_configuration", "schedule_policy")
"""The extensions that are answered by replicas alone."""
_HEADER = CLUSTER_HEADER.encode()


def extension_names(extensions: Sequence[Extension]) -> tuple[str, ...]:
    """Return what the server's metadata names."""
    return (*_REPLICAS, *(name for extension in extensions for name in extension.names))


def server_metadata(names: Sequence[str]) -> bytes:
    """Return the answer of ``GET /v2``."""
    return metadata_codec.encode_server_metadata_body(NAME, __version__, names)


def server_extension(ready: Callable[[], bool], names: Callable[[], Sequence[str]]) -> Extension:
    """Return the calls that every server of the protocol has, over gRPC.

    The edge answers them itself over REST.
    """

    async def live(call: Call) -> bytes:
        return metadata_codec.encode_server_live(True)

    async def server_ready(call: Call) -> bytes:
        return metadata_codec.encode_server_ready(ready())

    async def metadata(call: Call) -> bytes:
        return metadata_codec.encode_server_metadata(NAME, __version__, names())

    return Extension(
        methods={
            open_inference.SERVER_LIVE: live,
            open_inference.SERVER_READY: server_ready,
            open_inference.SERVER_METADATA: metadata,
        }
    )


def why_nobody(cluster: str, models: Collection[str], advice: str) -> Exception:
    """Return why a call that names no model, or a task, leads nowhere.

    ``cluster`` is as the edge names it; ``advice`` says how to give the task ``{task}`` a model.
    """
    if cluster == SOLE:
        named = sorted(models)
        listed = ", ".join(named[:8]) + (", …" if len(named) > 8 else "")
        return InvalidInput(
            f"the call names no model, and there are {len(named)} here: name one of {listed}"
            if named
            else "there is no model here"
        )
    task, _, name = cluster.removeprefix(TASK_PREFIX).partition("/")
    model = f" and no model {name!r}" if name else ""
    return ModelNotFound(f"no model has the task {task}{model} here: {advice.format(task=task)}")


class ControllerApi:
    """Answers exchanges: calls about the whole server, and those of models that nobody serves.

    ``why`` says why a call that names a cluster of the edge's (see :mod:`tidegate.edge.names`),
    in gRPC or REST, is not served.
    """

    def __init__(self, calls: ServerCalls, why: Callable[[str, bool], Exception]) -> None:
        self._calls = calls
        self._why = why
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        """Answer ``exchange``, now or later."""
        if self._explained(exchange):
            return
        answer = self._answer_grpc(exchange) if exchange.grpc else self._answer_rest(exchange)
        task = asyncio.create_task(_guarded(exchange, answer))
        exchange.on_gone = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refuse(self, exchange: Exchange, error: BaseException) -> None:
        """Answer a call whose body is larger than ``LARGEST``, and was dropped."""
        if not self._explained(exchange):
            exchange.fail(MessageTooLarge(f"the body is larger than {LARGEST} bytes; send less"))

    def _explained(self, exchange: Exchange) -> bool:
        """Answer why nobody serves a call for a model, if it is one, whatever its body is."""
        cluster = exchange.headers.get(_HEADER, b"").decode("latin-1")
        if not cluster.startswith((MODEL_PREFIX, SOLE, TASK_PREFIX)):
            return False
        reason = self._why(cluster, exchange.grpc)
        if exchange.grpc and exchange.path == open_inference.MODEL_READY:
            exchange.reply_grpc((metadata_codec.encode_model_ready(False),))
        else:
            exchange.fail(reason)
        return True

    async def _answer_grpc(self, exchange: Exchange) -> None:
        path = exchange.path
        if not self._calls.has_method(path):
            raise MethodNotFound(f"there is no method {path} here")
        message = bytes(unframe(exchange.body, LARGEST, exchange.head.encoding))
        exchange.reply_grpc((await self._calls.answer_method(path, message, trusted=False),))

    async def _answer_rest(self, exchange: Exchange) -> None:
        method = exchange.method.decode("latin-1")
        accept = exchange.headers.get(b"accept", b"")
        reply = await self._calls.answer_path(
            method, exchange.path, exchange.body, trusted=False, accept=accept
        )
        send(exchange, reply)


async def _guarded(exchange: Exchange, answer: Coroutine[Any, Any, None]) -> None:
    try:
        await answer
    except TidegateError as error:
        exchange.fail(error)
    except Exception as error:
        log.exception("a call to the server failed by a fault of its own")
        exchange.fail(InferenceFailed(f"internal error: {type(error).__name__}: {error}"))
