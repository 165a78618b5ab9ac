"""Which replica gets a call: from a message, from a path, from a header."""

from __future__ import annotations

import re
import string as characters
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.harness import INFER, Edge, call, message, string, varint
from tidegate.edge import routing_script as script_module
from tidegate.edge.routing_script import routing_script
from tidegate.protocols import open_inference
from tidegate.protocols.routing import NAME_PATTERN, VERSION_PATTERN, RoutedMethod, Routing


async def models(edge: Edge) -> None:
    await edge.serve(m="a", other="b", m__2="c")


async def test_grpc_goes_to_the_model_and_version_in_the_message(edge: Edge) -> None:
    await models(edge)
    assert (await edge.call(message("m")))["replica"] == "a"
    assert (await edge.call(message("other")))["replica"] == "b"
    assert (await edge.call(message("m", "2")))["replica"] == "c"
    assert (await edge.call(message("m"), method=open_inference.MODEL_READY))["replica"] == "a"


@pytest.mark.parametrize(
    "request_bytes",
    [
        string(7, b"payload") + string(2, "2") + string(1, "m"),
        string(7, bytes(100_000)) + string(1, "m") + string(2, "2"),
        string(5, bytes(505)) + string(1, "m") + string(2, "2"),
        string(1, "other") + string(7, bytes(2000)) + string(1, "m") + string(2, "2"),
        string(2, "7") + string(1, "m") + string(2, "2"),
        varint(9 << 3) + varint(2**63) + string(1, "m") + string(2, "2"),
        varint(9 << 3 | 1) + bytes(8) + string(1, "m") + string(2, "2"),
        varint(9 << 3 | 5) + bytes(4) + string(1, "m") + string(2, "2"),
        varint(1 << 3) + varint(5) + string(1, "m") + string(2, "2"),
        string(1, "m") + string(2, "2") + string(500_000, b"unknown"),
        string(1, "m") + string(2, "2") + string(7, b"x") * 5000,
    ],
    ids=[
        "name last", "far behind", "across the window", "last name wins", "last version wins",
        "behind a number", "behind a fixed64", "behind a fixed32", "other wire type",
        "unknown field", "many fields",
    ],
)  # fmt: skip
async def test_the_name_is_found_wherever_it_stands(edge: Edge, request_bytes: bytes) -> None:
    await models(edge)
    assert (await edge.call(request_bytes))["replica"] == "c"


async def test_the_name_is_found_at_every_distance_round_the_window(edge: Edge) -> None:
    await models(edge)
    for distance in range(490, 530):
        answer = await edge.call(string(7, bytes(distance)) + message("m", "2"))
        assert answer["replica"] == "c", distance


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"", "no model name"),
        (string(7, b"x"), "no model name"),
        (string(1, ""), "no model name"),
        (string(1, "m") + string(1, ""), "no model name"),
        (string(1, "../m"), "'../m' cannot be the name of a model"),
        (string(1, ".m"), "'.m' cannot be"),
        (string(1, "model/m"), "cannot be"),
        (string(1, "m:2"), "cannot be"),
        (string(1, "m\r\nx: y"), "'m??x: y' cannot be"),
        (string(1, "m\0"), "'m?' cannot be"),
        (string(1, "é"), "cannot be"),
        (string(1, "a" * 129), "at most 128"),
        (string(1, bytes(5000)), "cannot be"),
        (message("m", "0"), "'0' is not a version"),
        (message("m", "01"), "is not a version"),
        (message("m", "-1"), "is not a version"),
        (message("m", "latest"), "'latest' is not a version"),
        (message("m", "1" * 19), "is not a version"),
        (b"\x0a\x05m", "longer than the message"),
        (string(1, "m") + b"\x3a", "longer than the message"),
        (string(1, "m") + b"\x09\0\0", "longer than the message"),
        (string(1, "m") + b"\x00", "tag is malformed"),
        (string(1, "m") + b"\xff" * 11, "malformed"),
        (string(1, "m") + b"\x48" + b"\xff" * 11, "malformed"),
        (string(1, "m") + b"\x0b", "type is malformed"),
        (string(1, "m") + b"\x48\x01" * 20_000, "too many fields"),
    ],
)
async def test_what_cannot_be_routed_is_an_invalid_argument(
    edge: Edge, request_bytes: bytes, words: str
) -> None:
    await models(edge)
    code, said = await edge.failure(request_bytes)
    assert code == "INVALID_ARGUMENT"
    assert words in said


async def test_the_longest_name_and_version_are_found(edge: Edge) -> None:
    name, version = "a" * 128, "9" * 18
    await edge.serve(**{f"{name}__{version}": "a"})
    assert (await edge.call(message(name, version)))["replica"] == "a"


