"""The files of certificates and keys that a configuration names: read once, then followed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from tidegate.config import gateway as sections
from tidegate.edge.certificates import read_client_tls, read_server_tls, valid_until
from tidegate.edge.key_file import read_api_keys
from tidegate.edge.trust import ApiKeys, ClientTls, RateLimit, RateLimits, ServerTls
from tidegate.errors import ConfigurationError

T = TypeVar("T")

_TICK = 1.0
"""Seconds between looks at a few files. Links, mounts and networks tell of no change."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What the files say; the fields are those of an edge's settings."""

    tls: ServerTls | None
    upstream_tls: ClientTls
    api_keys: ApiKeys | None


def rate_limits(section: sections.RateLimits) -> RateLimits:
    """Return the limits that a section sets."""
    return RateLimits(
        per_key=None if section.per_key is None else _limit(section.per_key),
        keys={name: _limit(rate) for name, rate in section.keys.items()},
        per_model=None if section.per_model is None else _limit(section.per_model),
        models={name: _limit(rate) for name, rate in section.models.items()},
    )


class TrustFiles:
    """The files that three sections name; a section that is not there names none."""

    def __init__(
        self,
        tls: sections.ServerTls | None,
        endpoint_tls: sections.ClientTls | None,
        api_keys: sections.ApiKeys | None,
    ) -> None:
        self._tls = tls
        self._endpoint_tls = endpoint_tls
        self._api_keys = api_keys

    def read(self) -> Trust:
        """Read all of them.

        Raises:
            ConfigurationError: one is of no use; the message names it and says what to do.
        """
        return Trust(self._read_tls(), self._read_endpoint_tls(), self._read_api_keys())

    async def follow(
        self,
        known: Trust,
        tell: Callable[[Trust], None],
        problem: Callable[[str | None], None],
        *,
        tick: float = _TICK,
    ) -> None:
        """Look at the files again and again, until cancelled.

        What cannot be used leaves what was known last, each section for itself. A certificate and
        its key are written one after the other: what is wrong counts when nothing has changed for
        one look.

        Args:
            known: what was read last.
            tell: called with what they say whenever that has changed.
            problem: called with what is wrong whenever that has changed, with ``None`` when all is
                well again.
            tick: seconds between looks.
        """
        tls = _Followed(self._read_tls, known.tls, self._tls, _expiry_of_server)
        endpoint_tls = _Followed(
            self._read_endpoint_tls, known.upstream_tls, self._endpoint_tls, _expiry_of_client
        )
        api_keys = _Followed(self._read_api_keys, known.api_keys, self._api_keys)
        followed = (tls, endpoint_tls, api_keys)
        said: str | None = None
        while True:
            for each in followed:
                await asyncio.to_thread(each.look)
            found = Trust(tls.known, endpoint_tls.known, api_keys.known)
            if found != known:
                known = found
                tell(found)
            words = "; ".join(each.words for each in followed if each.words) or None
            if words != said:
                said = words
                problem(words)
            await asyncio.sleep(tick)

    def _read_tls(self) -> ServerTls | None:
        section = self._tls
        if section is None:
            return None
        return read_server_tls(section.certificate, section.key, section.client_ca)

    def _read_endpoint_tls(self) -> ClientTls:
        section = self._endpoint_tls
        if section is None:
            try:
                return read_client_tls()
            except ConfigurationError:
                return ClientTls()  # nobody asked for TLS: no endpoint that speaks it is believed
        return read_client_tls(section.ca, section.certificate, section.key, section.server_name)

    def _read_api_keys(self) -> ApiKeys | None:
        section = self._api_keys
        return None if section is None else read_api_keys(section.file, section.header)


class _Followed(Generic[T]):
    """The files of one section, as they were seen last."""

    def __init__(
        self,
        read: Callable[[], T],
        known: T,
        section: sections.ServerTls | sections.ClientTls | sections.ApiKeys | None,
        expiry: Callable[[T], datetime | None] = lambda _: None,
    ) -> None:
        self.known = known
        self.words: str | None = None
        self._read = read
        values = section.model_dump().values() if section is not None else ()
        self._paths = tuple(value for value in values if isinstance(value, Path))
        self._expiry = expiry
        self._seen: object = None
        self._doubtful = False

    def look(self) -> None:
        """Read the files if they have changed."""
        seen = [_signature(path) for path in self._paths]
        changed, self._seen = seen != self._seen, seen
        if changed or self._doubtful:
            self._doubtful = False
            try:
                self.known = self._read()
                self.words = None
            except ConfigurationError as error:
                self._doubtful = changed
                if not changed:
                    self.words = f"{error}; what was known last stays"
        if self.words is None:
            until = self._expiry(self.known)
            if until is not None and until < datetime.now(UTC):
                self.words = f"{self._paths[0]}: the certificate in use has expired: renew it"


def _signature(path: Path) -> object:
    try:
        state = path.stat()
    except OSError as error:
        return error.errno
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_mode


def _expiry_of_server(tls: ServerTls | None) -> datetime | None:
    return None if tls is None else valid_until(tls.certificate)


def _expiry_of_client(tls: ClientTls) -> datetime | None:
    return None if tls.certificate is None else valid_until(tls.certificate)


def _limit(rate: sections.Rate) -> RateLimit:
    return RateLimit(rate.per_second, rate.burst or max(1, math.ceil(rate.per_second)))
