"""Header blocks of a peer that uses no dynamic table (RFC 7541): each stands alone.

So the same bytes always mean the same fields. Of the blocks that an edge sends, all but the
request's id repeats from call to call: that one field is cut out, and the rest is looked up.
Its value is not even decoded, since it only tells requests apart: it stays the string literal
that it was (section 5.2), which :func:`text_of` reads for a log. Other fields that change with
each call, as those of a trace, can be left unread altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

import hpack

_REQUEST_ID = b"x-request-id"
TRACE_FIELDS = (b"traceparent", b"tracestate", b"baggage")
"""What a caller that traces adds to each of its calls."""
_REMEMBERED = 1024
_TEMPLATES = 8
_LONGEST_BLOCK, _LONGEST_FIELD = 4096, 1024
"""Bytes; longer ones are read each time, or a caller could fill the memory with them."""
_INDEXED, _INCREMENTAL, _SIZE_UPDATE = 0x80, 0x40, 0x20
_SHORT = 0x7F
"""A string's length is one byte below this."""


class MalformedBlock(ValueError):
    """The bytes are no header block, or one that needs a dynamic table."""


Head = TypeVar("Head")


class _Template(NamedTuple, Generic[Head]):
    """A block with fields that were left unread: what lies before, between and after literals."""

    before: tuple[bytes, ...]
    """What precedes each literal; the request's id is one of them, or there is none."""
    after: bytes
    id_at: int | None
    head: Head


class BlockReader(Generic[Head]):
    """Reads the blocks of one peer; ``make`` makes of their fields what is remembered.

    The fields ``unread`` are left out.
    """

    def __init__(
        self, make: Callable[[Mapping[bytes, bytes]], Head], unread: Collection[bytes] = ()
    ) -> None:
        self._make = make
        self._unread = frozenset(unread)
        self._templates: list[_Template[Head]] = []
        self._names: dict[bytes, bytes] = {}
        self._blocks: dict[tuple[int, bytes], Head] = {}
        self._fields: dict[bytes, tuple[bytes, bytes]] = {}
        self._id_name = b""
        """The bytes that the peer writes before the value of the request's id."""
        self._last: tuple[bytes, bytes, Head] | None = None
        """What the last block had before and after the id, and what was made of it."""

    def read(self, block: bytes) -> tuple[Head, bytes | None]:
        """Return what was made of all fields but the request's id, and the id's literal.

        The pseudo-headers are fields too.

        Raises:
            MalformedBlock: it cannot be read.
        """
        if self._last is not None:
            before, after, head = self._last
            at = len(before)
            if at < len(block) and block[:at] == before:
                length = block[at] & _SHORT
                end = at + 1 + length
                if length < _SHORT and end <= len(block) and block[end:] == after:
                    return head, block[at:end]
        if self._templates:
            found = self._match(block)
            if found is not None:
                return found
        return self._look_up(block) or self._read_all(block)

    def _match(self, block: bytes) -> tuple[Head, bytes | None] | None:
        """Look for a template of the block: what the same bytes began with means the same."""
        for template in self._templates:
            at = 0
            literals = []
            for before in template.before:
                stop = at + len(before)
                if stop >= len(block) or block[at:stop] != before:
                    break
                length = block[stop] & _SHORT
                at = stop + 1 + length
                if length == _SHORT or at > len(block):
                    break
                literals.append(block[stop:at])
            else:
                if block[at:] == template.after:
                    id_at = template.id_at
                    return template.head, None if id_at is None else literals[id_at]
        return None

    def _look_up(self, block: bytes) -> tuple[Head, bytes | None] | None:
        cut = block.find(self._id_name) if self._id_name else -1
        if cut < 0:
            head = self._blocks.get((-1, block))
            return None if head is None else (head, None)
        at = cut + len(self._id_name)
        length = block[at] & _SHORT if at < len(block) else _SHORT
        end = at + 1 + length
        # A key of this place and this rest was found by a full reading: what lies before the
        # place ends with a field, so the bytes there are the id and nothing else, if it is all
        # there and its length is in one byte.
        if length == _SHORT or end > len(block):
            return None
        head = self._blocks.get((cut, block[:cut] + block[end:]))
        if head is None:
            return None
        self._last = block[:at], block[end:], head
        return head, block[at:end]

    def _read_all(self, block: bytes) -> tuple[Head, bytes | None]:
        fields: dict[bytes, bytes] = {}
        request_id = None
        key: tuple[int, bytes] | None = (-1, block)
        cuts: list[tuple[int, int, bool]] = []
        unread = False
        try:
            for start, value_at, end in _split(block):
                name, value = self._field(block[start:end], value_at - start)
                if name in self._unread:
                    unread = True
                    cuts.append((value_at, end, False))
                    continue
                if name != _REQUEST_ID:
                    fields[name] = value
                    continue
                cuts.append((value_at, end, True))
                first, request_id, key = request_id is None, value, None
                if first and value[0] & _SHORT < _SHORT:
                    self._id_name = block[start:value_at]
                    if block.find(self._id_name) == start:
                        key = (start, block[:start] + block[end:])
        except (IndexError, hpack.HPACKError) as error:
            raise MalformedBlock(f"a header block cannot be read: {error}") from error
        if len(self._blocks) >= _REMEMBERED:
            self._blocks.clear()
        head = self._make(fields)
        if unread:
            self._remember(block, cuts, head)
        elif key is not None and len(block) <= _LONGEST_BLOCK:
            self._blocks[key] = head
        return head, request_id

    def _remember(self, block: bytes, cuts: list[tuple[int, int, bool]], head: Head) -> None:
        ids = [index for index, (_, _, is_id) in enumerate(cuts) if is_id]
        if len(ids) > 1 or len(block) > _LONGEST_BLOCK:
            return
        if any(block[value_at] & _SHORT == _SHORT for value_at, _, _ in cuts):
            return  # its length has more bytes than one
        ends = [0, *(end for _, end, _ in cuts)]
        before = tuple(block[end:value_at] for end, (value_at, _, _) in zip(ends, cuts))
        template = _Template(before, block[ends[-1] :], ids[0] if ids else None, head)
        self._templates = [template, *self._templates[: _TEMPLATES - 1]]

    def _field(self, field: bytes, value_at: int) -> tuple[bytes, bytes]:
        known = self._fields.get(field)
        if known is not None:
            return known
        if value_at:
            name = self._name(field[:value_at])
            if name == _REQUEST_ID or name in self._unread:
                return name, field[value_at:]
        if len(self._fields) >= _REMEMBERED:
            self._fields.clear()
        known = _decode(field)
        if len(field) <= _LONGEST_FIELD:
            self._fields[field] = known
        return known

    def _name(self, begun: bytes) -> bytes:
        """Return the name of a field of which the value is missing."""
        known = self._names.get(begun)
        if known is None:
            known, _ = _decode(begun + b"\0")
            if len(self._names) >= _REMEMBERED:
                self._names.clear()
            if len(begun) <= _LONGEST_FIELD:
                self._names[begun] = known
        return known


