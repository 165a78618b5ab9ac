"""Which addresses nodes may announce: none by which a gateway would call itself.

A node is believed to serve what it says when a check of its health passes. An address that leads
to the gateway's own ports passes those of other nodes, and each call would go round in circles.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

import psutil

from tidegate.config.addresses import split_address
from tidegate.errors import InvalidInput


def check_place(address: str, own: Iterable[tuple[str, int]], *, from_here: bool) -> None:
    """Make sure that an announced ``IP:port`` can be another server's.

    Args:
        address: what was announced.
        own: numeric hosts and ports on which this gateway listens.
        from_here: whether it was announced from this machine.

    Raises:
        InvalidInput: it cannot.
    """
    host, port = split_address(address)
    ip = ipaddress.ip_address(host)
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
    for own_host, own_port in own:
        if port == own_port and _leads_to(ip, own_host):
            raise InvalidInput(
                f"'address' is {address}, where the gateway itself listens: its calls would go "
                "round in circles; advertise the node's own address and port"
            )


def _leads_to(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, host: str) -> bool:
    listening = ipaddress.ip_address(host)
    if not listening.is_unspecified:
        return ip == listening
    return ip.is_loopback or str(ip) in _addresses_here()


def _addresses_here() -> Collection[str]:
    return {
        each.address.partition("%")[0]
        for found in psutil.net_if_addrs().values()
        for each in found
    }
