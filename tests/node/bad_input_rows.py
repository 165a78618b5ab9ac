"""Bad input: what is sent to a node, over REST and over gRPC, and what must come of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from tests.edge import harness as edge_harness
from tests.node.failures_table import Answer, outcome
from tests.node.harness import ServedNode
from tidegate.protocols import open_inference
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.protocols.open_inference import messages

LIMIT = 2**20
PATIENCE = 0.4
"""Seconds that a sender may be silent."""
OPTIONS = ("--max-message-size", str(LIMIT), "--idle-timeout", f"{PATIENCE}s")
PROMPT = 1.0
"""Seconds in which everything is answered."""
INFER = "/v2/models/m/infer"


@dataclass(frozen=True)
class World:
    """A node and a channel to it."""

    node: ServedNode
    channel: grpc.aio.Channel

    async def rest(self, data: bytes) -> Answer:
        """Send these bytes over a fresh connection and read one answer."""
        client = edge_harness.Rest(self.node.port)
        try:
            await client.send(data)
            found = await asyncio.wait_for(client.receive(), 10)
        finally:
            await client.close()
        if "grpc-status" in found.headers:
            code = next(
                c for c in grpc.StatusCode if c.value[0] == int(found.headers["grpc-status"])
            )
            return Answer(code.name, unquote(found.headers.get("grpc-message", "")), found.headers)
        try:
            said = json.loads(found.body).get("error", "")
        except ValueError:
            said = found.body.decode("utf-8", "replace")
        return Answer(str(found.status), said, found.headers)

    async def message(self, message: bytes, **metadata: str) -> Answer:
        """Call ``ModelInfer`` with these bytes, by a real client."""
        call = self.channel.unary_unary(open_inference.MODEL_INFER)
        pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return await outcome(call(message, metadata=pairs))


Send = Callable[[World], Awaitable[Answer]]


@dataclass(frozen=True)
class Row:
    """What is sent, the codes that come of it, and a pattern that both messages match."""

    name: str
    rest: Send | None
    grpc: Send | None
    codes: tuple[str | None, str | None]
    words: str
    within: float = PROMPT


# -- ways of sending ------------------------------------------------------------------------------


def http(
    path: str, body: bytes = b"", method: str = "POST", size: Any = None, **headers: Any
) -> bytes:
    """An HTTP/1.1 request; ``size`` is what it announces."""
    lines = [f"{method} {path} HTTP/1.1", "host: node"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "transfer_encoding" not in headers:
        lines.append(f"content-length: {len(body) if size is None else size}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def posted(body: bytes, path: str = INFER, **headers: Any) -> Send:
    return lambda world: world.rest(http(path, body, **headers))


def got(path: str) -> Send:
    return lambda world: world.rest(http(path, method="GET"))


def framed(frame: bytes, size: int | None = None, **headers: Any) -> Send:
    """A gRPC call with any bytes as its body."""
    return lambda world: world.rest(
        http(
            open_inference.MODEL_INFER,
            frame,
            size=size,
            content_type="application/grpc",
            te="trailers",
            **headers,
        )
    )


def sent(message: bytes, **metadata: str) -> Send:
    return lambda world: world.message(message, **metadata)


def document(**changes: object) -> bytes:
    """A good request of the model ``m`` with other members in its input."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


def inputs(*tensors: dict[str, object]) -> bytes:
    return json.dumps({"inputs": tensors}).encode()


def tensor(name: str = "x", datatype: str = "FP32", shape: Any = (1, 4)) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": [1, 2, 3, 4]}


def message(model: str = "m", raw: bytes = bytes(16), **changes: object) -> bytes:
    """A good request of the model ``m`` with other fields in its input."""
    described: Any = {"name": "x", "datatype": "FP32", "shape": (1, 4), **changes}
    request = messages.ModelInferRequest(
        model_name=model, inputs=[described], raw_input_contents=[raw]
    )
    return bytes(request.SerializeToString())


def of_inputs(model: str, *names: str) -> bytes:
    request = messages.ModelInferRequest(model_name=model)
    for name in names:
        request.inputs.add(name=name, datatype="FP32", shape=(1, 4))
        request.raw_input_contents.append(bytes(16))
    return bytes(request.SerializeToString())


