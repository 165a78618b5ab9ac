"""gRPC's server reflection: which services there are, and their descriptors.

Two versions are served, which differ in their package's name alone. Source:
https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import message_classes, read_files
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.routing import Routing
from tidegate.protocols.statuses import GrpcCode

_PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
INFO = tuple(f"/{package}.ServerReflection/ServerReflectionInfo" for package in _PACKAGES)
"""The method, in both versions: a stream of questions and answers."""
ROUTING = Routing(methods=(), prefixes=(), server_methods=INFO)


def _older(file: Any) -> Any:
    """Return the descriptors of version v1alpha, made from those of v1."""
    new, old = _PACKAGES
    older = descriptor_pb2.FileDescriptorProto()
    older.CopyFrom(file)
    older.name, older.package = f"alpha_{file.name}", old
    for message in older.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            field.type_name = field.type_name.replace(f".{new}.", f".{old}.")
    for service in older.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{new}.", f".{old}.")
            method.output_type = method.output_type.replace(f".{new}.", f".{old}.")
    return older


_FILES = read_files(__name__, "reflection")
FILES = [*_FILES, *map(_older, _FILES)]
"""The descriptors, for reflection itself."""
_CLASSES = message_classes(_FILES)
_Request: Any = _CLASSES["grpc.reflection.v1.ServerReflectionRequest"]
_Response: Any = _CLASSES["grpc.reflection.v1.ServerReflectionResponse"]


class Reflection:
    """Answers questions about ``files``, which are file descriptors."""

    def __init__(self, files: Iterable[Any]) -> None:
        self._files = {file.name: file for file in files}
        self._symbols = {
            symbol: file for file in self._files.values() for symbol in _symbols(file)
        }

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of all services."""
        return tuple(
            _joined(file.package, service.name)
            for file in self._files.values()
            for service in file.service
        )

    def answer(self, message: Buffer) -> bytes:
        """Return the ``ServerReflectionResponse`` to a ``ServerReflectionRequest``.

        What is not known is an answer, too.

        Raises:
            InvalidInput: the message is malformed, or asks nothing.
        """
        try:
            request = _Request.FromString(bytes(message))
        except DecodeError as error:
            raise InvalidInput(f"the message is not a ServerReflectionRequest: {error}") from error
        response = _Response(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        asked = "" if kind is None else getattr(request, kind)
        if kind == "list_services":
            for name in self.services:
                response.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            self._give(response, self._files.get(asked), f"there is no file {asked[:256]!r}")
        elif kind == "file_containing_symbol":
            file = self._symbols.get(asked.removeprefix("."))
            self._give(response, file, f"there is no symbol {asked[:256]!r}")
        elif kind == "all_extension_numbers_of_type" and asked in self._symbols:
            response.all_extension_numbers_response.base_type_name = asked
        elif kind is None:
            raise InvalidInput("the ServerReflectionRequest asks nothing: set message_request")
        else:
            self._give(response, None, "there are no such extensions here")
        return bytes(response.SerializeToString())

    @staticmethod
    def _give(response: Any, file: Any, otherwise: str) -> None:
        if file is None:
            response.error_response.error_code = int(GrpcCode.NOT_FOUND)
            response.error_response.error_message = otherwise
        else:
            # The files import no others, so one is all that is needed to understand it.
            proto = file.SerializeToString()
            response.file_descriptor_response.file_descriptor_proto.append(proto)


def _symbols(file: Any) -> Iterator[str]:
    for message in file.message_type:
        yield from _message_symbols(file.package, message)
    for enum in file.enum_type:
        yield from _enum_symbols(file.package, enum)
    for service in file.service:
        name = _joined(file.package, service.name)
        yield name
        for method in service.method:
            yield f"{name}.{method.name}"


def _message_symbols(scope: str, message: Any) -> Iterator[str]:
    name = _joined(scope, message.name)
    yield name
    for field in message.field:
        yield f"{name}.{field.name}"
    for nested in message.nested_type:
        yield from _message_symbols(name, nested)
    for enum in message.enum_type:
        yield from _enum_symbols(name, enum)


def _enum_symbols(scope: str, enum: Any) -> Iterator[str]:
    yield _joined(scope, enum.name)
    for value in enum.value:
        # As in C++: the values of an enum lie beside it.
        yield _joined(scope, value.name)


def _joined(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name
