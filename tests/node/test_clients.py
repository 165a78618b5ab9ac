"""Clients as they are: tritonclient, generated stubs, and JSON as curl sends it."""

from __future__ import annotations

import gzip
import json
import queue
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests import models
from tests.node.harness import ServedNode
from tidegate import __version__
from tidegate.types import DType

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
HEADER_LENGTH = "Inference-Header-Content-Length"
NO_TYPED_CONTENTS = (DType.FP16, DType.BF16)


def values(dtype: DType) -> np.ndarray[Any, Any]:
    """Two rows of two: the extremes of the type, and what is easily spoilt."""
    if dtype is DType.BYTES:
        return np.array([["", "tide"], ["gate", "é\u4e2d\x00\U0001f30a"]], object)
    if dtype is DType.BOOL:
        return np.array([[True, False], [False, True]])
    kind = dtype.numpy
    if dtype.value.startswith(("INT", "UINT")):
        bounds = np.iinfo(kind)
        return np.array([[bounds.min, bounds.max], [1, 2]], kind)
    return np.array([[0.5, -1.75], [65280.0, 2.0**-8]], kind)


def same(found: np.ndarray[Any, Any], sent: np.ndarray[Any, Any]) -> bool:
    if sent.dtype == object:
        texts = [e.decode() if isinstance(e, bytes) else e for e in found.reshape(-1)]
        return texts == sent.reshape(-1).tolist() and found.shape == sent.shape
    return np.array_equal(found.astype(sent.dtype), sent) and found.shape == sent.shape


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("clients")
    models.every_dtype(root / "every.onnx")
    typed = [d for d in DType if d not in NO_TYPED_CONTENTS]
    models.every_dtype(root / "typed.onnx", dtypes=typed)
    models.identity(root / "wide.onnx", shape=("batch", "n"))
    models.identity(root / "text.onnx", DType.BYTES, ("batch",))
    models.add_sub(root / "add_sub.onnx")
    for version in (1, 2):
        models.scale(root / "scale" / str(version) / "model.onnx", float(version))
    (root / "scale" / "model.yaml").write_text("versions: all\n")
    async with ServedNode(root) as served:
        yield served


@pytest.fixture(params=["http", "grpc"])
def either(request: pytest.FixtureRequest) -> tuple[ModuleType, Any]:
    """A client of tritonclient and the module that it is from."""
    if request.param == "http":
        return tritonclient.http, request.getfixturevalue("http")
    return tritonclient.grpc, request.getfixturevalue("rpc")


@pytest.fixture
def stub(node: ServedNode) -> Iterator[Any]:
    with grpc.insecure_channel(node.target) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def an_input(module: ModuleType, name: str, array: np.ndarray[Any, Any], **options: bool) -> Any:
    tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, **options)
    return tensor


