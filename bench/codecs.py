"""What reading and writing tensors costs, against the libraries that one would use plainly.

    python -m bench.codecs [--rounds 9] [--json FILE]

Every contestant does the same work: from the bytes of a whole request to an array of the
declared type and shape, and from an array to the bytes of a whole response. All run in turns in
every round; a figure is the median of the rounds, and so is a ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from bench import hardware
from tidegate.protocols.dialect import Inference, ModelView, RestCall
from tidegate.protocols.open_inference import grpc, messages, rest
from tidegate.protocols.seldon import grpc as seldon
from tidegate.protocols.seldon.messages import SeldonMessage
from tidegate.protocols.tensorflow_serving import grpc as tf_grpc
from tidegate.protocols.tensorflow_serving import messages as tf_messages
from tidegate.protocols.tensorflow_serving import rest as tf_rest
from tidegate.types import (
    Array,
    DType,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Signature,
    Tensor,
    TensorSpec,
)

SHAPE = (1, 3, 640, 640)
SMALL = (1, 64)
OURS = "tidegate"
_RANDOM = np.random.default_rng(1)
_TYPED = {"protobuf, np.array": 10.0, "protobuf, np.fromiter": 10.0}
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class Contest:
    """One thing to do, by several ways of doing it; the first is ours."""

    name: str
    ways: dict[str, Callable[[], object]]
    calls: int = 1
    """How often in each round."""
    least: dict[str, float] | None = None
    """The ratios that are promised."""


def response(array: Array) -> InferResponse:
    """Return an answer of one output."""
    return InferResponse("m", "1", "7", (Tensor.of("y", array),))


def json_body(array: Array, *, nested: bool) -> bytes:
    """Return a request of one input."""
    data = array if nested else array.reshape(-1)
    tensor = {
        "name": "x",
        "datatype": DType.of(array.dtype).value,
        "shape": array.shape,
        "data": data,
    }
    return orjson.dumps({"id": "7", "inputs": [tensor]}, option=_NUMPY)


def with_json(loads: Callable[[bytes], Any], body: bytes, dtype: DType) -> Array:
    """Decode a request in the plain way."""
    [tensor] = loads(body)["inputs"]
    return np.array(tensor["data"], dtype.numpy).reshape(tensor["shape"])


def as_document(array: Array, data: object) -> dict[str, Any]:
    """Return an answer of one output, to be written as JSON."""
    tensor = {
        "name": "y",
        "datatype": DType.of(array.dtype).value,
        "shape": array.shape,
        "data": data,
    }
    return {"model_name": "m", "model_version": "1", "id": "7", "outputs": [tensor]}


def by_json(name: str, array: Array, *, nested: bool = False, calls: int = 1) -> Contest:
    """JSON: a whole request read and a whole response written."""
    body, dtype = json_body(array, nested=nested), DType.of(array.dtype)
    answer, request = response(array), InferRequest("m")

    def ours() -> object:
        rest.decode_infer("m", "", body)
        return rest.encode_infer(answer, request)

    def orjson_numpy() -> object:
        with_json(orjson.loads, body, dtype)
        return orjson.dumps(as_document(array, array.reshape(-1)), option=_NUMPY)

    def orjson_lists() -> object:
        with_json(orjson.loads, body, dtype)
        return orjson.dumps(as_document(array, array.reshape(-1).tolist()))

    def standard() -> object:
        with_json(json.loads, body, dtype)
        return json.dumps(as_document(array, array.reshape(-1).tolist())).encode()

    assert np.array_equal(rest.decode_infer("m", "", body).inputs[0].data, array)
    written = b"".join(rest.encode_infer(answer, request)[0])
    assert np.array_equal(np.array(orjson.loads(written)["outputs"][0]["data"], array.dtype),
                          array.reshape(-1))  # fmt: skip
    ways = {
        OURS: ours,
        "orjson, numpy": orjson_numpy,
        "orjson, lists": orjson_lists,
        "json": standard,
    }
    return Contest(name, ways, calls, {"orjson, numpy": 1.5} if calls == 1 else None)


def by_halves(array: Array) -> list[Contest]:
    """JSON, reading and writing apart."""
    body, dtype = json_body(array, nested=False), DType.of(array.dtype)
    answer, request = response(array), InferRequest("m")
    reading: dict[str, Callable[[], object]] = {
        OURS: lambda: rest.decode_infer("m", "", body),
        "orjson, numpy": lambda: with_json(orjson.loads, body, dtype),
        "json": lambda: with_json(json.loads, body, dtype),
    }
    writing: dict[str, Callable[[], object]] = {
        OURS: lambda: rest.encode_infer(answer, request),
        "orjson, numpy": lambda: orjson.dumps(
            as_document(array, array.reshape(-1)), option=_NUMPY
        ),
        "json": lambda: json.dumps(as_document(array, array.reshape(-1).tolist())).encode(),
    }
    return [Contest("  of which reading", reading), Contest("  of which writing", writing)]


def typed(name: str, array: Array, field: str, **options: Any) -> Contest:
    """Typed contents of gRPC: a whole request read."""
    message = messages.ModelInferRequest(model_name="m", id="7")
    tensor = message.inputs.add(name="x", datatype=DType.of(array.dtype).value, shape=array.shape)
    getattr(tensor.contents, field).extend(array.reshape(-1).tolist())
    body = message.SerializeToString()

    def plain(make: Callable[..., Array]) -> Array:
        [tensor] = messages.ModelInferRequest.FromString(body).inputs
        found = make(getattr(tensor.contents, field), array.dtype)
        return found.reshape(tuple(tensor.shape))

    assert np.array_equal(grpc.decode_infer(body).inputs[0].data, array)
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: grpc.decode_infer(body),
        "protobuf, np.array": lambda: plain(np.array),
        "protobuf, np.fromiter": lambda: plain(np.fromiter),
    }
    return Contest(name, ways, **options)


def raw(array: Array) -> Contest:
    """Raw contents of gRPC: a whole request read and a whole response written."""
    message = messages.ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name="x", datatype=DType.of(array.dtype).value, shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    body = message.SerializeToString()
    answer = response(array)

    def ours() -> object:
        grpc.decode_infer(body)
        return grpc.encode_infer(answer)

    def protobuf() -> object:
        found = messages.ModelInferRequest.FromString(body)
        shape = tuple(found.inputs[0].shape)
        np.frombuffer(found.raw_input_contents[0], array.dtype).reshape(shape)
        out = messages.ModelInferResponse(model_name="m", model_version="1", id="7")
        out.outputs.add(name="y", datatype=DType.of(array.dtype).value, shape=array.shape)
        out.raw_output_contents.append(array.tobytes())
        return out.SerializeToString()

    assert np.array_equal(grpc.decode_infer(body).inputs[0].data, array)
    ways: dict[str, Callable[[], object]] = {
        OURS: ours,
        "memcpy": lambda: bytearray(body),
        "protobuf, numpy": protobuf,
    }
    return Contest("gRPC raw FP32", ways, 20)


def seldon_tensor(array: Array) -> Contest:
    """A tensor of doubles in Seldon's protocol: a whole message read, and one written."""
    message = SeldonMessage()
    message.data.tensor.shape.extend(array.shape)
    message.data.tensor.values.extend(array.reshape(-1).tolist())
    body = message.SerializeToString()
    answer, request = response(array), InferRequest("m", id="7")

    def ours() -> object:
        content = seldon.decode(body, 2**26)
        return seldon.encode(request, content.form, answer)

    def protobuf() -> object:
        tensor = SeldonMessage.FromString(body).data.tensor
        np.array(tensor.values).reshape(tuple(tensor.shape))
        out = SeldonMessage()
        out.meta.puid = "7"
        out.data.tensor.shape.extend(array.shape)
        out.data.tensor.values.extend(array.reshape(-1).tolist())
        return out.SerializeToString()

    found = seldon.decode(body, 2**26).data
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, array)
    ways: dict[str, Callable[[], object]] = {OURS: ours, "protobuf, numpy": protobuf}
    return Contest("Seldon tensor, doubles", ways, least={"protobuf, numpy": 5.0})


