"""Authorities and certificates for the tests of TLS."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tidegate.edge.trust import ServerTls

CA = trustme.CA()
OTHER_CA = trustme.CA()


def leaf(
    ca: trustme.CA = CA,
    name: str = "localhost",
    valid: float = 1.0,
    addresses: Sequence[str] = ("127.0.0.1",),
) -> trustme.LeafCert:
    """A certificate for a name and for addresses; ``valid`` from now on, in days."""
    until = datetime.now(UTC) + timedelta(days=valid)
    return ca.issue_cert(
        name, *addresses, common_name=name, not_before=until - timedelta(days=30), not_after=until
    )


def chain(certificate: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def key(certificate: trustme.LeafCert) -> bytes:
    return certificate.private_key_pem.bytes()


def pem(ca: trustme.CA = CA) -> bytes:
    return ca.cert_pem.bytes()


def server_tls(
    ca: trustme.CA = CA,
    client_ca: trustme.CA | None = None,
    addresses: Sequence[str] = ("127.0.0.1",),
) -> ServerTls:
    issued = leaf(ca, addresses=addresses)
    return ServerTls(chain(issued), key(issued), None if client_ca is None else pem(client_ca))


def write(
    directory: Path, certificate: trustme.LeafCert, name: str = "server"
) -> tuple[Path, Path]:
    """Write ``name.crt`` and ``name.key``; return their paths."""
    paths = directory / f"{name}.crt", directory / f"{name}.key"
    paths[0].write_bytes(chain(certificate))
    paths[1].write_bytes(key(certificate))
    return paths
