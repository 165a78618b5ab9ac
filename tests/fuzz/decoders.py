"""Every decoder that reads what strangers wrote: good messages, and the errors it may raise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fuzz import connections, discovery, routing, seeds, tensorflow_serving
from tidegate.config.loading import load_model_config, load_node_config
from tidegate.controller.run_directory import RunDirectory
from tidegate.errors import ConfigurationError, InvalidAnswer, InvalidModel, RequestError
from tidegate.protocols import dl_inference, grpc_health, plain_http, seldon
from tidegate.protocols.compression import ENCODINGS, decompress
from tidegate.protocols.dialect import ModelView, RestCall
from tidegate.protocols.grpc_frames import parse_timeout, unframe
from tidegate.protocols.open_inference import (
    grpc,
    grpc_caller,
    metadata,
    repository,
    rest,
    rest_caller,
    settings,
    shared_memory,
    statistics,
)
from tidegate.protocols.open_inference.endpoints import decode_endpoints
from tidegate.protocols.registration import decode_announcement, decode_grant
from tidegate.replica.flight import read_suspects
from tidegate.replica.header_blocks import BlockReader, MalformedBlock
from tidegate.replica.notices import Notices
from tidegate.replica.regions import Register
from tidegate.repository.formats import detect
from tidegate.types import DType, ModelMetadata, Signature, TensorSpec

LIMIT = seeds.LIMIT


@dataclass(frozen=True)
class Decoder:
    """What is fuzzed; ``good`` is made when it is wanted."""

    name: str
    good: Callable[[], tuple[bytes, ...]]
    read: Callable[[bytes], object]
    documented: tuple[type[Exception], ...] = ()

    def check(self, data: bytes) -> None:
        """Decode ``data``: a documented error is fine, any other one is a fault."""
        with contextlib.suppress(*self.documented):
            self.read(data)


_METHODS: tuple[Callable[[bytes], object], ...] = (
    metadata.decode_model,
    grpc_health.decode_check,
    statistics.decode_statistics,
    settings.decode_trace,
    settings.decode_log,
    repository.decode_index,
    repository.decode_load,
    repository.decode_unload,
    shared_memory.decode_register,
    shared_memory.decode_region,
)
_BODIES: tuple[Callable[[bytes], object], ...] = (
    settings.decode_trace_body,
    settings.decode_log_body,
    repository.decode_index_body,
    repository.decode_load_body,
    repository.decode_unload_body,
    lambda body: shared_memory.decode_register_body("r", body),
)


def _read_frame(data: bytes) -> None:
    which, rest_of_it = data[:1], data[1:]
    if which == b"\4":
        parse_timeout(rest_of_it)
        rest.parse_header_length(rest_of_it)
        return
    encoding = {b"\1": "gzip", b"\2": "deflate", b"\3": "identity"}.get(which)
    assert len(unframe(rest_of_it, LIMIT, encoding)) <= LIMIT


def _decompress(data: bytes) -> None:
    encoding = ENCODINGS[data[0] & 1] if data else "gzip"
    assert len(decompress(data[1:], encoding, limit=LIMIT)) <= LIMIT


# -- what is read from files ----------------------------------------------------------------------


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        seeds.FOLDER.mkdir(exist_ok=True)
        path = seeds.FOLDER / name
        path.write_bytes(data)
        return read(path)

    return run


def _notices(path: Path) -> None:
    notices = Notices.read(path)
    for digest in notices.quarantined if notices else ():
        bytes.fromhex(digest)  # as a replica does, which cannot refuse it any more


def _state(path: Path) -> None:
    directory = RunDirectory(path.parent, 1)
    directory.path.mkdir(exist_ok=True)
    (directory.path / "node.json").write_bytes(path.read_bytes())
    directory.load()
    Register.read(path)
    read_suspects(path)


def _read_answer(data: bytes) -> None:
    which, length, body = data[:1], int.from_bytes(data[1:3], "big"), data[3:]
    if which == b"\0":
        grpc_caller.decode_infer(body)
        grpc_caller.decode_model_metadata(body)
    elif which == b"\1":
        rest_caller.decode_infer(body, length or None)
    elif which == b"\2":
        rest_caller.decode_model_metadata(body)
        rest_caller.decode_server_metadata(body)
    elif which == b"\4":
        decode_endpoints(body)
    else:
        rest_caller.decode_error(body)


_READER: BlockReader[dict[bytes, bytes]] = BlockReader(dict)


def _read_block(data: bytes) -> None:
    """What was remembered must not change what is read."""
    with contextlib.suppress(MalformedBlock):
        assert _READER.read(data) == BlockReader(dict).read(data)


_SPEC = TensorSpec("x", DType.FP32, ("batch", 4))
_SIGNATURE = Signature((_SPEC,), (_SPEC,))


def _read_binary(data: bytes) -> None:
    length = int.from_bytes(data[:2], "big")
    rest.decode_infer("m", "", data[2:], length, _SIGNATURE)


_VIEWS = tuple(
    ModelView(
        ModelMetadata("m", ("1",), "p", _SIGNATURE), "1", frozenset((69,)), takes_payload=takes
    )
    for takes in (False, True)
)


def _read_seldon(data: bytes) -> None:
    dl_inference.read_seldon(data[1:], _VIEWS[(data or b"\0")[0] & 1])


def _read_seldon_rest(data: bytes) -> None:
    which = (data or b"\0")[0]
    form = {b"content-type": b"application/x-www-form-urlencoded"} if which & 2 else {}
    seldon.rest.read_call(RestCall("POST", "/predict", "", form, data[1:]), _VIEWS[which & 1])


_KINDS = (
    "multipart/form-data; boundary=b", "application/x-www-form-urlencoded", "application/json",
    "text/plain; charset=utf-16", "image/png", "", "text/html; q=0.1, */*;q=x",
)  # fmt: skip
_TAKES = (
    (),
    (TensorSpec("image", DType.BYTES, (1,)),),
    (TensorSpec("w", DType.BYTES, ("n", 2)),),
    (_SPEC,),
    (TensorSpec("p", DType.UINT8, (1, 4, 4, 3)),),
    (_SPEC, TensorSpec("i", DType.INT64, (None,))),
)


def _read_people(data: bytes) -> None:
    """Two bytes choose the kind of the body and what the model takes."""
    which, takes, body = (data[:1] or b"\0")[0], (data[1:2] or b"\0")[0], data[2:]
    kind = _KINDS[which % len(_KINDS)].encode()
    headers = {b"content-type": kind, b"accept": kind}
    signature = Signature(_TAKES[takes % len(_TAKES)], ())
    view = ModelView(ModelMetadata("m", ("1",), "p", signature), "1")
    call = RestCall("POST", "/models/m", body[:40].decode("latin-1"), headers, body)
    for asked in (replace(call, query=""), call, replace(call, method="GET")):
        plain_http.call.read(asked, view)


_REQUEST, _ANSWER = (RequestError,), (InvalidAnswer,)
DECODERS = (
    Decoder("REST JSON", seeds.json_bodies, lambda d: rest.decode_infer("m", "", d), _REQUEST),
    Decoder("REST binary", seeds.binary_bodies, _read_binary, _REQUEST),
    Decoder("REST control", seeds.control_bodies, lambda d: _BODIES[(d or b"\0")[0] % 6](d[1:]),
            _REQUEST),
    Decoder("plain HTTP", seeds.people_calls, _read_people, _REQUEST),
    Decoder("gRPC ModelInfer", seeds.infer_messages, grpc.decode_infer, _REQUEST),
    Decoder("gRPC other messages", seeds.other_messages,
            lambda d: _METHODS[(d or b"\0")[0] % len(_METHODS)](d[1:]), _REQUEST),
    Decoder("TensorFlow Serving gRPC", tensorflow_serving.good_messages,
            tensorflow_serving.read_message, _REQUEST),
    Decoder("TensorFlow Serving REST", tensorflow_serving.good_bodies,
            tensorflow_serving.read_body, _REQUEST),
    Decoder("Seldon gRPC", seeds.seldon_messages, _read_seldon, _REQUEST),
    Decoder("Seldon REST", seeds.seldon_bodies, _read_seldon_rest, _REQUEST),
    Decoder("gRPC frames", seeds.frames, _read_frame, _REQUEST),
    Decoder("compression", seeds.compressed, _decompress, _REQUEST),
    Decoder("HTTP/2", connections.http2_conversations, connections.http2),
    Decoder("HTTP/1.1", connections.http1_conversations, connections.http1),
    Decoder("header blocks", seeds.blocks, _read_block),
    Decoder("announcements", seeds.announcements, decode_announcement, _REQUEST),
    Decoder("grants", seeds.grants, decode_grant, _ANSWER),
    Decoder("answers", seeds.answers, _read_answer, _ANSWER),
    Decoder("model.yaml", seeds.model_yaml, _in_file("model.yaml", load_model_config),
            (ConfigurationError,)),
    Decoder("tidegate.yaml", seeds.node_yaml,
            _in_file("tidegate.yaml", lambda p: load_node_config(p.parent, {}, {})),
            (ConfigurationError,)),
    Decoder("nodefile.txt", discovery.nodefiles, discovery.read_nodefile, (ConfigurationError,)),
    Decoder("lists of endpoints", discovery.lists, discovery.read_list, (ConfigurationError,)),
    Decoder("EndpointSlices", discovery.slices, discovery.read_slices, _ANSWER),
    Decoder("notices", seeds.notices, _in_file("notices", _notices)),
    Decoder("state of a node", seeds.states, _in_file("state", _state)),
    Decoder("formats", seeds.weights, _in_file("model.onnx", detect), (InvalidModel,)),
    Decoder("routing script", routing.good_messages, routing.read),
)  # fmt: skip
