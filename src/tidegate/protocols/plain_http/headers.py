"""What a call's headers say: the kind of its body, the kind of answer it wants, who made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from tidegate.errors import PermissionDenied

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
FORM, ENCODED_FORM = "multipart/form-data", "application/x-www-form-urlencoded"
_MOST = 1024
"""Bytes of a header that are looked at."""
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class MediaType:
    """A ``Content-Type`` (RFC 9110, section 8.3.1); empty where none was sent."""

    name: str = ""
    """In lower case, without parameters, as ``image/png``."""
    boundary: bytes = b""
    charset: str = "utf-8"

    @classmethod
    def of(cls, header: bytes) -> MediaType:
        """Read a header; what is malformed is as good as nothing."""
        name, options = parse_options_header(header[:_MOST].decode("latin-1"))
        charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
        return cls(name.decode("latin-1"), options.get(b"boundary", b""), charset)

    @property
    def json(self) -> bool:
        """Whether it is a JSON document (RFC 6839, section 3.1)."""
        return self.name == JSON or self.name.endswith("+json")

    @property
    def text(self) -> bool:
        """Whether it is a text that is nothing else."""
        return self.name.startswith("text/")

    @property
    def image(self) -> bool:
        """Whether it is an image."""
        return self.name.startswith("image/")


UNSAID = MediaType()


def prefers(accept: bytes, wanted: str, otherwise: str) -> bool:
    """Say whether an ``Accept`` header likes ``wanted`` better (RFC 9110, section 12.5.1)."""
    ranges = [parse_options_header(r.strip()) for r in accept[:_MOST].decode("latin-1").split(",")]
    return _quality(ranges, wanted) > _quality(ranges, otherwise)


def _quality(ranges: list[tuple[bytes, dict[bytes, bytes]]], kind: str) -> float:
    """Return what the most specific range that covers ``kind`` gives it."""
    best, quality = 0, 0.0
    patterns = {kind: 3, kind.partition("/")[0] + "/*": 2, "*/*": 1}
    for name, options in ranges:
        weight = patterns.get(name.decode("latin-1"), 0)
        if weight > best:
            best, quality = weight, _number(options.get(b"q", b"1"))
    return quality


def _number(text: bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0


def refuse_foreign_pages(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a page of another site makes a browser send.

    A browser sends forms anywhere without asking, also to a server that only this machine can
    reach. It says who made it do so: in ``Sec-Fetch-Site`` where it trusts the server's address
    (https, localhost), and in ``Origin`` everywhere. Programs send neither, and of sites that are
    allowed the edge passes neither on.

    Raises:
        PermissionDenied: the page is not of this server.
    """
    site = headers.get(b"sec-fetch-site", b"none")
    origin = headers.get(b"origin")
    if site not in (b"none", b"same-origin") or not _same(origin, authority(headers)):
        whose = "" if origin is None else f" ({origin[:128].decode('latin-1')})"
        raise PermissionDenied(
            f"a page of another site{whose} may not use this server: open the model's own page, "
            "or let who runs the server add the site to allowed_origins"
        )


def _same(origin: bytes | None, host: bytes) -> bool:
    if origin is None:
        return True
    scheme, found, authority = origin.decode("latin-1").lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme, "")
    ours = host.decode("latin-1").lower()
    # In front of the edge there may be a proxy with TLS: the scheme is not compared.
    return bool(found) and authority.removesuffix(default) == ours.removesuffix(default)


def scheme(headers: Mapping[bytes, bytes]) -> str:
    """Return how the caller came to the edge: ``http`` or ``https``."""
    return "https" if headers.get(b"x-forwarded-proto") == b"https" else "http"


def authority(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the host and port that the caller used (RFC 9110, section 7.2)."""
    return headers.get(b":authority") or headers.get(b"host", b"")
