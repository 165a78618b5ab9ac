"""Where a server is: the URL that a client is given."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from tidegate.errors import ConfigurationError

_SCHEMES = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart.

    ``path`` is what comes before ``/v2`` on a server that shares its address with others; it
    is empty or begins with a slash.
    """

    url: str
    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Take ``url`` apart.

        Raises:
            ConfigurationError: it is no URL of a server; the message shows one that is.
        """
        hint = "write one such as http://127.0.0.1:8000 or grpc://127.0.0.1:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url!r} is no URL: {error}; {hint}") from error
        if parts.username is not None:
            # Not shown: errors and logs would carry it on.
            raise ConfigurationError(
                "the URL holds a user or a password; give them as a header, such as "
                "headers={'authorization': ...}"
            )
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ConfigurationError(f"{url!r} names no server: {hint} (or https://, grpcs://)")
        path = parts.path.rstrip("/")
        if parts.query or parts.fragment or (path and parts.scheme.startswith("grpc")):
            raise ConfigurationError(f"{url!r} says more than where the server is: {hint}")
        if path == "/v2" or path.endswith("/v2"):
            path = path[:-3]
        return cls(
            url.rstrip("/"), parts.scheme, parts.hostname, port or _SCHEMES[parts.scheme], path
        )

    @property
    def grpc(self) -> bool:
        """Whether calls go over gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def target(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine, where no proxy can be on the way."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
