from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tidegate.cli.inference import lines
from tidegate.cli.requests import Reader
from tidegate.errors import InvalidInput, MessageTooLarge, RuntimeMissing
from tidegate.types import Dimension, DType, InferRequest, Signature, TensorSpec


def reader(
    *inputs: tuple[str, DType, tuple[Dimension, ...] | None],
    raw: bool = False,
    scale: float | None = None,
) -> Reader:
    return Reader("m", Signature(tuple(TensorSpec(*i) for i in inputs), ()), raw, scale)


ROWS = reader(("x", DType.FP32, ("batch", 4)))
TWO = reader(("a", DType.FP32, ("n",)), ("b", DType.INT64, ("n",)))
WORDS = reader(("x", DType.BYTES, ("n",)))


def _data(request: InferRequest) -> dict[str, Any]:
    return {tensor.name: tensor.data.tolist() for tensor in request.inputs}


def test_json_in_its_three_forms() -> None:
    rows = [[1.0, 2.0, 3.0, 4.0]]
    for text in (b'{"x": [[1, 2, 3, 4]]}', b" [[1,2,3,4]]\r"):
        (tensor,) = ROWS.line(text).inputs
        assert (tensor.name, tensor.dtype, tensor.data.tolist()) == ("x", DType.FP32, rows)
    request = ROWS.json(
        b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", '
        b'"data": [1, 2, 3, 4]}], "outputs": [{"name": "y"}]}'
    )
    assert (_data(request), request.id, request.outputs[0].name) == ({"x": rows}, "7", "y")
    assert _data(TWO.json(b'{"a": [1.5], "b": [2]}')) == {"a": [1.5], "b": [2]}
    assert _data(WORDS.json('["grün", ""]'.encode())) == {"x": ["grün".encode(), b""]}
    scalar = reader(("x", DType.INT32, ()))
    assert _data(scalar.json(b'{"x": 3}')) == {"x": 3}
    named_inputs = reader(("inputs", DType.FP32, (None,)))
    assert _data(named_inputs.json(b'{"inputs": [1, 2]}')) == {"inputs": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("made", "text", "words"),
    [
        (ROWS, b"{", "this is not JSON"),
        (ROWS, b'{"x": [NaN]}', "write null for NaN"),
        (ROWS, b"3", "3 is no input; give an object or a list"),
        (ROWS, b'{"y": [1]}', "the model has no input 'y': it takes 'x'"),
        (ROWS, b'{"x": [[1, 2], [3]]}', "are not all"),
        (ROWS, b'{"x": [["1"]]}', "send numbers (null for NaN)"),
        (ROWS, b'{"x": ' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 deep"),
        (ROWS, b"[" * 5000, "this is not JSON"),
        (TWO, b"[1]", "a list was given, but the model 'm' has 2 inputs ('a', 'b')"),
        (TWO, b'{"b": [1.5]}', "send integers"),
        (WORDS, b'{"x": [{"y": 1}]}', "send strings"),
        (ROWS, b'{"inputs": [{"name": "x"}]}', "the datatype None"),
    ],
)
def test_json_that_is_no_request(made: Reader, text: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        made.json(text)
    assert words in str(caught.value)


@given(st.binary(max_size=60) | st.text('[]{}",:01x.e-\\ ', max_size=40).map(str.encode))
def test_any_line_makes_a_request_or_an_error(text: bytes) -> None:
    for made in (ROWS, WORDS):
        try:
            made.line(text)
        except InvalidInput as error:
            assert str(error)  # noqa: PT017


@pytest.mark.parametrize("suffix", [".npy", ""])
def test_an_array_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    for array in (
        np.arange(8, dtype=np.float32).reshape(2, 4),
        np.arange(8, dtype=">f4").reshape(2, 4),
        np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 4)),
        np.zeros((0, 4), np.float32),
    ):
        with path.open("wb") as file:
            np.save(file, array)
        (tensor,) = ROWS.line(str(path).encode() + b"\n").inputs
        assert (tensor.name, tensor.dtype) == ("x", DType.FP32)
        assert tensor.data.flags.c_contiguous
        np.testing.assert_array_equal(tensor.data, array)


