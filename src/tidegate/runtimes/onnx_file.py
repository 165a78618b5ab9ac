"""What onnxruntime does not tell of an ONNX file, read from the file itself.

Source of the field numbers: ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tidegate.repository.wire import Field, fields_of
from tidegate.types import Dimension

_GRAPH, _INITIALIZER, _INPUT, _OUTPUT = 7, 5, 11, 12
_EXTERNAL, _KEY, _VALUE = 13, 1, 2
_NAME, _TYPE, _TENSOR_TYPE, _SHAPE = 1, 2, 1, 2
_DIMENSION, _LENGTH, _SYMBOL = 1, 1, 2
_FLOAT, _INT = 1, 2
"""``TensorProto.FLOAT`` and ``AttributeProto.INT``."""


def shapes(path: Path) -> dict[str, tuple[Dimension, ...] | None]:
    """Return the shapes of a model's inputs and outputs, with the names of dynamic dimensions.

    ``None`` is for those for which the file gives no shape at all: onnxruntime shows them as it
    shows scalars.

    Raises:
        ValueError: it is not a protobuf message.
    """
    found: dict[str, tuple[Dimension, ...] | None] = {}
    with path.open("rb") as file:
        for graph in _inside(file, 0, path.stat().st_size, _GRAPH):
            for value in _inside(file, graph.start, graph.stop, _INPUT, _OUTPUT):
                shape = _shape(file, value)
                for name in _inside(file, value.start, value.stop, _NAME):
                    found[_text(file, name)] = shape
    return found


def external_files(path: Path) -> list[Path]:
    """Return the files beside a model that hold its weights, in the order of their names.

    Raises:
        ValueError: it is not a protobuf message.
    """
    found: set[str] = set()
    with path.open("rb") as file:
        for graph in _inside(file, 0, path.stat().st_size, _GRAPH):
            for weight in _inside(file, graph.start, graph.stop, _INITIALIZER):
                for entry in _inside(file, weight.start, weight.stop, _EXTERNAL):
                    pair = list(_inside(file, entry.start, entry.stop, _KEY, _VALUE))
                    if [_text(file, each) for each in pair[:1]] == ["location"]:
                        found.update(_text(file, each) for each in pair[1:])
    return [path.parent / name for name in sorted(found)]


def cast_outputs(names: Iterable[str]) -> dict[str, bytes]:
    """Make FP32 twins of outputs whose type numpy lacks.

    Returns:
        By the name of each twin, what to append to the bytes of the model: two serialised
        messages in a row are one whose repeated fields are joined and whose messages are
        merged, so a fragment with one node and one output adds both to the graph. See
        https://protobuf.dev/programming-guides/encoding/#last-one-wins.
    """
    fragments = {}
    for name in names:
        twin = f"{name}/tidegate.FP32"
        to = _bytes(1, b"to") + _number(3, _FLOAT) + _number(20, _INT)
        node = _bytes(1, name.encode()) + _bytes(2, twin.encode())
        node += _bytes(4, b"Cast") + _bytes(5, to)
        value = _bytes(_NAME, twin.encode()) + _bytes(_TYPE, _bytes(1, _number(1, _FLOAT)))
        fragments[twin] = _bytes(_GRAPH, _bytes(1, node) + _bytes(_OUTPUT, value))
    return fragments


def _shape(file: BinaryIO, value: Field) -> tuple[Dimension, ...] | None:
    for kind in _inside(file, value.start, value.stop, _TYPE):
        for tensor in _inside(file, kind.start, kind.stop, _TENSOR_TYPE):
            for shape in _inside(file, tensor.start, tensor.stop, _SHAPE):
                dimensions = list(_inside(file, shape.start, shape.stop, _DIMENSION))
                return tuple(_dimension(file, each) for each in dimensions)
    return None


def _dimension(file: BinaryIO, dimension: Field) -> Dimension:
    for field in fields_of(file, dimension.start, dimension.stop):
        if (field.number, field.kind) == (_LENGTH, 0):
            return field.value
        if (field.number, field.kind) == (_SYMBOL, 2):
            return _text(file, field) or None
    return None


def _inside(file: BinaryIO, start: int, stop: int, *numbers: int) -> Iterator[Field]:
    return (f for f in fields_of(file, start, stop) if f.number in numbers and f.kind == 2)


def _text(file: BinaryIO, field: Field) -> str:
    file.seek(field.start)
    return file.read(field.value).decode("utf-8", "replace")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
