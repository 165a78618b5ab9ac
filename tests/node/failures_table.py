"""What every failure looks like over REST and over gRPC: ``python -m tests.node.failures_table``.

Each row provokes one failure of a real node, once through each transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np

from tests import models
from tests.node.harness import START, ServedNode
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import messages
from tidegate.replica.flight import read_suspects
from tidegate.replica.spec import ReplicaSpec
from tidegate.types import DType

LIMIT = 2**20
OPTIONS = ("--max-message-size", str(LIMIT))


@dataclass(frozen=True)
class Answer:
    """``code`` is an HTTP status or the name of a gRPC code."""

    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Client(Protocol):
    """What both transports can ask; ``value`` is the model's only input, ``[1, 1]``."""

    async def infer(
        self, model: str, value: float, *, version: str = "", timeout: float | None = None
    ) -> Answer: ...

    async def misshapen(self) -> Answer:
        """A tensor with a dimension too many for ``gather``."""

    async def malformed(self) -> Answer:
        """Bytes that are no request, for ``gather``."""

    async def unknown_method(self) -> Answer: ...

    async def large(self) -> Answer:
        """A message of more than :data:`LIMIT` bytes."""


def tensor_of(model: str, value: float) -> tuple[str, DType, np.ndarray[Any, Any]]:
    """The only input of one of the models that :func:`fill` writes."""
    if model == "hungry":
        return "count", DType.INT64, np.array([int(value)], np.int64)
    if model in ("gather", "victim"):
        return "index", DType.INT64, np.array([[int(value)]], np.int64)
    return "x", DType.FP32, np.array([[value]], np.float32)


class Rest:
    """Calls over REST, with JSON."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    async def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self._node.target, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            raw = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
        try:
            message = json.loads(raw).get("error", "")
        except ValueError:
            message = raw.decode("utf-8", "replace")
        return Answer(str(response.status), message, found)

    async def _infer(
        self, model: str, body: bytes, *, version: str = "", **headers: str
    ) -> Answer:
        versions = f"/versions/{version}" if version else ""
        return await self.ask("POST", f"/v2/models/{model}{versions}/infer", body, **headers)

    async def infer(
        self, model: str, value: float, *, version: str = "", timeout: float | None = None
    ) -> Answer:
        headers = {} if timeout is None else {"grpc_timeout": f"{timeout * 1000:.0f}m"}
        body = _json(*tensor_of(model, value))
        return await self._infer(model, body, version=version, **headers)

    async def misshapen(self) -> Answer:
        return await self._infer("gather", _json("index", DType.INT64, np.zeros((1, 1, 1), int)))

    async def malformed(self) -> Answer:
        return await self._infer("gather", b'{"inputs": [')

    async def unknown_method(self) -> Answer:
        return await self.ask("GET", "/v2/models/gather/nothing")

    async def large(self) -> Answer:
        return await self._infer("gather", b" " * (2 * LIMIT))


def _json(name: str, dtype: DType, array: np.ndarray[Any, Any]) -> bytes:
    tensor = {"name": name, "datatype": dtype.value, "shape": array.shape, "data": array.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


class Grpc:
    """Calls over gRPC, with raw contents."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def start(
        self, message: bytes, path: str = open_inference.MODEL_INFER, timeout: float | None = None
    ) -> Any:
        """Begin a call of raw bytes."""
        return self._channel.unary_unary(path)(message, timeout=timeout)

    async def ask(
        self, message: bytes, path: str = open_inference.MODEL_INFER, timeout: float | None = None
    ) -> Answer:
        return await outcome(self.start(message, path, timeout))

    async def infer(
        self, model: str, value: float, *, version: str = "", timeout: float | None = None
    ) -> Answer:
        return await self.ask(request(model, value, version), timeout=timeout)

    async def misshapen(self) -> Answer:
        return await self.ask(_message("gather", "", "index", DType.INT64, np.zeros((1, 1, 1))))

    async def malformed(self) -> Answer:
        # The name can be read, so that it comes to the model; an input's shape cannot.
        return await self.ask(b"\x0a\x06gather\x2a\x03\x1a\x01\xff")

    async def unknown_method(self) -> Answer:
        return await self.ask(b"", "/inference.GRPCInferenceService/ModelNothing")

    async def large(self) -> Answer:
        return await self.ask(_message("gather", "", "index", DType.INT64, np.zeros(LIMIT)))


async def outcome(call: Any) -> Answer:
    """Wait for a gRPC call."""
    try:
        await call
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
    except grpc.aio.AioRpcError:
        pass
    metadata = {str(k): str(v) for k, v in await call.trailing_metadata() or ()}
    return Answer((await call.code()).name, await call.details() or "", metadata)


def request(model: str, value: float, version: str = "") -> bytes:
    """A ``ModelInferRequest`` with the model's only input."""
    return _message(model, version, *tensor_of(model, value))


