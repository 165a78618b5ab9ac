"""Good messages of every kind, which the fuzzer damages."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson
from google.protobuf.json_format import ParseDict
from PIL import Image

from tests import models
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.protocols.open_inference import grpc, messages, rest
from tidegate.protocols.open_inference.endpoints import (
    ModelEndpoint,
    ModelEndpoints,
    encode_endpoints,
)
from tidegate.protocols.registration import (
    AnnouncedModel,
    Announcement,
    Grant,
    encode_announcement,
    encode_grant,
)
from tidegate.protocols.seldon.messages import SeldonMessage
from tidegate.replica.header_blocks import encode_block
from tidegate.types import InferRequest, InferResponse, Tensor

METHODS, BODIES = 10, 6
"""How many decoders of small messages there are."""
LIMIT = 2**16
"""Bytes that a message may have."""
_SHARED = Path("/dev/shm")
FOLDER = (
    _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())
) / f"tidegate-fuzz-{os.getpid()}"


def _tensors() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2.5], [3e2, None]]},
        {"name": "i", "datatype": "INT64", "shape": [3], "data": [1, -2, 3]},
        {"name": "u", "datatype": "UINT8", "shape": [2], "data": [0, 255]},
        {"name": "b", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["a", "é\\"]},
        {"name": "h", "datatype": "BF16", "shape": [1, 1, 2], "data": [[[1, 2]]]},
        {"name": "d", "datatype": "FP64", "shape": [0], "data": []},
    ]
    return found


@cache
def json_bodies() -> tuple[bytes, ...]:
    long = {"name": "x", "datatype": "FP32", "shape": [40, 30], "data": [0.125] * 1200}
    rows = {**long, "data": [[1.5, -2] * 15] * 40}
    whole = {"id": "7", "parameters": {"p": 1, "binary_data_output": True}, "inputs": _tensors(),
             "outputs": [{"name": "y", "parameters": {"binary_data": False}}]}  # fmt: skip
    single = [{"inputs": [tensor]} for tensor in _tensors()]
    return tuple(json.dumps(d).encode() for d in (whole, *single, {"inputs": [long]},
                                                  {"inputs": [rows]}))  # fmt: skip


@cache
def people_calls() -> tuple[bytes, ...]:
    """A byte for the kind of the body, one for what the model takes, then the body."""
    array, picture = io.BytesIO(), io.BytesIO()
    np.save(array, np.ones((2, 4)))
    Image.new("RGB", (5, 3)).save(picture, "PNG")

    def form(**fields: bytes) -> bytes:
        parts = (
            b'--b\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n'
            b"Content-Type: text/plain; charset=utf-8\r\n\r\n%s\r\n" % (name.encode(), data)
            for name, data in fields.items()
        )
        return b"".join(parts) + b"--b--\r\n"

    return (
        b"\0\0" + form(data=b"anything"),
        b"\0\1" + form(image=picture.getvalue()),
        b"\0\3" + form(x=array.getvalue()),
        b"\0\4" + form(data=picture.getvalue()),
        b"\0\5" + form(x=b"[[1, 2.5, -3, null]]", i=b"[1, 2]"),
        b"\1\1" + b"image=%41b+c",
        b"\1\3" + b"[1, 2, 3, 4]",
        b"\2\2" + b'[["a", {"b64": "AAH/"}]]',
        b"\2\5" + b'{"x": [1, 2, 3, 4], "i": 7}',
        b"\3\0" + "text".encode("utf-16"),
        b"\4\4" + picture.getvalue(),
        b"\5\3" + array.getvalue(),
    )


@cache
def binary_bodies() -> tuple[bytes, ...]:
    """Two bytes of header length, then the body."""
    found = []
    for dtype, shape, raw in (
        ("FP32", [2], bytes(8)),
        ("BOOL", [2], b"\0\1"),
        ("BYTES", [2], b"\1\0\0\0a\2\0\0\0bc"),
        ("BF16", [3], bytes(6)),
    ):
        tensor = {"name": "x", "datatype": dtype, "shape": shape,
                  "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
        head = json.dumps({"inputs": [tensor]}).encode()
        found.append(len(head).to_bytes(2, "big") + head + raw)
        second = {**_tensors()[0], "name": "j"}
        head = json.dumps({"inputs": [tensor, second, {**tensor, "name": "z"}]}).encode()
        found.append(len(head).to_bytes(2, "big") + head + raw * 2)
    return (*found, b"\0\0" + bytes(16))


@cache
def infer_messages() -> tuple[bytes, ...]:
    raw = messages.ModelInferRequest(model_name="m", model_version="2", id="7")
    raw.inputs.add(name="x", datatype="FP32", shape=(2, 2))
    raw.inputs.add(name="s", datatype="BYTES", shape=(1,))
    raw.outputs.add(name="y")
    raw.parameters["p"].int64_param = 5
    raw.parameters["signature_name"].string_param = "text"
    found = [raw.SerializeToString()]
    raw.raw_input_contents.extend((bytes(16), b"\1\0\0\0a"))
    found.append(raw.SerializeToString())
    for field, datatype, values in (
        ("fp32_contents", "FP32", [1.5, 2.5]), ("fp64_contents", "FP64", [1.5]),
        ("int_contents", "INT8", [-1, 5]), ("int64_contents", "INT64", [2**60, -1, 300]),
        ("uint_contents", "UINT16", [1, 65535]), ("uint64_contents", "UINT64", [2**64 - 1]),
        ("bool_contents", "BOOL", [True, False]), ("bytes_contents", "BYTES", [b"a", b""]),
    ):  # fmt: skip
        typed = messages.ModelInferRequest(model_name="m")
        tensor = typed.inputs.add(name="x", datatype=datatype, shape=(len(values),))
        getattr(tensor.contents, field).extend(values)
        found.append(typed.SerializeToString())
    return tuple(found)


@cache
def other_messages() -> tuple[bytes, ...]:
    """One byte that says for which of the methods, then a message of it."""
    ready = messages.ModelReadyRequest(name="m", version="2").SerializeToString()
    trace = messages.TraceSettingRequest(model_name="m")
    trace.settings["trace_level"].value.append("OFF")
    log = messages.LogSettingsRequest()
    log.settings["log_info"].bool_param = True
    load = messages.RepositoryModelLoadRequest(model_name="m")
    load.parameters["config"].string_param = "{}"
    index = messages.RepositoryIndexRequest(ready=True).SerializeToString()
    region = messages.SystemSharedMemoryRegisterRequest(name="r", key="/k", byte_size=64)
    bodies = (ready, trace.SerializeToString(), log.SerializeToString(), load.SerializeToString(),
              index, region.SerializeToString())  # fmt: skip
    return tuple(bytes((which,)) + body for body in bodies for which in range(METHODS))


@cache
def control_bodies() -> tuple[bytes, ...]:
    bodies = (
        {"trace_level": ["OFF"], "trace_rate": "1"}, {"log_info": True, "log_verbose_level": 1},
        {"ready": True}, {"parameters": {"config": "{}"}}, {"parameters": {"unload_dependents":
        False}}, {"key": "/k", "offset": 0, "byte_size": 64},
    )  # fmt: skip
    return tuple(
        bytes((which,)) + json.dumps(body).encode() for body in bodies for which in range(BODIES)
    )


_SELDON: tuple[dict[str, Any], ...] = (
    {"data": {"tensor": {"shape": [1, 4], "values": [1, 2, 3, 4.5]}, "names": ["a", "b"]}},
    {"data": {"ndarray": [[1, 2, 3, 4]]}, "meta": {"puid": "p", "tags": {"taskId": 69}}},
    {"data": {"ndarray": [["a", "b"]]}, "meta": {"tags": {"taskid": "69", "x": [1, {"y": None}]}}},
    {"data": {"tftensor": {"dtype": "DT_FLOAT", "tensorShape": {"dim": [{"size": 4}]},
                           "floatVal": [1, 2]}}},
    {"binData": "AAECAw=="},
    {"strData": "text"},
    {"jsonData": {"x": [[1, 2, 3, 4]]}},
)  # fmt: skip


@cache
def seldon_messages() -> tuple[bytes, ...]:
    return tuple(
        which + ParseDict(document, SeldonMessage()).SerializeToString()
        for document in _SELDON
        for which in (b"\0", b"\1")
    )


@cache
def seldon_bodies() -> tuple[bytes, ...]:
    bodies = [orjson.dumps(document) for document in _SELDON]
    forms = [urlencode({"json": body}).encode() for body in bodies]
    return (
        *(which + body for body in bodies for which in (b"\0", b"\1")),
        *(b"\2" + form for form in forms),
    )


@cache
def frames() -> tuple[bytes, ...]:
    packed = zlib.compress(b"message" * 20)
    gzipped = zlib.compress(b"message" * 20, wbits=31)
    return (
        b"\0" + frame_prefix(7) + b"message",
        b"\1\1" + len(gzipped).to_bytes(4, "big") + gzipped,
        b"\2\1" + len(packed).to_bytes(4, "big") + packed,
        b"\3\1\0\0\0\2{}",
        b"\x04250m",
    )


@cache
def compressed() -> tuple[bytes, ...]:
    return tuple(
        bytes((which,)) + zlib.compress(content, level, wbits=wbits)
        for content in (b"", b"text " * 50, bytes(2 * LIMIT), random.Random(1).randbytes(100))
        for level in (0, 9)
        for which, wbits in ((0, 31), (1, 15))
    )


_MODEL_YAML = b"""\
runtime: onnx
batching: {max_batch_size: 8, max_queue_delay: 2ms, enabled: true}
versions: [1, 2]
replicas: 2
limits:
  timeout: 1.5s