def _decode(field: bytes) -> tuple[bytes, bytes]:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    [(name, value)] = decoder.decode(field, raw=True)
    return bytes(name), bytes(value)


def _split(block: bytes) -> Iterable[tuple[int, int, int]]:
    """Yield where each field begins, its value begins, and it ends.

    An indexed field has no value of its own: both places are the same.
    """
    at, size = 0, len(block)
    while at < size:
        start, first = at, block[at]
        if first & _INDEXED:
            at = _after_integer(block, at, 0x7F)
            yield start, start, at
            continue
        if first & 0xE0 == _SIZE_UPDATE:
            at = _after_integer(block, at, 0x1F)
            continue
        mask = 0x3F if first & _INCREMENTAL else 0x0F
        at = _after_integer(block, at, mask)
        if not first & mask:
            at = _after_string(block, at)
        value_at = at
        at = _after_string(block, at)
        yield start, value_at, at
    if at > size:
        raise IndexError("it ends within a field")


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Return the integer whose prefix is in ``block[at]``, and where it ends (section 5.1)."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
        if shift > 28:
            raise IndexError("an integer is too long")


def _after_integer(block: bytes, at: int, mask: int) -> int:
    return _integer(block, at, mask)[1]


def _after_string(block: bytes, at: int) -> int:
    length, at = _integer(block, at, 0x7F)
    return at + length


def encode_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write fields without a table and without Huffman coding (section 6.2.2)."""
    return b"".join(b"\0" + literal_of(name) + literal_of(value) for name, value in fields)


def text_of(literal: bytes) -> str:
    """Return what a string literal says; what cannot be decoded is left out."""
    try:
        _, value = _decode(b"\0\x01x" + literal)
    except (IndexError, hpack.HPACKError):
        return ""
    return value.decode("latin-1")


def literal_of(text: bytes) -> bytes:
    """Return a string as a literal without Huffman coding."""
    length = len(text)
    if length < _SHORT:
        return bytes((length,)) + text
    rest = length - _SHORT
    head = bytearray((_SHORT,))
    while rest >= 0x80:
        head.append(rest & 0x7F | 0x80)
        rest >>= 7
    head.append(rest)
    return bytes(head) + text
