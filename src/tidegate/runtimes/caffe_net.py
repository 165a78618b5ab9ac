"""What the two files of a Caffe model say: the net in its prototxt, and whose weights there are.

Nothing is run. Source: ``caffe.proto`` (NetParameter, LayerParameter, V1LayerParameter, BlobProto)
for names and field numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.repository.wire import Field, fields_of

_LARGEST_TEXT = 2 * 2**20
_MOST_PARTS = 1_000_000
_LARGEST_INPUT = 2**28
"""Elements of an input; 1 GiB."""
_WEIGHTY = frozenset({"Convolution", "Deconvolution", "InnerProduct", "BatchNorm", "PReLU"})
"""The layers that always have weights."""
_SOURCES = frozenset({"Data", "ImageData", "HDF5Data", "MemoryData", "WindowData"})
_TRAIN = 0
_LISTED = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the net."""

    name: str
    kind: str
    """Its type; empty in prototxts of before 2014, which have numbers for them."""
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    outputs: int
    """``num_output`` of a convolution or an inner product; 0: there is none."""


@dataclass(frozen=True, slots=True)
class Net:
    """What a prototxt says."""

    inputs: Mapping[str, tuple[int, ...]]
    """The shapes of the inputs, by name."""
    layers: tuple[Layer, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The blobs that no layer takes: what Caffe itself calls the outputs of a net."""
        loose: dict[str, None] = {}
        for layer in self.layers:
            for bottom in layer.bottoms:
                loose.pop(bottom, None)
            loose.update(dict.fromkeys(layer.tops))
        return tuple(loose)

    def place(self, name: str) -> tuple[str, int]:
        """Return the layer that a blob comes from, and which of its tops that is.

        A blob that layers change in place is what the last of them makes of it. The name may
        also be a layer's, of which the first top is meant.

        Raises:
            ConfigurationError: there is nothing of this name.
        """
        for layer in reversed(self.layers):
            if name in layer.tops:
                return layer.name, layer.tops.index(name)
        if name not in {layer.name for layer in self.layers}:
            blobs = dict.fromkeys(top for layer in self.layers for top in layer.tops)
            raise ConfigurationError(
                f"signature.outputs names {name!r}, but the net has no such blob or layer: it has "
                f"{_listed(blobs)}"
            )
        return name, 0


def read_net(path: Path) -> Net:
    """Read a prototxt.

    Raises:
        InvalidModel: it is none, is damaged, or describes training instead of inference.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise InvalidModel(f"{path.name} is larger than 2 MiB: it is no prototxt")
        text = path.read_bytes().decode()
        message = text_format.Parse(text, _net_class()(), allow_unknown_field=True)
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModel(f"{path.name} is no prototxt of a net: {error}") from error
    layers = tuple(_layers(message))
    inputs = _inputs(path.name, message, layers)
    blobs = tuple(layer for layer in layers if layer.kind != "Input")
    return Net(inputs, blobs)


def check_weights(net: Net, prototxt: str, weights: Path) -> None:
    """Make sure that the weights in a ``.caffemodel`` are those of this net.

    OpenCV does not: it may read beyond them.

    Raises:
        InvalidModel: a layer has none, or ones for another number of outputs; or the file is
            damaged.
    """
    try:
        with weights.open("rb") as file:
            found = dict(_blobs_by_layer(file, weights.stat().st_size))
    except OSError as error:
        raise InvalidModel(f"{weights.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidModel(f"{weights.name} is a damaged Caffe model: {error}") from error
    for layer in net.layers:
        shape = found.get(layer.name)
        if layer.kind in _WEIGHTY and shape is None:
            raise InvalidModel(
                f"the layer {layer.name!r} of {prototxt} has no weights in {weights.name}, which "
                f"has some for {_listed(found) or 'no layer'}: do the two belong together?"
            )
        if shape and layer.outputs not in _counts(layer.kind, shape):
            raise InvalidModel(
                f"the layer {layer.name!r} of {prototxt} has num_output: {layer.outputs}, but its "
                f"weights in {weights.name} have the shape {list(shape)}: do the two belong "
                "together?"
            )


def _counts(kind: str, shape: Sequence[int]) -> Sequence[int]:
    """Return how many outputs weights of this shape may have."""
    if kind == "Convolution":
        return shape[:1]
    # Those of an inner product may lie the other way round, and may have two more dimensions.
    return shape[-2:] if kind == "InnerProduct" else range(2**32)


def _layers(message: Any) -> Iterator[Layer]:
    for layer in (*message.layers, *message.layer):
        if any(rule.HasField("phase") and rule.phase == _TRAIN for rule in layer.include):
            continue
        kind = getattr(layer, "type", "")
        outputs = layer.convolution_param.num_output or layer.inner_product_param.num_output
        yield Layer(layer.name, kind, tuple(layer.bottom), tuple(layer.top), outputs)


def _inputs(name: str, message: Any, layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    dims = list(message.input_dim)
    for place, blob in enumerate(message.input):
        if place < len(message.input_shape):
            found[blob] = tuple(message.input_shape[place].dim)
        else:
            found[blob] = tuple(dims[4 * place : 4 * place + 4])
    for layer in message.layer:
        if layer.type == "Input":
            shapes = layer.input_param.shape
            for place, blob in enumerate(layer.top):
                # One shape may stand for all.
                one = shapes[min(place, len(shapes) - 1)].dim if shapes else ()
                found[blob] = tuple(one)
    if not found:
        training = any(layer.kind in _SOURCES for layer in layers)
        what = "it describes training" if training else "it names no input with its shape"
        raise InvalidModel(
            f"{name} is no prototxt for inference: {what}; serve the deploy.prototxt, which "
            "begins with the inputs and their shapes"
        )
    for blob, shape in found.items():
        if not shape or min(shape) < 1 or math.prod(shape) > _LARGEST_INPUT:
            raise InvalidModel(f"the input {blob!r} of {name} has the shape {list(shape)}")
    return found


def _blobs_by_layer(file: BinaryIO, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the layers that have weights, with the shape of the first."""
    left = _MOST_PARTS
    for field in fields_of(file, 0, size):
        # layer, or layers as it was before 2014
        if field.kind != 2 or field.number not in (100, 2):
            continue
        of_name, of_blobs = (1, 7) if field.number == 100 else (4, 6)
        name, blob = "", None
        for part in fields_of(file, field.start, field.stop):
            left -= 1
            if left < 0:
                raise ValueError("too many fields")
            if (part.number, part.kind) == (of_name, 2):
                name = _content(file, part, 1024).decode("utf-8", "replace")
            elif (part.number, part.kind) == (of_blobs, 2) and blob is None:
                blob = part
        if blob is not None:
            yield name, _shape(file, blob)


def _shape(file: BinaryIO, blob: Field) -> tuple[int, ...]:
    legacy: dict[int, int] = {}
    for field in fields_of(file, blob.start, blob.stop):
        if field.kind == 0 and field.number in (1, 2, 3, 4):
            legacy[field.number] = field.value
        elif (field.number, field.kind) == (7, 2):
            return tuple(_dims(file, field))
    return tuple(legacy.get(number, 1) for number in (1, 2, 3, 4)) if legacy else ()


def _dims(file: BinaryIO, shape: Field) -> Iterator[int]:
    for field in fields_of(file, shape.start, shape.stop):
        if field.kind == 0:
            yield field.value
        elif field.kind == 2:
            value = shift = 0
            for byte in _content(file, field, 1024):
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    yield value
                    value = shift = 0


def _content(file: BinaryIO, field: Field, most: int) -> bytes:
    file.seek(field.start)
    return file.read(min(field.value, most))


@functools.cache
def _net_class() -> Any:
    """Return the message class of a net, with the fields that are of interest here.

    It has a pool of its own: other packages register messages of the same names.
    """
    file = descriptor_pb2.FileDescriptorProto(name="net.proto", package="tidegate.caffe")
    text_format.Parse(_FIELDS, file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tidegate.caffe.Net"))  # type: ignore[no-untyped-call, unused-ignore]


def _field(name: str, number: int, kind: str, *, many: bool = False) -> str:
    label = "LABEL_REPEATED" if many else "LABEL_OPTIONAL"
    of = f"type: TYPE_{kind}"
    if kind[0] == ".":
        of = f"type: {'TYPE_ENUM' if kind == '.Phase' else 'TYPE_MESSAGE'} "
        of += f'type_name: ".tidegate.caffe{kind}"'
    return f'field {{ name: "{name}" number: {number} label: {label} {of} }}'


def _message(name: str, *fields: str) -> str:
    return f'message_type {{ name: "{name}" {" ".join(fields)} }}'


_FIELDS = " ".join(
    (
        'enum_type { name: "Phase" value { name: "TRAIN" number: 0 } '
        'value { name: "TEST" number: 1 } }',
        _message("Shape", _field("dim", 1, "INT64", many=True)),
        _message("Input", _field("shape", 1, ".Shape", many=True)),
        _message("Count", _field("num_output", 1, "UINT32")),
        _message("Rule", _field("phase", 1, ".Phase")),
        _message(
            "Layer",
            _field("name", 1, "STRING"),
            _field("type", 2, "STRING"),
            _field("bottom", 3, "STRING", many=True),
            _field("top", 4, "STRING", many=True),
            _field("include", 8, ".Rule", many=True),
            _field("convolution_param", 106, ".Count"),
            _field("inner_product_param", 117, ".Count"),
            _field("input_param", 143, ".Input"),
        ),
        _message(
            "OldLayer",
            _field("bottom", 2, "STRING", many=True),
            _field("top", 3, "STRING", many=True),
            _field("name", 4, "STRING"),
            _field("convolution_param", 10, ".Count"),
            _field("inner_product_param", 17, ".Count"),
            _field("include", 32, ".Rule", many=True),
        ),
        _message(
            "Net",
            _field("layers", 2, ".OldLayer", many=True),
            _field("input", 3, "STRING", many=True),
            _field("input_dim", 4, "INT32", many=True),
            _field("input_shape", 8, ".Shape", many=True),
            _field("layer", 100, ".Layer", many=True),
        ),
    )
)


def _listed(names: Mapping[str, object]) -> str:
    shown = ", ".join(map(repr, list(names)[:_LISTED]))
    return shown + (", …" if len(names) > _LISTED else "")
