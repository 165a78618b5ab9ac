"""Every protocol through a real gateway to a real node, with the clients of these protocols."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from tests import models
from tests.gateway.harness import ServedGateway
from tests.matrix.callers import CALLERS, array_of, call, post, tensor_proto
from tests.matrix.cases import Case, Refused, check
from tests.node.harness import ServedNode, fetch
from tidegate.protocols import dl_inference, grpc_reflection, open_inference
from tidegate.protocols import tensorflow_serving as serving
from tidegate.protocols.open_inference import messages as v2
from tidegate.protocols.seldon import messages as seldon
from tidegate.protocols.tensorflow_serving import messages as tfs

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
TASK = 69
MAKES = {
    "serving": "tensorflow-serving",
    "triton": "open-inference",
    "churn": "seldon",
}
"""Models that the gateway believes to be on other servers: a node plays those well."""
SPOKEN = {
    "tensorflow-serving": ("tfs-rows", "tfs-columns"),
    "open-inference": ("v2-json", "v2-binary", "v2-grpc", "v2-typed"),
    "seldon": ("seldon-rest", "seldon-grpc"),
}
PROTOCOLS = [name for name in CALLERS if name != "tfs-classes"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("behind")
    _models(root)
    async with ServedNode(root) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(node: ServedNode) -> AsyncIterator[ServedGateway]:
    declared: dict[str, Any] = {
        "scale": {
            "endpoints": [{"address": node.target, "versions": [1, 2]}],
            "tasks": [TASK],
        },
        "gone": {"endpoints": [{"address": node.target}]},
    }
    for name, protocol in MAKES.items():
        place = {"address": node.target, "rest": node.port, "protocol": protocol}
        declared[name] = {"endpoints": [place]}
    async with ServedGateway({"models": declared}) as started:
        await started.healthy("scale", *MAKES)
        yield started


def _models(root: Path) -> None:
    for version in (1, 2):
        models.scale(root / f"scale/{version}/model.onnx", 10.0 * version)
    text = "versions: {latest: 2, labels: {stable: 1}}\n"
    (root / "scale/model.yaml").write_text(f"task_ids: [{TASK}]\n{text}")
    for name in (*MAKES, "secret"):
        models.scale(root / f"{name}.onnx", 2.0)


def case(model: str, factor: float) -> Case:
    return Case(model, TASK, "numbers", {"x": ROWS}, {"y": ROWS * factor})


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_nodes_model_answers_every_protocol(gateway: ServedGateway, protocol: str) -> None:
    asked = case("scale", 20.0)
    check(asked, await asyncio.to_thread(CALLERS[protocol], gateway.target, asked))


@pytest.mark.parametrize("model", MAKES)
async def test_other_makes_answer_their_own_protocol(gateway: ServedGateway, model: str) -> None:
    asked = case(model, 2.0)
    for protocol in PROTOCOLS:
        if protocol in SPOKEN[MAKES[model]]:
            check(asked, await asyncio.to_thread(CALLERS[protocol], gateway.target, asked))
        elif not protocol.startswith("dl-"):  # which name a task, and that is scale's
            with pytest.raises(Refused) as caught:
                await asyncio.to_thread(CALLERS[protocol], gateway.target, asked)
            assert str(caught.value.code) in {"501", "UNIMPLEMENTED", "StatusCode.UNIMPLEMENTED"}
            assert f"speak {MAKES[model]} over gRPC and REST" in caught.value.said


async def ask(gateway: ServedGateway, method: str, request: Any, answer: Any) -> Any:
    return await asyncio.to_thread(call, gateway.target, method, request, answer)


async def test_versions_and_labels_go_to_those_who_have_them(gateway: ServedGateway) -> None:
    body = json.dumps({"instances": ROWS.tolist()}).encode()
    for within, factor in (("/versions/1", 10), ("/versions/2", 20), ("/labels/stable", 10)):
        path = f"/v1/models/scale{within}:predict"
        answer = json.loads(await asyncio.to_thread(post, gateway.target, path, body))
        assert answer["predictions"] == (ROWS * factor).tolist()
    request = tfs.PredictRequest()
    request.model_spec.name = "scale"
    request.inputs["x"].CopyFrom(tensor_proto(ROWS))
    request.model_spec.version.value = 1
    answer = await ask(gateway, serving.PREDICT, request, tfs.PredictResponse)
    assert (array_of(answer.outputs["y"]) == ROWS * 10).all()
    request.model_spec.version.value = 7
    with pytest.raises(Refused) as caught:
        await ask(gateway, serving.PREDICT, request, tfs.PredictResponse)
    assert caught.value.code == "NOT_FOUND"
    assert caught.value.said == "no endpoint of model 'scale' has version 7: there is 1, 2"


async def test_callers_who_ask_for_what_is_not_offered_demote_nobody(
    gateway: ServedGateway,
) -> None:
    request = v2.ModelInferRequest(model_name="scale")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    tensor.contents.fp32_contents.extend(ROWS.ravel().tolist())
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    body = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": ROWS.ravel().tolist()}
            ],
            "outputs": [{"name": "y", "parameters": {"classification": 1}}],
        }
    ).encode()
    (before,) = (after,) = (await gateway.endpoints("scale")).values()
    # The first reports leave out the first calls.
    while after["succeeded"] + after["failed"] < before["succeeded"] + before["failed"] + 10:
        with pytest.raises(Refused) as caught:
            await ask(gateway, open_inference.MODEL_INFER, request, v2.ModelInferResponse)
        assert caught.value.code == "UNIMPLEMENTED"
        assert (await gateway.post("/v2/models/scale/infer", body))[0] == 501
        (after,) = (await gateway.endpoints("scale")).values()
    assert after["failed"] == before["failed"]
    assert after["state"] != "probing"


async def test_what_is_asked_about_a_model_is_answered_by_its_servers(
    gateway: ServedGateway,
) -> None:
    for name in ("scale", "triton"):
        path = f"http://{gateway.target}/v2/models/{name}"
        for within in ("", "/ready", "/stats", "/config"):
            status, body = await asyncio.to_thread(fetch, path + within)
            assert status == 200, (within, body)
        statistics = await ask(
            gateway,
            open_inference.MODEL_STATISTICS,
            v2.ModelStatisticsRequest(name=name),
            v2.ModelStatisticsResponse,
        )
        assert statistics.model_stats[0].name == name
    for name in ("scale", "serving"):
        path = f"http://{gateway.target}/v1/models/{name}"
        for within in ("", "/metadata"):
            status, body = await asyncio.to_thread(fetch, path + within)
            assert status == 200, (within, body)
        request = tfs.GetModelStatusRequest()
        request.model_spec.name = name
        answer = await ask(gateway, serving.GET_MODEL_STATUS, request, tfs.GetModelStatusResponse)
        assert len(answer.model_version_status) in {1, 2}


async def test_other_makes_answer_dl_inferences_service(gateway: ServedGateway) -> None:
    request = tfs.PredictRequest()
    request.model_spec.name = "serving"
    request.inputs["x"].CopyFrom(tensor_proto(ROWS))
    answer = await ask(gateway, dl_inference.PREDICT, request, tfs.PredictResponse)
    np.testing.assert_array_equal(array_of(answer.outputs["y"]), ROWS * 2.0)
    message = seldon.SeldonMessage()
    message.data.tensor.shape.extend(ROWS.shape)
    message.data.tensor.values.extend(ROWS.ravel())
    for method in (dl_inference.PYTORCH_PREDICT, dl_inference.CAFFE_PREDICT):
        told = await asyncio.to_thread(
            call, gateway.target, method, message, seldon.SeldonMessage, seldon="churn"
        )
        assert list(told.data.tensor.values) == list((ROWS * 2.0).ravel())
    asked = v2.ModelInferRequest(model_name="triton")
    asked.inputs.add(name="x", datatype="FP32", shape=ROWS.shape).contents.fp32_contents.extend(
        ROWS.ravel()
    )
    inferred = await ask(gateway, dl_inference.TIS_PREDICT, asked, v2.ModelInferResponse)
    assert inferred.model_name == "triton"


async def test_a_nodefile_alone_leads_tasks_to_nodes(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    _models(tmp_path / "models")
    async with ServedNode(tmp_path / "models") as node:
        nodefile = tmp_path / "nodefile.txt"
        nodefile.write_text(f"{TASK}=2000,{node.target}\n")
        async with ServedGateway({"nodefile": str(nodefile)}) as gateway:
            await gateway.healthy(f"task-{TASK}")
            asked = case("scale", 20.0)
            for protocol in ("dl-predict", "dl-pytorch", "dl-caffe", "dl-tis"):
                check(asked, await asyncio.to_thread(CALLERS[protocol], gateway.target, asked))


async def test_what_is_a_nodes_own_is_not_asked_of_a_gateway(gateway: ServedGateway) -> None:
    for path in (
        "/v2/repository/models/scale/load",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/models/scale/trace/setting",
        "/v2/logging",
    ):
        with pytest.raises(Refused) as caught:
            await asyncio.to_thread(post, gateway.target, path, b"{}")
        assert caught.value.code in {404, 405, 501}, path
    with pytest.raises(Refused) as caught:
        await ask(gateway, serving.RELOAD_CONFIG, tfs.ReloadConfigRequest(), tfs.PredictResponse)
    assert caught.value.code == "UNIMPLEMENTED"


async def test_models_that_the_gateway_does_not_name_stay_hidden(gateway: ServedGateway) -> None:
    for protocol in ("v2-json", "v2-grpc", "tfs-rows", "seldon-rest", "seldon-grpc", "plain"):
        with pytest.raises(Refused) as caught:
            await asyncio.to_thread(CALLERS[protocol], gateway.target, case("secret", 2.0))
        assert str(caught.value.code) in {"404", "NOT_FOUND", "StatusCode.NOT_FOUND"}
        assert "model/secret is not served here" in caught.value.said


async def test_a_model_that_no_node_has_is_unavailable(gateway: ServedGateway) -> None:
    with pytest.raises(Refused) as caught:
        await asyncio.to_thread(CALLERS["v2-json"], gateway.target, case("gone", 2.0))
    assert caught.value.said == "no endpoint of model gone can answer now; try again"


async def test_the_only_model_of_a_gateway_is_the_only_one_that_a_node_answers(
    node: ServedNode,
) -> None:
    """Its calls go on unread, and the node has other models."""
    document = {"models": {"scale": {"endpoints": [node.target]}}}
    async with ServedGateway(document) as gateway:
        await gateway.healthy("scale")
        for protocol in ("v2-grpc", "v2-typed", "v2-json"):
            asked = case("scale", 20.0)
            check(asked, await asyncio.to_thread(CALLERS[protocol], gateway.target, asked))
            with pytest.raises(Refused) as caught:
                await asyncio.to_thread(CALLERS[protocol], gateway.target, case("secret", 2.0))
            assert str(caught.value.code) in {"404", "NOT_FOUND", "StatusCode.NOT_FOUND"}


async def test_the_id_of_a_request_is_that_of_the_node(gateway: ServedGateway) -> None:
    url = f"http://{gateway.target}/v2/models/scale"
    with await asyncio.to_thread(urllib.request.urlopen, url) as answer:
        assert len(answer.headers.get_all("x-request-id")) == 1
    request = urllib.request.Request(url, headers={"x-request-id": "mine"})
    with await asyncio.to_thread(urllib.request.urlopen, request) as answer:
        assert answer.headers.get_all("x-request-id") == ["mine"]


async def test_a_stream_to_the_gateway_is_answered_before_it_ends(gateway: ServedGateway) -> None:
    request = b"\x3a\x01*"  # list_services, field 7
    async with grpc.aio.insecure_channel(gateway.target) as channel:
        stream = channel.stream_stream(grpc_reflection.INFO[0])(timeout=10)
        for _ in range(2):
            await stream.write(request)
            assert b"inference.GRPCInferenceService" in await stream.read()
        stream.cancel()
