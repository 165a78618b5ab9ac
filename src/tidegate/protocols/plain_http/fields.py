"""What a body holds: one value, or the fields of a form."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tidegate.errors import InvalidInput, UnsupportedContent
from tidegate.protocols.open_inference.bounds import check_document
from tidegate.protocols.open_inference.tensors import MAX_NAME, checked_name, shown
from tidegate.protocols.plain_http.headers import ENCODED_FORM, FORM, JSON, UNSAID, MediaType
from tidegate.types import Json

if TYPE_CHECKING:  # it is there for types alone
    from python_multipart.multipart import MultipartCallbacks

MOST_FIELDS = 256
"""Fields of a form; a model has fewer inputs."""
_MOST_HEADERS, _LONGEST_HEADER = 8, 4096
"""Of one field."""
_CHARSETS = frozenset(
    ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "windows-1252", "utf-16")
)
"""Python knows more, some of which are no character sets."""
_SILENT = logging.Logger("forms", logging.CRITICAL + 1)
"""For a parser that would tell the log of each form that is malformed."""


@dataclass(slots=True)
class Content:
    """A value as it was sent."""

    data: bytes
    kind: MediaType = UNSAID
    file: bool = False
    """Whether it is a file, and not what was typed into a form."""

    def text(self) -> str:
        """Return it as text.

        Raises:
            InvalidInput: it is not of its character set.
            UnsupportedContent: that is not known.
        """
        charset = self.kind.charset if self.kind.text else "utf-8"
        if charset not in _CHARSETS:
            raise UnsupportedContent(
                f"the character set {shown(charset)} is not known; send a text in UTF-8"
            )
        try:
            return self.data.decode(charset)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"this is no text in {charset.upper()}: {error}; send a text in UTF-8"
            ) from None

    def document(self) -> Json:
        """Return it as a JSON document.

        Raises:
            InvalidInput: it is none, or has too many parts.
        """
        check_document(self.data)
        try:
            found: Json = orjson.loads(self.data)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"this is no JSON document: {error}") from None
        return found


def read_body(body: bytes, kind: MediaType) -> Content | dict[str, Content]:
    """Return the value that a body is, or the fields of a form by name.

    Raises:
        InvalidInput: the form is malformed, or has too many fields or one twice.
        UnsupportedContent: what curl calls a form with ``-d`` is none.
    """
    if kind.name == FORM:
        return _read_form(body, kind.boundary)
    if kind.name == ENCODED_FORM:
        return _read_encoded(body)
    return Content(body, kind, file=True)


def _read_form(body: bytes, boundary: bytes) -> dict[str, Content]:
    """Read ``multipart/form-data`` (RFC 7578)."""
    if not boundary:
        raise InvalidInput(
            "the form has no boundary: leave the Content-Type of a form to curl or your library"
        )
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            form.callbacks(),
            max_header_count=_MOST_HEADERS,
            max_header_size=_LONGEST_HEADER,
        )
        parser.logger = _SILENT
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"the form is malformed: {error}") from None
    if not form.ended:
        raise InvalidInput("the form is truncated: its last boundary is missing")
    return form.fields


class _Form:
    """Takes what the parser finds. The body comes in one piece, so a field's data do, too."""

    def __init__(self) -> None:
        self.fields: dict[str, Content] = {}
        self.ended = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return cast(
            "MultipartCallbacks",
            {
                "on_part_begin": self._begin,
                "on_part_data": self._on_data,
                "on_part_end": self._end_part,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._end_header,
                "on_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._headers, self._data = {}, []

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        said, options = parse_options_header(disposition.decode("latin-1"))
        if said != b"form-data" or b"name" not in options:
            raise InvalidInput("a part of the form has no name: send name=value or name=@file")
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (
            b"binary", b"8bit", b"7bit",
        ):  # fmt: skip
            raise InvalidInput("a part of the form is encoded once more: send it as it is")
        name = options[b"name"].decode("utf-8", "replace")
        kind = MediaType.of(self._headers.get(b"content-type", b""))
        data = self._data[0] if len(self._data) == 1 else b"".join(self._data)
        _add(self.fields, name, Content(data, kind, file=b"filename" in options))

    def _end(self) -> None:
        self.ended = True


def _read_encoded(body: bytes) -> Content | dict[str, Content]:
    """Read what curl sends with ``-d``: a form, or JSON without saying so."""
    if body.lstrip()[:1] in (b"{", b"["):
        return Content(body, MediaType(JSON), file=True)
    try:
        pairs = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=True,
            max_num_fields=MOST_FIELDS, errors="strict",
        )  # fmt: skip
    except ValueError:
        raise UnsupportedContent(
            "the body is said to be a form (application/x-www-form-urlencoded), which it is not: "
            "send a file with curl -F data=@FILE, or say what it is with "
            "-H 'content-type: image/png'"
        ) from None
    fields: dict[str, Content] = {}
    for name, value in pairs:
        _add(fields, name, Content(value.encode()))
    return fields


def _add(fields: dict[str, Content], name: str, content: Content) -> None:
    checked_name("a field", name[: MAX_NAME + 1])
    if name in fields:
        raise InvalidInput(f"the field {shown(name)} is sent twice; send it once")
    if len(fields) >= MOST_FIELDS:
        raise InvalidInput(f"the form has more than {MOST_FIELDS} fields")
    fields[name] = content
