"""A replica's request path around a real model, listening on a real socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.replica.edge_client import EdgeClient
from tidegate.clock import MonotonicClock
from tidegate.protocols.dialect import Dialect
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.model_config import ModelConfiguration
from tidegate.replica.binding import Bound, binding
from tidegate.replica.engine import Answer, Engine
from tidegate.replica.flight import Casualties, FlightRecorder, SharedRecorder
from tidegate.replica.hook_threads import HookThreads
from tidegate.replica.hooked import Around, HookedService
from tidegate.replica.hooks import Functions
from tidegate.replica.http import Server
from tidegate.replica.loading import with_hooks
from tidegate.replica.service import Served, Service
from tidegate.replica.spec import Ready
from tidegate.replica.tracing import Tracer
from tidegate.runtimes.interface import Model
from tidegate.scheduling.batcher import Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.types import Array, DType, ModelMetadata

MESSAGE_LIMIT = 2**20
INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = "/inference.GRPCInferenceService/ModelReady"
METADATA = "/inference.GRPCInferenceService/ModelMetadata"


class Replica:
    """What a test can reach of it."""

    def __init__(self, socket: Path, engine: Engine, service: Service) -> None:
        self.socket = socket
        self.engine = engine
        self.service = service


@contextlib.asynccontextmanager
async def serving(
    model: Model,
    folder: Path,
    *,
    batched: bool = True,
    timeout: float | None = None,
    tracer: Tracer | None = None,
    dialects: Sequence[Dialect] = (),
    functions: Functions | None = None,
    threads: int = 2,
    **limits: Any,
) -> AsyncIterator[Replica]:
    clock, latency = MonotonicClock(), LatencyModel()
    bounds = BatcherLimits(**limits)
    loaded = with_hooks(model, functions)
    pool = HookThreads(threads)
    behind = bounds if functions is None else pool.behind(bounds)
    batcher: Batcher[Bound, Answer] = Batcher(behind, latency)
    model = loaded.model
    recorder = SharedRecorder(FlightRecorder(folder / "flight"))
    engine = Engine(loaded.runner(clock.now), batcher, latency, clock, recorder)
    served = Served(
        configuration=ModelConfiguration(
            metadata=ModelMetadata("m", ("2",), model.platform, loaded.public, model.signatures),
            backend="fake",
            device=model.device,
            replicas=1,
            max_batch_size=8 if batched else 0,
            max_queue_delay=0.0,
            max_queue_size=1024,
            timeout=timeout,
            versions=1,
        ),
        version="2",
        binder=binding(model.signatures, dict.fromkeys(model.signatures, batched)),
        max_message_size=MESSAGE_LIMIT,
    )
    ready = Ready(
        pid=1, platform="p", device="cpu", batching=batched, max_batch_size=8, seconds=0.5
    )
    hooks = loaded.hooks(served.binder)
    if hooks is None:
        service = Service(served, engine, clock, ready, tracer=tracer, dialects=dialects)
    else:
        around = Around(hooks, pool, recorder, bounds.max_queue_size, bounds.max_queue_bytes)
        dead = Casualties(folder / "flight")
        service = HookedService(
            served, engine, around, clock, ready, dead, tracer=tracer, dialects=dialects
        )
        pool.start()
    handler = service.handle if tracer is None else service.handle_traced
    async with engine, Server(folder / "s", handler, MESSAGE_LIMIT + 5):
        yield Replica(folder / "s", engine, service)
    pool.stop()


def infer_request(
    inputs: Mapping[str, Array], *, model: str = "m", version: str = "", request_id: str = ""
) -> bytes:
    message = messages.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, array in inputs.items():
        datatype = DType.of(array.dtype).value
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if datatype == "BYTES":
            elements = array.reshape(-1).tolist()
            raw = b"".join(len(e).to_bytes(4, "little") + e for e in elements)
        else:
            raw = array.tobytes()
        message.raw_input_contents.append(raw)
    return bytes(message.SerializeToString())


def outputs_of(message: bytes) -> dict[str, Array]:
    response = messages.ModelInferResponse.FromString(message)
    return {
        output.name: np.frombuffer(raw, DType(output.datatype).numpy).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents)
    }


async def fails_alone(socket: Path, request: tuple[str, int], output: str, words: str) -> None:
    """See that a request that takes too much memory fails, and those after it do not.

    ``request`` names the input that says how many elements the ``output`` is to have, and how
    many are too many.
    """
    name, too_many = request
    async with EdgeClient(socket) as client:
        for _ in range(2):
            large = infer_request({name: np.array([too_many], np.int64)})
            reply = await client.grpc(INFER, large)
            assert reply.grpc_status == 14
            assert words in reply.grpc_message
            small = infer_request({name: np.array([3], np.int64)})
            reply = await client.grpc(INFER, small)
            assert outputs_of(reply.message)[output].tolist() == [0, 0, 0]
