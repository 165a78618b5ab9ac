"""One scrape of a real node: its counts are those of the calls that were made."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import tritonclient.grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_parser
from prometheus_client.parser import text_string_to_metric_families as text_parser
from tritonclient.utils import InferenceServerException

from tests import models
from tests.node.harness import ServedNode, fetch
from tests.node.kill_replicas import ready_pids
from tests.node.traffic import ROWS, Traffic, rest_bodies, rest_path
from tidegate.telemetry import names

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("metrics")
    models.scale(root / "scale" / "1" / "model.onnx", 2.0)
    (root / "scale" / "model.yaml").write_text("replicas: 2\n")
    models.scale(root / "broken.onnx", 1.0)
    (root / "broken.onnx").write_bytes((root / "broken.onnx").read_bytes().replace(b"Mul", b"Mux"))
    async with ServedNode(root) as served:
        await both_ready(served)
        yield served


async def both_ready(node: ServedNode) -> None:
    async with asyncio.timeout(60):
        while len(await ready_pids(node)) < 2:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)


class Scrape:
    def __init__(self, families: list[Any]) -> None:
        self.samples = [sample for family in families for sample in family.samples]
        self.kinds = {family.name: family.type for family in families}

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the series with these labels."""
        found = [
            s.value
            for s in self.samples
            if s.name == f"tidegate_{name}" and labels.items() <= s.labels.items()
        ]
        assert found, f"no {name} {labels}"
        return float(sum(found))

    def has(self, name: str, **labels: str) -> bool:
        return any(
            s.name == f"tidegate_{name}" and labels.items() <= s.labels.items()
            for s in self.samples
        )


async def scrape(node: ServedNode) -> Scrape:
    status, body = await asyncio.to_thread(fetch, f"http://127.0.0.1:{node.admin_port}/metrics")
    assert status == 200, body
    return Scrape(list(text_parser(body.decode())))


async def test_a_fresh_scrape_has_every_metric_that_needs_no_call(node: ServedNode) -> None:
    found = await scrape(node)
    assert found("replicas", model="scale", state="ready") == 2
    assert found("models", state="ready") == 1
    assert found("models", state="not_ready") == 1
    assert found("edge_up") == 1
    assert found("build_info") == 1
    assert found("config_generation") >= 1
    assert found("config_rejected") == 0
    assert found("start_time_seconds") > 1.7e9
    for replica in ("0", "1"):
        assert found("replica_memory_bytes", model="scale", replica=replica) > 20 * 2**20
        assert found("queue_depth", model="scale", replica=replica) == 0
    assert found("replica_cpu_seconds_total", model="scale") > 0
    assert found("process_memory_bytes", process="controller") > 2**20
    assert found("process_memory_bytes", process="edge") > 2**20
    known = {metric.name.removesuffix("_total") for metric in names.METRICS}
    assert found.kinds.keys() <= known
    # What is missing is a gateway's, needs a GPU or TLS, or a call that went wrong somehow.
    others = (
        "gpu",
        "tidegate_endpoint",
        "tidegate_nodes",
        "tidegate_config_problem",
        "tidegate_edge_refused",
        "tidegate_edge_certificate",
    )
    assert {n for n in known - found.kinds.keys() if not any(each in n for each in others)} <= {
        "tidegate_unserved_requests"
    }


async def test_openmetrics_for_those_who_ask(node: ServedNode) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    url = f"http://127.0.0.1:{node.admin_port}/metrics"
    status, body = await asyncio.to_thread(fetch, url, None, accept)
    assert status == 200
    assert body.endswith(b"# EOF\n")
    families: Any = open_parser
    assert Scrape(list(families(body.decode())))("edge_up") == 1


async def test_counts_are_those_of_the_calls(node: ServedNode) -> None:
    before = await scrape(node)
    async with Traffic(node) as traffic:
        await traffic.more(1000)
    assert traffic.failed == 0, traffic.failures
    after = await scrape(node)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    grpc, rest = traffic.results
    version = {"model": "scale", "version": "1"}
    assert more("requests_total", protocol="grpc", code="OK", **version) == grpc.calls
    assert more("requests_total", protocol="rest", code="200", **version) == rest.calls
    for name in ("request_duration_seconds", "queue_duration_seconds"):
        assert more(f"{name}_count", **version) == traffic.calls
        assert more(f"{name}_bucket", le="+Inf", **version) == traffic.calls
        assert more(f"{name}_sum", **version) > 0
    # One row each.
    assert more("batch_size_sum", **version) == traffic.calls
    assert more("batch_size_count", **version) == more("compute_duration_seconds_count", **version)
    assert more("batch_size_count", **version) <= traffic.calls
    assert more("edge_requests_total", code_class="2xx") >= traffic.calls
    assert more("edge_received_bytes_total") > traffic.calls * 30