async def test_a_routing_header_from_outside_is_dropped(edge: Edge) -> None:
    await models(edge)
    lies: dict[str, Any] = {
        "x_tidegate_cluster": "model/other",
        "x_tidegate_target": "lie",
        "tidegate_model": "b",
    }
    answer = await edge.call(message("m"), **lies)
    assert answer["replica"] == "a"
    assert answer["headers"]["x-tidegate-cluster"] == "model/m"
    reply = await edge.rest("GET", "/v2/models/m", **lies)
    assert reply.json["replica"] == "a"
    nowhere = await edge.rest("GET", "/elsewhere", **lies)
    assert nowhere.status == 404
    code, _ = await edge.failure(b"", method="/some.Service/Method", **lies)
    assert code == "UNIMPLEMENTED"


async def test_a_call_that_may_be_for_one_model_alone_is_for_no_other(edge: Edge) -> None:
    """As a gateway says of calls that it has not read."""
    await models(edge)
    only: dict[str, Any] = {"tidegate_only": "m"}
    assert (await edge.call(message("m", "2"), **only))["replica"] == "c"
    assert (await edge.rest("GET", "/v2/models/m", **only)).json["replica"] == "a"
    code, words = await edge.failure(message("other"), **only)
    assert (code, words) == ("NOT_FOUND", "model/other is not served here")
    gzip = grpc.Compression.Gzip
    sent = message("m") + string(7, bytes(999))
    code, _ = await edge.failure(sent, compression=gzip, tidegate_model="other", **only)
    assert code == "NOT_FOUND"
    answer = await edge.rest("GET", "/v2/models/other", **only)
    assert (answer.status, answer.json["error"]) == (404, words)


async def test_a_compressed_message_needs_the_header(edge: Edge) -> None:
    await models(edge)
    request = message("m") + string(7, bytes(1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.call(request, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "tidegate-model" in (caught.value.details() or "")
    raw = await edge.rest("POST", INFER, b"\1\0\0\0\1x", content_type="application/grpc")
    assert raw.headers["grpc-status"] == "12"
    assert raw.headers["grpc-accept-encoding"] == "identity"  # Python's client hides it

    gzip = grpc.Compression.Gzip
    answer = await edge.call(request, compression=gzip, tidegate_model="other")
    assert answer["replica"] == "b"
    answer = await edge.call(request, compression=gzip, tidegate_model="m", tidegate_version="2")
    assert answer["replica"] == "c"
    for bad in ({"tidegate_model": "../x"}, {"tidegate_model": "m", "tidegate_version": "x"}):
        code, _ = await edge.failure(request, compression=gzip, **bad)
        assert code == "INVALID_ARGUMENT"


async def test_a_stream_to_an_unlisted_method_does_not_hang(edge: Edge) -> None:
    await models(edge)
    for method in ("/inference.GRPCInferenceService/ModelStreamInfer", "/a.B/C"):
        # Nothing is written: the answer must not wait for a message, nor race with one.
        stream = edge.channel.stream_stream(method)(timeout=30)
        assert await stream.code() == grpc.StatusCode.UNIMPLEMENTED
        assert method in await stream.details()


async def test_an_unlisted_unary_method_is_unimplemented(edge: Edge) -> None:
    await models(edge)
    code, words = await edge.failure(message("m"), method="/tensorflow.Predict/Nope")
    assert code == "UNIMPLEMENTED"
    assert words == "there is no method /tensorflow.Predict/Nope here"


async def test_truncated_and_doubled_frames_are_invalid_arguments(edge: Edge) -> None:
    await models(edge)
    frame = b"\0" + len(message()).to_bytes(4, "big") + message()
    for body in (b"", b"\0\0", frame[:-1], frame + frame, b"\x05" + frame[1:]):
        answer = await edge.rest("POST", INFER, body, content_type="application/grpc")
        assert answer.status == 200
        assert answer.headers["grpc-status"] == "3", body
        assert "frame" in answer.headers["grpc-message"]


@pytest.mark.parametrize(
    ("path", "replica", "seen"),
    [
        ("/v2/models/m", "a", "/v2/models/m"),
        ("/v2/models/m/ready", "a", "/v2/models/m/ready"),
        ("/v2/models/m/infer?x=/../y", "a", "/v2/models/m/infer?x=/../y"),
        ("/v2/models/m?x=%2F", "a", "/v2/models/m?x=%2F"),
        ("/v2/models/%6d/infer?q=1", "a", "/v2/models/m/infer?q=1"),
        ("/v2/models/m/versions/2", "c", "/v2/models/m/versions/2"),
        ("/v2/models/m/versions/%32/infer", "c", "/v2/models/m/versions/2/infer"),
        ("//v2/models//m/infer", "a", "/v2/models/m/infer"),
        ("/v2/x/../models/m", "a", "/v2/models/m"),
        ("/v2/models/other", "b", "/v2/models/other"),
    ],
)
async def test_rest_goes_by_its_path(edge: Edge, path: str, replica: str, seen: str) -> None:
    await models(edge)
    answer = await edge.rest("POST", path, b"{}")
    assert answer.status == 200
    assert (answer.json["replica"], answer.json["path"]) == (replica, seen)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v2/models/absent", 404, "model/absent is not served here"),
        ("/v2/models/m/versions/3/infer", 404, "model/m:3 is not served here"),
        ("/v2/models/a%20b/infer", 400, "'a b' cannot be the name of a model"),
        ("/v2/models/%22x%22/infer", 400, "'\"x\"' cannot be the name"),
        ("/v2/models/m:2/infer", 400, "cannot be the name"),
        ("/v2/models/" + "a" * 129, 400, "cannot be the name"),
        ("/v2/models/m/versions/x/infer", 400, "'x' is not a version"),
        ("/v2/models/m/versions/0", 400, "'0' is not a version"),
        ("/v2/models/m/versions/1%2F", 400, ""),
        ("/v2/models/", 404, "there is no POST /v2/models/ here"),
        ("/v2/models", 404, "there is no POST /v2/models here"),
        ("/", 404, "there is no POST / here"),
        ("/v2", 405, "/v2 takes GET, not POST"),
        ("/v2/health/live", 405, "/v2/health/live takes GET, not POST"),
        ("/v2/health/ready", 405, "/v2/health/ready takes GET, not POST"),
        ("/inference.GRPCInferenceService/ModelInfer", 404, "there is no"),
    ],
)
async def test_rest_paths_that_lead_nowhere(
    edge: Edge, path: str, status: int, words: str
) -> None:
    await models(edge)
    answer = await edge.rest("POST", path, b"{}")
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert words in answer.json["error"]
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)


