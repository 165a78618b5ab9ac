"""TLS towards servers: who vouches for them, and the certificate that they are shown.

The files are followed: a connection that is made after they were renewed takes what they hold.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tidegate.client.connection import Connection
from tidegate.errors import ConfigurationError

_USUAL = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Files:
    """What the files of a connection hold, in PEM; ``None`` for those that it does not name."""

    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class FollowedFiles:
    """Tells when the files of a connection have changed, by what is known of them without reading.

    Args:
        connection: it names the files.
        interval: seconds in which they are looked at once at most.
    """

    def __init__(self, connection: Connection, interval: float = 0.0) -> None:
        self._connection = connection
        self._interval = interval
        self._looked = time.monotonic()
        self._seen = _signature(connection)
        self._any = any(_paths(connection))

    def changed(self) -> bool:
        """Whether they have, since they were seen to last."""
        if not self._any or (now := time.monotonic()) < self._looked + self._interval:
            return False
        self._looked = now
        before, self._seen = self._seen, _signature(self._connection)
        return self._seen != before

    def doubt(self, error: ConfigurationError) -> None:
        """Look again the next time: what was found is of no use, and what was known stays."""
        if self._seen is not None:
            _log.warning("%s; what was read before stays in use", error)
        self._seen = None


class TlsContexts:
    """What Python's TLS takes for each new connection: made anew when the files have changed.

    Raises:
        ConfigurationError: as :func:`tls_context`, for the first one; later ones stay as they were
            while the files are of no use.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._files = FollowedFiles(connection)
        self.first = self._context = tls_context(connection)

    def current(self) -> ssl.SSLContext:
        """Return the context by the files as they are now."""
        if self._files.changed():
            try:
                self._context = tls_context(self._connection)
            except ConfigurationError as error:
                self._files.doubt(error)
        return self._context

    @property
    def last(self) -> ssl.SSLContext:
        """The one that was returned last, without a look at the files."""
        return self._context

    def renewed(self, given: ssl.SSLContext) -> ssl.SSLContext:
        """Return the current one in the place of the first; a proxy's is its own."""
        return self.current() if given is self.first else given


def tls_context(connection: Connection, alpn: str = "http/1.1") -> ssl.SSLContext:
    """Return what Python's TLS takes; for the same files it is the same.

    ``alpn`` names what is to be spoken over it.

    Raises:
        ConfigurationError: a file cannot be read or holds something else, the key is encrypted, or
            it is not that of the certificate.
    """
    return _context_of(*_paths(connection), alpn, _signature(connection))


@lru_cache(maxsize=64)
def _context_of(
    ca: Path | None, certificate: Path | None, key: Path | None, alpn: str, seen: object
) -> ssl.SSLContext:
    context = _trusting(ca)
    context.set_alpn_protocols([alpn])
    if certificate is not None and key is not None:
        _show(context, certificate, key)
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
            None if path is None else path.read_bytes() for path in _paths(connection)
        )
    except OSError as error:  # it was there a moment ago
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Files(authorities, certificate, key)


def _paths(connection: Connection) -> tuple[Path | None, Path | None, Path | None]:
    return connection.ca_file, connection.certificate_file, connection.key_file


def _signature(connection: Connection) -> object:
    states = [None if path is None else _state(path) for path in _paths(connection)]
    # Without a file of one's own, these say which authorities are the usual ones.
    named = [None if connection.ca_file else os.environ.get(name) for name in _USUAL]
    return (*states, *named)


def _state(path: Path) -> object:
    try:
        state = path.stat()
    except OSError as error:
        return error.errno
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        import httpx  # for this alone: it knows where authorities are on every system

        return httpx.create_ssl_context()
    try:
        context = ssl.create_default_context(cafile=ca_file)
        # As gRPC takes them, and Python from 3.13 on: a server's own certificate will do.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context
    except OSError as error:  # what the ssl module raises is one, too
        raise ConfigurationError(
            f"ca_file: {ca_file} holds no certificates that can be read ({error}); "
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
