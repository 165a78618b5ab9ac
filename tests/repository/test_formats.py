from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from tidegate.errors import InvalidModel
from tidegate.repository.formats import FORMATS, detect
from tidegate.repository.pickles import danger


def archive(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        for member in members:
            written.writestr(member, b"x")
    return buffer.getvalue()


def field(number: int, data: bytes | int) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


SAFETENSORS = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
EXAMPLES = {
    "torchscript": archive("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version"),
    "pt2": archive("archive_format", "models/model.json"),
    "keras": archive("metadata.json", "config.json", "model.weights.h5"),
    "safetensors": struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + b"\0" * 4,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 100,
    "tflite": b"\x1c\0\0\0TFL3" + b"\0" * 100,
    "openvino": b'<?xml version="1.0"?>\n<net name="m" version="11">\n<layers/></net>',
    "frozen-graph": field(1, b"\x0a\x01x" * 9) * 3 + field(4, field(1, 27)),
    "savedmodel": field(1, 1) + field(2, b"\0" * 50),
    "caffe": field(1, b"net") + field(100, b"\x0a\x04conv") * 2,
    "tensorrt": b"ptrt" + b"\0" * 64,
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("suffix", [".onnx", ".bin"])
def test_recognised_by_content(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(EXAMPLES[name])
    assert detect(path) is FORMATS[name]


def torch_save(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("m/data.pkl", data)
        written.writestr("m/version", b"3")
    return buffer.getvalue()


def calling(*names: str, protocol: int) -> bytes:
    """A pickle that imports ``module.name`` of each, as torch.save's are."""
    parts = [b"\x80" + bytes([protocol]), b"]"]
    for name in names:
        module, _, function = name.rpartition(".")
        if protocol < 4:
            parts.append(b"c" + f"{module}\n{function}\n".encode() + b"a")
        else:
            texts = (b"\x8c" + bytes([len(t)]) + t.encode() + b"\x94" for t in (module, function))
            parts.append(b"".join(texts) + b"\x93\x94a")
    return b"".join(parts) + b"."


WEIGHTS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage")


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_are_told_from_other_pickles(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(torch_save(calling(*WEIGHTS, protocol=protocol)))
    assert detect(path).name == "state-dict"
    path.write_bytes(torch_save(calling(*WEIGHTS, "net.Net", "os.system", protocol=protocol)))
    assert detect(path).name == "torch-pickle"
    reason, hint = danger(path)
    assert "would run whatever code it holds" in reason
    assert "(it calls net.Net, os.system)" in reason
    assert "trust: pickle" in hint


def test_a_name_that_is_taken_from_the_memo(tmp_path: Path) -> None:
    """``posix`` and ``system`` are put away first, and fetched when they are called."""
    path = tmp_path / "m.pth"
    path.write_bytes(torch_save(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x9400h\x00h\x01\x93."))
    assert detect(path).name == "torch-pickle"
    assert "posix.system" in danger(path)[0]


def test_weights_saved_before_torch_1_6(tmp_path: Path) -> None:
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
    head = magic + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path = tmp_path / "m.pth"
    path.write_bytes(head + calling(*WEIGHTS, protocol=2) + b"weights")
    assert detect(path).name == "state-dict"
    path.write_bytes(head + calling("os.system", protocol=2) + b"weights")
    assert detect(path).name == "torch-pickle"


def test_a_pickle_that_is_cut_or_endless(tmp_path: Path) -> None:
    """What nobody could look at whole counts as weights, which is how it is loaded."""
    path = tmp_path / "m.pth"
    for data in (b"", b"\x80\x02c", b"\x80\x02" + b"N0" * 6_000_000, b"\xff" * 50):
        path.write_bytes(torch_save(data))
        assert detect(path).name == "state-dict"


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_pickle_in_a_zip_is_sorted(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pth"
    path.write_bytes(torch_save(data))
    assert detect(path).name in {"state-dict", "torch-pickle"}
    assert danger(path)


def test_any_damage_to_a_zip_is_a_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    data = EXAMPLES["torchscript"]
    for place in range(len(data)):
        for value in (0, 0xF3):
            path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            with contextlib.suppress(InvalidModel):
                detect(path)


def test_a_saved_model_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(EXAMPLES["savedmodel"])
    assert detect(tmp_path).name == "savedmodel"


@pytest.mark.parametrize(
    "write", [models.identity, models.every_dtype, models.tiny_mlp, models.gather]
)
def test_onnx(tmp_path: Path, write: models.Writer) -> None:
    path = write(tmp_path / "model.bin")
    assert detect(path).name == "onnx"


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_onnx_that_is_cut_short(tmp_path: Path, kept: float) -> None:
    path = models.tiny_mlp(tmp_path / "model.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InvalidModel, match=r"an ONNX model that is cut short at [0-9,]+ bytes"):
        detect(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello world\n", "text, which begins 'hello world'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"a": 1}', "seems to be JSON"),
        (b"<net-config/>", "seems to be XML"),
        (b"\x1f\x8b\x08\0", "gzip-compressed"),
        (b"\x89PNG\r\n\x1a\n\0", "PNG image"),
        (archive("readme.txt"), "zip archive"),
        (archive("m/data.pkl", "m/version")[:-10], "damaged or truncated zip"),
        (b"\xfe\xff\0\1" * 40, "binary data in no format"),
        (b"\x08" + b"\xff" * 30, "binary data in no format"),
    ],
)
def test_what_is_no_model_says_what_it_seems_to_be(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidModel) as caught:
        detect(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith("model.onnx is ")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_recognised_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    with contextlib.suppress(InvalidModel):
        assert detect(path).name in FORMATS


def test_unpickling_never_happens(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('unpickled')",)

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Trap()))
    assert detect(path).name == "pickle"