def predict_request(array: Array) -> Any:
    """Return a request of TensorFlow Serving without its elements."""
    message = tf_messages.PredictRequest()
    message.model_spec.name = "m"
    proto = message.inputs["x"]
    proto.dtype = 1
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    return message


def by_tensor_proto(name: str, array: Array, field: str, least: float) -> Contest:
    """Predict of TensorFlow Serving: a whole request read and a whole response written."""
    message = predict_request(array)
    flat = array.reshape(-1)
    if field == "float_val":
        message.inputs["x"].float_val.extend(flat.tolist())
    else:
        message.inputs["x"].tensor_content = array.tobytes()
    body, answer = message.SerializeToString(), response(array)

    def ours() -> object:
        tf_grpc.decode_predict(body, len(body))
        return b"".join(tf_grpc.encode_predict(answer))

    def protobuf() -> object:
        proto = tf_messages.PredictRequest.FromString(body).inputs["x"]
        shape = tuple(dim.size for dim in proto.tensor_shape.dim)
        out = tf_messages.PredictResponse()
        out.model_spec.name = "m"
        result = out.outputs["y"]
        result.dtype = 1
        for size in shape:
            result.tensor_shape.dim.add(size=size)
        if field == "float_val":
            np.array(proto.float_val, array.dtype).reshape(shape)
            result.float_val.extend(flat.tolist())
        else:
            np.frombuffer(proto.tensor_content, array.dtype).reshape(shape)
            result.tensor_content = array.tobytes()
        return out.SerializeToString()

    assert np.array_equal(tf_grpc.decode_predict(body, len(body)).inputs[0].data, array)
    ways: dict[str, Callable[[], object]] = {OURS: ours, "protobuf, numpy": protobuf}
    return Contest(name, ways, 1 if field == "float_val" else 10, {"protobuf, numpy": least})


