"""Shared memory that clients have registered, as a replica reads and writes it.

The controller keeps the register in a file and replaces it as a whole; a replica looks whether it
has changed whenever a request names a region, so a region can be used as soon as its registration
was answered, by every replica, however often controller and replicas are restarted.

Tensors are read and written through file descriptors, and no memory is mapped: a client that
shrinks its region would otherwise kill the replica at the next access (SIGBUS), and one that
writes while it is read could change what has been checked. It costs one copy, as fast as memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tidegate.errors import InvalidInput, MessageTooLarge
from tidegate.protocols.open_inference.places import Place, Placed, parameters_of, places_of
from tidegate.types import RequestedOutput

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open keeps its names on Linux
_UNUSABLE = (
    "the shared memory of region {!r} cannot be used with this key, offset and size: create it "
    "under the prefix that the server allows (shared_memory_prefix), at least as large"
)


class RegisteredRegion(BaseModel):
    """One region; ``number`` tells two registrations of the same name apart."""

    number: int
    key: str
    offset: int
    byte_size: int


class Register(BaseModel):
    """The content of the file: the regions by name."""

    regions: dict[str, RegisteredRegion] = {}

    @classmethod
    def read(cls, path: Path) -> Register:
        """Read the file; one that is not there, or cannot be read, has no regions."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()


def open_region(name: str, region: RegisteredRegion, folder: Path = FOLDER) -> int:
    """Return a descriptor of the memory object of ``region``.

    Raises:
        InvalidInput: it cannot be used. Whatever the reason, the words are the same, so that
            nobody learns what there is on the machine.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(folder / region.key, flags)
    except (OSError, ValueError) as error:
        raise InvalidInput(_UNUSABLE.format(name)) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size >= region.offset + region.byte_size:
        return descriptor
    os.close(descriptor)
    raise InvalidInput(_UNUSABLE.format(name))


class Regions:
    """The regions in the register ``file``; no request reads more than ``limit`` bytes."""

    def __init__(self, file: Path, limit: int, folder: Path = FOLDER) -> None:
        self._file = file
        self._limit = limit
        self._folder = folder
        self._seen: tuple[int, int] | None = None
        self._register = Register()
        self._open: dict[str, tuple[int, int]] = {}
        """By name: the number of the registration and its descriptor."""

    def reader(self) -> RegionReader:
        """Return what reads the inputs of one request."""
        return RegionReader(self, self._limit)

    def read(self, place: Place) -> bytes:
        """Return what lies at ``place``.

        Raises:
            InvalidInput: there is no such region, or it is smaller.
        """
        descriptor, start = self._find(place)
        data = os.pread(descriptor, place.byte_size, start)
        if len(data) != place.byte_size:
            raise InvalidInput(_UNUSABLE.format(place.region))
        return data

    def write(self, name: str, place: Place, data: bytes | memoryview) -> Placed:
        """Put the data of the output ``name`` at ``place``; return the parameters that say so.

        Raises:
            InvalidInput: there is no such region, or the place is smaller.
        """
        size = memoryview(data).nbytes
        if size > place.byte_size:
            raise InvalidInput(
                f"output {name!r} has {size} bytes, and its place in shared memory "
                f"{place.byte_size}: give more room"
            )
        descriptor, start = self._find(place)
        # A write beyond its end would make the memory object larger.
        if os.fstat(descriptor).st_size < start + size:
            raise InvalidInput(_UNUSABLE.format(place.region))
        try:
            written = os.pwrite(descriptor, data, start)
        except OSError as error:
            raise InvalidInput(_UNUSABLE.format(place.region)) from error
        if written != size:
            raise InvalidInput(_UNUSABLE.format(place.region))
        return parameters_of(place, size)

    def check_all(self, outputs: Iterable[RequestedOutput]) -> None:
        """Make sure, before the model runs, that there are the places where outputs are wanted.

        Raises:
            InvalidInput: there is one that is not.
        """
        for place in places_of(outputs).values():
            self._find(place)

    def _find(self, place: Place) -> tuple[int, int]:
        """Return the descriptor of a region, and where the place begins in it."""
        self._look()
        region = self._register.regions.get(place.region)
        if region is None:
            raise InvalidInput(
                f"there is no shared memory region {place.region[:256]!r}: register it first"
            )
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidInput(
                f"the bytes {place.offset} to {place.offset + place.byte_size} are not in the "
                f"shared memory region {place.region!r} of {region.byte_size} bytes"
            )
        number, descriptor = self._open.get(place.region, (-1, -1))
        if number != region.number:
            descriptor = open_region(place.region, region, self._folder)
            self._open[place.region] = region.number, descriptor
        return descriptor, region.offset + place.offset

    def _look(self) -> None:
        """Read the register if it is another one than before."""
        try:
            status = self._file.stat()
            seen = status.st_ino, status.st_mtime_ns
        except OSError:
            seen = None
        if seen is not None and seen == self._seen:
            return
        self._seen = seen
        self._register = Register() if seen is None else Register.read(self._file)
        for name, (number, descriptor) in list(self._open.items()):
            region = self._register.regions.get(name)
            if region is None or region.number != number:
                del self._open[name]
                with contextlib.suppress(OSError):
                    os.close(descriptor)


class RegionReader:
    """Reads the inputs of one request."""

    def __init__(self, regions: Regions, limit: int) -> None:
        self._regions = regions
        self._limit = limit
        self._left = limit

    def read(self, place: Place) -> bytes:
        """Return what lies at ``place``.

        Raises:
            InvalidInput: there is no such region, or it is smaller.
            MessageTooLarge: the inputs have more bytes than a message may have.
        """
        self._left -= place.byte_size
        if self._left < 0:
            raise MessageTooLarge(
                f"the inputs in shared memory have more than {self._limit} bytes "
                "(max_message_size): send less, or raise the limit on the server"
            )
        return self._regions.read(place)