async def test_errors_are_counted_by_code(node: ServedNode) -> None:
    before = await scrape(node)
    path = rest_path("scale")
    assert (await node.post(path, b"{"))[0] == 400
    assert (await node.post(path, b'{"inputs": []}'))[0] == 400
    assert (await node.post(rest_path("nothing"), rest_bodies()[0]))[0] == 404
    assert (await node.post(rest_path("broken"), rest_bodies()[0]))[0] == 503
    with tritonclient.grpc.InferenceServerClient(node.target) as client:
        wrong = tritonclient.grpc.InferInput("other", [1, 4], "FP32")
        wrong.set_data_from_numpy(ROWS[:1])
        for model in ("scale", "broken"):
            with pytest.raises(InferenceServerException):
                await asyncio.to_thread(client.infer, model, [wrong])
    after = await scrape(node)
    assert after("requests_total", protocol="rest", code="400", model="scale") == 2
    assert after("requests_total", protocol="grpc", code="INVALID_ARGUMENT", model="scale") == 1
    assert after("unserved_requests_total", model="broken", protocol="rest") == 1
    assert after("unserved_requests_total", model="broken", protocol="grpc") == 1
    assert after("edge_unknown_models_total") - before("edge_unknown_models_total") == 1
    more = {
        kind: after("edge_requests_total", code_class=kind)
        - before("edge_requests_total", code_class=kind)
        for kind in ("4xx", "5xx")
    }
    assert more == {"4xx": 3, "5xx": 1}
    # A name that clients make up never becomes a label.
    assert not after.has("requests_total", model="nothing")
    assert not after.has("unserved_requests_total", model="nothing")


async def test_no_counter_falls_when_a_replica_dies(node: ServedNode) -> None:
    async with Traffic(node) as traffic:
        await traffic.more(500)
    before = await scrape(node)
    victim = (await ready_pids(node))[0]
    os.kill(victim, signal.SIGKILL)
    await node.until(lambda: "was killed by SIGKILL" in node.output)
    await both_ready(node)
    after = await scrape(node)
    assert after("replica_restarts_total", model="scale") == 1
    async with Traffic(node) as traffic:
        await traffic.more(200)
    last = await scrape(node)
    for older, newer in ((before, after), (after, last)):
        counters = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for s in newer.samples
            if s.name.endswith(("_total", "_count", "_bucket"))
        }
        for sample in older.samples:
            if sample.name.endswith(("_total", "_count", "_bucket")):
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert counters[key] >= sample.value, key
    total = last("requests_total", code="OK") - after("requests_total", code="OK")
    assert total == traffic.results[0].calls


async def test_a_version_that_was_drained_counts_to_its_last_call(node: ServedNode) -> None:
    """Nobody scraped between its last calls and its end."""
    before = await scrape(node)
    async with Traffic(node) as traffic:
        await traffic.more(300)
        models.scale(node.repository / "scale" / ".2" / "model.onnx", 3.0)
        (node.repository / "scale" / ".2").rename(node.repository / "scale" / "2")
        await traffic.until_answered_by(3.0)
        await node.until(lambda: "scale:1 draining" in node.output)
    assert traffic.failed == 0, traffic.failures
    async with asyncio.timeout(30):
        while node.replicas("scale", 1):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)
    counts = "requests_total", {"model": "scale", "version": "1"}
    async with asyncio.timeout(30):
        # The process has ended; its keeper reads what it left.
        while True:
            after = await scrape(node)
            ok = after(counts[0], code="OK", **counts[1]) - before(
                counts[0], code="OK", **counts[1]
            )
            new = after("requests_total", model="scale", version="2", code="OK")
            if ok + new == traffic.results[0].calls:
                break
            await asyncio.sleep(0.05)
    status = json.loads(
        (await asyncio.to_thread(fetch, f"http://127.0.0.1:{node.admin_port}/status"))[1]
    )
    assert [v["version"] for m in status["models"] for v in m["versions"]][-1] == 2


async def test_the_next_controller_goes_on_with_what_lives(node: ServedNode) -> None:
    before = await scrape(node)
    node.kill_controller()
    assert node.process is not None
    await node.process.wait()
    await node.serve()
    after = await scrape(node)
    version = {"model": "scale", "version": "2", "code": "OK"}
    assert after("requests_total", **version) == before("requests_total", **version) > 0
    assert after("start_time_seconds") > before("start_time_seconds")
    assert after("edge_requests_total") >= before("edge_requests_total")
