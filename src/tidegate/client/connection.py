"""What the transports share: how to connect, and the words for what goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tidegate.client.address import Address
from tidegate.client.calls import Incoming, Outgoing
from tidegate.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidAnswer,
    MessageTooLarge,
    ServerUnreachable,
)


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """How to reach a server; each is itself alone, and may be a key.

    ``headers`` go with every call. ``ca_file`` holds the certificates (PEM) of who vouches
    for the server, instead of the usual authorities; ``certificate_file`` and ``key_file`` (both
    or none) what the server is shown. ``max_answer_size`` is in bytes.
    ``connect_timeout`` bounds connecting, in seconds; ``None`` leaves it all the time of a call.
    """

    address: Address
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    max_answer_size: int = 2**30
    connect_timeout: float | None = None

    def unreachable(self, reason: object) -> ServerUnreachable:
        """Nobody answers."""
        url, loopback = self.address.url, self.address.loopback
        hint = "start it with 'tidegate serve', or " if loopback else ""
        return ServerUnreachable(
            f"nobody answers at {url} ({reason}); is the server running there? "
            f"{hint}give the URL where it is"
        )

    def not_believed(self, reason: object, advice: str) -> ServerUnreachable:
        """What the server showed in the TLS handshake is not believed; nothing was asked."""
        return ServerUnreachable(
            f"the certificate of {self.address.url} is not believed ({reason}); {advice}"
        )

    def not_let_in(self, reason: object) -> ServerUnreachable:
        """The server refused what it was shown in the TLS handshake; nothing was asked."""
        hint = (
            "it may want a certificate of its clients: give certificate_file and key_file"
            if self.certificate_file is None
            else f"show one that it trusts: {self.certificate_file} is not"
        )
        return ServerUnreachable(
            f"{self.address.url} does not let this client in ({reason}); {hint}"
        )

    def lost(self, reason: object) -> ConnectionLost:
        """The server, or what is on the way to it, broke off."""
        # By TLS 1.3 a server refuses a client's certificate when the client thinks itself let in;
        # what it says of it is lost where more was sent meanwhile.
        hint = (
            " (a server that wants another certificate of its clients breaks off as well)"
            if self.address.secure
            else ""
        )
        return ConnectionLost(
            f"{self.address.url} broke off before its answer was whole ({reason}); "
            f"it may have done what was asked: send it again if doing it twice is no harm{hint}"
        )

    def closed(self) -> ConnectionLost:
        """The client was closed while the call ran."""
        return self.lost("this client was closed")

    def late(self, timeout: float) -> DeadlineExceeded:
        """The time of the call is over."""
        return DeadlineExceeded(
            f"no answer from {self.address.url} in {timeout:.3g} s; give a longer timeout, or "
            "less to do"
        )

    def not_http(self, reason: object) -> InvalidAnswer:
        """Something else listens there."""
        return InvalidAnswer(
            f"what answers at {self.address.url} does not speak HTTP ({reason}); give the URL of "
            "a server, with grpc:// if the port speaks gRPC alone"
        )

    def too_large(self, size: object = "") -> MessageTooLarge:
        """The answer is larger than this client takes."""
        shown = f" ({size} bytes)" if size else ""
        return MessageTooLarge(
            f"the answer of {self.address.url} is larger{shown} than the limit of "
            f"{self.max_answer_size} bytes; ask for less, or give the client a larger "
            "max_answer_size"
        )


class Transport(Protocol):
    """Carries calls; may be used from several threads at once."""

    def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer, whatever its status.

        Args:
            outgoing: the request.
            timeout: seconds for all of it; may be infinite.

        Raises:
            ConnectionFailed: there is no answer, or what came is none.
            DeadlineExceeded: it did not come in time.
            MessageTooLarge: the answer is larger than the client takes.
        """

    def close(self) -> None:
        """Close the connections; calls that run are cut."""


class AsyncTransport(Protocol):
    """The same for asyncio; used in one event loop."""

    async def exchange(self, outgoing: Outgoing, timeout: float) -> Incoming:
        """Send ``outgoing`` and return the answer, whatever its status."""

    async def close(self) -> None:
        """Close the connections; calls that run are cut."""
