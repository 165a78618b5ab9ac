from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInput, MessageTooLarge, RequestError, Unsupported
from tidegate.protocols.grpc_frames import (
    ACCEPT_ENCODING,
    frame_prefix,
    parse_timeout,
    percent_encode,
    unframe,
)

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_message_comes_out_of_its_frame(size: int, kind: type) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    message = message[:size]
    assert unframe(kind(frame_prefix(size) + message), limit=MIB) == message


def test_a_large_message_is_not_copied() -> None:
    body = frame_prefix(MIB) + bytes(MIB)
    message = unframe(body, limit=MIB)
    assert isinstance(message, memoryview)
    assert message.obj is body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "0 bytes"),
        (b"\0\0\0\0", "4 bytes"),
        (frame_prefix(4) + b"abc", "only 3"),
        (frame_prefix(2) + b"abc", "1 bytes follow"),
        ((frame_prefix(1) + b"a") * 2, "exactly one"),
        (b"\2" + frame_prefix(1)[1:] + b"a", "is 2"),
        (b"\1" + frame_prefix(1)[1:] + b"a", "absent"),
    ],
)
def test_anything_but_one_frame_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        unframe(body, limit=MIB)


def test_the_limit_is_on_the_message_and_is_checked_before_it_has_come() -> None:
    assert len(unframe(frame_prefix(10) + bytes(10), limit=10)) == 10
    with pytest.raises(MessageTooLarge, match=r"11 bytes.*10"):
        unframe(frame_prefix(11) + bytes(11), limit=10)
    with pytest.raises(MessageTooLarge):
        unframe(frame_prefix(2**32 - 1), limit=10)


def compressed(data: bytes) -> bytes:
    return b"\1" + frame_prefix(len(data))[1:] + data


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_gzip_and_deflate_are_unpacked(encoding: str, pack: object) -> None:
    assert callable(pack)
    assert encoding.encode() in ACCEPT_ENCODING
    message = b"abc" * 1000
    assert unframe(compressed(pack(message)), limit=3000, encoding=encoding) == message
    assert unframe(compressed(pack(b"")), limit=3000, encoding=encoding) == b""


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_bomb_stops_at_the_limit(encoding: str, pack: object) -> None:
    assert callable(pack)
    bomb = compressed(pack(bytes(64 * MIB)))
    with pytest.raises(MessageTooLarge):
        unframe(bomb, limit=MIB, encoding=encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_does_not_unpack_is_refused(encoding: str) -> None:
    good = gzip.compress(b"abc" * 100) if encoding == "gzip" else zlib.compress(b"abc" * 100)
    for bad in (b"", b"nonsense", good[:-1], good[:10], good + b"x"):
        with pytest.raises(InvalidInput, match=encoding):
            unframe(compressed(bad), limit=MIB, encoding=encoding)


def test_other_compressions_are_unsupported_but_only_when_used() -> None:
    with pytest.raises(Unsupported, match=r"'snappy'.*gzip"):
        unframe(compressed(b"x"), limit=MIB, encoding="snappy")
    with pytest.raises(InvalidInput, match="'identity'"):
        unframe(compressed(b"x"), limit=MIB, encoding="identity")
    assert unframe(frame_prefix(1) + b"x", limit=MIB, encoding="snappy") == b"x"


@given(st.binary(max_size=200), st.sampled_from([None, "gzip", "deflate", "identity", "br"]))
def test_no_body_raises_anything_but_a_request_error(body: bytes, encoding: str | None) -> None:
    for candidate in (body, frame_prefix(len(body)) + body, compressed(body)):
        with contextlib.suppress(RequestError):
            unframe(candidate, limit=100, encoding=encoding)


@given(st.text(max_size=300))
def test_percent_encoding_is_printable_and_decodes_to_the_same(message: str) -> None:
    encoded = percent_encode(message).decode("ascii")
    assert re.fullmatch(r"([ -$&-~]|%[0-9A-F]{2})*", encoded)
    assert unquote(encoded) == message.encode("utf-8", "replace").decode()


def test_percent_encoding_of_the_specification() -> None:
    assert percent_encode("100 % of é\n") == b"100 %25 of %C3%A9%0A"


@pytest.mark.parametrize("character", ["a", "é", "\U0001f600", "%"])
def test_a_long_message_is_cut_to_what_clients_accept(character: str) -> None:
    encoded = percent_encode(character * 100_000)
    assert 3900 < len(encoded) <= 4096
    assert set(unquote(encoded.decode()).removesuffix("...")) == {character}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1H", 3600),
        ("2M", 120),
        ("3S", 3),
        ("250m", 0.25),
        ("5u", 5e-6),
        ("99999999n", 0.099999999),
        ("0S", 0),
        (b"7S", 7),
    ],
)
def test_timeouts(value: str | bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", " 1S", "1S ", "٣S", "1 S", "+1S", b"\xffS"],
)
def test_malformed_timeouts_are_refused(value: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="grpc-timeout"):
        parse_timeout(value)
