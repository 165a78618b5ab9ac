"""The calls about the whole server, on the public and on the admin port, by real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import numpy as np
import openapi_spec_validator
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient.utils import InferenceServerException

from tests import models
from tests.node.harness import ServedNode, fetch
from tidegate.protocols import grpc_reflection, open_inference

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("server")
    models.identity(root / "wide.onnx", shape=("batch", "n"))
    for version in (1, 2):
        models.scale(root / "scale" / str(version) / "model.onnx", float(version))
    (root / "scale" / "model.yaml").write_text("versions: all\nreplicas: 2\n")
    (root / "broken").mkdir()
    cut(root / "broken" / "model.onnx")
    async with ServedNode(root, "--public-control") as served:
        yield served


def cut(file: Path) -> None:
    """A model that looks like one and cannot be loaded."""
    models.scale(file, 1.0)
    file.write_bytes(file.read_bytes().replace(b"Mul", b"Mux"))


@pytest.fixture(params=["http", "grpc"])
def either(request: pytest.FixtureRequest) -> Any:
    """A client of tritonclient."""
    return request.getfixturevalue("http" if request.param == "http" else "rpc")


def call(client: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of a client; documents in JSON, whichever transport they came by."""
    if isinstance(client, tritonclient.grpc.InferenceServerClient) and method.startswith("get_"):
        options["as_json"] = True
    return getattr(client, method)(*arguments, **options)


def index(client: Any) -> dict[tuple[str, str], dict[str, str]]:
    found = call(client, "get_model_repository_index")
    found = found.get("models", []) if isinstance(found, dict) else found
    return {(m["name"], m.get("version", "")): m for m in found}


def scaled(client: Any) -> float:
    module = tritonclient.http
    if isinstance(client, tritonclient.grpc.InferenceServerClient):
        module = tritonclient.grpc
    tensor = module.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    answer = call(client, "infer", "scale", [tensor])
    return float(answer.as_numpy("y")[0, 0])


# -- the repository -----------------------------------------------------------------------------


async def test_the_index_names_every_version_and_its_state(either: Any) -> None:
    found = index(either)
    assert {key: m["state"] for key, m in found.items()} == {
        ("wide", "1"): "READY",
        ("scale", "1"): "READY",
        ("scale", "2"): "READY",
        ("broken", "1"): "UNAVAILABLE",
    }
    assert found["broken", "1"]["reason"]


async def test_the_index_of_what_is_ready(node: ServedNode) -> None:
    status, body = await node.post("/v2/repository/index", b'{"ready": true}')
    assert (status, {m["name"] for m in json.loads(body)}) == (200, {"wide", "scale"})


async def test_unload_and_load(node: ServedNode, either: Any) -> None:
    assert scaled(either) == 2
    call(either, "unload_model", "scale")
    assert not call(either, "is_model_ready", "scale")
    found = index(either)
    for version in "12":
        entry = found["scale", version]
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "unloaded")
    with pytest.raises(InferenceServerException, match="it was unloaded"):
        scaled(either)
    # A look at the repository, because of another model's change, does not bring it back.
    models.identity(node.repository / "other.onnx")
    call(either, "load_model", "other")
    with pytest.raises(InferenceServerException, match="it was unloaded"):
        scaled(either)
    (node.repository / "other.onnx").unlink()
    call(either, "unload_model", "scale")
    call(either, "load_model", "scale")
    assert call(either, "is_model_ready", "scale")
    assert scaled(either) == 2
    replicas = set(node.replicas("scale"))
    call(either, "load_model", "scale")
    assert replicas <= set(node.replicas("scale")), "nothing had changed"


async def test_load_takes_what_has_just_been_copied(node: ServedNode, either: Any) -> None:
    models.scale(node.repository / "scale" / "3" / "model.onnx", 3.0)
    call(either, "load_model", "scale")
    assert scaled(either) == 3
    shutil.rmtree(node.repository / "scale" / "3")
    call(either, "load_model", "scale")
    assert scaled(either) == 2


async def test_a_load_that_fails_says_why(node: ServedNode, either: Any) -> None:
    with pytest.raises(InferenceServerException, match="'broken' cannot be loaded: ") as caught:
        call(either, "load_model", "broken")
    assert caught.value.status() in ("400", "StatusCode.FAILED_PRECONDITION")
    with pytest.raises(InferenceServerException, match="there is no model 'nothing'"):
        call(either, "load_model", "nothing")
    with pytest.raises(InferenceServerException, match="there is no model 'nothing'"):
        call(either, "unload_model", "nothing")