async def test_the_server_answers_for_itself(edge: Edge) -> None:
    await models(edge)
    root = await edge.rest("GET", "/")
    assert (root.status, root.headers["location"]) == (302, "/models")
    live = await edge.rest("GET", "/v2/health/live")
    ready = await edge.rest("GET", "/v2/health/ready")
    about = await edge.rest("GET", "/v2")
    assert (live.status, live.json) == (200, {"live": True})
    assert (ready.status, ready.json) == (200, {"ready": True})
    assert (about.status, about.json) == (200, {"name": "tidegate"})
    for answer in (live, ready, about):
        assert answer.headers["content-type"] == "application/json"
    edge.ready = False
    edge.metadata = b'{"name":"' + b"x" * 10_000 + b'"}'
    await edge.publish()
    live = await edge.rest("GET", "/v2/health/live")
    ready = await edge.rest("GET", "/v2/health/ready")
    about = await edge.rest("GET", "/v2/")
    assert (live.status, live.json) == (200, {"live": True})
    assert (ready.status, ready.json) == (503, {"ready": False})
    assert ready.headers["content-type"] == "application/json"
    assert about.body == edge.metadata
    assert (await edge.rest("POST", "/v2/health/ready")).status == 405


async def test_calls_about_the_server_go_to_the_controller(edge: Edge) -> None:
    await models(edge)
    code, words = await edge.failure(b"", method=open_inference.SERVER_READY)
    assert code == "UNAVAILABLE"
    assert "tidegate/controller" in words
    await edge.replica("controller")
    answer = await edge.call(b"", method=open_inference.SERVER_READY)
    assert answer["replica"] == "controller"


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/openapi.json", "controller"),
        ("/v2/models/stats", "controller"),
        ("/v2/models/m/stats", "controller"),
        ("/v2/models/m/stats?x=/infer", "controller"),
        ("/v2/models/m/versions/2/stats", "controller"),
        ("/v2/models/m/endpoints", "controller"),
        ("/v2/models/m/trace/setting", "controller"),
        ("/v2/repository/index", "controller"),
        ("/v2/repository/models/m/load", "controller"),
        ("/v2//repository/x/../index", "controller"),
        ("/v2/logging", "controller"),
        ("/v2/systemsharedmemory/status", "controller"),
        ("/v2/models/stats/infer", "s"),
        ("/v2/models/m/statistics", "a"),
        ("/v2/models/m/config", "a"),
        ("/v2/models/m/versions/2/config", "c"),
        ("/v2/logging/x", None),
        ("/v2/repository", None),
        ("/v2/stats", None),
        ("/openapi.json/x", None),
    ],
)
async def test_paths_of_the_controller_and_of_models(
    edge: Edge, path: str, who: str | None
) -> None:
    await edge.serve(m="a", m__2="c", stats="s")
    await edge.replica("controller")
    answer = await edge.rest("POST", path, b"{}", **{"x-tidegate-cluster": "model/m"})
    assert (answer.status, who) == (404, None) or answer.json["replica"] == who