environment:
  - &anchor value
"""
_NODE_YAML = b"""\
host: 0.0.0.0
port: 8000
max_message_size: 64MiB
access_log: true
envoy: ./envoy
"""


@cache
def weights() -> tuple[bytes, ...]:
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "seed.onnx"
    onnx = models.tiny_mlp(path, 2, 2, 2).read_bytes()
    archive = b"PK\x03\x04\x14\0\0\0\0\0" + bytes(16) + b"\x08\0\0\0model/version3\n"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    safetensors = len(header).to_bytes(8, "little") + header + bytes(4)
    return onnx, archive, safetensors, b"\x80\x02}q\0.", b"\x89HDF\r\n\x1a\n" + bytes(30), b"text"


def _response() -> InferResponse:
    arrays = (np.arange(4, dtype=np.float32), np.array([b"a", b"bc"], np.object_))
    outputs = tuple(Tensor.of(name, array) for name, array in zip("yz", arrays))
    return InferResponse("m", "1", "7", outputs, {"p": 1})


@cache
def answers() -> tuple[bytes, ...]:
    """One byte: which form; two bytes of header length; the body."""
    found = [b"\0\0\0" + grpc.encode_infer(_response())]
    for binary in (False, True):
        asked = InferRequest("m", parameters={"binary_data_output": binary})
        parts, length = rest.encode_infer(_response(), asked)
        found.append(b"\1" + (length or 0).to_bytes(2, "big") + b"".join(parts))
    described = b'{"name":"m","versions":["1"],"platform":"p","inputs":[{"name":"x","datatype":"FP32","shape":[-1]}],"outputs":[]}'  # noqa: E501
    endpoint = ModelEndpoint(
        "[fd00::1]:8000", "tidegate", 7, 2, True, frozenset({"1"}), "10.0.0.1:1"
    )
    endpoints = encode_endpoints(ModelEndpoints("m", 5000, (endpoint,)))
    return (
        *found, b"\2\0\0" + described, b"\3\0\0" + b'{"error":"words"}',
        b"\4\0\0" + endpoints,
    )  # fmt: skip


@cache
def blocks() -> tuple[bytes, ...]:
    fields = [(b":method", b"POST"), (b":path", b"/a.B/C"), (b"x-request-id", b"i" * 36)]
    indexed = b"\x83\x86\x44\x05/path\x41\x03abc"
    return (
        encode_block(fields),
        encode_block(fields[::-1]),
        indexed,
        b"\x20" + encode_block(fields),
    )


def model_yaml() -> tuple[bytes, ...]:
    return _MODEL_YAML, b"a: &a [1]\nb: *a\n", b"{}", b"batching: false\nversions: all\n"


def node_yaml() -> tuple[bytes, ...]:
    return _NODE_YAML, b"port: 1\n"


def notices() -> tuple[bytes, ...]:
    return (b'{"versions":{"m":[1,2]},"quarantined":["00ff"],"log_level":10}',)


def states() -> tuple[bytes, ...]:
    region = b'{"regions":{"r":{"key":"/k","offset":0,"byte_size":4}}}'
    return b'{"repository":"/r","port":1,"config":{}}', region, b"\x05\0\0\0a bc\n"


@cache
def announcements() -> tuple[bytes, ...]:
    model = AnnouncedModel("m", (1, 2), 2, {"stable": 1}, ("69",), ready=True)
    said = Announcement(
        "10.0.0.7:8000", (model, AnnouncedModel("n")), cores=8.5, replicas={"m": 2}, instance="a"
    )
    return tuple(map(encode_announcement, (said, Announcement("[fd00::1]:8000"))))


@cache
def grants() -> tuple[bytes, ...]:
    return (encode_grant(Grant(5.0, 1.5)),)
