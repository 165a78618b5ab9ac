"""Whom an edge trusts, and how much each may ask: what is known once the files have been read.

Secrets are kept out of what is printed and logged. :mod:`.certificates` and :mod:`.key_file` read
and check the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How an edge proves who it is to its clients; all in PEM.

    Attributes:
        certificate: its certificate, followed by those that lead to a well-known one.
        key: the private key of the first certificate.
        client_ca: whose certificates clients may show.
        require_client_certificate: refuse clients that show none.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None
    require_client_certificate: bool = True

    @property
    def mutual(self) -> bool:
        """Whether every client must show a certificate."""
        return self.client_ca is not None and self.require_client_certificate


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How an edge speaks TLS to endpoints; all in PEM.

    Attributes:
        ca: whose certificates endpoints may show; without any, no endpoint is believed.
        public_ca: whether those vouch for everybody, as the ones do that a system trusts.
        certificate: what the edge shows to endpoints that ask.
        key: the private key of the certificate.
        server_name: the name, or IP address, that each endpoint's certificate must have (default:
            the host name of each, or its address if it is known by none).
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    public_ca: bool = False

    @property
    def addresses_count(self) -> bool:
        """Whether endpoints without a host name are believed by their addresses."""
        return self.ca is not None and not self.public_ca and self.server_name is None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that clients may show, and the name by which it is logged and limited."""

    name: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys, one of which every call must show.

    It comes in ``header``, or as ``authorization: Bearer KEY``; both go no further than here.
    """

    keys: tuple[ApiKey, ...]
    header: str = "x-api-key"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many requests a second in the long run, and ``burst`` at once after a quiet while."""

    requests_per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The limits of an edge; each counts for itself, and none is the default.

    Attributes:
        per_key: what each API key may ask for that is not in ``keys``.
        keys: what these may ask for, by their names.
        per_model: what all callers together may ask of each model that is not in ``models``.
        models: what they may ask of these models.
    """

    per_key: RateLimit | None = None
    keys: Mapping[str, RateLimit] = field(default_factory=dict)
    per_model: RateLimit | None = None
    models: Mapping[str, RateLimit] = field(default_factory=dict)

    @property
    def of_models(self) -> bool:
        """Whether any model has a limit."""
        return self.per_model is not None or bool(self.models)