async def test_a_model_that_failed_is_tried_again(node: ServedNode, either: Any) -> None:
    file = node.repository / "broken" / "model.onnx"
    models.scale(file, 1.0)
    call(either, "load_model", "broken")
    assert call(either, "is_model_ready", "broken")
    cut(file)
    with pytest.raises(InferenceServerException, match="cannot be loaded"):
        call(either, "load_model", "broken")
    assert call(either, "is_model_ready", "broken"), "what was served still is"
    call(either, "unload_model", "broken")
    with pytest.raises(InferenceServerException, match="cannot be loaded"):
        call(either, "load_model", "broken")
    assert not call(either, "is_model_ready", "broken")


@pytest.mark.parametrize("name", ["../scale", "a/b", "", "x" * 129, ".hidden", "a\0b", "é"])
async def test_no_name_leads_out_of_the_repository(rpc: Any, name: str) -> None:
    for method in ("load_model", "unload_model"):
        with pytest.raises(InferenceServerException) as caught:
            call(rpc, method, name)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("repository/models/..%2Fscale/load", b"", 400, ""),
        ("repository/models/%2e%2e/load", b"", 404, ""),
        ("repository/models/a%00b/load", b"", 400, ""),
        ("repository/models/%C3%A9/load", b"", 400, "cannot be the name of a model"),
        ("repository/models/%FF/unload", b"", 400, "is not UTF-8"),
        ("repository/models/scale/load", b"{", 400, "is not JSON"),
        ("repository/models/scale/load", b"[]", 400, "send a JSON object"),
        ("repository/models/scale/load", b'{"parameter": {}}', 400, "'parameter' is not known"),
        ("repository/models/scale/load", b'{"parameters": 1}', 400, "send an object"),
        ("repository/models/scale/load", b'{"parameters": {"config": "{}"}}', 501, "'config'"),
        ("repository/models/scale/load", b'{"parameters": {"file:1/m": ""}}', 501, "'file:1/m'"),
        ("repository/models/scale/load", b'{"parameters": {"x": 1}}', 400, "'x' is not known"),
        (
            "repository/models/scale/unload",
            b'{"parameters": {"unload_dependents": 1}}',
            400,
            "true or false",
        ),
        ("repository/models/scale", b"", 404, "there is no path"),
        ("repository", b"", 404, ""),
        ("repository/index", b'{"ready": 1}', 400, "true or false"),
        ("repository/index", b"\xff", 400, "is not JSON"),
        ("repository/index", b"[" * 2**21, 413, "larger than 1048576"),
        ("repository/index", b"[" * 2**19, 400, "is not JSON"),
    ],
)
async def test_bad_calls_are_refused_on_both_ports(
    node: ServedNode, path: str, body: bytes, status: int, words: str
) -> None:
    found, answer = await node.post(f"/v2/{path}", body)
    assert (found, words in json.loads(answer)["error"]) == (status, True), answer
    admin = f"http://127.0.0.1:{node.admin_port}/v2/{path}"
    found, answer = await asyncio.to_thread(fetch, admin, body)
    assert found in (status, 400, 404, 413), answer


