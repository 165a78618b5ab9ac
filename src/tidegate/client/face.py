"""What both clients are made of: their arguments, checked, and the conversation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidegate.client.address import Address
from tidegate.client.connection import Connection
from tidegate.client.direct import Direct
from tidegate.client.grpc_dialect import GrpcDialect
from tidegate.client.pool import EndpointState
from tidegate.client.rest_dialect import RestDialect
from tidegate.client.steps import Conversation, Wanted, checked_timeout
from tidegate.clock import MonotonicClock
from tidegate.errors import ConfigurationError, InvalidInput
from tidegate.protocols.open_inference.tensors import shown
from tidegate.types import Parameter

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 60.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Face:
    """The part of a client that does no I/O."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        binary: bool = True,
        headers: Mapping[str, str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        max_answer_size: int = 2**30,
        direct: bool = False,
        endpoint_headers: Mapping[str, str] | None = None,
    ) -> None:
        address = Address.parse(url)
        if (certificate_file is None) != (key_file is None):
            raise ConfigurationError(
                "certificate_file and key_file go together: give both, or none"
            )
        self._connection = Connection(
            address,
            _checked_headers(headers or {}),
            _path(ca_file),
            _path(certificate_file),
            _path(key_file),
            max_answer_size,
        )
        self._timeout = checked_timeout(timeout, timeout)
        dialect = GrpcDialect() if address.grpc else RestDialect(binary=binary)
        clock = MonotonicClock()
        if endpoint_headers and not direct:
            raise ConfigurationError("endpoint_headers are for direct=True; leave them out")
        self._direct = (
            Direct(self._connection, clock, _checked_headers(endpoint_headers or {}))
            if direct
            else None
        )
        self._conversation = Conversation(dialect, clock, self._direct)

    @property
    def url(self) -> str:
        """The server's URL, as it was given."""
        return self._connection.address.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _endpoints(self, model: str) -> tuple[EndpointState, ...]:
        return () if self._direct is None else self._direct.endpoints(model)

    def _forked(self) -> None:
        """Forget what was counted in the process that this one was forked from."""
        if self._direct is not None:
            self._direct.forget()

    def _seconds(self, timeout: float | None) -> float:
        return checked_timeout(timeout, self._timeout)


def _path(file: str | os.PathLike[str] | None) -> Path | None:
    return None if file is None else Path(file)


def _checked_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers that HTTP and gRPC can both send.

    Raises:
        ConfigurationError: one is none; its value, which may be a secret, is not shown.
    """
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no name of a header; use letters and '-'")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ConfigurationError(
                f"the header {name!r} has a value that cannot be sent; give text in ASCII"
            )
    return dict(headers)


def checked_version(version: str | int | None) -> str:
    """Return a version as the protocol writes it: empty for the server's default."""
    return "" if version is None else str(version)


def wanted(
    model: str,
    version: str | int | None,
    inputs: object,
    outputs: Sequence[str] | None,
    parameters: Mapping[str, Parameter] | None,
    request_id: str | None,
) -> Wanted:
    """Return the inference that a caller asks for.

    Raises:
        InvalidInput: the outputs are not a list of names, or the model has no name.
    """
    if not model or not isinstance(model, str):
        raise InvalidInput(f"the model's name is {shown(model)}; give text")
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs or ()):
        raise InvalidInput(f"outputs is {shown(outputs)}; give a list of names")
    return Wanted(
        model,
        checked_version(version),
        inputs,
        tuple(outputs or ()),
        parameters or {},
        request_id or "",
    )
