"""JSON to tensors and back, as TensorFlow Serving's REST API writes them.

Source: ``api_rest.md`` and ``json_tensor.cc`` of TensorFlow Serving. A tensor's shape is how its
lists are nested, its type is the signature's. Types are strict: ``true`` is no number, ``1.0`` no
integer. ``NaN``, ``Infinity`` and ``-Infinity`` stand for what JSON has no number for, both ways.
Bytes that are no text are ``{"b64": "..."}``.

Long lists of numbers take no Python object for each, as
:mod:`tidegate.protocols.open_inference.json_numbers` reads them.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference import json_numbers
from tidegate.protocols.open_inference.bounds import check_document
from tidegate.protocols.open_inference.json_data import from_json
from tidegate.protocols.open_inference.tensors import MAX_RANK, checked_shape, object_array, shown
from tidegate.types import Array, DType, Tensor

BASE64 = "b64"
_BYTES_SUFFIX = "_bytes"
"""Outputs whose names end so are binary, though TensorFlow's type is that of strings."""
_NULL = re.compile(rb'"(?:[^"\\]|\\.)*"|null')
_NOT_FINITE = (b"NaN", b"Infinity")


class Texts(dict[str, bytes]):
    """The texts of long lists, by the marks that stand for them in a document."""


def parse(body: bytes) -> tuple[dict[str, Any], Texts]:
    """Return the JSON object in ``body``, with marks for long lists, and their texts.

    Raises:
        InvalidInput: it is no JSON object, or one of too many parts.
    """
    if len(body) >= json_numbers.SHORTEST:
        rest, texts = json_numbers.cut_out(body, b'"')
        if texts:
            check_document(rest)
            try:
                return _object(orjson.loads(rest)), Texts(texts)
            except orjson.JSONDecodeError:
                pass  # what is wrong is said of the whole document
    return parse_plainly(body), Texts()