@pytest.mark.parametrize("array", [np.array(["grün", "x"]), np.array(["grün".encode(), b"x"])])
def test_an_array_of_texts(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    assert _data(WORDS.file(str(tmp_path / "a.npy"))) == {"x": ["grün".encode(), b"x"]}


def test_arrays_by_name(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "two.npz", a=np.ones(1, np.float32), b=np.array([2]))
        assert _data(TWO.file(str(tmp_path / "two.npz"))) == {"a": [1.0], "b": [2]}
    (tmp_path / "two.json").write_text('\n{"a": [1], "b": [2]}')
    assert _data(TWO.file(str(tmp_path / "two.json"))) == {"a": [1.0], "b": [2]}


class _Runs:
    """A pickle of this writes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _header(shape: str, descr: str = "'<f4'") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_header("(1000000000000, 4)"), "should hold 4000000000000 elements"),
        (_header("(1000000000000,)", "'S0'"), "should hold"),
        (_header("(-1, 4)"), "its header is"),
        (_header("(2,)") + b"1234", "should hold 2 elements of float32"),
        (_header("(os, 4)"), "is not an .npy file"),
        (_header("(1,)", "[('a', '<f4')]") + b"1234", "no tensor type holds"),
        (_header("(1,)", "'<M8[s]'") + b"12345678", "no tensor type holds"),
        (b"\x93NUMPY", "is not an .npy file"),
        (b"PK\x03\x04 and no more", "is not an .npz file"),
        (b"words", "is neither JSON, .npy, .npz nor an image"),
        (b"", "is neither JSON"),
        (b"\x89PNG\r\n\x1a\n", "is neither JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(content)
    pictures = reader(("x", DType.FP32, (None, 3, None, None)))
    with pytest.raises(InvalidInput) as caught:
        pictures.file(str(path))
    assert words in str(caught.value)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    objects = np.array([_Runs(ran)], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InvalidInput, match="holds Python objects, which are not read"):
            ROWS.file(str(tmp_path / name))
    assert not ran.exists()


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", _header("(4,)") + bytes(16))
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(MessageTooLarge, match="holds 2147483648 bytes"):
        ROWS.file(str(path))


@pytest.mark.parametrize("name", ["none.npy", ".", "nul\0", "x" * 5000])
def test_what_is_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"cannot be (read|the name)"):
        ROWS.file(name)


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [((2, 3), 24, (2, 3)), (("n", 3), 24, (2, 3)), (("n", "m", 3), 24, (1, 2, 3)), ((), 4, ())],
)
def test_raw_bytes(
    tmp_path: Path, shape: tuple[Dimension, ...], size: int, found: tuple[int, ...]
) -> None:
    made = reader(("x", DType.FP32, shape), raw=True)
    path = tmp_path / "{raw"
    path.write_bytes(np.arange(size // 4, dtype="<f4").tobytes())
    (tensor,) = made.line(bytes(path)).inputs
    assert tensor.data.shape == found
    assert tensor.data.reshape(-1).tolist() == list(range(size // 4))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (reader(("x", DType.FP32, (2, 3)), raw=True), "has 5 bytes of data, but FP32 of shape"),
        (reader(("x", DType.FP32, ("n", 3)), raw=True), "has 5 bytes of data"),
        (reader(("x", DType.FP32, (2, "a", "b")), raw=True), "so many dynamic dimensions"),
        (reader(("x", DType.FP32, None), raw=True), "has any rank"),
        (reader(("x", DType.BYTES, (2,)), raw=True), "raw bytes are one element"),
        (
            reader(("a", DType.FP32, (2,)), ("b", DType.FP32, (2,)), raw=True),
            "raw bytes was given, but the model 'm' has 2 inputs",
        ),
    ],
)
def test_raw_bytes_that_do_not_fit(tmp_path: Path, made: Reader, words: str) -> None:
    (tmp_path / "raw").write_bytes(b"12345")
    with pytest.raises(InvalidInput) as caught:
        made.file(str(tmp_path / "raw"))
    assert words in str(caught.value)


def test_raw_bytes_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    made = reader(("x", DType.BYTES, ("n",)), raw=True)
    assert _data(made.file(str(tmp_path / "raw"))) == {"x": [b"\xff\xfe"]}


PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "shape", "scale", "expected"),
    [
        (DType.UINT8, (4, 6, 3), None, PIXELS),
        (DType.UINT8, ("n", "h", "w", 3), None, PIXELS[None]),
        (DType.FP32, ("n", 3, "h", "w"), None, PIXELS.transpose(2, 0, 1)[None] / 255),
        (DType.FP32, ("n", 3, 4, 6), 2.0, PIXELS.transpose(2, 0, 1)[None] * 2.0),
        (DType.UINT8, (4, 6, 3), 0.5, np.rint(PIXELS / 2)),
        (DType.INT8, (4, 6, 3), 9.0, np.clip(PIXELS * 9.0, -128, 127)),
    ],
)
def test_an_image(
    picture: str,
    dtype: DType,
    shape: tuple[Dimension, ...],
    scale: float | None,
    expected: np.ndarray[Any, Any],
) -> None:
    (tensor,) = reader(("x", dtype, shape), scale=scale).file(picture).inputs
    assert (tensor.dtype, tensor.data.dtype) == (dtype, dtype.numpy)
    assert tensor.data.flags.c_contiguous
    np.testing.assert_allclose(tensor.data, expected, rtol=1e-6)


def test_an_image_is_resized_and_its_colours_are_converted(picture: str) -> None:
    (tensor,) = reader(("x", DType.BF16, (1, 1, 2, 2))).file(picture).inputs
    assert tensor.data.shape == (1, 1, 2, 2)
    (tensor,) = reader(("x", DType.UINT8, ("n", 8, 8, 4))).file(picture).inputs
    assert tensor.data[..., 3].min() == 255


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (DType.FP32, ("n", 4)),
        (DType.BYTES, ("n",)),
        (DType.FP32, None),
        (DType.FP32, (2, 5, 5, 5)),
    ],
)
def test_an_input_that_takes_no_images(
    picture: str, dtype: DType, shape: tuple[Dimension, ...] | None
) -> None:
    with pytest.raises(InvalidInput, match="does not take images as"):
        reader(("x", dtype, shape)).file(picture)


def test_an_image_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "large.png"
    for width in (11, 30):
        Image.new("L", (width, 10)).save(path)
        with pytest.raises(InvalidInput, match="is too large"):
            reader(("x", DType.FP32, (1, None, None))).file(str(path))


def test_a_broken_image(picture: str) -> None:
    path = Path(picture)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        reader(("x", DType.FP32, (4, 6, 3))).file(picture)


def test_without_pillow(picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'tidegate\[image\]'"):
        reader(("x", DType.FP32, (4, 6, 3))).file(picture)


class _Counting(io.BytesIO):
    """Tells the longest piece that was asked for."""

    longest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        self.longest = max(self.longest, size)
        return super().readline(size)


def test_a_line_that_is_too_long_is_passed_over() -> None:
    content = b"[[1,2,3,4]]\n\n" + b"[" * 5000 + b"\n  \n[[5,6,7,8]]"
    stream = _Counting(content)
    first, second, third = lines(ROWS, stream, longest=100)
    assert (first.source, _data(first.request())) == ({"line": 1}, {"x": [[1, 2, 3, 4]]})
    with pytest.raises(MessageTooLarge, match="longer than 100B"):
        second.request()
    assert second.source == {"line": 3}
    assert (third.source, _data(third.request())) == ({"line": 5}, {"x": [[5, 6, 7, 8]]})
    assert stream.longest <= 2**16


def test_a_line_of_exactly_the_limit() -> None:
    text = b"[[1,2,3,4]]"
    (only,) = lines(ROWS, io.BytesIO(text + b"\n"), longest=len(text))
    assert _data(only.request()) == {"x": [[1, 2, 3, 4]]}
    (only,) = lines(ROWS, io.BytesIO(text), longest=len(text))
    assert _data(only.request()) == {"x": [[1, 2, 3, 4]]}
