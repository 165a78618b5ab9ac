"""Load on a node whose answers are read: which factor of the model ``scale`` gave each."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

from tests.node.harness import ServedNode
from tidegate.load.driver import Driver, Lane, Result
from tidegate.load.generator import grpc_load, rest_load
from tidegate.load.http1 import RestConnection, connect_rest, encode_request
from tidegate.load.http2 import GrpcConnection, connect_grpc
from tidegate.load.request_fields import Plan
from tidegate.protocols.open_inference import MODEL_INFER

ROWS = np.arange(1, 65, dtype=np.float32).reshape(16, 4)
MINUTE = 60.0


def grpc_messages(model: str, version: str = "") -> list[bytes]:
    """``ModelInfer`` requests, a row of four numbers each."""
    encoded = []
    for row in ROWS:
        request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="x", datatype="FP32", shape=(1, 4))
        request.raw_input_contents.append(row.tobytes())
        encoded.append(request.SerializeToString())
    return encoded


def rest_bodies() -> list[bytes]:
    """The same rows in JSON."""
    return [
        orjson.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": row.tolist()}]}
        )
        for row in ROWS
    ]


def rest_path(model: str, version: str = "") -> str:
    """Where to POST them."""
    return f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"


def _grpc_values(message: bytes) -> Sequence[float]:
    raw = service_pb2.ModelInferResponse.FromString(message).raw_output_contents[0]
    values: list[float] = np.frombuffer(raw, np.float32).tolist()
    return values


def _rest_values(body: bytes) -> Sequence[float]:
    values: list[float] = orjson.loads(body)["outputs"][0]["data"]
    return values


class Answers:
    """What was answered: how often each factor, in the order of their first appearance."""

    def __init__(self) -> None:
        self.factors: Counter[float] = Counter()
        self.total = 0
        self.last: float | None = None
        self.order: list[float] = []
        """The factors as they followed one another: one that comes again is there again."""
        self.longest_gap = 0.0
        self._at = time.monotonic()
        self._known: dict[bytes, float] = {}

    def note(self, body: bytes, values: Callable[[bytes], Sequence[float]]) -> bool:
        """Take the body of a success; whether it is one row times one factor."""
        factor = self._known.get(body)
        if factor is None:
            got = values(body)
            # The numbers of a row are consecutive, so their distance is the factor.
            factor = float(got[1] - got[0])
            row = np.asarray(got) / np.float32(factor)
            if not (row == ROWS).all(axis=1).any():
                return False
            self._known[body] = factor
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - self._at)
        self._at = now
        self.factors[factor] += 1
        self.total += 1
        if factor != self.last:
            self.order.append(factor)
            self.last = factor
        return True


class Traffic:
    """A closed loop over gRPC and one over REST, from ``async with`` to its end.

    At the end ``results`` hold what became of the calls; :meth:`failed` counts those that
    failed or were answered with wrong numbers.
    """

    def __init__(
        self,
        node: ServedNode,
        model: str = "scale",
        version: str = "",
        *,
        connections: int = 4,
        in_flight: int = 8,
        rest: int = 8,
        rows: int = len(ROWS),
    ) -> None:
        self.answers = Answers()
        self.results: list[Result] = []
        self._stop = asyncio.Event()
        self._node = node
        check = functools.partial(self.answers.note, values=_grpc_values)
        self._loads: list[Callable[[], Awaitable[Result]]] = [
            functools.partial(
                grpc_load, node.target, MODEL_INFER, grpc_messages(model, version)[:rows],
                connections=connections, in_flight=in_flight, until=self._stop, check=check,
                timeout=MINUTE / 2,
            )
        ]  # fmt: skip
        if rest:
            check = functools.partial(self.answers.note, values=_rest_values)
            self._loads.append(
                functools.partial(
                    rest_load, node.target, rest_path(model, version), rest_bodies()[:rows],
                    connections=rest, until=self._stop, check=check, timeout=MINUTE / 2,
                )
            )  # fmt: skip

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.ensure_future(load()) for load in self._loads]
        await self.more(200)
        return self

    async def more(self, count: int) -> None:
        """Wait until so many more calls were answered."""
        goal = self.answers.total + count
        await self._node.until(lambda: self.answers.total >= goal, MINUTE)

    async def reaches(self, count: int) -> None:
        """Wait until ``count`` calls were answered since the start."""
        await self._node.until(lambda: self.answers.total >= count, 5 * MINUTE)

    async def until_answered_by(self, factor: float) -> None:
        """Wait until the newest answer is of this factor."""
        await self._node.until(lambda: self.answers.last == factor, MINUTE)

    async def __aexit__(self, *exc: object) -> None:
        self._stop.set()
        self.results = await asyncio.gather(*self._tasks)

    @property
    def calls(self) -> int:
        """How many calls ended."""
        return sum(result.calls for result in self.results)

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(result.failed for result in self.results)

    @property
    def failures(self) -> str:
        """What went wrong, for an assertion."""
        return "\n".join(f"{result} {result.failures}" for result in self.results if result.failed)


class Guests:
    """Callers that leave when they are told to: each connection's loop ends with it.

    gRPC tells by GOAWAY, HTTP/1.1 by ``connection: close``. What was sent before that must be
    answered, so any failure is the server's fault.
    """

    def __init__(self, node: ServedNode, model: str = "scale", *, grpc: int = 6, rest: int = 6):
        host, port = "127.0.0.1", node.port
        self.answers = Answers()
        self._node = node
        plan = Plan.of(node.target, MODEL_INFER, grpc_messages(model), {})
        path = rest_path(model)
        requests = [encode_request("POST", node.target, path, b, {}) for b in rest_bodies()]
        self._drivers: list[Driver] = []
        self._loads: list[Callable[[], Awaitable[Result]]] = []
        for _ in range(grpc):
            self._add(functools.partial(connect_grpc, host, port, plan), 8, _grpc_values)
        for _ in range(rest):
            self._add(functools.partial(connect_rest, host, port, requests), 1, _rest_values)

    def _add(
        self,
        connect: Callable[[Lane], Awaitable[GrpcConnection | RestConnection]],
        in_flight: int,
        values: Callable[[bytes], Sequence[float]],
    ) -> None:
        check = functools.partial(self.answers.note, values=values)
        driver = Driver(None, len(ROWS), check)

        async def connect_once(lane: Lane) -> GrpcConnection | RestConnection:
            connection = await connect(lane)
            connection.gone.add_done_callback(lambda _: driver.stop())
            return connection

        self._drivers.append(driver)
        self._loads.append(
            functools.partial(driver.run, connect_once, 1, in_flight, None, None, MINUTE / 2)
        )

    async def __aenter__(self) -> Guests:
        self._tasks = [asyncio.ensure_future(load()) for load in self._loads]
        await self._node.until(lambda: self.answers.total >= 200, MINUTE)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Wait until all have left."""
        if exc[0] is not None:
            for driver in self._drivers:
                driver.stop()
        self.results = await asyncio.gather(*self._tasks)

    @property
    def failed(self) -> int:
        """How many of their calls failed."""
        return sum(result.failed for result in self.results)

    @property
    def failures(self) -> str:
        """What went wrong, for an assertion."""
        return "\n".join(f"{result} {result.failures}" for result in self.results if result.failed)
