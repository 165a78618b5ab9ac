"""A request that kills its replica: two of them at worst, and innocent ones are never blamed."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests import models
from tests.node.harness import ServedNode
from tests.node.kill_replicas import ready_pids, replicas_of
from tests.node.traffic import Traffic, grpc_messages
from tidegate.node.quarantine import Quarantine
from tidegate.protocols.open_inference import MODEL_INFER
from tidegate.replica.engine import RequestSlot
from tidegate.replica.flight import Casualties, FlightRecorder, Suspect, tag
from tidegate.scheduling.slot import Slot
from tidegate.types import DType

POISON = -2
traps = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the model kills its process on x86-64 alone"
)


def first(name: bytes) -> Suspect:
    return Suspect(name, None)


def second(name: bytes, digest: bytes = b"\7" * 16) -> Suspect:
    return Suspect(name, digest)


def test_a_request_that_ran_as_two_replicas_died_is_guilty() -> None:
    quarantine = Quarantine()
    assert not quarantine.died([first(b"a"), first(b"b")])
    assert quarantine.died([second(b"a")])
    assert quarantine.digests == ("07" * 16,)


def test_the_second_death_may_be_noticed_first() -> None:
    quarantine = Quarantine()
    assert not quarantine.died([second(b"a")])
    assert quarantine.died([first(b"b"), first(b"a")])
    assert quarantine.digests == ("07" * 16,)


def test_the_second_run_alone_is_not_enough() -> None:
    """The first attempt waited in the queue, or never reached the replica."""
    quarantine = Quarantine()
    assert not quarantine.died([first(b"other")])
    assert not quarantine.died([second(b"a")])
    assert quarantine.digests == ()


def test_two_first_attempts_of_equal_requests_are_no_proof() -> None:
    quarantine = Quarantine()
    assert not quarantine.died([first(b"a"), first(b"b")])
    assert not quarantine.died([first(b"c"), first(b"d")])
    assert quarantine.digests == ()


def test_what_an_earlier_controller_knew_stays() -> None:
    quarantine = Quarantine(["aa", "bb"])
    quarantine.died([first(b"x")])
    assert quarantine.died([second(b"x")])
    assert quarantine.digests == ("aa", "bb", "07" * 16)


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 5), st.booleans()),
            max_size=3,
            unique_by=lambda suspect: suspect[0],
        ),
        max_size=12,
    )
)
def test_only_who_was_there_twice_is_guilty(deaths: list[list[tuple[int, bool]]]) -> None:
    quarantine = Quarantine()
    seen: set[int] = set()
    again: set[int] = set()
    guilty: set[str] = set()
    for suspects in deaths:
        again |= {i for i, retried in suspects if retried and i > 0}
        guilty |= {f"{i:02x}" * 16 for i, _ in suspects if i in seen and i in again}
        seen |= {i for i, _ in suspects}
        quarantine.died(
            [Suspect(b"%d" % i, bytes([i]) * 16 if r and i > 0 else None) for i, r in suspects]
        )
        assert set(quarantine.digests) == guilty
        assert len(set(quarantine.digests)) == len(quarantine.digests)


def test_it_forgets_the_oldest_rather_than_grow() -> None:
    quarantine = Quarantine()
    for number in range(600):
        name = b"%d" % number
        quarantine.died([first(name)])
        quarantine.died([second(name, number.to_bytes(16, "big"))])
    assert len(quarantine.digests) < 600
    assert quarantine.digests[-1] == (599).to_bytes(16, "big").hex()


def test_a_replica_knows_what_killed_another_one(tmp_path: Path) -> None:
    """By the other's recorder; not by its own, and not of what only waited there."""
    mine, other = tmp_path / "1.flight", tmp_path / "2.flight"
    casualties = Casualties(mine)
    assert b"\x01a" not in casualties
    for path, request in ((mine, b"mine"), (other, b"\x01a")):
        slot: RequestSlot = Slot(None, lambda _: None, arrived=0.0, tag=tag(request, None))  # type: ignore[arg-type]
        FlightRecorder(path).started([slot])
    assert b"\x01a" in casualties
    assert b"mine" not in casualties
    assert b"waited" not in casualties
    assert b"" not in casualties
    assert None not in casualties
    other.unlink()
    assert b"\x01a" not in casualties


def message(*values: int) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="deadly")
    request.inputs.add(name="x", datatype="INT32", shape=(len(values), 1))
    request.inputs[0].contents.int_contents.extend(values)
    encoded: bytes = request.SerializeToString()
    return encoded


async def call(node: ServedNode, request: bytes) -> tuple[str, str]:
    """The code and the message of one call."""
    async with grpc.aio.insecure_channel(node.target) as channel:
        try:
            await channel.unary_unary(MODEL_INFER)(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


async def deaths(node: ServedNode) -> int:
    return sum(replica["restarts"] for replica in await replicas_of(node))


async def until_ready(node: ServedNode, count: int) -> None:
    async with asyncio.timeout(60):
        while len(await ready_pids(node)) < count:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)