def by_rows(name: str, array: Array) -> Contest:
    """TensorFlow Serving's REST API: a whole request read and a whole response written, by row."""
    body = orjson.dumps({"instances": array}, option=_NUMPY)
    answer = response(array)
    spec = TensorSpec("x", DType.of(array.dtype), None)
    view = ModelView(ModelMetadata("m", ("1",), "p", Signature((spec,), ())), "1")
    call = RestCall("POST", "/v1/models/m:predict", "", {}, body)

    def ours() -> object:
        found = tf_rest.read_call(call, view)
        assert isinstance(found, Inference)
        return b"".join(found.encode(answer).parts)

    def plain(loads: Callable[[bytes], Any], dumps: Callable[[Any], object]) -> object:
        np.array(loads(body)["instances"], array.dtype)
        return dumps({"predictions": array.tolist()})

    found = tf_rest.read_call(call, view)
    assert isinstance(found, Inference)
    assert np.array_equal(found.request.inputs[0].data, array)
    ways: dict[str, Callable[[], object]] = {
        OURS: ours,
        "orjson, lists": lambda: plain(orjson.loads, orjson.dumps),
        "json": lambda: plain(json.loads, json.dumps),
    }
    return Contest(name, ways, least={"json": 3.0})


def contests() -> list[Contest]:
    """Return everything that is measured."""
    large = _RANDOM.standard_normal(SHAPE, np.float32)
    small = _RANDOM.standard_normal(SMALL, np.float32)
    whole = _RANDOM.integers(-(2**40), 2**40, SHAPE)
    return [
        by_json("JSON FP32, flat", large),
        *by_halves(large),
        by_json("JSON FP32, nested", large, nested=True),
        by_json("JSON INT64, flat", whole),
        by_json("JSON FP32, 64 numbers", small, calls=2000),
        typed("gRPC fp32_contents", large, "fp32_contents", least=_TYPED),
        typed("gRPC int64_contents", whole, "int64_contents"),
        raw(large),
        seldon_tensor(large.astype(np.float64)[:, :, :320]),
        by_tensor_proto("TF Serving tensor_content", large, "tensor_content", 1.0),
        by_tensor_proto("TF Serving float_val", large, "float_val", 10.0),
        by_rows("TF Serving REST, rows", large),
    ]


def measure(contest: Contest, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of one call in each round, by the way it was done."""
    found: dict[str, list[float]] = {way: [] for way in contest.ways}
    for number in range(-1, rounds):
        for way, call in contest.ways.items():
            gc.collect()
            began = time.perf_counter()
            for _ in range(contest.calls):
                call()
            taken = (time.perf_counter() - began) / contest.calls * 1e3
            if number >= 0:  # the first round warms up
                found[way].append(taken)
    return found


def run(rounds: int, output: Path | None) -> int:
    """Measure, print, write; the exit status says whether what is promised holds."""
    machine = hardware.describe()
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    table = Table(title=f"FP32 and INT64 of shape {list(SHAPE)}, medians of {rounds} rounds")
    for heading in ("what", "how", "ms", "fastest", "slowest", "ratio", "promised"):
        table.add_column(heading, justify="left" if heading in ("what", "how") else "right")
    kept: dict[str, dict[str, list[float]]] = {}
    broken = 0
    for contest in contests():
        found = kept[contest.name] = measure(contest, rounds)
        for way, times in found.items():
            ratio = statistics.median(
                theirs / mine for mine, theirs in zip(found[OURS], times, strict=True)
            )
            least = (contest.least or {}).get(way)
            broken += least is not None and ratio < least
            table.add_row(
                contest.name if way == OURS else "",
                way,
                *(f"{f(times):.3f}" for f in (statistics.median, min, max)),
                "" if way == OURS else f"{ratio:.2f}",
                "" if least is None else f">= {least:g}",
            )
        table.add_section()
    console.print(table)
    console.print(f"ratio: how many times as long as {OURS} it took")
    if output:
        document = {"machine": machine, "milliseconds": kept}
        output.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if broken else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.codecs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write all rounds there")
    given = parser.parse_args()
    return run(given.rounds, given.json)


if __name__ == "__main__":
    sys.exit(main())
