"""How the body of a streaming call is cut into messages, whatever pieces it comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidInput
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.replica.streams import LARGEST, GrpcStream, Outgoing


class Heard:
    """A handler that notes what it is told."""

    def __init__(self, refuse: bytes | None = None) -> None:
        self.messages: list[bytes] = []
        self.told: list[str] = []
        self._refuse = refuse

    def message(self, message: bytes) -> None:
        if message == self._refuse:
            raise InvalidInput("not this one")
        self.messages.append(message)

    def half_closed(self) -> None:
        self.told.append("half closed")

    def gone(self) -> None:
        self.told.append("gone")


def stream(refuse: bytes | None = None) -> tuple[GrpcStream, Heard, list[bytes], Outgoing]:
    written: list[bytes] = []
    outgoing, heard = Outgoing(written.append), Heard(refuse)
    return GrpcStream(heard, outgoing), heard, written, outgoing


def framed(*messages: bytes) -> bytes:
    return b"".join(frame_prefix(len(m)) + m for m in messages)


@given(messages=st.lists(st.binary(max_size=20), max_size=5), data=st.data())
def test_messages_come_whole_and_in_order(messages: list[bytes], data: st.DataObject) -> None:
    body = framed(*messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)))))
    call, heard, _, _ = stream()
    for start, end in zip([0, *cuts], [*cuts, len(body)]):
        call.feed(body[start:end])
    call.half_closed()
    assert heard.messages == messages
    assert heard.told == ["half closed"]


@given(body=st.binary(max_size=200))
def test_whatever_comes_is_taken_or_ends_the_call(body: bytes) -> None:
    call, heard, written, outgoing = stream()
    call.feed(body)
    call.half_closed()
    if outgoing.ended:
        assert b"grpc-status: " in written[-1]
        assert heard.told == ["gone"]


def test_what_is_too_large_is_refused_before_it_comes() -> None:
    call, heard, written, _ = stream()
    call.feed(frame_prefix(LARGEST + 1))
    assert b"grpc-status: 8\r\n" in written[0]
    assert heard.told == ["gone"]


def test_a_message_cut_off_at_the_end_is_an_error() -> None:
    call, heard, written, _ = stream()
    call.feed(framed(b"whole") + b"\0\0")
    call.half_closed()
    assert heard.messages == [b"whole"]
    assert b"grpc-status: 3\r\n" in written[0]


def test_nothing_is_said_after_the_end() -> None:
    call, heard, written, outgoing = stream(refuse=b"bad")
    outgoing.send(b"answer")
    call.feed(framed(b"bad", b"next"))
    before = list(written)
    outgoing.send(b"late")
    outgoing.end()
    call.feed(framed(b"more"))
    call.half_closed()
    call.gone()
    assert written == before
    assert written[0].endswith(b"b\r\n" + framed(b"answer") + b"\r\n")
    assert (heard.messages, heard.told) == ([], ["gone"])


def test_who_goes_away_is_let_go_once() -> None:
    call, heard, written, _ = stream()
    call.feed(framed(b"one"))
    call.gone()
    call.gone()
    assert (heard.told, written) == (["gone"], [])
