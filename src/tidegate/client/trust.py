"""TLS towards servers: who vouches for them, and the certificate that they are shown."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tidegate.client.connection import Connection
from tidegate.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Files:
    """What the files of a connection hold, in PEM; ``None`` for those that it does not name."""

    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


def tls_context(connection: Connection) -> ssl.SSLContext:
    """Return what Python's TLS takes.

    Raises:
        ConfigurationError: a file cannot be read or holds something else, the key is encrypted, or
            it is not that of the certificate.
    """
    context = _trusting(connection)
    if connection.certificate_file is not None and connection.key_file is not None:
        _show(context, connection.certificate_file, connection.key_file)
    return context


def read_files(connection: Connection) -> Files:
    """Return what grpcio takes, checked: it would say nothing itself, and never connect.

    Raises:
        ConfigurationError: as :func:`tls_context`.
    """
    if (connection.ca_file, connection.certificate_file) == (None, None):
        return Files()
    tls_context(connection)
    try:
        authorities, certificate, key = (
            None if path is None else path.read_bytes()
            for path in (connection.ca_file, connection.certificate_file, connection.key_file)
        )
    except OSError as error:  # it was there a moment ago
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Files(authorities, certificate, key)


def _trusting(connection: Connection) -> ssl.SSLContext:
    if connection.ca_file is None:
        import httpx  # for this alone: it knows where authorities are on every system

        return httpx.create_ssl_context()
    try:
        context = ssl.create_default_context(cafile=connection.ca_file)
        # As gRPC takes them, and Python from 3.13 on: a server's own certificate will do.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context
    except OSError as error:  # what the ssl module raises is one, too
        raise ConfigurationError(
            f"ca_file: {connection.ca_file} holds no certificates that can be read ({error}); "
            "give a file in PEM"
        ) from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def password() -> str:
        # Without this, OpenSSL would ask at the terminal.
        raise ConfigurationError(
            f"key_file: the key in {key} is encrypted; take its password off with "
            f"'openssl pkey -in {key} -out PLAIN', and let nobody else read that"
        )

    for name, path in (("certificate_file", certificate), ("key_file", key)):
        try:
            path.open("rb").close()  # ssl does not say which of them it is
        except OSError as error:
            raise ConfigurationError(f"{name}: {path} cannot be read: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            what = f"key_file: the key in {key} is not that of the certificate in {certificate}"
        else:
            what = (
                f"certificate_file: {certificate} and {key} hold no certificate and its key that "
                f"can be read ({error}); give files in PEM"
            )
        raise ConfigurationError(what) from error