def ramp(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# -- every type ---------------------------------------------------------------------------------


async def test_every_type_as_raw_bytes(either: tuple[ModuleType, Any]) -> None:
    module, client = either
    inputs = [an_input(module, f"in_{d.value}", values(d)) for d in DType]
    answer = client.infer("every", inputs, request_id="all of them")
    for dtype in DType:
        assert same(answer.as_numpy(f"out_{dtype.value}"), values(dtype)), dtype
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "all of them"


async def test_every_type_as_json(http: Any) -> None:
    """tritonclient writes no FP16 and no BF16 as JSON: those go as bytes beside the JSON."""
    inputs, outputs = [], []
    for dtype in DType:
        binary = dtype in NO_TYPED_CONTENTS
        inputs.append(
            an_input(tritonclient.http, f"in_{dtype.value}", values(dtype), binary_data=binary)
        )
        outputs.append(
            tritonclient.http.InferRequestedOutput(f"out_{dtype.value}", binary_data=binary)
        )
    answer = http.infer("every", inputs, outputs=outputs)
    for dtype in DType:
        assert same(answer.as_numpy(f"out_{dtype.value}"), values(dtype)), dtype
        found = answer.get_output(f"out_{dtype.value}")
        assert ("data" in found) is (dtype not in NO_TYPED_CONTENTS)


async def test_every_type_as_typed_contents(stub: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="typed", id="7")
    for dtype in (d for d in DType if d not in NO_TYPED_CONTENTS):
        array = values(dtype)
        tensor = request.inputs.add(
            name=f"in_{dtype.value}", datatype=dtype.value, shape=array.shape
        )
        contents = getattr(tensor.contents, field_of(dtype))
        flat = array.reshape(-1).tolist()
        contents.extend([e.encode() for e in flat] if dtype is DType.BYTES else flat)
    answer = stub.ModelInfer(request)
    assert (answer.model_name, answer.model_version, answer.id) == ("typed", "1", "7")
    result = tritonclient.grpc.InferResult(answer)
    for output in answer.outputs:
        dtype = DType(output.datatype)
        assert output.name == f"out_{dtype.value}"
        assert same(result.as_numpy(output.name), values(dtype)), dtype


def field_of(dtype: DType) -> str:
    name = dtype.value.lower()
    if name in ("int8", "int16", "int32"):
        return "int_contents"
    if name in ("uint8", "uint16", "uint32"):
        return "uint_contents"
    return f"{name}_contents"


# -- what a request can say ---------------------------------------------------------------------


async def test_requested_outputs_alone_are_sent(either: tuple[ModuleType, Any]) -> None:
    module, client = either
    inputs = [an_input(module, "a", ramp(1, 4)), an_input(module, "b", ramp(1, 4))]
    wanted = [module.InferRequestedOutput("difference")]
    answer = client.infer("add_sub", inputs, outputs=wanted)
    assert answer.as_numpy("difference").tolist() == [[0, 0, 0, 0]]
    assert answer.as_numpy("total") is None
    both = client.infer("add_sub", inputs)
    assert both.as_numpy("total").tolist() == [[0, 2, 4, 6]]
    assert both.as_numpy("difference") is not None


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
async def test_binary_and_json_in_one_message(
    http: Any, binary_in: bool, binary_out: bool
) -> None:
    inputs = [
        an_input(tritonclient.http, "a", ramp(2, 4), binary_data=binary_in),
        an_input(tritonclient.http, "b", ramp(2, 4), binary_data=not binary_in),
    ]
    outputs = [
        tritonclient.http.InferRequestedOutput("total", binary_data=binary_out),
        tritonclient.http.InferRequestedOutput("difference", binary_data=not binary_out),
    ]
    answer = http.infer("add_sub", inputs, outputs=outputs)
    assert np.array_equal(answer.as_numpy("total"), 2 * ramp(2, 4))
    assert np.array_equal(answer.as_numpy("difference"), np.zeros((2, 4)))
    assert ("data" in answer.get_output("total")) is not binary_out
    assert ("data" in answer.get_output("difference")) is binary_out


@pytest.mark.parametrize(("version", "factor"), [("", 2), ("1", 1), ("2", 2)])
async def test_versions_are_chosen_by_name(
    either: tuple[ModuleType, Any], version: str, factor: int
) -> None:
    module, client = either
    answer = client.infer("scale", [an_input(module, "x", ramp(1, 4))], model_version=version)
    assert np.array_equal(answer.as_numpy("y"), factor * ramp(1, 4))
    response = answer.get_response()
    told = response["model_version"] if isinstance(response, dict) else response.model_version
    assert told == (version or "2")
    assert client.is_model_ready("scale", version)


# -- what a server says of itself ---------------------------------------------------------------


async def test_health_and_metadata_over_http(http: Any) -> None:
    assert http.is_server_live()
    assert http.is_server_ready()
    server = http.get_server_metadata()
    assert (server["name"], server["version"]) == ("tidegate", __version__)
    assert server["extensions"] == [
        "binary_tensor_data", "model_configuration", "schedule_policy", "statistics",
        "model_repository", "model_repository(unload_dependents)", "trace", "logging",
    ]  # fmt: skip
    for version in ("", "1"):
        found = http.get_model_metadata("add_sub", version)
        assert found["name"] == "add_sub"
        assert found["versions"] == ["1"]
        assert found["platform"] == "onnxruntime_onnx"
        assert found["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [-1, 4]}
        assert [o["name"] for o in found["outputs"]] == ["total", "difference"]
    assert http.get_model_metadata("scale")["versions"] == ["1", "2"]


async def test_health_and_metadata_over_grpc(rpc: Any) -> None:
    assert rpc.is_server_live()
    assert rpc.is_server_ready()
    server = rpc.get_server_metadata()
    assert (server.name, server.version) == ("tidegate", __version__)
    for version in ("", "1"):
        found = rpc.get_model_metadata("add_sub", version)
        assert (found.name, list(found.versions)) == ("add_sub", ["1"])
        first = found.inputs[0]
        assert (first.name, first.datatype, list(first.shape)) == ("a", "FP32", [-1, 4])
    assert list(rpc.get_model_metadata("scale").versions) == ["1", "2"]


async def test_what_is_not_there_is_not_ready(either: tuple[ModuleType, Any]) -> None:
    module, client = either
    for model, version in (("nobody", ""), ("scale", "3")):
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata(model, version)
        assert caught.value.status() in ("404", "StatusCode.NOT_FOUND")
        assert model in caught.value.message()
    if module is tritonclient.http:
        assert not client.is_model_ready("nobody")
        assert not client.is_model_ready("scale", "3")


# -- asynchronous clients -----------------------------------------------------------------------


async def test_the_asynchronous_clients(node: ServedNode) -> None:
    for module in (tritonclient.http, tritonclient.grpc):
        async with module.aio.InferenceServerClient(node.target) as client:
            assert await client.is_server_ready()
            assert (await client.is_model_ready("scale", "1")) is True
            answer = await client.infer("scale", [an_input(module, "x", ramp(3, 4))])
            assert np.array_equal(answer.as_numpy("y"), 2 * ramp(3, 4))
            with pytest.raises(InferenceServerException, match="nobody"):
                await client.infer("nobody", [an_input(module, "x", ramp(3, 4))])


async def test_callbacks_and_futures(http: Any, rpc: Any) -> None:
    handle = http.async_infer("scale", [an_input(tritonclient.http, "x", ramp(1, 4))])
    assert np.array_equal(handle.get_result().as_numpy("y"), 2 * ramp(1, 4))
    answered: queue.SimpleQueue[Any] = queue.SimpleQueue()
    inputs = [an_input(tritonclient.grpc, "x", ramp(1, 4))]
    rpc.async_infer("scale", inputs, lambda result, error: answered.put((result, error)))
    result, error = answered.get(timeout=30)
    assert error is None
    assert np.array_equal(result.as_numpy("y"), 2 * ramp(1, 4))


# -- plain JSON ---------------------------------------------------------------------------------


async def post(
    node: ServedNode, model: str, body: bytes | dict[str, Any], **headers: str
) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer = await node.post(f"/v2/models/{model}/infer", raw, named)
    return status, answer if "Inference_Header_Content_Length" in headers else json.loads(answer)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[1, 2, 3, 4], [5, 6, 7, 8]]])