def typed(field: str, values: list[Any], datatype: str = "FP32") -> bytes:
    request = messages.ModelInferRequest(model_name="m")
    found = request.inputs.add(name="x", datatype=datatype, shape=(1, 4))
    getattr(found.contents, field).extend(values)
    return bytes(request.SerializeToString())


def binary(raw: bytes, head: bytes | None = None, length: object = None, size: int = 16) -> Send:
    """A request with binary data."""
    described = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    head = head or inputs({**described, "parameters": {"binary_data_size": size}})
    return posted(
        head + raw, Inference_Header_Content_Length=len(head) if length is None else length
    )


def cut_off(data: bytes) -> Send:
    """Write no more than this and wait for the answer."""
    return lambda world: world.rest(data)


def nested(depth: int) -> bytes:
    """A request whose data is lists in lists."""
    return document(data=[]).replace(b"[]", b"[" * depth + b"1" + b"]" * depth)


def compressed(message: bytes) -> bytes:
    """A frame with a compressed message."""
    data = gzip.compress(message)
    return b"\1" + len(data).to_bytes(4, "big") + data


SIX = {"binary_data_size": 6}
BYTES = {"name": "x", "datatype": "BYTES", "shape": [1, 1]}


# -- the rows -------------------------------------------------------------------------------------

_BAD, _ARGUMENT = "400", "INVALID_ARGUMENT"
_WRONG = (_BAD, _ARGUMENT)
_LONG = "n" * 5000
_ABSENT = ("404", "NOT_FOUND")


def _malformed() -> list[Row]:
    noise = random.Random(1).randbytes(300)
    return [
        Row("no body at all", posted(b""), framed(b""), _WRONG, r"not JSON|truncated|fewer"),
        Row("malformed JSON", posted(b'{"inputs": ['), None, (_BAD, None), "the body is not JSON"),
        Row("JSON that is no object", posted(b"[1]"), None, (_BAD, None), "JSON object"),
        Row("noise", posted(noise), sent(b"\x0a\x01m" + noise), _WRONG,
            "not JSON|malformed|longer|not a valid"),
        Row(
            "malformed protobuf", None, sent(b"\x0a\x01m\x2a\x03\x1a\x01\xff"), (None, _ARGUMENT),
            "is not a valid inference.ModelInferRequest",
        ),
        Row(
            "100,000 brackets", posted(b"[" * 100_000), sent(b"\x0a\x01m" + b"\x2b" * 100_000),
            _WRONG, "not JSON|malformed|fields",
        ),
        Row(
            "100,000 brackets in data", posted(nested(100_000)),
            None, (_BAD, None), "not JSON",
        ),
        Row(
            "33 lists in each other", posted(nested(33)),
            None, (_BAD, None), "nested as",
        ),
        Row("NaN in JSON", posted(document(data=[1, 2, 3, float("nan")])), None, (_BAD, None),
            "write null for NaN"),
        Row("Infinity in JSON", posted(document(data=[1, 2, 3, float("inf")])), None, (_BAD, None),
            "not JSON"),
        Row("1e999 in JSON", posted(document().replace(b"[1, 2", b"[1e999, 2")), None,
            (_BAD, None), "not JSON"),
        Row("1e39 as FP32", posted(document(data=[1, 2, 3, 1e39])), None, (_BAD, None),
            r"1e\+39, which FP32 cannot hold"),
        Row(
            "a byte that is not UTF-8", posted(b'{"id": "\xff", "inputs": []}'),
            sent(b"\x0a\x01m\x1a\x01\xff" + message()[3:]), _WRONG, "not JSON|not a valid",
        ),
        Row(
            "text that is not UTF-8 for JSON", posted(
                inputs({**BYTES, "data": ["a"]}).replace(b'"a"', b'"\xff"'),
                "/v2/models/text/infer",
            ),
            None, (_BAD, None), "not JSON",
        ),
        Row(
            "BYTES that are not UTF-8, answered in JSON",
            posted(
                (head := inputs({**BYTES, "parameters": {"binary_data_size": 5}}))
                + b"\1\0\0\0\xff",
                "/v2/models/text/infer", Inference_Header_Content_Length=len(head),
            ),
            None, (_BAD, None), "not UTF-8",
        ),
    ]  # fmt: skip


