"""Looks up, beside the event loop, what may change while a node runs: its address and a token."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tidegate.config.addresses import is_numeric, join_address
from tidegate.errors import ConfigurationError

_GOOD_FOR = 5.0
"""Seconds for which an answer is used."""
_LONGEST_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """What was found."""

    address: str
    """Numeric, with the port."""
    token: str | None


class Lookup:
    """Finds where ``host`` is, and what ``token_file`` holds.

    ``loopback`` says whether an address of this machine alone will do.
    """

    def __init__(self, host: str, port: int, token_file: Path | None, *, loopback: bool) -> None:
        self._host = host
        self._port = port
        self._token_file = token_file
        self._loopback = loopback
        self._task: asyncio.Task[Found] | None = None
        self._found_at = float("-inf")
        self.last: Found | None = None
        """What was found last."""

    def check(self) -> None:
        """Look at what must be there from the start.

        Raises:
            ConfigurationError: the token's file cannot be read, or holds none.
        """
        self._token()

    async def look(self) -> Found:
        """Return what there is now, or was a moment ago.

        However long it takes, one thread at most is busy with it.

        Raises:
            ConfigurationError: the host is not found, or the file holds no token.
        """
        if self.last is not None and time.monotonic() - self._found_at < _GOOD_FOR:
            return self.last
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(self._look))
        task = self._task
        await asyncio.wait({task})
        if self._task is task:
            self._task = None
        self.last, self._found_at = task.result(), time.monotonic()
        return self.last

    def _look(self) -> Found:
        return Found(self._address(), self._token())

    def _address(self) -> str:
        if is_numeric(self._host):
            return join_address(self._host, self._port)
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"advertise: {self._host!r} cannot be resolved here ({error})"
            ) from error
        addresses = [str(entry[4][0]) for entry in found]
        # Some systems lead a machine's own name to loopback, which says nothing to others.
        routed = [a for a in addresses if self._loopback or not _loopback(a)]
        if not routed:
            raise ConfigurationError(
                f"advertise: {self._host!r} is {addresses[0]} here, which other machines cannot "
                "reach; give the address itself"
            )
        return join_address(min(routed, key=lambda a: ":" in a), self._port)

    def _token(self) -> str | None:
        if self._token_file is None:
            return None
        try:
            with self._token_file.open("rb") as file:
                token = file.read(_LONGEST_TOKEN + 1).strip()
        except OSError as error:
            raise ConfigurationError(
                f"join_token_file: {self._token_file} cannot be read: {error.strerror}"
            ) from error
        if not 1 <= len(token) <= _LONGEST_TOKEN or not all(0x21 <= b <= 0x7E for b in token):
            raise ConfigurationError(
                f"join_token_file: {self._token_file} must hold one token, of at most "
                f"{_LONGEST_TOKEN} letters, digits and signs without spaces"
            )
        return token.decode()


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