def _message(
    model: str, version: str, name: str, dtype: DType, array: np.ndarray[Any, Any]
) -> bytes:
    message = messages.ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=[{"name": name, "datatype": dtype.value, "shape": array.shape}],
        raw_input_contents=[array.astype(dtype.numpy).tobytes()],
    )
    return bytes(message.SerializeToString())


# -- the node -----------------------------------------------------------------------------------


def fill(root: Path) -> None:
    """Write the models that the rows need."""
    models.gather(root / "gather.onnx")
    models.gather(root / "victim.onnx")
    models.hungry(root / "hungry.onnx")
    slow = models.slow(root / "slow" / "1" / "model.onnx").read_bytes()
    for name, settings in (
        ("slow", "batching: {max_batch_size: 4}"),
        ("mortal", ""),
        ("hasty", "limits: {timeout: 150ms}"),
        ("narrow", "batching: {max_batch_size: 1, max_queue_size: 1}"),
    ):
        folder = root / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(slow)
        (root / name / "model.yaml").write_text(settings)
    (root / "text.onnx").write_text("these are no weights\n")
    (root / "lite.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(56))


@contextlib.asynccontextmanager
async def the_node() -> AsyncIterator[tuple[ServedNode, Rest, Grpc]]:
    """A node with all the models, and a client of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root)
        async with (
            ServedNode(root, *OPTIONS) as node,
            grpc.aio.insecure_channel(node.target) as channel,
        ):
            yield node, Rest(node), Grpc(channel)


def running(node: ServedNode, model: str) -> int:
    """How many requests the replicas of ``model`` are running, as their flight recorders say."""
    count = 0
    for file in (node.run_dir / str(node.port) / "r").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            spec = ReplicaSpec.model_validate_json(file.read_bytes())
            if spec.model == model:
                count += len(read_suspects(spec.flight))
    return count


async def state_of(node: ServedNode, model: str) -> dict[str, Any]:
    """The model's entry in ``/status``."""
    found: dict[str, Any] = next(m for m in (await node.status())["models"] if m["name"] == model)
    return found


async def until_state(
    node: ServedNode, model: str, wanted: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Wait until the model's entry in ``/status`` is as ``wanted``, and return it."""
    deadline = time.monotonic() + START
    while not wanted(found := await state_of(node, model)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found}; the node said:\n{node.output}")
        await asyncio.sleep(0.02)
    return found


def kill(node: ServedNode, model: str) -> None:
    """``kill -9`` all replicas of ``model``."""
    for pid in node.replicas(model):
        os.kill(pid, signal.SIGKILL)


# -- the rows -----------------------------------------------------------------------------------


async def _all_down(node: ServedNode, client: Client) -> Answer:
    (node.repository / "victim.onnx").write_text("no model any more\n")
    kill(node, "victim")
    await until_state(node, "victim", lambda m: "victim.onnx" in (m["reason"] or ""))
    return await client.infer("victim", 1)


async def _until_answered(client: Client, model: str) -> None:
    deadline = time.monotonic() + START
    while (answer := await client.infer(model, 0)).code not in ("200", "OK"):
        if time.monotonic() > deadline:
            raise TimeoutError(str(answer))
        await asyncio.sleep(0.02)


async def _just_died(node: ServedNode, client: Client) -> Answer:
    await _until_answered(client, "mortal")
    kill(node, "mortal")
    return await client.infer("mortal", 0)


async def _killed_under_way(node: ServedNode, client: Client) -> Answer:
    await _until_answered(client, "mortal")
    call = asyncio.create_task(client.infer("mortal", 5000))
    await node.until(lambda: running(node, "mortal"))
    kill(node, "mortal")
    return await call


async def _queue_full(node: ServedNode, client: Client) -> Answer:
    async with grpc.aio.insecure_channel(node.target) as channel:
        others = Grpc(channel)
        calls = [asyncio.create_task(others.infer("narrow", 600))]
        await node.until(lambda: running(node, "narrow"))
        calls += [asyncio.create_task(others.infer("narrow", 0)) for _ in range(3)]
        await node.until(lambda: any(call.done() for call in calls))
        answer = await client.infer("narrow", 0)
        assert sorted(c.code for c in await asyncio.gather(*calls))[:2] == ["OK", "OK"]
    return answer


async def _cancelled(node: ServedNode, client: Client) -> Answer:
    assert isinstance(client, Grpc)
    call = client.start(request("slow", 300))
    await node.until(lambda: running(node, "slow"))
    call.cancel()
    return await outcome(call)


async def _controller_away(node: ServedNode, client: Client) -> Answer:
    assert isinstance(client, Grpc)
    assert node.process is not None
    if node.process.returncode is None:
        node.kill_controller()
        await node.process.wait()
    return await client.ask(b"", open_inference.SERVER_LIVE)


@dataclass(frozen=True)
class Failure:
    """A way to fail, what comes of it, and a pattern that both messages match."""

    name: str
    provoke: Callable[[ServedNode, Client], Awaitable[Answer]]
    rest: str | None
    grpc: str
    words: str


def _infer(model: str, value: float, **options: Any) -> Callable[..., Awaitable[Answer]]:
    return lambda node, client: client.infer(model, value, **options)


FAILURES = (
    Failure(
        "the model raises", _infer("gather", 9), "500", "INTERNAL",
        r"Gather node.*idx=9 must be within the inclusive range \[-4,3\]",
    ),
    Failure(
        "its answer does not fit in memory", _infer("hungry", 10**12), "503", "UNAVAILABLE",
        r"(?i)failed to allocate memory",
    ),
    Failure(
        "not a message", lambda node, client: client.malformed(), "400", "INVALID_ARGUMENT",
        r"the body is not JSON|is not a valid inference\.ModelInferRequest",
    ),
    Failure(
        "a wrong shape", lambda node, client: client.misshapen(), "400", "INVALID_ARGUMENT",
        r"the input 'index' must have 2 dimensions, as \[batch,1\], not 3",
    ),
    Failure(
        "unknown model", _infer("nobody", 0), "404", "NOT_FOUND",
        r"^model/nobody is not served here$",
    ),
    Failure(
        "unknown version", _infer("gather", 0, version="7"), "404", "NOT_FOUND",
        r"^model/gather:7 is not served here$",
    ),
    Failure(
        "unknown method", lambda node, client: client.unknown_method(), "404", "UNIMPLEMENTED",
        r"a model has no 'nothing'|there is no method /inference.*/ModelNothing here",
    ),
    Failure(
        "a broken model", _infer("text", 0), "503", "UNAVAILABLE",
        r"^model 'text' is not ready: text\.onnx is not a model: it seems to be text, which "
        r"begins 'these are no weights'$",
    ),
    Failure(
        "a format without a runtime", _infer("lite", 0), "503", "UNAVAILABLE",
        r"^model 'lite' is not ready: lite\.tflite is a TensorFlow Lite model, which is not "
        r"served by this version of Tidegate; serve the SavedModel it was made from$",
    ),
    Failure(
        "the caller's deadline", _infer("slow", 400, timeout=0.15), "504", "DEADLINE_EXCEEDED",
        r"(?i)no answer (within the deadline|of model/slow in the time)|deadline exceeded"
        r"|ms are left, but the model takes about",
    ),
    Failure(
        "the model's limits.timeout", _infer("hasty", 400), "504", "DEADLINE_EXCEEDED",
        r"^no answer within the deadline|ms are left, but the model takes about",
    ),
    Failure(
        "message over the limit", lambda node, client: client.large(), "413",
        "RESOURCE_EXHAUSTED", rf"larger than the limit of {LIMIT} bytes",
    ),
    Failure(
        "queue full", _queue_full, "429", "RESOURCE_EXHAUSTED",
        r"^1 requests are waiting, which is the limit \(batching\.max_queue_size\)",
    ),
    Failure(
        "the only replica has just died", _just_died, "503", "UNAVAILABLE",
        r"^model/mortal (broke off|cannot be reached)|^model 'mortal' is not ready: it is being",
    ),
    Failure(
        "the only replica dies with the request", _killed_under_way, "503", "UNAVAILABLE",
        r"^model/mortal (broke off|cannot be reached)|^model 'mortal' is not ready: it is being",
    ),
    Failure(
        "all replicas down", _all_down, "503", "UNAVAILABLE",
        r"^model 'victim' is not ready: onnxruntime [\d.]+ refuses victim\.onnx",
    ),
    Failure("the client cancels", _cancelled, None, "CANCELLED", r""),
    Failure(
        "server-level call, controller away", _controller_away, None, "UNAVAILABLE",
        r"tidegate/controller|cannot be reached",
    ),
)  # fmt: skip
"""The last one costs the node its controller."""


def check(failure: Failure, transport: str, answer: Answer) -> None:
    """Compare with what is promised."""
    wanted = failure.rest if transport == "REST" else failure.grpc
    assert answer.code == wanted, answer
    assert re.search(failure.words, answer.message), answer


async def print_table() -> None:
    """Provoke everything once and print what came."""
    async with the_node() as (node, rest, rpc):
        print(f"{'failure':40} {'REST':5} {'gRPC':19} message")
        for failure in FAILURES:
            found = [await failure.provoke(node, rest)] if failure.rest else []
            found.append(await failure.provoke(node, rpc))
            codes = f"{found[0].code if failure.rest else '—':5} {found[-1].code:19}"
            said = list(dict.fromkeys(answer.message for answer in found))
            notes = [f"Retry-After: {a.headers[n]}" for a in found for n in a.headers
                     if n == "retry-after"]  # fmt: skip
            lines = [line for text in (*said, *notes) for line in textwrap.wrap(text, 90)]
            for index, line in enumerate(lines or [""]):
                print(f"{failure.name:40} {codes} {line}" if not index else " " * 67 + line)


if __name__ == "__main__":
    asyncio.run(print_table())