def _tensors() -> list[Row]:
    two = [tensor("a"), tensor("b")]
    outputs = b"".join(b',{"name":"%x"}' % number for number in range(50_000))

    def both(what: str, words: str, **changes: Any) -> Row:
        return Row(what, posted(document(**changes)), sent(message(**changes)), _WRONG, words)

    return [
        both("wrong datatype", "must be FP32, not INT32", datatype="INT32"),
        both("unknown datatype", "has the datatype 'FP99'", datatype="FP99"),
        both("wrong rank", "must have 2 dimensions", shape=(1, 1, 4)),
        both("wrong dimension", "must be 4, not 2", shape=(2, 2)),
        both("wrong name", "has no input 'z'", name="z"),
        both("a name of 5,000 characters", "has 5000 characters", name=_LONG),
        both("negative dimension", "must be 0 or more", shape=(-1, 4)),
        both("dimensions that overflow 64 bits", "more elements than any memory",
             shape=(2**62, 2**62)),
        both("33 dimensions", "33 dimensions", shape=(1,) * 33),
        Row("a dimension beyond 64 bits", posted(document(shape=[2**64, 4])), None, (_BAD, None),
            "send a list of integers"),
        Row("a float as dimension", posted(document(shape=[1.0, 4])), None, (_BAD, None),
            "send a list of integers"),
        Row("a text as dimension", posted(document(shape=["1", 4])), None, (_BAD, None),
            "send a list of integers"),
        Row("text for a number", posted(document(data=[1, 2, 3, "4"])),
            sent(typed("bytes_contents", [b"1"] * 4)), _WRONG, "'4'; send numbers|into fp32"),
        Row("too few elements", posted(document(data=[1, 2])),
            sent(typed("fp32_contents", [1, 2])), _WRONG, "2 elements.*takes 4"),
        Row("rows of different lengths", posted(document(shape=[2, 4], data=[[1] * 4, [1] * 3])),
            None, (_BAD, None), "not all lists of 4"),
        Row("too few bytes", binary(bytes(12), size=12), sent(message(raw=bytes(12))), _WRONG,
            "12 bytes of data, but FP32 of shape .* takes 16"),
        Row("too many bytes", binary(bytes(20), size=20), sent(message(raw=bytes(20))), _WRONG,
            "20 bytes of data"),
        Row("bytes after the last tensor", binary(bytes(20)),
            sent(message() + b"\x3a\x10" + bytes(16)), _WRONG,
            "4 bytes follow|2 raw_input_contents for 1 inputs"),
        Row("an input twice", posted(inputs(tensor(), tensor())), sent(of_inputs("m", "x", "x")),
            _WRONG, "'x' comes twice"),
        Row("an input missing", posted(inputs(two[0]), "/v2/models/pair/infer"),
            sent(of_inputs("pair", "a")), _WRONG, "'b' is missing"),
        Row("an input too many", posted(inputs(*two, tensor("c")), "/v2/models/pair/infer"),
            sent(of_inputs("pair", "a", "b", "c")), _WRONG, "has no input 'c'"),
        Row("no inputs", posted(b'{"inputs": []}'), sent(of_inputs("m")), _WRONG, "is missing"),
        both("a name with control characters", r"has no input 'x\\x00\\r\\n\\x1b",
             name="x\0\r\n\x1b[31m"),
        Row("100,000 dimensions", posted(document(shape=[1] * 100_000)),
            sent(message(shape=(1,) * 100_000)), _WRONG, "100000 dimensions|and dimensions"),
        Row("300,000 empty tensors", posted(b'{"inputs": [' + b"{}," * 300_000 + b"{}]}"),
            sent(b"\x0a\x01m" + b"\x2a\0" * 300_000), _WRONG, "300001 inputs|fields"),
        Row("50,000 outputs", posted(
                document()[:-1] + b', "outputs": [' + outputs[1:] + b"]}"
            ), sent(message() + b"\x32\3\x0a\1y" * 50_000), _WRONG, "50000 outputs|fields"),
        Row("a number of 500,000 digits",
            posted(document(data=[]).replace(b"[]", b"[" + b"9" * 500_000 + b"]")),
            None, (_BAD, None), "not JSON"),
        Row("an element longer than its tensor",
            binary(b"\xff\xff\xff\x7fab", inputs({**BYTES, "parameters": SIX})),
            sent(message("text", b"\xff\xff\xff\x7fab", datatype="BYTES", shape=(1, 1))), _WRONG,
            "would end at byte"),
    ]  # fmt: skip