def parse_plainly(body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        InvalidInput: it is no JSON object, or one of too many parts.
    """
    check_document(body)
    return _object(_loads(body, "the body"))


def tensor_of(name: str, dtype: DType, value: object, texts: Texts) -> Tensor:
    """Return the tensor ``name``, whose elements are the nested list ``value``.

    Raises:
        InvalidInput: it is not nested evenly, or an element is none of ``dtype``.
    """
    text = _marked(value, texts)
    if text is not None:
        shape = json_numbers.shape_of(text)
        if shape is not None:
            array = json_numbers.read(dtype, checked_shape(name, shape), text)
            if array is not None:
                return Tensor(name, dtype, array)
        check_document(text)
        value = _loads(text, f"the list of input {name!r}")
    shape, flat = _flat(name, value)
    if dtype is DType.BYTES:
        array = object_array([_bytes(name, element) for element in flat], shape)
    else:
        array = from_json(name, dtype, shape, flat).reshape(shape)
    # The same array may answer to several requests with the same JSON.
    return Tensor(name, dtype, array)


def stacked(name: str, dtype: DType, rows: list[Any], texts: Texts) -> Tensor:
    """Return the tensor ``name``, whose rows are these nested lists or values.

    Raises:
        InvalidInput: the rows are not all alike, or an element is none of ``dtype``.
    """
    if not any(_is_mark(row, texts) for row in rows):
        return tensor_of(name, dtype, rows, texts)
    tensors = [tensor_of(name, dtype, row, texts) for row in rows]
    shape = tensors[0].data.shape
    for index, tensor in enumerate(tensors):
        if tensor.data.shape != shape:
            raise InvalidInput(
                f"row {index} of input {name!r} has the shape {list(tensor.data.shape)}, and "
                f"row 0 has {list(shape)}; send a tensor whose rows are all alike"
            )
    return Tensor(name, dtype, np.stack([tensor.data for tensor in tensors]))


def is_object(value: object) -> bool:
    """Say whether a value is an object with members, and no bytes."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: object) -> bool:
    """Say whether a value stands for bytes."""
    return isinstance(value, dict) and value.keys() == {BASE64} and type(value[BASE64]) is str


def decode_base64(where: str, value: Mapping[str, str]) -> bytes:
    """Return the bytes that ``{"b64": "..."}`` stands for.

    Raises:
        InvalidInput: they are not written so.
    """
    text = value[BASE64]
    try:
        data = text.encode("ascii").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise InvalidInput(
            f"{where} has {shown(text)} for {BASE64!r}, which is not base64: {error}"
        ) from error


def dump_columns(tensors: list[Tensor]) -> bytes:
    """Return the JSON of one tensor, or of an object with several by name."""
    columns = {tensor.name: _nested(tensor) for tensor in tensors}
    document: Any = columns if len(tensors) > 1 else columns[tensors[0].name]
    return _dump(document, tensors, itertools.chain.from_iterable(map(_tokens_of, tensors)))


def dump_rows(tensors: list[Tensor]) -> bytes:
    """Return the JSON of a list of rows: values of one tensor, or objects with several by name.

    Raises:
        InvalidInput: the tensors have not all the same number of rows.
    """
    for tensor in tensors:
        if not tensor.data.ndim or tensor.data.shape[0] != tensors[0].data.shape[0]:
            raise InvalidInput(
                f"the output {tensor.name!r} has the shape {list(tensor.data.shape)}, which has "
                "not a row for each of the instances; send the inputs by column, as 'inputs'"
            )
    if len(tensors) == 1:
        return dump_columns(tensors)
    columns = [(tensor.name, _nested(tensor)) for tensor in tensors]
    count = tensors[0].data.shape[0]
    rows = [{name: column[row] for name, column in columns} for row in range(count)]
    tokens = (
        token
        for row in range(count)
        for tensor in tensors
        for token in _tokens(tensor, tensor.data[row])
    )
    return _dump(rows, tensors, tokens)


def dump_number_list(values: Array) -> bytes:
    """Return the JSON of a list of FP32."""
    return dump_columns([Tensor("", DType.FP32, values)])


def dump_classes(rows: Sequence[Sequence[tuple[str, np.float32]]]) -> bytes:
    """Return the JSON of the labels and scores of each example."""
    scores = [score for row in rows for _, score in row]
    tensor = Tensor("", DType.FP32, np.array(scores, np.float32))
    return _dump(rows, [tensor], _tokens_of(tensor))


def _object(document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is {shown(document)}; send a JSON object")
    return document


def _loads(text: bytes, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if any(token in text for token in _NOT_FINITE):
            try:
                return json.loads(text)
            except (ValueError, RecursionError):
                pass
        raise InvalidInput(f"{what} is not JSON: {error}; send a JSON object") from error


def _is_mark(value: object, texts: Texts) -> bool:
    """Say whether ``value`` stands for a long list."""
    return type(value) is list and len(value) == 1 and type(value[0]) is str and value[0] in texts


def _marked(value: object, texts: Texts) -> bytes | None:
    """Take out the text of the list that ``value`` marks."""
    return texts.pop(value[0]) if isinstance(value, list) and _is_mark(value, texts) else None


def _flat(name: str, value: object) -> tuple[tuple[int, ...], list[Any]]:
    """Return how ``value`` is nested, and its elements, level by level and without recursion."""
    shape: list[int] = []
    level: list[Any] = [value]
    while level and type(level[0]) is list:
        if len(shape) >= MAX_RANK:
            raise InvalidInput(
                f"the lists of input {name!r} are nested more than {MAX_RANK} deep; send an input "
                "of fewer dimensions"
            )
        length = len(level[0])
        if any(type(row) is not list or len(row) != length for row in level):
            raise InvalidInput(
                f"the lists of input {name!r} at depth {len(shape)} are not all of {length} "
                "elements; send a tensor whose rows are all alike"
            )
        shape.append(length)
        level = list(itertools.chain.from_iterable(level))
    return checked_shape(name, shape), level


def _bytes(name: str, element: object) -> bytes:
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"input {name!r} has the element {shown(element)}, which is no text: {error}"
            ) from error
    if isinstance(element, dict) and is_base64(element):
        return decode_base64(f"input {name!r}", element)
    raise InvalidInput(
        f"input {name!r} has the element {shown(element)}; send strings, or bytes as "
        f'{{"{BASE64}": "..."}}'
    )


def _nested(tensor: Tensor) -> Any:
    """Return the elements as orjson takes them."""
    data = tensor.data
    if tensor.dtype is DType.BYTES:
        binary = tensor.name.endswith(_BYTES_SUFFIX)
        texts = np.empty(data.size, np.object_)
        texts[:] = [_text(element, binary) for element in data.reshape(-1).tolist()]
        return texts.reshape(data.shape).tolist()
    if tensor.dtype is DType.BF16:
        with np.errstate(invalid="ignore"):
            data = data.astype(np.float32)
    else:  # orjson does not know the scalars of C's long long, which ONNX Runtime answers with
        data = data.view(tensor.dtype.numpy)
    return np.ascontiguousarray(data) if data.ndim else data[()]


def _text(element: bytes, binary: bool) -> str | dict[str, str]:
    if not binary:
        try:
            return element.decode()
        except UnicodeDecodeError:
            pass
    return {BASE64: base64.b64encode(element).decode()}


def _dump(document: Any, tensors: list[Tensor], tokens: Iterator[bytes]) -> bytes:
    """Write JSON; ``tokens`` are what takes the place of each null, in their order."""
    data = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(map(_may_be_infinite, tensors)):
        return data
    return _NULL.sub(lambda found: next(tokens) if found[0] == b"null" else found[0], data)


def _may_be_infinite(tensor: Tensor) -> bool:
    if tensor.dtype.numpy.kind not in "fV":
        return False
    with np.errstate(invalid="ignore"):  # ml_dtypes complains of signalling NaN
        return not np.isfinite(tensor.data).all()


def _tokens_of(tensor: Tensor) -> Iterator[bytes]:
    return _tokens(tensor, tensor.data)


def _tokens(tensor: Tensor, data: Any) -> Iterator[bytes]:
    if tensor.dtype.numpy.kind not in "fV":
        return
    with np.errstate(invalid="ignore"):
        wide = np.asarray(data).astype(np.float64).reshape(-1)
    for value in wide[~np.isfinite(wide)].tolist():
        yield b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
