"""Addresses of machines as people write them: ``10.0.0.7:8000``, ``[fd00::1]:8000``; pure."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

_LONGEST_HOST = 253
# RFC 1123, section 2.1; the underscore is not of host names, but networks use it.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBERS = re.compile(r"[0-9.]+")
_PORT = re.compile(r"[0-9]{1,5}")
_KNOWN = 2**16
"""Addresses that are remembered: lists of thousands are read again at each edit."""
_HINT = "write one as 10.0.0.7:8000 or [fd00::1]:8000"


def split_address(text: str) -> tuple[str, int]:
    """Take ``host:port`` apart; the host of IPv6 is in brackets, which are taken off.

    Raises:
        ValueError: there is no host or no port from 1 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{shortened(text)} has no port: {_HINT}")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{shortened(text)}: the port must be a number from 1 to 65535: {_HINT}")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        return host[1:-1], int(port)
    if ":" in host:
        raise ValueError(
            f"{shortened(text)}: put the IPv6 address into brackets, as [fd00::1]:8000"
        )
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@lru_cache(maxsize=_KNOWN)
def numeric_address(text: str) -> str:
    """Return ``text``, an IP address and a port, in its one canonical form.

    ``[FD00:0::1]:08000`` and ``[fd00::1]:8000`` are the same place.

    Raises:
        ValueError: it is something else, or no machine's (``0.0.0.0``, multicast).
    """
    host, port = split_address(text)
    return join_address(numeric_host(host, text), port)


def numeric_host(host: str, shown: str = "") -> str:
    """Return the canonical form of an IP address (without brackets); ``shown`` is for errors.

    An IPv4 address that is mapped into IPv6 (``::ffff:10.0.0.7``) is the former: it is the same
    place, and the latter is written in two ways.

    Raises:
        ValueError: it is a name, has a zone (``fe80::1%eth0``), or is no machine's.
    """
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{shortened(shown or host)} holds no IP address: {_HINT}") from None
    if "%" in host:
        raise ValueError(
            f"{shortened(shown or host)}: an address with a zone means something on one machine "
            "only; give one that is routed"
        )
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_unspecified or found.is_multicast or found.compressed == "255.255.255.255":
        raise ValueError(f"{shortened(shown or host)} is the address of no machine: {_HINT}")
    return found.compressed


def host_name(text: str) -> str:
    """Return ``text``, a name of a host, in lower case and without the dot at its end.

    Raises:
        ValueError: it is no name that a resolver could be asked for (RFC 1123).
    """
    name = text.removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(
            f"{shortened(text)} is no name of a host: letters, digits and hyphens between dots, "
            f"at most {_LONGEST_HOST}"
        )
    if labels[-1].isdigit():
        # A mistyped address, as 10.0.0.256: no name ends in a number.
        raise ValueError(f"{shortened(text)} is neither an IP address nor a name: {_HINT}")
    return name.lower()


@lru_cache(maxsize=_KNOWN)
def place(text: str) -> str:
    """Return ``host:port``, with a numeric address or a name, in its canonical form.

    Raises:
        ValueError: it is neither.
    """
    host, port = split_address(text)
    if is_numeric(host) or _NUMBERS.fullmatch(host):
        return join_address(numeric_host(host, text), port)
    return join_address(host_name(host), port)


def name_server(text: str) -> str:
    """Return ``text``, the IP address of a name server, with its port where it is not 53.

    Raises:
        ValueError: it is something else.
    """
    return numeric_host(text) if is_numeric(text) else numeric_address(text)


def is_numeric(host: str) -> bool:
    """Whether ``host``, without brackets, is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def shortened(text: str) -> str:
    """Return the offending value as an error may show it: bounded, on one line."""
    return f"{text!r:.80}" if len(text) <= 60 else f"{text[:60]!r}…"