def _framing() -> list[Row]:
    good = message()
    frame = frame_prefix(len(good)) + good
    large = message(raw=bytes(2 * LIMIT), shape=(2 * LIMIT // 16, 4))
    bomb = gzip.compress(bytes(64 * LIMIT))
    head = f"{INFER} HTTP/1.1\r\nhost: node\r\n"
    slow = 1.5 * PROMPT + 2 * PATIENCE
    return [
        Row("twice the limit", posted(b" " * 2 * LIMIT), sent(large),
            ("413", "RESOURCE_EXHAUSTED"), f"larger than the limit of {LIMIT} bytes"),
        Row("a hundred times the limit, announced", cut_off(http(INFER, b"{", size=100 * LIMIT)),
            None, ("413", None), f"limit of {LIMIT} bytes"),
        Row("chunks without an end",
            lambda world: chunks(world, 12 * LIMIT), None, ("413", None),
            f"limit of {LIMIT} bytes"),
        Row("64 MiB of zeros, compressed", posted(bomb, Content_Encoding="gzip"),
            framed(b"\1" + len(bomb).to_bytes(4, "big") + bomb, grpc_encoding="gzip",
                   tidegate_model="m"), ("413", "RESOURCE_EXHAUSTED"), "beyond the limit"),
        Row("what is not compressed", posted(b"{}", Content_Encoding="gzip"),
            framed(b"\1\0\0\0\2{}", grpc_encoding="gzip", tidegate_model="m"), _WRONG,
            "is not what its encoding 'gzip' says"),
        Row("an unknown compression", posted(b"{}", Content_Encoding="br"),
            framed(b"\1\0\0\0\2{}", grpc_encoding="br", tidegate_model="m"),
            ("415", "UNIMPLEMENTED"), "compressed with 'br'"),
        Row("a body cut off", cut_off(http(INFER, document()[:30], size=len(document()))),
            framed(frame[:-5], size=len(frame)), ("504", "DEADLINE_EXCEEDED"),
            "did not come", slow),
        Row("a frame cut off", None, framed(frame[:-5]), (None, _ARGUMENT),
            "truncated|send the whole message"),
        Row("two messages in a unary call", None, framed(frame * 2), (None, _ARGUMENT),
            "followed by another|follow the first"),
        Row("a frame's flag that there is not", None, framed(b"\7" + frame[1:]),
            (None, _ARGUMENT), "flag is not 0 or 1|must be 0, or 1"),
        Row("headers that never end", cut_off(f"POST {head}x-slow: ".encode()), None,
            ("408", None), "did not come in time", slow),
        Row("a header length beyond the body", binary(bytes(16), length=100_000), None,
            (_BAD, None), "is 100000, but the body has"),
        Row("a header length within the JSON", binary(bytes(16), length=10), None, (_BAD, None),
            "not JSON"),
        Row("a header length that is no number", binary(bytes(16), length="-5"), None,
            (_BAD, None), "write the number of bytes"),
        Row("binary data beyond the body", binary(bytes(16), size=2**40), None, (_BAD, None),
            "would end at byte"),
        Row("what is not HTTP", cut_off(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" * 20), None,
            (_BAD, None), ""),
    ]  # fmt: skip


async def chunks(world: World, size: int) -> Answer:
    """Send a body of no announced length until there is an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.node.port)
    piece = bytes(2**18)

    async def write() -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(size // len(piece)):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()

    writer.write(http(INFER, transfer_encoding="chunked"))
    writing = asyncio.create_task(write())
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
    finally:
        writing.cancel()
        writer.transport.abort()
    return Answer(head.split()[1], json.loads(body)["error"])


def _names() -> list[Row]:
    def called(name: str, path: str, inside: str | None, words: str, code: str = _BAD) -> Row:
        send = None if inside is None else sent(message(inside))
        return Row(name, posted(document(), f"/v2/models/{path}/infer"), send,
                   (code, None if inside is None else _ARGUMENT), words)  # fmt: skip

    return [
        called("../ as a name", "..%2f..%2fetc", "../../etc", "cannot be the name|malformed"),
        called("%2e%2e as a name", "%2e%2e", "..", "cannot be the name|no POST", "404"),
        called("NUL in a name", "m%00", "m\0", "cannot be the name|malformed"),
        called("a line break in a name", "m%0d%0ax:y", "m\r\nx: y", "cannot be the name"),
        called("a model's name of 5,000 characters", _LONG, _LONG, "cannot be the name|at most"),
        Row("../ in a path", got("/v2/models/m/../../../etc/passwd"), None, ("404", None), ""),
        Row("a version that is none", posted(document(), "/v2/models/m/versions/0x1/infer"),
            sent(message()[:3] + b"\x12\x030x1" + message()[3:]), _WRONG, "is not a version"),
        Row("a NUL in a header", cut_off(http(INFER, document(), X_Nul="a\0b")), None,
            (_BAD, None), ""),
        Row("headers of 200 KiB", cut_off(http(INFER, document(), X_Big="v" * 200_000)), None,
            ("431", None), ""),
        Row("1,000 headers",
            cut_off(http(INFER, document(), **{f"X_{n}": "" for n in range(1000)})),
            None, ("431", None), ""),
        Row("a routing header that lies", None,
            framed(compressed(message("pair")), grpc_encoding="gzip", tidegate_model="m"),
            (None, _ARGUMENT), "the message is for 'pair', but its header tidegate-model led"),
    ]  # fmt: skip


def _forms() -> list[Row]:
    path = "/models/m"
    form = {"content_type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    fields = b"".join(part % (b"%d" % n, b"") for n in range(10_000))

    def bad(name: str, body: bytes, words: str, code: str = "400", **headers: Any) -> Row:
        return Row(name, posted(body, path, **headers), None, (code, None), words)

    return [
        bad("a form without its end", part % (b"x", b"[1, 2, 3, 4]"), "is truncated", **form),
        bad("a form of 10,000 fields", fields + b"--b--", "more than 256 fields", **form),
        bad("a form with a head of 100 KiB", b"--b\r\n" + b"a" * 100_000, "malformed", **form),
        bad("a form without a boundary", b"", "no boundary", content_type="multipart/form-data"),
        bad("a picture for numbers", b"\x89PNG\r\n\x1a\n", "this is an image", "415"),
        bad("an .npy file that promises 10^12 rows",
            b"\x93NUMPY\1\0\x46\0{'descr':'<f4','fortran_order':False,'shape':(1000000000000,4)}",
            "should hold 4000000000000"),
        bad("a form from a page of another site", b"[1, 2, 3, 4]", "of another site", "403",
            origin="https://example.org"),
    ]  # fmt: skip


def _models() -> list[Row]:
    def broken(
        name: str, model: str, words: str, codes: tuple[str, str] = ("503", "UNAVAILABLE")
    ) -> Row:
        path = f"/v2/models/{model}/infer"
        return Row(name, posted(document(), path), sent(message(model)), codes, words)

    return [
        broken("a model cut short", "short", r"'short' is not ready"),
        broken("noise with a model's name", "noise", r"'noise' is not ready: .*noise\.onnx"),
        broken("an empty model", "empty", r"'empty' is not ready"),
        broken("text with a model's name", "prose", r"prose\.onnx is not a model: it seems to be "
               "text"),
        broken("a graph that refers to nothing", "dangling", r"'dangling' is not ready"),
        broken("a pipe with a model's name", "pipe", r"'pipe' is not ready: .*is a pipe"),
        broken("a pipe for a model.yaml", "piped", r"'piped' is not ready: .*is not a file"),
        broken("a link out of the repository", "linked", "is not served here", _ABSENT),
        broken("a folder that is a link out", "away", "is not served here", _ABSENT),
        broken("a malformed model.yaml", "mistaken", r"'mistaken' is not ready: .*model\.yaml"),
        broken("a model.yaml of 100,000 brackets", "deep", r"'deep' is not ready: .*model\.yaml"),
    ]  # fmt: skip


_NEED_OTHERS = (
    "text that is not UTF-8 for JSON",
    "BYTES that are not UTF-8, answered in JSON",
    "an input missing",
    "an input too many",
    "an element longer than its tensor",
)
_OF_MODEL = (*_malformed(), *_tensors(), *_framing(), *_names(), *_forms())

ROWS = (*_OF_MODEL, *_models())
SOLE_ROWS = tuple(row for row in _OF_MODEL if row.name not in _NEED_OTHERS)
"""What needs no model but ``m``, and has the same codes where there is no other one."""