@traps
async def test_a_poisonous_request_kills_two_replicas_at_worst(tmp_path: Path) -> None:
    models.deadly(tmp_path / "deadly/1/model.onnx")
    (tmp_path / "deadly/model.yaml").write_text("replicas: 3\n")
    models.scale(tmp_path / "scale.onnx")
    async with ServedNode(tmp_path) as node:
        await until_ready(node, 4)
        async with Traffic(node, connections=1, in_flight=4, rest=1) as others:
            code, _ = await call(node, message(POISON))
            assert code == "UNAVAILABLE"
            assert await deaths(node) <= 2
            await node.until(lambda: "quarantined" in node.output)
            # Not before: a call that meets both of the dead is not tried a third time.
            await until_ready(node, 4)
            assert await call(node, message(5)) == ("OK", "")
            assert await deaths(node) == 2

            # Whichever replica it meets, the two that were started since included.
            for code, words in await asyncio.gather(
                *(call(node, message(POISON)) for _ in range(12))
            ):
                assert code == "FAILED_PRECONDITION"
                assert "not run again" in words
            assert await call(node, message(5)) == ("OK", "")
            assert await deaths(node) == 2
        assert others.failed == 0, others.failures

        # Another controller and another edge know it as well.
        node.kill_controller()
        await node.serve()
        assert (await call(node, message(POISON)))[0] == "FAILED_PRECONDITION"


@traps
async def test_neighbours_in_the_batch_are_not_blamed(tmp_path: Path) -> None:
    """A request that runs for the second time runs alone, so it alone is found beside the dead."""
    models.deadly(tmp_path / "deadly/1/model.onnx")
    (tmp_path / "deadly/model.yaml").write_text(
        "replicas: 2\nbatching: {max_queue_delay: 100ms, max_batch_size: 16}\n"
    )
    async with ServedNode(tmp_path) as node:
        await until_ready(node, 2)
        requests = [message(POISON), *(message(value) for value in range(1, 16))]
        await asyncio.gather(*(call(node, request) for request in requests))
        await node.until(lambda: "quarantined" in node.output)
        await until_ready(node, 2)
        assert (await call(node, requests[0]))[0] == "FAILED_PRECONDITION"
        assert await asyncio.gather(*(call(node, r) for r in requests[1:])) == [("OK", "")] * 15


@traps
async def test_over_rest_too(tmp_path: Path) -> None:
    models.deadly(tmp_path / "deadly/1/model.onnx")
    (tmp_path / "deadly/model.yaml").write_text("replicas: 2\n")
    models.identity(tmp_path / "robust.onnx", DType.INT32, ("batch", 1))
    async with ServedNode(tmp_path) as node:
        await until_ready(node, 3)
        body = b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1,1],"data":[%d]}]}'
        path = "/v2/models/deadly/infer"
        assert (await node.post(path, body % POISON))[0] == 503
        await node.until(lambda: "quarantined" in node.output)
        await until_ready(node, 3)
        for _ in range(4):
            status, answer = await node.post(path, body % POISON)
            assert status == 422
            assert b"not run again" in answer
        assert (await node.post(path, body % 3))[0] == 200
        assert await deaths(node) == 2
        # It is refused where it killed, and until that is mended.
        assert (await node.post("/v2/models/robust/infer", body % POISON))[0] == 200
        models.identity(tmp_path / "mended.onnx", DType.INT32, ("batch", 1)).replace(
            tmp_path / "deadly/1/model.onnx"
        )
        async with asyncio.timeout(60):
            while (await node.post(path, body % POISON))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_killing_both_replicas_of_equal_requests_blames_none(tmp_path: Path) -> None:
    models.scale(tmp_path / "scale/1/model.onnx")
    (tmp_path / "scale/model.yaml").write_text("replicas: 2\n")
    async with ServedNode(tmp_path) as node:
        await until_ready(node, 2)
        async with Traffic(node, connections=4, in_flight=16, rest=0, rows=1) as traffic:
            for victim in await ready_pids(node):
                os.kill(victim, signal.SIGKILL)
                await traffic.more(500)
            await until_ready(node, 2)
            await traffic.more(500)
        assert "FAILED_PRECONDITION" not in traffic.results[0].codes, traffic.failures
        assert await call(node, grpc_messages("scale")[0]) == ("OK", "")
        assert "quarantined" not in node.output


DEADLY_HOOK = """
import os
import signal

INPUT = OUTPUT = "text"

def preprocess(request):
    import numpy as np
    if request.text == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return np.ones((1, 4), np.float32)

def postprocess(request, outputs):
    return request.text
"""


async def test_a_request_that_kills_in_a_hook(tmp_path: Path) -> None:
    models.identity(tmp_path / "deadly/1/model.onnx")
    (tmp_path / "deadly/hooks.py").write_text(DEADLY_HOOK)
    (tmp_path / "deadly/model.yaml").write_text("replicas: 3\n")

    def text(value: str) -> bytes:
        request = service_pb2.ModelInferRequest(model_name="deadly")
        request.inputs.add(name="text", datatype="BYTES", shape=[1])
        request.inputs[0].contents.bytes_contents.append(value.encode())
        return bytes(request.SerializeToString())

    async with ServedNode(tmp_path) as node:
        await until_ready(node, 3)
        assert (await call(node, text("poison")))[0] == "UNAVAILABLE"
        await node.until(lambda: "quarantined" in node.output)
        await until_ready(node, 3)
        for _ in range(6):
            assert (await call(node, text("poison")))[0] == "FAILED_PRECONDITION"
        assert await call(node, text("other")) == ("OK", "")
        assert await deaths(node) == 2
