"""The shared memory extensions of a node: the register of system memory; of CUDA memory none."""

from __future__ import annotations

import os
import time
from pathlib import Path

import orjson

from tidegate.controller.run_directory import write_whole
from tidegate.controller.server_calls import Answer, Call, Endpoint, Extension
from tidegate.errors import (
    ConfigurationError,
    InvalidInput,
    RegionExists,
    RegionNotFound,
    Unsupported,
)
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import shared_memory as codec
from tidegate.protocols.open_inference.shared_memory import Region
from tidegate.replica.regions import FOLDER, Register, RegisteredRegion, open_region

_MOST = 1024
_STATUS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "key": {"type": "string"},
            "offset": {"type": "integer"},
            "byte_size": {"type": "integer"},
        },
    },
}
_REGISTER = {
    "type": "object",
    "required": ["key", "byte_size"],
    "properties": {
        "key": {"type": "string"},
        "offset": {"type": "integer", "minimum": 0},
        "byte_size": {"type": "integer", "minimum": 1},
    },
}


class SharedMemoryCalls:
    """Keeps the register in ``file``; without a ``prefix`` nothing can be registered."""

    def __init__(self, prefix: str | None, file: Path) -> None:
        self._prefix = prefix
        self._file = file
        self._register = Register()

    def take_over(self, *, adopted: bool) -> None:
        """Keep what an earlier controller registered, if it may still be, for what was adopted.

        Raises:
            ConfigurationError: this system has no place for shared memory by name.
        """
        if self._prefix is not None and not FOLDER.is_dir():
            raise ConfigurationError(
                f"shared_memory_prefix: this system has no {FOLDER}, so tensors cannot lie in "
                "shared memory here; leave the setting out"
            )
        known = Register.read(self._file).regions if adopted else {}
        prefix = self._prefix
        self._register = Register(
            regions={n: r for n, r in known.items() if prefix and r.key.startswith(prefix)}
        )
        self._write()

    def extension(self) -> Extension:
        """Return the calls."""
        methods = {
            open_inference.SHARED_MEMORY_STATUS: self._status_grpc,
            open_inference.SHARED_MEMORY_REGISTER: self._register_grpc,
            open_inference.SHARED_MEMORY_UNREGISTER: self._unregister_grpc,
            open_inference.CUDA_STATUS: _nothing,
            open_inference.CUDA_REGISTER: _refuse_cuda,
            open_inference.CUDA_UNREGISTER: _nothing,
        }
        endpoints = [
            *_endpoints(
                "/v2/systemsharedmemory", "system shared memory",
                self._status_rest, self._register_rest, self._unregister_rest,
            ),
            *_endpoints(
                "/v2/cudasharedmemory", "CUDA shared memory, of which there is none",
                _no_regions, _refuse_cuda, _empty,
            ),
        ]  # fmt: skip
        names = () if self._prefix is None else ("system_shared_memory",)
        return Extension(names, endpoints, methods)

    def register(self, region: Region) -> None:
        """Let requests name the region.

        Raises:
            InvalidInput: its memory is not there, not allowed, or smaller.
            RegionExists: the name is taken.
            Unsupported: shared memory is switched off.
        """
        if self._prefix is None:
            raise Unsupported(
                "shared memory is switched off on this server: start it with "
                "--shared-memory-prefix, or send tensors in the message"
            )
        regions = self._register.regions
        if region.name in regions:
            raise RegionExists(f"the region {region.name!r} is registered: unregister it first")
        if len(regions) >= _MOST:
            raise InvalidInput(f"{_MOST} regions are registered, which is the limit")
        # The time, so that no registration has the number of an earlier one, of any controller.
        registered = RegisteredRegion(
            number=time.time_ns(),
            key=region.key,
            offset=region.offset,
            byte_size=region.byte_size,
        )
        allowed = region.key.startswith(self._prefix)
        # Beyond the prefix nothing is looked at, and the error is that of what is not there.
        looked = registered if allowed else registered.model_copy(update={"key": "/"})
        os.close(open_region(region.name, looked))
        regions[region.name] = registered
        self._write()

    def unregister(self, name: str) -> None:
        """Forget the region of this name, or all for an empty one; an unknown one is no error."""
        if name:
            self._register.regions.pop(name, None)
        else:
            self._register.regions.clear()
        self._write()

    def status(self, name: str = "") -> list[Region]:
        """Return the region of this name, or all for an empty one.

        Raises:
            RegionNotFound: it is not registered.
        """
        regions = self._register.regions
        if name and name not in regions:
            raise RegionNotFound(f"there is no shared memory region {name[:256]!r}")
        return [
            Region(each, region.key, region.offset, region.byte_size)
            for each, region in sorted(regions.items())
            if name in ("", each)
        ]

    def _write(self) -> None:
        if self._prefix is None:
            self._file.unlink(missing_ok=True)
        else:
            write_whole(self._file, self._register.model_dump_json().encode())

    async def _status_rest(self, call: Call) -> bytes:
        return codec.encode_status_body(self.status(call.parameters.get("region", "")))

    async def _status_grpc(self, call: Call) -> bytes:
        return codec.encode_status(self.status(codec.decode_region(call.body)))

    async def _register_rest(self, call: Call) -> bytes:
        self.register(codec.decode_register_body(call.parameters["region"], call.body))
        return b"{}"

    async def _register_grpc(self, call: Call) -> bytes:
        self.register(codec.decode_register(call.body))
        return b""

    async def _unregister_rest(self, call: Call) -> bytes:
        self.unregister(call.parameters.get("region", ""))
        return b"{}"

    async def _unregister_grpc(self, call: Call) -> bytes:
        self.unregister(codec.decode_region(call.body))
        return b""


def _endpoints(
    path: str, what: str, status: Answer, register: Answer, unregister: Answer
) -> list[Endpoint]:
    region = path + "/region/{region}"
    return [
        Endpoint("GET", f"{path}/status", status, f"All regions of {what}", _STATUS),
        Endpoint("GET", f"{region}/status", status, f"A region of {what}", _STATUS),
        Endpoint("POST", f"{region}/register", register, f"Register {what}", {}, _REGISTER),
        Endpoint("POST", f"{region}/unregister", unregister, f"Forget a region of {what}"),
        Endpoint("POST", f"{path}/unregister", unregister, f"Forget all regions of {what}"),
    ]


async def _nothing(call: Call) -> bytes:
    return b""


async def _empty(call: Call) -> bytes:
    return b"{}"


async def _no_regions(call: Call) -> bytes:
    if "region" in call.parameters:
        name = call.parameters["region"]
        raise RegionNotFound(f"there is no CUDA shared memory region {name[:256]!r}")
    return orjson.dumps([])


async def _refuse_cuda(call: Call) -> bytes:
    raise Unsupported(
        "CUDA shared memory is not supported by Tidegate: send tensors in the message, or in "
        "system shared memory"
    )
