"""How programs on the same machine call a node, or a gateway, that may speak TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidegate.config.addresses import join_address
from tidegate.config.gateway import GatewayConfig, ServerTls
from tidegate.config.node import NodeConfig
from tidegate.config.node_tls import server_tls
from tidegate.errors import ConfigurationError

_LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """Where it answers.

    Attributes:
        place: ``HOST:PORT``; of the names in the certificate one that leads here.
        ca_file: who vouches for it: its own certificate. ``None``: it speaks in the clear.
        client_ca: who vouches for the certificates that it wants of its clients, if it does.
        problem: why no client of this machine can call it by ``place`` and ``ca_file``.
    """

    place: str
    ca_file: Path | None = None
    client_ca: Path | None = None
    problem: str | None = None

    def url(self, scheme: str) -> str:
        """Return its URL; ``scheme`` is ``http`` or ``grpc``."""
        return f"{scheme}{'' if self.ca_file is None else 's'}://{self.place}"

    def check(self, *, certified: bool = False) -> None:
        """Make sure that it can be called, by a client that has a certificate if ``certified``.

        Raises:
            ConfigurationError: clients must show a certificate, or the server's own cannot be read
                or is not for any name by which this machine calls itself.
        """
        if self.client_ca is not None and not certified:
            raise ConfigurationError(
                f"the server at {self.place} wants a certificate of its clients "
                f"({self.client_ca} vouches for them), and there is none to show here: call it "
                "with a client that has one (certificate_file and key_file)"
            )
        if self.problem is not None:
            raise ConfigurationError(self.problem)


def tls_of(config: NodeConfig | GatewayConfig) -> ServerTls | None:
    """Return the section of TLS towards clients, if there is one."""
    return server_tls(config) if isinstance(config, NodeConfig) else config.tls


def local_address(config: NodeConfig | GatewayConfig, port: int) -> LocalAddress:
    """Return how to call what listens on ``port`` with these settings."""
    # Where it listens, not where it is asked.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    tls = tls_of(config)
    if tls is None:
        return LocalAddress(join_address(host, port))
    problem = None
    try:
        host = _name(tls.certificate, host, port)
    except ConfigurationError as error:
        problem = str(error)
    return LocalAddress(join_address(host, port), tls.certificate, tls.client_ca, problem)


def _name(certificate: Path, host: str, port: int) -> str:
    try:
        names = _names(certificate.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{certificate} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{certificate} holds no certificate in PEM") from error
    if host in names:
        return host
    if host in _LOOPBACK and "localhost" in names:
        return "localhost"
    raise ConfigurationError(
        f"the server on port {port} shows a certificate for {', '.join(names) or 'no name'} "
        f"({certificate}), and here it is called {host}: call it by a name of the certificate, as "
        f"https://NAME:{port}"
    )


def _names(certificates: bytes) -> tuple[str, ...]:
    """Return the host names and IP addresses that the first of these PEM certificates is for."""
    from cryptography import x509  # where nothing speaks TLS, nothing for it is imported

    first = x509.load_pem_x509_certificates(certificates)[0]
    try:
        found = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)
