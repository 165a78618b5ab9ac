"""How a client in direct mode reaches endpoints, and when it needs a connection no longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidegate.client.address import Address
from tidegate.client.connection import Connection
from tidegate.protocols.open_inference.endpoints import ModelEndpoint

CONNECT_TIMEOUT = 1.0
"""Seconds in which a connection to an endpoint must stand; then another one is tried."""


class EndpointConnections:
    """Counts who needs each connection; pure.

    Args:
        gateway: the client's own connection, which endpoints are reached like, but for its
            headers.
        headers: for endpoints.
    """

    def __init__(self, gateway: Connection, headers: Mapping[str, str]) -> None:
        self._gateway = gateway
        self._headers = headers
        self._found: dict[str, Connection] = {}
        self._holders: dict[Connection, int] = {}
        self._gone: list[Connection] = []

    def place(self, endpoint: ModelEndpoint) -> str | None:
        """Return the URL where an endpoint takes this client's calls; ``None``: nowhere."""
        own = self._gateway.address
        if own.secure and not endpoint.secure:
            return None  # what was to be encrypted does not go in the clear
        host: str | None = None
        if endpoint.protocol == "tidegate":
            host = endpoint.address if own.grpc else endpoint.rest or endpoint.address
        elif endpoint.protocol == "open-inference":
            host = endpoint.address if own.grpc else endpoint.rest
        scheme = ("grpc" if own.grpc else "http") + "s" * endpoint.secure
        return None if host is None else f"{scheme}://{host}"

    def hold(self, endpoint: ModelEndpoint) -> Connection:
        """Return the connection to an endpoint that has a place; it is needed once more."""
        url = self.place(endpoint)
        assert url is not None
        connection = self._found.get(url)
        if connection is None:
            connection = self._found[url] = replace(
                self._gateway,
                address=Address.parse(url),
                headers=self._headers,
                connect_timeout=CONNECT_TIMEOUT,
            )
        self.hold_again(connection)
        return connection

    def hold_again(self, connection: Connection) -> None:
        """It is needed once more."""
        self._holders[connection] = self._holders.get(connection, 0) + 1

    def release(self, connection: Connection) -> None:
        """It is needed once less."""
        self._holders[connection] -= 1
        if not self._holders[connection]:
            del self._holders[connection]
            del self._found[connection.address.url]
            self._gone.append(connection)

    def checking(self, endpoint: ModelEndpoint) -> Connection | None:
        """Return a connection of its own, over HTTP, to ask whether an endpoint lives."""
        host = endpoint.rest or (endpoint.address if endpoint.protocol == "tidegate" else None)
        if host is None:
            return None
        return replace(
            self._gateway,
            address=Address.parse(f"http{'s' * endpoint.secure}://{host}"),
            headers=self._headers,
            connect_timeout=None,
        )

    def take_gone(self) -> tuple[Connection, ...]:
        """Return those that are needed no longer, once."""
        gone, self._gone = tuple(self._gone), []
        return gone