async def test_nested_and_flat_json(node: ServedNode, data: list[Any]) -> None:
    x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": data}
    body = {"id": "n", "inputs": [x]}
    status, answer = await post(node, "scale", body)
    assert status == 200
    assert answer == {
        "model_name": "scale", "model_version": "2", "id": "n",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 4],
             "data": [2, 4, 6, 8, 10, 12, 14, 16]}
        ],
    }  # fmt: skip


async def test_fp16_and_bf16_as_json(node: ServedNode) -> None:
    every = [
        {
            "name": f"in_{d.value}", "datatype": d.value, "shape": [2, 2],
            "data": values(d).astype(object if d is DType.BYTES else values(d).dtype).tolist(),
        }
        for d in DType
    ]  # fmt: skip
    status, answer = await post(node, "every", {"inputs": every})
    assert status == 200, answer
    for output in answer["outputs"]:
        sent = values(DType(output["datatype"]))
        assert output["data"] == sent.reshape(-1).tolist(), output["name"]


async def test_a_body_that_is_nothing_but_data(node: ServedNode) -> None:
    """The header length 0 of the binary extension: the only input, and a binary answer."""
    status, answer = await post(
        node, "scale", ramp(2, 4).tobytes(), Inference_Header_Content_Length="0"
    )
    assert status == 200
    assert answer.endswith((2 * ramp(2, 4)).tobytes())
    status, answer = await post(node, "text", b"tide", Inference_Header_Content_Length="0")
    assert status == 200
    assert answer.endswith(b"\x04\0\0\0tide")
    status, answer = await post(
        node, "add_sub", ramp(2, 4).tobytes(), Inference_Header_Content_Length="0"
    )
    assert (status, b"2 inputs ('a', 'b')" in answer) == (400, True)