async def test_what_a_replica_is_told_and_what_a_client_sees(edge: Edge) -> None:
    await models(edge)
    answer = await edge.call(timeout=7)
    told = answer["headers"]
    assert re.fullmatch("[0-9]+[mS]", told["grpc-timeout"])
    assert re.fullmatch("[0-9a-f-]{36}", told["x-request-id"])
    assert told["x-envoy-attempt-count"] == "1"
    reply = await edge.rest("GET", "/v2/models/m", x_request_id="mine")
    assert reply.json["headers"]["x-request-id"] == reply.headers["x-request-id"] == "mine"
    refused = await edge.rest("GET", "/v2/models/no")
    assert re.fullmatch("[0-9a-f-]{36}", refused.headers["x-request-id"])
    assert reply.headers["server"] == "tidegate"
    for each in (reply, await edge.rest("GET", "/v2/models/no"), await edge.rest("GET", "/no")):
        assert not [name for name in each.headers if name.startswith(("x-envoy", "x-tidegate"))]


async def test_envoys_control_headers_from_outside_count_for_nothing(edge: Edge) -> None:
    await models(edge)
    reply = await edge.rest(
        "GET", "/v2/models/m", x_do="sleep 0.3",
        x_envoy_upstream_rq_timeout_ms="50", x_envoy_max_retries="9", x_envoy_retry_on="5xx",
    )  # fmt: skip
    assert reply.status == 200
    told = reply.json["headers"]
    assert not {"x-envoy-upstream-rq-timeout-ms", "x-envoy-max-retries"} & set(told)


def test_the_patterns_in_lua_are_those_of_the_protocols() -> None:
    name, version = script_module._LUA_NAME, script_module._LUA_VERSION
    assert f"{name[1:-2]}{{0,{script_module._NAME_LENGTH - 1}}}" == NAME_PATTERN
    assert f"{version[1:-2]}{{0,{script_module._VERSION_LENGTH - 1}}}" == VERSION_PATTERN


def test_the_script_holds_every_method_of_every_protocol() -> None:
    other = Routing((RoutedMethod("/t.P/Predict", (1, 1), (1, 3)),), (), ("/t.S/List",))
    script = routing_script([open_inference.ROUTING, other], 1000)
    for method in open_inference.ROUTING.methods:
        begun = f'["{method.path}"] = {{["header"] = "", ["task_in_name"] = false, ["tree"] = '
        assert begun + '{[1] = "model", [2] = "version"}}' in script
    assert '= {[1] = {[1] = "model", [3] = "version"}}}' in script
    assert '["/t.S/List"] = true' in script


@given(st.text(characters.printable, max_size=20))
def test_text_in_the_script_stays_text(text: str) -> None:
    if text.isprintable():
        written = script_module._lua(text)
        assert re.fullmatch(r'"(?:[^"\\]|\\["\\])*"', written)
        assert re.sub(r"\\(.)", r"\1", written[1:-1]) == text
    else:
        with pytest.raises(ValueError, match="cannot be written"):
            script_module._lua(text)


async def test_a_name_within_a_message_within_the_message(edge: Edge) -> None:
    predict = "/tensorflow.serving.PredictionService/Predict"
    routing = Routing((RoutedMethod(predict, (1, 1), (1, 3)),), (), ())
    edge.change(routings=(routing,))
    await models(edge)

    async def replica(request: bytes) -> str:
        return str((await call(edge.channel, request, method=predict))["replica"])

    assert await replica(string(1, string(1, "m"))) == "a"
    assert (
        await replica(string(2, bytes(9999)) + string(1, string(3, "2") + string(1, "m"))) == "c"
    )
    # Protobuf merges a message that comes twice.
    assert await replica(string(1, string(1, "m")) + string(1, string(3, "2"))) == "c"
    code, words = await edge.failure(string(1, b"\x0a\x09m"), method=predict)
    assert code == "INVALID_ARGUMENT"
    assert "longer than the message" in words