async def test_the_controller_keeps_no_large_body(node: ServedNode) -> None:
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status")

    def peak() -> int:
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024

    size = 48 * 2**20
    before = peak()
    paths = ["/v2/repository/index", "/v2/logging", "/v2/models/broken/infer"]
    found = await asyncio.gather(*(node.post(path, b"[" * size) for path in paths * 2))
    assert [code for code, _ in found] == [413, 413, 503] * 2, found
    async with grpc.aio.insecure_channel(node.target) as channel:
        for path, message, code in (
            (open_inference.REPOSITORY_INDEX, b"\x0a\xff\xff\xff\x0f", "RESOURCE_EXHAUSTED"),
            (open_inference.MODEL_INFER, b"\x0a\6broken\x3a", "UNAVAILABLE"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(message + b"\xfb\xff\xff\x17" + bytes(size - 5))
            assert caught.value.code().name == code, caught.value
    assert peak() - before < size


async def test_wrong_methods(node: ServedNode) -> None:
    status, answer = await node.get("/v2/repository/index")
    assert (status, json.loads(answer)["error"]) == (
        405,
        "/v2/repository/index takes POST, not GET",
    )
    admin = f"http://127.0.0.1:{node.admin_port}/v2/repository/index"
    request = urllib.request.Request(admin)
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(urllib.request.urlopen, request)
    with caught.value as error:
        assert (error.code, error.headers["allow"]) == (405, "POST")


# -- the admin port -----------------------------------------------------------------------------


async def admin(
    node: ServedNode, path: str, body: bytes | None = b"", **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://127.0.0.1:{node.admin_port}{path}"
    status, answer = await asyncio.to_thread(fetch, url, body, named)
    return status, json.loads(answer)


async def test_the_admin_port_loads_and_unloads(node: ServedNode) -> None:
    assert await admin(node, "/v2/repository/models/wide/unload") == (200, {})
    found = (await node.status())["models"]
    assert {m["name"]: m["state"] for m in found}["wide"] == "unloaded"
    assert await admin(node, "/v2/repository/models/wide/load") == (200, {})
    assert (await node.get("/v2/models/wide/ready"))[0] == 200
    status, entries = await admin(node, "/v2/repository/index")
    assert (status, entries[-1]["name"]) == (200, "wide")


async def test_the_admin_port_speaks_grpc(node: ServedNode) -> None:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{node.admin_port}") as rpc:
        assert call(rpc, "is_server_live")
        call(rpc, "unload_model", "wide")
        assert index(rpc)["wide", "1"]["reason"] == "unloaded"
        call(rpc, "load_model", "wide")
        assert index(rpc)["wide", "1"]["state"] == "READY"
        with pytest.raises(InferenceServerException, match="'nobody'") as caught:
            call(rpc, "load_model", "nobody")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="call the public port") as caught:
            call(rpc, "is_model_ready", "wide")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with grpc.insecure_channel(f"127.0.0.1:{node.admin_port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")(b"\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        assert "inference.GRPCInferenceService" in (
            ProtoReflectionDescriptorDatabase(channel).get_services()
        )
        malformed = channel.stream_stream(grpc_reflection.INFO[0])(iter([b"\xff"]))
        with pytest.raises(grpc.RpcError) as refused:
            next(malformed)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_connections_to_the_admin_port_do_not_hold_up_the_end(tmp_path: Path) -> None:
    models.scale(tmp_path / "scale.onnx", 2.0)
    async with ServedNode(tmp_path) as node:
        address = ("127.0.0.1", node.admin_port)
        with (
            socket.create_connection(address),
            socket.create_connection(address) as half,
            grpc.insecure_channel(f"127.0.0.1:{node.admin_port}") as channel,
        ):
            half.send(b"PRI * HTTP/2.0")
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            assert await node.stop() == 0
            assert [answer.status for answer in watched] in ([], [2])
        assert "Error" not in node.output


async def test_a_head_without_an_end_is_not_kept(node: ServedNode) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.admin_port)
    try:
        async with asyncio.timeout(60):
            writer.write(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            writer.write(b"GET /live HTTP/1.1\r\nhost: localhost\r\nx-long: ")
            # Who goes on writing may be told so by a reset.
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(b"a" * 2**16)
                    await writer.drain()
                    await asyncio.sleep(0)
    finally:
        writer.transport.abort()
    assert (await admin(node, "/live", None))[0] == 200


async def test_a_page_of_another_site_cannot_use_the_admin_port(node: ServedNode) -> None:
    path = "/v2/repository/models/wide/unload"
    for headers in ({"origin": "http://elsewhere.example"}, {"sec_fetch_site": "cross-site"}):
        status, answer = await admin(node, path, b"", **headers)
        assert (status, "other sites" in answer["error"]) == (403, True)
    rebound = {"host": "evil.example:8002", "origin": "http://evil.example:8002"}
    status, answer = await admin(node, path, b"", **rebound)
    assert (status, "called as localhost" in answer["error"]) == (403, True)
    status, answer = await admin(node, "/status", None, **rebound)
    assert (status, "called as localhost" in answer["error"]) == (403, True)
    assert (await admin(node, "/v2/repository/index", host="localhost:8002"))[0] == 200
    own = f"127.0.0.1:{node.admin_port}"
    assert (await admin(node, "/v2/repository/index", origin=f"http://{own}"))[0] == 200


async def test_by_default_only_the_admin_port_controls(tmp_path: Path) -> None:
    models.scale(tmp_path / "scale.onnx", 2.0)
    async with ServedNode(tmp_path) as node:
        status, body = await node.post("/v2/repository/models/scale/unload", b"")
        assert (status, "--public-control" in json.loads(body)["error"]) == (403, True)
        with tritonclient.grpc.InferenceServerClient(node.target) as rpc:
            with pytest.raises(InferenceServerException, match="--public-control") as caught:
                call(rpc, "load_model", "scale")
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
            assert ("scale", "1") in index(rpc)
        assert await admin(node, "/v2/repository/models/scale/unload") == (200, {})
        await restart(node)
        assert (await node.get("/v2/models/scale/ready"))[0] == 503, "it stays unloaded"
        assert await admin(node, "/v2/repository/models/scale/load") == (200, {})
        assert (await node.get("/v2/models/scale/ready"))[0] == 200


async def restart(node: ServedNode) -> None:
    """Kill the controller and start the next one, which adopts what runs."""
    node.kill_controller()
    assert node.process is not None
    await node.process.wait()
    await node.serve()


# -- statistics ---------------------------------------------------------------------------------


def of(found: dict[str, Any], name: str, version: str) -> Any:
    (entry,) = [m for m in found["model_stats"] if (m["name"], m["version"]) == (name, version)]
    return entry


async def test_statistics_sum_the_replicas_of_a_version(http: Any, rpc: Any) -> None:
    before = of(call(http, "get_inference_statistics", "scale", "2"), "scale", "2")
    for _ in range(20):
        scaled(rpc)
        scaled(http)
    found = call(http, "get_inference_statistics", "scale", "2")
    after = of(found, "scale", "2")
    assert len(found["model_stats"]) == 1
    assert after["inference_count"] - before["inference_count"] == 40
    assert 0 < after["execution_count"] - before["execution_count"] <= 40
    assert after["last_inference"] > before["last_inference"]
    stats = after["inference_stats"]
    for key in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert stats[key]["count"] - before["inference_stats"][key]["count"] == 40
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert {b["batch_size"] for b in after["batch_stats"]} >= {1}
    message = of(call(rpc, "get_inference_statistics", "scale"), "scale", "2")
    assert message["inference_count"] == str(after["inference_count"])
    assert message["inference_stats"]["success"]["count"] == str(stats["success"]["count"])


async def test_failed_requests_are_counted(http: Any) -> None:
    before = of(call(http, "get_inference_statistics", "wide"), "wide", "1")
    tensor = tritonclient.http.InferInput("nothing", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    with pytest.raises(InferenceServerException):
        call(http, "infer", "wide", [tensor])
    after = of(call(http, "get_inference_statistics", "wide"), "wide", "1")
    fails = [found["inference_stats"]["fail"]["count"] for found in (before, after)]
    assert fails == [fails[0], fails[0] + 1]


async def test_statistics_of_all_and_of_nothing(either: Any) -> None:
    found = call(either, "get_inference_statistics")
    assert {("scale", "1"), ("scale", "2"), ("wide", "1")} <= {
        (m["name"], m["version"]) for m in found["model_stats"]
    }
    for arguments in (("none",), ("scale", "9")):
        with pytest.raises(InferenceServerException) as caught:
            call(either, "get_inference_statistics", *arguments)
        assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")


# -- configuration, trace and log settings ------------------------------------------------------


async def test_the_configuration_of_a_model(rpc: Any, http: Any) -> None:
    found = call(http, "get_model_config", "scale")
    assert (found["backend"], found["max_batch_size"]) == ("onnx", 32)
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert found["instance_group"][0]["count"] == 2
    message = call(rpc, "get_model_config", "scale", "1")["config"]
    assert message["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    for client in (http, rpc):
        with pytest.raises(InferenceServerException, match="none is not served here"):
            call(client, "get_model_config", "none")


async def test_trace_settings_are_kept(http: Any, rpc: Any) -> None:
    assert call(http, "get_trace_settings")["trace_mode"] == "none"
    updated = call(http, "update_trace_settings", "scale", {"trace_level": ["TIMESTAMPS"]})
    assert updated["trace_level"] == ["TIMESTAMPS"]
    assert call(rpc, "get_trace_settings", "scale")["settings"]["trace_level"] == {
        "value": ["TIMESTAMPS"]
    }
    assert call(rpc, "get_trace_settings")["settings"]["trace_level"] == {"value": ["OFF"]}
    rpc.update_trace_settings("scale", {"trace_level": None, "trace_rate": "5"})
    found = call(http, "get_trace_settings", "scale")
    assert (found["trace_level"], found["trace_rate"]) == (["OFF"], "5")


async def test_the_level_of_the_logs(node: ServedNode, http: Any, rpc: Any) -> None:
    before = call(http, "get_log_settings")
    assert (before["log_verbose_level"], before["log_error"]) == (0, True)
    assert call(http, "update_log_settings", {"log_verbose_level": 1})["log_verbose_level"] == 1
    for index in range(2):
        log = node.run_dir / str(node.port) / "logs" / f"scale-2.{index}.log"
        await node.until(lambda log=log: " DEBUG " in log.read_text())  # type: ignore[misc]
    assert call(rpc, "get_log_settings")["settings"]["log_verbose_level"] == {"uint32_param": 1}
    rpc.update_log_settings({"log_verbose_level": 0, "log_info": before["log_info"]})
    assert call(http, "get_log_settings") == before


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("trace/setting", b'{"trace_level": "ALL"}', 400, "'trace_level' cannot be 'ALL'"),
        ("trace/setting", b'{"trace_rate": "0"}', 400, "'trace_rate' cannot be '0'"),
        ("trace/setting", b'{"trace_rate": ["1", "2"]}', 400, "'trace_rate' cannot be"),
        ("trace/setting", b'{"trace_rate": true}', 400, "send a string"),
        ("trace/setting", b'{"trace_file": "/etc/passwd"}', 501, "'trace_file'"),
        ("trace/setting", b'{"trace": "x"}', 400, "there is no trace setting 'trace'"),
        ("models/none/trace/setting", b"{}", 404, "there is no model 'none'"),
        ("models/..%2fx/trace/setting", b"{}", 400, ""),
        ("logging", b'{"log_error": false}', 501, "cannot be changed"),
        ("logging", b'{"log_file": "/tmp/x"}', 501, "cannot be changed"),
        ("logging", b'{"log_verbose_level": -1}', 400, "cannot be '-1'"),
        ("logging", b'{"log_verbose_level": true}', 400, "cannot be 'True'"),
        ("logging", b'{"log_info": {}}', 400, "'log_info'"),
        ("logging", b'{"verbose": 1}', 400, "there is no log setting 'verbose'"),
    ],
)
async def test_bad_settings(
    node: ServedNode, path: str, body: bytes, status: int, words: str
) -> None:
    found, answer = await node.post(f"/v2/{path}", body)
    assert (found, words in json.loads(answer)["error"]) == (status, True), answer


async def test_the_extensions_are_named(http: Any, rpc: Any) -> None:
    named = call(http, "get_server_metadata")["extensions"]
    assert {"model_repository", "model_configuration", "schedule_policy", "trace"} <= set(named)
    assert call(rpc, "get_server_metadata")["extensions"] == named


# -- the description ----------------------------------------------------------------------------


async def test_the_openapi_document_is_valid_and_true(node: ServedNode) -> None:
    status, body = await node.get("/openapi.json")
    assert status == 200
    found = json.loads(body)
    openapi_spec_validator.validate(found)
    paths = found["paths"]
    own = paths["/v2/models/scale/infer"]["post"]["requestBody"]["content"]["application/json"]
    (tensor,) = own["schema"]["properties"]["inputs"]["items"]["oneOf"]
    assert tensor["properties"]["shape"]["prefixItems"] == [
        {"type": "integer", "minimum": 0},
        {"const": 4},
    ]
    for path, operations in paths.items():
        concrete = path.replace("{model}", "scale").replace("{version}", "2")
        if "get" in operations and "{" not in concrete:
            known = 501 if path.endswith("/endpoints") else 200
            assert (await node.get(concrete))[0] == known, path
    assert "scale" in paths["/v2/models/{model}/infer"]["parameters"][0]["schema"]["enum"]
    identities = [
        o["operationId"] for p in paths.values() for o in p.values() if "operationId" in o
    ]
    assert len(identities) == len(set(identities))


async def test_an_inference_fits_the_description(node: ServedNode) -> None:
    found = json.loads((await node.get("/openapi.json"))[1])
    operation = found["paths"]["/v2/models/scale/infer"]["post"]

    def schema(content: Any) -> Any:
        return {
            **content["content"]["application/json"]["schema"],
            "components": found["components"],
        }

    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    takes = schema(operation["requestBody"])
    jsonschema.validate({"inputs": [tensor]}, takes)
    for wrong in ({"name": "z"}, {"datatype": "FP64"}, {"shape": [1, 5]}, {"shape": [1]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"inputs": [{**tensor, **wrong}]}, takes)
    status, answer = await node.post(
        "/v2/models/scale/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    assert status == 200
    jsonschema.validate(json.loads(answer), schema(operation["responses"]["200"]))