# -- compression --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_rest_bodies(http: Any, algorithm: str) -> None:
    for binary in (True, False):
        zeros = np.zeros((64, 4), np.float32)
        answer = http.infer(
            "scale",
            [an_input(tritonclient.http, "x", zeros, binary_data=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(answer.as_numpy("y"), zeros)


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_bounded_and_checked(
    node: ServedNode, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    bomb = pack(b" " * (65 * MIB))
    status, answer = await post(node, "scale", bomb, Content_Encoding=encoding)
    assert (status, "beyond the limit of 67108864" in answer["error"]) == (413, True)
    status, answer = await post(node, "scale", b'{"inputs": []}', Content_Encoding=encoding)
    assert (status, f"'{encoding}'" in answer["error"]) == (400, True)
    status, answer = await post(node, "scale", pack(b"{}")[:-1], Content_Encoding=encoding)
    assert (status, "ends too early" in answer["error"]) == (400, True)


async def test_an_unknown_compression_is_named(node: ServedNode) -> None:
    status, answer = await post(node, "scale", b"{}", Content_Encoding="br")
    assert status == 415
    assert answer["error"] == (
        "the message is compressed with 'br'; use gzip, deflate or identity"
    )


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_grpc_messages_need_the_models_name(rpc: Any, algorithm: str) -> None:
    """The edge reads no compressed message; a header may name the model instead."""
    zeros = np.zeros((64, 4), np.float32)
    inputs = [an_input(tritonclient.grpc, "x", zeros)]
    with pytest.raises(InferenceServerException, match="tidegate-model") as caught:
        rpc.infer("scale", inputs, compression_algorithm=algorithm)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    for headers, factor in (
        ({"tidegate-model": "scale"}, 2),
        ({"tidegate-model": "scale", "tidegate-version": "1"}, 1),
    ):
        ones = np.ones((64, 4), np.float32)
        answer = rpc.infer(
            "scale",
            [an_input(tritonclient.grpc, "x", ones)],
            compression_algorithm=algorithm,
            headers=headers,
        )
        assert np.array_equal(answer.as_numpy("y"), factor * ones)


# -- large messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("mebibytes", [4.8, 63])
async def test_large_tensors_both_ways(either: tuple[ModuleType, Any], mebibytes: float) -> None:
    module, client = either
    array = ramp(1, int(mebibytes * MIB) // 4)
    answer = client.infer("wide", [an_input(module, "x", array)], request_id="large")
    assert np.array_equal(answer.as_numpy("y"), array)


async def test_large_json_both_ways(http: Any) -> None:
    array = ramp(1, 1_200_000)
    outputs = [tritonclient.http.InferRequestedOutput("y", binary_data=False)]
    tensor = an_input(tritonclient.http, "x", array, binary_data=False)
    answer = http.infer("wide", [tensor], outputs=outputs)
    assert np.array_equal(answer.as_numpy("y"), array)
