"""Where a tensor lies that is not in the message: a part of a shared memory region.

Source: ``extension_shared_memory.md`` of Triton's protocol documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.open_inference.tensors import from_raw, shown
from tidegate.types import DType, Parameter, RequestedOutput, Tensor

_REGION, _OFFSET, _SIZE = (
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
)


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a region, in bytes."""

    region: str
    offset: int
    byte_size: int


Placed: TypeAlias = Mapping[str, Parameter]
"""The parameters of an output that was put into shared memory."""


class Reader(Protocol):
    """Reads tensors out of the regions that are registered."""

    def read(self, place: Place) -> bytes:
        """Return what lies at ``place``.

        Raises:
            InvalidInput: there is no such region, or it is smaller.
        """


def place_of(where: str, parameters: Mapping[str, Parameter]) -> Place | None:
    """Return the place that the parameters of a tensor name, if they do.

    Raises:
        InvalidInput: they name one that cannot be.
    """
    region = parameters.get(_REGION)
    if region is None:
        return None
    offset, size = parameters.get(_OFFSET, 0), parameters.get(_SIZE)
    if not isinstance(region, str):
        raise InvalidInput(f"the {_REGION} of {where} is {shown(region)}; send a string")
    for key, value in ((_OFFSET, offset), (_SIZE, size)):
        if type(value) is not int or not 0 <= value < 2**63:
            raise InvalidInput(
                f"the parameter {key} of {where} is {shown(value)}; send a number of bytes"
            )
    assert isinstance(offset, int)
    assert isinstance(size, int)
    return Place(region, offset, size)


def places_of(outputs: Iterable[RequestedOutput]) -> dict[str, Place]:
    """Return where the outputs are wanted that are wanted in shared memory."""
    found = {o.name: place_of(f"output {o.name!r}", o.parameters) for o in outputs}
    return {name: place for name, place in found.items() if place is not None}


def parameters_of(place: Place, size: int) -> Placed:
    """Return the parameters of an output of ``size`` bytes that was put at ``place``."""
    offset = {_OFFSET: place.offset} if place.offset else {}
    return {_REGION: place.region, **offset, _SIZE: size}


def read_tensor(
    name: str, dtype: DType, shape: tuple[int, ...], place: Place | None, reader: Reader | None
) -> Tensor:
    """Return the input that lies at ``place``.

    Raises:
        InvalidInput: what lies there does not fit.
        Unsupported: there is no shared memory here.
    """
    assert place is not None
    if reader is None:
        raise switched_off(f"input {name!r}")
    return from_raw(name, dtype, shape, reader.read(place))


def switched_off(where: str) -> Unsupported:
    """Return the error for a tensor in shared memory where that is not offered."""
    return Unsupported(
        f"{where} asks for shared memory, which this server does not offer (its setting "
        "shared_memory_prefix); send and receive the data in the message"
    )
