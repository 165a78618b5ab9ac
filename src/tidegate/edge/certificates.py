"""Reads certificates and keys, and refuses those that no client could use.

What is wrong is found here, before Envoy is told: its own words for it name no file.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tidegate.edge.trust import ClientTls, ServerTls
from tidegate.errors import ConfigurationError

_LARGEST = 2**20
_LARGEST_OF_SYSTEM = 2**24
_LEAST_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KEY_MARK = b"PRIVATE KEY-----"


def read_server_tls(certificate: Path, key: Path, client_ca: Path | None = None) -> ServerTls:
    """Read what clients are shown, and who vouches for them.

    Raises:
        ConfigurationError: a file cannot be read or holds something else, the key is not that of
            the certificate, or a certificate is not valid now.
    """
    chain, secret = _read_pair(certificate, key)
    return ServerTls(chain, secret, None if client_ca is None else _read_authorities(client_ca))


def read_client_tls(
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    server_name: str | None = None,
) -> ClientTls:
    """Read what endpoints must show, and what they are shown.

    Without ``ca``, the authorities are those that the system trusts.

    Raises:
        ConfigurationError: as :func:`read_server_tls`; or there is a certificate without a key.
    """
    if (certificate is None) != (key is None):
        raise ConfigurationError("a certificate and its key go together: give both, or none")
    chain = secret = None
    if certificate is not None and key is not None:
        chain, secret = _read_pair(certificate, key)
    known = _system_authorities() if ca is None else _read_authorities(ca)
    return ClientTls(known, chain, secret, server_name, public_ca=ca is None)


def valid_until(certificates: bytes) -> datetime:
    """Return when the first of these PEM certificates is no longer valid."""
    return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(certificates))


def read_small(path: Path, largest: int = _LARGEST) -> tuple[bytes, int]:
    """Read a regular file of at most ``largest`` bytes; return it and its permissions.

    Raises:
        ConfigurationError: it is missing, something else, too large, or may not be read.
    """
    try:
        # A pipe in the file's place would keep everybody waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise ConfigurationError(f"{path} is no file")
            content = file.read(largest + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > largest:
        raise ConfigurationError(f"{path} has more than {largest} bytes: it must be another file")
    return content, stat.S_IMODE(state.st_mode)


def read_private(path: Path, holds: str) -> bytes:
    """Read a file with secrets, which ``holds`` names in words.

    Raises:
        ConfigurationError: as :func:`read_small`; or others than its owner may read or write it.
    """
    content, mode = read_small(path)
    if mode & 0o077:
        raise ConfigurationError(
            f"{path} holds {holds}, and others than its owner may read or write it (its mode is "
            f"{mode:04o}): run chmod 600 {path}"
        )
    return content


def _read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    chain, secret = read_small(certificate)[0], read_small(key)[0]
    found = _certificates(certificate, chain)
    own = _private_key(key, secret).public_key()
    known = [_public(each.public_key()) for each in found]
    if _public(own) != known[0]:
        if _public(own) in known:
            raise ConfigurationError(
                f"{certificate}: the certificate of the key in {key} must be the first one; "
                "those of authorities come after it"
            )
        raise ConfigurationError(f"the key in {key} is not that of the certificate {certificate}")
    _check_strength(certificate, found[0])
    return _only_certificates(found), secret


def _read_authorities(path: Path) -> bytes:
    return _only_certificates(_certificates(path, read_small(path)[0]))


def _system_authorities() -> bytes:
    """Return what OpenSSL's usual file holds (``SSL_CERT_FILE`` names another), else certifi's."""
    usual = ssl.get_default_verify_paths().cafile
    return read_small(Path(usual or certifi.where()), _LARGEST_OF_SYSTEM)[0]


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError:
        swapped = _KEY_MARK in content
        raise ConfigurationError(
            f"{path} holds no certificate in PEM"
            + ("; it holds a private key, so the two files may be swapped" if swapped else "")
        ) from None
    now = datetime.now(UTC)
    for each in found:
        name = each.subject.rfc4514_string() or "without a subject"
        if each.not_valid_after_utc < now:
            raise ConfigurationError(
                f"{path}: the certificate {name} was valid until "
                f"{each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it"
            )
        if each.not_valid_before_utc > now:
            raise ConfigurationError(
                f"{path}: the certificate {name} is valid from "
                f"{each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on: is the clock right?"
            )
    return found


def _private_key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigurationError(
            f"the key in {path} is encrypted: nobody could type its password at a restart; "
            f"take it off with 'openssl pkey -in {path} -out PLAIN', and let nobody else read that"
        ) from None
    except ValueError:
        raise ConfigurationError(f"{path} holds no private key in PEM") from None
    if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return key
    raise ConfigurationError(
        f"the key in {path} is of a kind that is not used here: take ECDSA with P-256, or RSA"
    )


def _check_strength(path: Path, certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise ConfigurationError(
            f"{path}: an RSA key of {key.key_size} bits is too short: take {_LEAST_RSA_BITS}"
        )
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise ConfigurationError(
            f"{path}: the curve {key.curve.name} is not used here: take P-256, P-384 or P-521"
        )


def _public(key: object) -> bytes:
    try:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, ValueError):
        return b""


def _only_certificates(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return them without what else was in the file, such as a private key."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
