"""The other ways to name a model: numbers, labels, tasks, headers, longer paths, no name."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Value

from tests.edge.harness import Edge, string, varint
from tidegate.edge.topology import Endpoint, Topology
from tidegate.protocols.routing import RoutedMethod, RoutedPath, RoutedPrefix, Routing

PREDICT, TASK, TAGS, HEADER = "/x.X/Predict", "/x.X/Task", "/x.X/Tags", "/x.X/Header"
ROUTING = Routing(
    methods=(
        RoutedMethod(PREDICT, model=(1, 1), number=(1, 2, 1), label=(1, 4)),
        RoutedMethod(TASK, model=(1, 1), number=(1, 2, 1), task_in_name=True),
        RoutedMethod(TAGS, tags=(2, 2), task_keys=("taskId", "taskid"), header="seldon"),
        RoutedMethod(HEADER, header="seldon"),
    ),
    prefixes=(
        RoutedPrefix("/v1/models/", colon=True, labels=True, server_verbs=("",)),
        RoutedPrefix("/seldon/", skipped=1),
    ),
    paths=(RoutedPath("/predict", "seldon"),),
)


def spec(model: str, number: int | None = None, label: str = "") -> bytes:
    found = string(1, model)
    if number is not None:
        found += string(2, varint(1 << 3) + varint(number % 2**64))
    return string(1, found + (string(4, label) if label else b""))


def tags(**values: object) -> bytes:
    entries = b""
    for key, value in values.items():
        kinds: dict[type, str] = {float: "number_value", int: "number_value", str: "string_value"}
        written = Value(**{kinds[type(value)]: value})  # type: ignore[arg-type]
        entries += string(2, string(1, key) + string(2, written.SerializeToString()))
    return string(2, entries)


async def serve(edge: Edge) -> None:
    edge.change(routings=(ROUTING,))
    edge.tasks = {"69": "other", "7": "m"}
    await edge.replica("controller")
    await edge.serve(**{"m": "a", "m__2": "c", "m@stable": "d", "other": "b", "ocr-69": "e"})


MESSAGES = [
    (PREDICT, spec("m"), "a"),
    (PREDICT, spec("m", 2), "c"),
    (PREDICT, spec("m", 7) + spec("m", 2), "c"),
    (PREDICT, spec("m", label="stable"), "d"),
    (PREDICT, string(9, bytes(9999)) + spec("m", 2), "c"),
    (PREDICT, spec("ocr-69"), "e"),
    (TASK, spec("m"), "a"),
    (TASK, spec("ocr-69"), "e"),
    (TASK, spec("gone-69"), "b"),
    (TASK, spec("a b/c-69"), "b"),
    (TASK, spec("x-0069"), "b"),
    (TASK, spec("x-7"), "a"),
    (TAGS, tags(taskId=69), "b"),
    (TAGS, tags(taskid="69"), "b"),
    (TAGS, tags(other=7.5, taskId=7, more="69"), "a"),
    (TAGS, tags(taskId=69) + tags(taskId="7"), "a"),
    (TAGS, string(4, bytes(9000)) + tags(taskId=69), "b"),
]


async def test_what_a_message_says(edge: Edge) -> None:
    await serve(edge)
    for method, message, replica in MESSAGES:
        assert (await edge.call(message, method=method))["replica"] == replica


BAD_MESSAGES = [
    (PREDICT, spec("m", 0), "'0' is not a version"),
    (PREDICT, spec("m", -1), "is not a version"),
    (PREDICT, spec("m", label="a/b"), "'a/b' is not a label"),
    (PREDICT, string(1, b""), "the message has no model name"),
    (TAGS, tags(taskId=1.5), "is not the id of a task"),
    (TAGS, tags(taskId=-69), "is not the id of a task"),
    (TAGS, tags(taskId=1e300), "is not the id of a task"),
    (TAGS, tags(taskId="x"), "'x' is not the id of a task"),
    (TAGS, string(2, string(2, string(1, "taskId"))), "is not the id of a task"),
    (TAGS, string(2, string(2, string(1, "taskId") + string(2, b"\x11\0"))), "longer than"),
]


async def test_what_no_message_can_say(edge: Edge) -> None:
    await serve(edge)
    for method, message, words in BAD_MESSAGES:
        code, said = await edge.failure(message, method=method)
        assert code == "INVALID_ARGUMENT"
        assert words in said


async def test_a_name_in_a_header(edge: Edge) -> None:
    await serve(edge)
    for method, message in ((HEADER, b"anything"), (TAGS, b"")):
        assert (await edge.call(message, method=method, seldon="other"))["replica"] == "b"
        code, said = await edge.failure(message, method=method, seldon="../m")
        assert (code, "cannot be the name" in said) == ("INVALID_ARGUMENT", True)
        assert (await edge.failure(message, method=method, seldon="absent"))[0] == "NOT_FOUND"
    gzip = grpc.Compression.Gzip
    message = tags(taskId=7) + string(9, bytes(999))
    packed = await edge.call(message, method=TAGS, seldon="other", compression=gzip)
    assert packed["replica"] == "b"


async def test_without_a_name_there_must_be_one_model(edge: Edge) -> None:
    await serve(edge)
    nobody: dict[str, Any] = await edge.call(b"", method=HEADER)
    assert (nobody["replica"], nobody["headers"]["x-tidegate-cluster"]) == ("controller", "sole/")
    await edge.serve(m="a", m__2="c")
    assert (await edge.call(b"", method=HEADER))["replica"] == "a"
    assert (await edge.rest("POST", "/predict", b"{}")).json["replica"] == "a"


async def test_an_unknown_task_is_the_controllers_to_explain(edge: Edge) -> None:
    await serve(edge)
    answer = await edge.call(spec("x-70"), method=TASK)
    told = answer["headers"]["x-tidegate-cluster"]
    assert (answer["replica"], told) == ("controller", "task/70/x-70")
    await edge.serve(m="a")
    answer = await edge.call(spec("gone-69"), method=TASK)
    assert answer["replica"] == "controller"


PATHS = [
        ("/v1/models/m", "controller", "/v1/models/m"),
        ("/v1/models/m/versions/2", "controller", "/v1/models/m/versions/2"),
        ("/v1/models/m:predict", "a", "/v1/models/m:predict"),
        ("/v1/models/%6d:predict?a=b", "a", "/v1/models/m:predict?a=b"),
        ("/v1/models/m/versions/2:predict", "c", "/v1/models/m/versions/2:predict"),
        ("/v1/models/m/labels/stable:predict", "d", "/v1/models/m/labels/stable:predict"),
        ("/v1/models/m/labels/st%61ble:predict", "d", "/v1/models/m/labels/stable:predict"),
        ("/v1/models/m/metadata", "a", "/v1/models/m/metadata"),
        ("/v1/models/m/versions/2/metadata", "c", "/v1/models/m/versions/2/metadata"),
        ("/seldon/x/other/api/v0.1/predictions", "b", "/seldon/x/other/api/v0.1/predictions"),
        ("/seldon/%6d/m/api", "a", "/seldon/m/m/api"),
        ("/seldon/m", None, ""),
        ("/seldon/m/", None, ""),
        ("/v1/models/:predict", None, ""),
    ]  # fmt: skip


async def test_longer_paths(edge: Edge) -> None:
    await serve(edge)
    for path, replica, seen in PATHS:
        answer = await edge.rest("POST", path, b"{}")
        if replica is None:
            assert answer.status == 404
        else:
            assert (answer.json["replica"], answer.json["path"]) == (replica, seen)


BAD_PATHS = [
    ("/v1/models/m/versions/x:predict", "'x' is not a version"),
    ("/v1/models/m/labels/a%20b:predict", "'a b' is not a label"),
    ("/v1/models/a%3Ab:predict", "'a:b' cannot be the name"),
    ("/seldon/x/..m/api", "cannot be the name"),
]


async def test_longer_paths_that_lead_nowhere(edge: Edge) -> None:
    await serve(edge)
    for path, words in BAD_PATHS:
        answer = await edge.rest("POST", path, b"{}")
        assert (answer.status, words in answer.json["error"]) == (400, True)


async def test_every_whole_number_can_be_a_task(edge: Edge) -> None:
    edge.change(routings=(ROUTING,))
    for number in (0, 1, 2, 69, 255, 256, 1023, 2**31, 2**32 + 1, 2**52 + 1, 2**53 - 1):
        edge.tasks = {str(number): "m"}
        await edge.serve(m="a", other="b")
        assert (await edge.call(tags(taskId=number), method=TAGS))["replica"] == "a"


def test_a_topology_must_be_possible() -> None:
    clusters = {"m": (Endpoint("/tmp/x"),), "m@a.b": (Endpoint("/tmp/x"),)}
    assert Topology(clusters, True, b"{}", tasks={"7": "m"}).models == ("m",)
    for tasks in ({"x": "m"}, {"7": "other"}):
        with pytest.raises(ValueError, match="task"):
            Topology(clusters, True, b"{}", tasks=tasks)
    with pytest.raises(ValueError, match="model's name"):
        Topology({"m@/": (Endpoint("/tmp/x"),)}, True, b"{}")
