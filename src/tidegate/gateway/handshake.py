"""Why an endpoint and the gateway do not come together over TLS, in words.

The edge says no more than that an endpoint does not pass its checks. So who wants to know shakes
hands with it again, as the edge does, by Python's TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Iterable
from typing import Any

from tidegate.clock import Clock
from tidegate.config.addresses import split_address
from tidegate.config.gateway import ClientTls as ClientFiles
from tidegate.edge.tls import certificate_name
from tidegate.edge.trust import ClientTls
from tidegate.gateway.endpoints import Endpoint

CONNECT_TIMEOUT = 2.0
"""Seconds for a connection and its handshake."""
_ALERT_TIMEOUT = 0.25
"""Seconds in which a server that wants a certificate ends TLS after the handshake."""
_MISMATCH = (62, 64)
"""``X509_V_ERR_HOSTNAME_MISMATCH`` and ``…_IP_ADDRESS_MISMATCH`` of OpenSSL."""
_NAMES = 5
"""Names of a certificate that are shown."""
_AT_A_TIME = 32
_LOOK_TIMEOUT, _KEPT = 1.0, 5.0
"""Seconds that a look takes at most, and for which its findings hold."""


class NoTls(Exception):
    """The two do not come together; the message says why, and what to do."""


class NoConnection(Exception):
    """Nobody listens there, or nobody answers."""


class Handshakes:
    """Shakes hands with endpoints, as the edge does.

    Args:
        tls: what the edge asks of them and shows to them.
        files: where that was read from, if it was.
    """

    def __init__(self, tls: ClientTls, files: ClientFiles | None) -> None:
        self._tls = tls
        self._named = _context(tls, files)
        self._named.set_alpn_protocols(["h2", "http/1.1"])
        self.nameless = _context(tls, files)
        """For connections to who was believed before: it asks for no name."""
        self.nameless.check_hostname = False

    async def connect(self, endpoint: Endpoint, place: str) -> str | None:
        """Connect to a place of an endpoint; return a name of its certificate, if it has one.

        Raises:
            NoTls: the handshake fails.
            NoConnection: there is none.
        """
        host, port = split_address(place)
        secure: dict[str, Any] = {}
        if endpoint.secure:
            secure = {"ssl": self._named, "server_hostname": self._expected(endpoint, host)}
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(host, port, **secure)
        except TimeoutError:
            raise NoConnection(f"nobody answered at {place} in {CONNECT_TIMEOUT:g} s") from None
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _MISMATCH:
                raise NoTls(await self._not_for(endpoint, place)) from None
            words = error.verify_message
            raise NoTls(f"no TLS with {place}: its certificate: {words}") from None
        except ssl.SSLError as error:
            raise NoTls(f"no TLS with {place}: {error.reason or error}") from None
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error)
            where = "" if place == endpoint.address else f" to {place}"
            raise NoConnection(f"no connection{where}: {words}") from None
        try:
            if endpoint.secure:
                await _heard_out(place, reader)
            names = _names(writer)
        finally:
            writer.transport.abort()
        return names[0] if names else None

    def _expected(self, endpoint: Endpoint, host: str) -> str:
        if self._tls.server_name is not None:
            return self._tls.server_name
        name = certificate_name(endpoint.name)
        if name is None and not self._tls.addresses_count:
            raise NoTls(
                "over TLS, an IP address passes with a private `endpoint_tls.ca` alone, or "
                "with `endpoint_tls.server_name`"
            )
        return name or host

    async def _not_for(self, endpoint: Endpoint, place: str) -> str:
        host, port = split_address(place)
        names: list[str] = []
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, writer = await asyncio.open_connection(host, port, ssl=self.nameless)
            names = _names(writer)
            writer.transport.abort()
        shown = ", ".join(names[:_NAMES]) + (", …" if len(names) > _NAMES else "")
        expected = self._expected(endpoint, host)
        return (
            f"no TLS with {place}: its certificate is for {shown or 'no name at all'}, and not "
            f"for {expected}; have one issued that is, or give `endpoint_tls.server_name` a name "
            "that the certificates of all endpoints have"
        )


class TlsTroubles:
    """Keeps in mind why endpoints do not come together with the gateway, for its status."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[Endpoint, tuple[float, str]] = {}
        self._for: tuple[ClientTls, ClientFiles | None] | None = None

    async def look(
        self, endpoints: Iterable[Endpoint], tls: ClientTls, files: ClientFiles | None
    ) -> None:
        """Shake hands with some of those that are not well and speak TLS, the rest another time.

        What was found of others is forgotten.
        """
        if self._for != (tls, files):
            self._for, self._known = (tls, files), {}
        now = self._clock.now()
        unwell = dict.fromkeys(endpoint for endpoint in endpoints if endpoint.secure)
        self._known = {e: found for e, found in self._known.items() if e in unwell}
        due = [e for e in unwell if e not in self._known or self._known[e][0] + _KEPT <= now]
        due.sort(key=lambda endpoint: self._known.get(endpoint, (0.0, ""))[0])
        if not due:
            return
        try:
            handshakes = Handshakes(tls, files)
        except (OSError, ssl.SSLError):
            return  # what is wrong with the files is said elsewhere
        # Who keeps everybody waiting is none the less asked last the next time.
        self._known.update((each, (now, self.of(each))) for each in due[:_AT_A_TIME])
        asking = (self._ask(handshakes, each, now) for each in due[:_AT_A_TIME])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_TIMEOUT):
                await asyncio.gather(*asking)

    def of(self, endpoint: Endpoint) -> str:
        """Return why it does not come together with the gateway, as far as that is known."""
        return self._known.get(endpoint, (0.0, ""))[1]

    async def _ask(self, handshakes: Handshakes, endpoint: Endpoint, now: float) -> None:
        words = ""
        try:
            for place in dict.fromkeys((endpoint.address, endpoint.rest or endpoint.address)):
                await handshakes.connect(endpoint, place)
        except NoTls as error:
            words = str(error)
        except NoConnection:
            pass
        self._known[endpoint] = now, words


async def _heard_out(place: str, reader: asyncio.StreamReader) -> None:
    """By TLS 1.3 who asks for a certificate says after the handshake that it has none."""
    try:
        async with asyncio.timeout(_ALERT_TIMEOUT):
            await reader.read(1)
    except TimeoutError:
        return
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise NoTls(
            f"{place} ends TLS: {reason}; it may want a certificate of an authority of its own: "
            "give `endpoint_tls.certificate` and `key`"
        ) from None
    except OSError:
        return


def _names(writer: asyncio.StreamWriter) -> list[str]:
    certificate = writer.get_extra_info("peercert") or {}
    return [value for _, value in certificate.get("subjectAltName", ())]


def _context(tls: ClientTls, files: ClientFiles | None) -> ssl.SSLContext:
    """Return how the edge's TLS looks to Python."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        context.load_verify_locations(cadata=tls.ca.decode("ascii", "replace"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if files is not None and files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context
