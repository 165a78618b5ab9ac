"""What a person is told of a model, and how each of its inputs can be sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from tidegate.protocols.dialect import ModelView
from tidegate.protocols.pictures import PictureInput
from tidegate.protocols.plain_http.inputs import JSON_INPUT, WHITE, single
from tidegate.protocols.plain_http.paths import ModelPath
from tidegate.types import DType, Signature, TensorSpec, element_count

UNNAMED = "data"
"""The field of a model that takes anything."""
_MOST_SHOWN = 64
"""Elements of an example."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one input is sent."""

    name: str
    hint: str
    """In words."""
    file: bool = False
    """Whether a file can be sent."""
    text: bool = False
    """Whether something can be typed."""
    accept: str = ""
    """Which files, as HTML's ``accept`` names them."""
    json: bool = False
    """Whether what is typed is JSON."""
    either: bool = False
    """Whether what is typed may be JSON or not."""
    white: bool = False
    """Whether an image needs to know what white is."""
    example: str = ""
    """What may be typed."""

    @classmethod
    def of(cls, spec: TensorSpec) -> Way:
        """Return how ``spec`` is sent."""
        if spec.dtype is DType.BYTES:
            return cls._of_bytes(spec)
        picture = PictureInput.of(spec)
        hint, accept = "numbers in JSON, or an .npy file", ".npy,.json"
        if picture is not None:
            hint += ", or " + _treatment(picture)
            accept += ",image/*"
        return cls(
            spec.name, hint, file=True, text=True, accept=accept, json=True,
            white=picture is not None and not picture.whole, example=_zeros(spec),
        )  # fmt: skip

    @classmethod
    def _of_bytes(cls, spec: TensorSpec) -> Way:
        name = spec.name
        if not single(spec):
            return cls(name, "texts in JSON", text=True, json=True)
        if spec.shape == (1,) and name == JSON_INPUT:
            return cls(name, "a JSON document", text=True, json=True)
        if name == "image":
            return cls(name, "an image", file=True, accept="image/*")
        if name == "bytes":
            return cls(name, "a file", file=True)
        if name == "text":
            return cls(name, "a text", text=True)
        return cls(name, "a text or a file", file=True, text=True)


@dataclass(frozen=True, slots=True)
class Description:
    """A model as it is shown."""

    path: ModelPath
    """What was asked for."""
    version: str
    """Which version that is."""
    versions: tuple[str, ...]
    platform: str
    signature: Signature
    name: str = ""
    """The signature's, where one was asked for."""
    names: tuple[str, ...] = ()
    """Those of all signatures, where there are several."""
    ways: tuple[Way, ...] = field(default=())

    def document(self) -> dict[str, Any]:
        """Return it as JSON for programs."""
        inputs = [
            {**_written(spec), "send": way.hint}
            for spec, way in zip(self.signature.inputs, self.ways)
        ]
        return {
            "model": self.path.model,
            "version": self.version,
            "versions": list(self.versions),
            "platform": self.platform,
            "inputs": inputs or [{"name": UNNAMED, "send": self.ways[0].hint}],
            "outputs": [_written(spec) for spec in self.signature.outputs],
            **({"signatures": list(self.names)} if self.names else {}),
        }


def describe(model: ModelView, path: ModelPath, name: str, signature: Signature) -> Description:
    """Return what is told of the signature of a model that is called ``name``, or the default."""
    metadata = model.metadata
    names = tuple(metadata.signatures)
    ways = tuple(Way.of(spec) for spec in signature.inputs)
    anything = Way(UNNAMED, "a file, a text or JSON", file=True, text=True, either=True)
    return Description(
        path,
        model.version,
        metadata.versions,
        metadata.platform,
        signature,
        name,
        names if len(names) > 1 else (),
        ways or (anything,),
    )


def _treatment(picture: PictureInput) -> str:
    """Say what is done with an image."""
    colours = {1: "grey", 3: "RGB", 4: "RGBA"}[picture.channels]
    sized = ""
    if isinstance(picture.height, int) and isinstance(picture.width, int):
        sized = f", resized to {picture.width} x {picture.height}"
    values = "pixels from 0 to 255"
    if not picture.whole:
        values = f"pixels from 0 to the value of white, which {WHITE} says"
    return f"an image, which becomes {colours}{sized}, {values}"


def _zeros(spec: TensorSpec) -> str:
    """Return what could be sent, if that is short."""
    if spec.shape is None:
        return ""
    shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
    if not 0 < element_count(shape) <= _MOST_SHOWN:
        return ""
    example: Any = False if spec.dtype is DType.BOOL else 0
    for size in reversed(shape):
        example = [example] * size
    return orjson.dumps(example).decode()


def _written(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.dtype.value,
        "shape": None if spec.shape is None else list(spec.wire_shape),
    }
