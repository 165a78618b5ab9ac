"""The addresses by which a gateway would call itself: they are nobody's endpoints.

An endpoint is believed to serve when a check of its health passes. One that leads to the gateway's
own port passes as soon as another endpoint does, and then checks and calls go round in circles,
until the gateway is out of memory.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import psutil

from tidegate.clock import Clock
from tidegate.config.addresses import join_address, split_address
from tidegate.errors import InvalidInput
from tidegate.gateway.endpoints import Endpoint

_KEPT = 10.0
"""Seconds after which the machine's addresses are looked up again."""


class OwnPlaces:
    """Knows where a gateway listens.

    Args:
        listening: numeric hosts, which may stand for all of the machine's, and ports.
        clock: by which the machine's addresses are looked up again.
    """

    def __init__(self, listening: Iterable[tuple[str, int]], clock: Clock) -> None:
        self._listening = tuple(listening)
        self._clock = clock
        self._known: frozenset[str] = frozenset()
        self._until = float("-inf")
        self.met: dict[str, None] = {}
        """Those that endpoints had which were left out, since :meth:`begin`."""

    def begin(self) -> None:
        """Forget which were met."""
        self.met = {}

    def without(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """Return the endpoints that lead to others."""
        own = self._places()
        met = {e.address: None for e in endpoints if e.address in own or e.rest in own}
        if not met:
            return endpoints
        self.met.update(met)
        return tuple(e for e in endpoints if e.address not in self.met)

    def check_announced(self, address: str, *, from_here: bool) -> None:
        """Make sure that an announced ``IP:port`` can be another server's.

        Args:
            address: what was announced.
            from_here: whether it was announced from this machine.

        Raises:
            InvalidInput: it cannot.
        """
        host, port = split_address(address)
        ip = ipaddress.ip_address(host)
        # Another spelling of an IPv4 address leads to the same place.
        ip = (ip.ipv4_mapped if ip.version == 6 else None) or ip
        if ip.is_link_local:
            raise InvalidInput(
                f"'address' is {address}, which only the own link knows, as a cloud's metadata; "
                "advertise an address that is routed"
            )
        if ip.is_loopback and not from_here:
            raise InvalidInput(
                f"'address' is {address}, which is the gateway's machine to it; advertise the "
                "address by which that reaches the node"
            )
        if join_address(str(ip), port) in self._places():
            raise InvalidInput(
                f"'address' is {address}, where the gateway itself listens: its calls would go "
                "round in circles; advertise the node's own address and port"
            )

    def _places(self) -> frozenset[str]:
        now = self._clock.now()
        if now >= self._until:
            self._until = now + _KEPT
            self._known = frozenset(
                join_address(host, port)
                for listening, port in self._listening
                for host in _addresses(listening)
                for host in _spellings(host)
            )
        return self._known


def _addresses(listening: str) -> Iterable[str]:
    try:
        if not ipaddress.ip_address(listening).is_unspecified:
            return (listening,)
    except ValueError:
        return ()
    here = {e.address.partition("%")[0] for each in psutil.net_if_addrs().values() for e in each}
    return {"127.0.0.1", "::1", *filter(_is_address, here)}


def _spellings(host: str) -> tuple[str, ...]:
    """Return an address as others may write it, too."""
    if ":" in host:
        return (host,)
    return host, str(ipaddress.ip_address(f"::ffff:{host}"))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False  # of the network card itself
    return True
