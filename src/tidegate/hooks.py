"""What the author of a model's ``hooks.py`` works with.

::

    from tidegate.hooks import Batch, InvalidInput, Model, Outputs, Request

    INPUT = "image"

    def preprocess(request: Request) -> Array: ...
    def postprocess(request: Request, outputs: Outputs) -> Json: ...
    def run_model(model: Model, batch: Batch) -> Outputs: ...

Each function is optional. This module needs numpy alone and is quick to import, so that the file
works in a notebook and in a test as it does in a server; ``docs/guides/hooks.md`` tells the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from tidegate.errors import InvalidInput
from tidegate.images import MOST_PIXELS, open_image
from tidegate.types import NO_PARAMETERS, Array, Json, Parameter, Signature

if TYPE_CHECKING:  # it needs an extra
    from PIL.Image import Image

__all__ = [
    "Array",
    "Batch",
    "InvalidInput",
    "Json",
    "Model",
    "Outputs",
    "Request",
    "Response",
    "Signature",
]

Outputs: TypeAlias = Mapping[str, Array]
"""Arrays by the names of the model's outputs."""


def _nothing() -> Mapping[str, Any]:
    return NO_PARAMETERS


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    ``payload`` is what was sent if that is no tensors: ``bytes`` (an image is that, too), a
    ``str``, or a JSON document. Every accessor below raises :class:`InvalidInput`, which the
    caller gets to read, when something else was sent.
    """

    tensors: Mapping[str, Array] = field(default_factory=_nothing)
    """By name; read-only, as they may lie over the bytes of the message."""
    payload: bytes | str | Json = None
    parameters: Mapping[str, Parameter] = field(default_factory=_nothing)
    tags: Mapping[str, Json] = field(default_factory=_nothing)
    """What was said beside the data: Seldon's ``meta.tags``."""
    headers: Mapping[str, str] = field(default_factory=_nothing)
    id: str = ""
    model: str = ""
    version: str = ""

    def tensor(self, name: str | None = None) -> Array:
        """Return the tensor of this name, or the only one.

        Raises:
            InvalidInput: there is none.
        """
        if name is None and len(self.tensors) == 1:
            return next(iter(self.tensors.values()))
        if name is None:
            raise InvalidInput(f"send one tensor, not {len(self.tensors)}")
        if name not in self.tensors:
            sent = ", ".join(map(repr, self.tensors)) or "none"
            raise InvalidInput(f"the tensor {name!r} is missing; sent were: {sent}")
        return self.tensors[name]

    @property
    def data(self) -> bytes:
        """The bytes that were sent.

        Raises:
            InvalidInput: it was something else.
        """
        if not isinstance(self.payload, bytes):
            raise self._unlike("bytes")
        return self.payload

    @property
    def text(self) -> str:
        """The text that was sent.

        Raises:
            InvalidInput: it was something else.
        """
        if not isinstance(self.payload, str):
            raise self._unlike("a text")
        return self.payload

    @property
    def json(self) -> Json:
        """The JSON document that was sent.

        Raises:
            InvalidInput: it was something else.
        """
        if self.payload is None or isinstance(self.payload, bytes):
            raise self._unlike("a JSON document")
        return self.payload

    def image(self, mode: str = "RGB", most_pixels: int = MOST_PIXELS) -> Image:
        """Return the image that was sent, upright, in Pillow's ``mode`` (as ``RGB`` or ``L``).

        Raises:
            InvalidInput: it was something else, is damaged, or has more than ``most_pixels``.
            RuntimeMissing: Pillow is not installed.
        """
        return open_image(self.data, mode, most_pixels)

    def _unlike(self, wanted: str) -> InvalidInput:
        return InvalidInput(f"send {wanted}, not {self._sent()}")

    def _sent(self) -> str:
        if self.payload is None:
            return (
                f"the tensors {', '.join(map(repr, self.tensors))}" if self.tensors else "nothing"
            )
        if isinstance(self.payload, bytes):
            return f"{len(self.payload)} bytes"
        return "a text" if isinstance(self.payload, str) else "a JSON document"


@dataclass(frozen=True, slots=True)
class Response:
    """An answer with all that it can have; ``postprocess`` may return its content alone."""

    payload: bytes | str | Json = None
    tensors: Mapping[str, Array] = field(default_factory=_nothing)
    parameters: Mapping[str, Parameter] = field(default_factory=_nothing)
    tags: Mapping[str, Json] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one run of the model is given: the rows of one request or of several."""

    inputs: Mapping[str, Array]
    """By the names of the model's inputs; the first dimension is the batch."""
    outputs: Sequence[str]
    """The outputs that are wanted."""
    parameters: Mapping[str, Parameter | Json] = field(default_factory=_nothing)
    """Those that ``GROUP_BY`` names; the same for all requests in it, ``None`` where not sent."""

    @property
    def rows(self) -> int:
        """The length of the first dimension, as the first input has it."""
        first = next(iter(self.inputs.values()), None)
        return 0 if first is None or not first.ndim else len(first)


class Model(Protocol):
    """The model, as ``run_model`` gets it."""

    @property
    def signature(self) -> Signature:
        """The tensors in and out."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:N``."""

    @property
    def native(self) -> Any:
        """The framework's own object, as a ``torch.nn.Module``; ``None`` where there is none."""

    def __call__(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run it on arrays by the names of its inputs; ``outputs``: all when ``None``.

        Raises:
            InferenceFailed: the model raised.
            InsufficientMemory: it did not fit.
        """
