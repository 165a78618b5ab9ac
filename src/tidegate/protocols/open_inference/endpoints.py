"""Where a model can be called without a gateway in between: ``GET /v2/models/NAME/endpoints``.

An extension of Tidegate's own, for clients that balance by themselves. A gateway answers it with
what it knows of the model's machines; a node alone has no others to tell of.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tidegate.errors import InvalidAnswer
from tidegate.protocols.open_inference.answers import invalid_answer
from tidegate.protocols.open_inference.tensors import shown

MOST_ENDPOINTS = 10_000
LARGEST_BODY = 4 * 2**20
"""Bytes: what is longer is not read at all."""
MOST_VERSIONS = 4096
"""Of one endpoint."""
LARGEST_WEIGHT = 2**20
LARGEST_PRIORITY = 2**16
SHORTEST_TTL_MS, LONGEST_TTL_MS = 1, 24 * 3600 * 1000
_LONGEST_TEXT = 128
_ADDRESS: Mapping[str, object] = {
    "type": "string",
    "description": "a numeric address and a port: 10.0.0.1:8000, [fd00::1]:8000",
}

SCHEMA: Mapping[str, object] = {
    "type": "object",
    "required": ["model_name", "ttl_ms", "endpoints"],
    "properties": {
        "model_name": {"type": "string"},
        "ttl_ms": {
            "type": "integer",
            "minimum": SHORTEST_TTL_MS,
            "maximum": LONGEST_TTL_MS,
            "description": "how long this may be used before it is asked for again",
        },
        "endpoints": {
            "type": "array",
            "maxItems": MOST_ENDPOINTS,
            "items": {
                "type": "object",
                "required": ["address"],
                "properties": {
                    "address": _ADDRESS,
                    "rest": {**_ADDRESS, "description": "where REST is answered, if elsewhere"},
                    "protocol": {"type": "string"},
                    "weight": {"type": "integer", "minimum": 0, "maximum": LARGEST_WEIGHT},
                    "priority": {"type": "integer", "minimum": 0, "maximum": LARGEST_PRIORITY},
                    "secure": {"type": "boolean"},
                    "versions": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "those that it has; absent where that is not known",
                    },
                },
            },
        },
    },
}
"""Of the answer, for its description."""


@dataclass(frozen=True, slots=True)
class ModelEndpoint:
    """One machine that has a model.

    ``address`` is numeric with a port, ``10.0.0.1:8000`` or ``[fd00::1]:8000``, and speaks
    ``protocol`` over gRPC; with ``tidegate``, REST too. ``rest`` is where REST is answered, if
    elsewhere. Shares of calls are as ``weight``; a ``priority`` above 0 is for when all below
    it are sick. ``versions`` is ``None`` where they are not known.
    """

    address: str
    protocol: str = "tidegate"
    weight: int = 100
    priority: int = 0
    secure: bool = False
    versions: frozenset[str] | None = None
    rest: str | None = None


@dataclass(frozen=True, slots=True)
class ModelEndpoints:
    """All of them; good for ``ttl_ms`` milliseconds."""

    model: str
    ttl_ms: int
    endpoints: tuple[ModelEndpoint, ...]


def encode_endpoints(found: ModelEndpoints) -> bytes:
    """Return the JSON of the answer."""
    return orjson.dumps(
        {
            "model_name": found.model,
            "ttl_ms": found.ttl_ms,
            "endpoints": [_written(endpoint) for endpoint in found.endpoints],
        }
    )


def _written(endpoint: ModelEndpoint) -> dict[str, Any]:
    written: dict[str, Any] = {
        "address": endpoint.address,
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "protocol": endpoint.protocol,
        "secure": endpoint.secure,
    }
    if endpoint.rest is not None:
        written["rest"] = endpoint.rest
    if endpoint.versions is not None:
        written["versions"] = sorted(endpoint.versions, key=lambda v: (len(v), v))
    return written


def decode_endpoints(body: bytes) -> ModelEndpoints:
    """Return what the body of an answer says; of an address that comes twice, the first.

    Members that are not known are left out: a newer gateway may say more.

    Raises:
        InvalidAnswer: it is malformed or beyond the limits of this module.
    """
    if len(body) > LARGEST_BODY:
        raise invalid_answer(f"{len(body)} bytes of endpoints are more than {LARGEST_BODY}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_answer(f"{shown(body[:80])} is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise invalid_answer(f"the endpoints are {shown(document)}, not an object")
    items = document.get("endpoints")
    if not isinstance(items, list) or len(items) > MOST_ENDPOINTS:
        raise invalid_answer(
            f"'endpoints' is {_sized(items)}, not a list of at most {MOST_ENDPOINTS}"
        )
    found: dict[str, ModelEndpoint] = {}
    for item in items:
        endpoint = _read(item)
        found.setdefault(endpoint.address, endpoint)
    return ModelEndpoints(
        _text(document, "model_name", None),
        _number(document, "ttl_ms", None, SHORTEST_TTL_MS, LONGEST_TTL_MS),
        tuple(found.values()),
    )


def check_address(text: str) -> str:
    """Return ``text`` in its one way to be written, if it is an address that can be called.

    Raises:
        ValueError: it has no port, or is a name, or an address of no machine.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or not 0 < int(port[:6]) < 2**16:
        raise ValueError(f"{shown(text)} has no port")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    if bracketed != (address.version == 6):
        raise ValueError(f"{shown(text)}: IPv6 is written in brackets, IPv4 without")
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise ValueError(f"{shown(text)} is the address of no machine")
    return f"[{address}]:{int(port)}" if bracketed else f"{address}:{int(port)}"


def _read(item: object) -> ModelEndpoint:
    if not isinstance(item, dict):
        raise invalid_answer(f"an endpoint is {shown(item)}, not an object")
    rest = _address(item, "rest") if item.get("rest") is not None else None
    return ModelEndpoint(
        _address(item, "address"),
        _text(item, "protocol", "tidegate"),
        _number(item, "weight", 100, 0, LARGEST_WEIGHT),
        _number(item, "priority", 0, 0, LARGEST_PRIORITY),
        _flag(item, "secure"),
        _versions(item.get("versions")),
        rest,
    )


def _address(item: dict[str, Any], name: str) -> str:
    text = _text(item, name, None)
    try:
        return check_address(text)
    except ValueError as error:
        raise invalid_answer(f"an endpoint's {name!r} is no address: {error}") from error


def _versions(found: object) -> frozenset[str] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > MOST_VERSIONS:
        raise invalid_answer(f"an endpoint's 'versions' are {_sized(found)}, not a short list")
    if not all(isinstance(version, str) and len(version) <= _LONGEST_TEXT for version in found):
        raise invalid_answer(f"an endpoint's 'versions' are {shown(found)}, not texts")
    return frozenset(found)


def _text(item: dict[str, Any], name: str, default: str | None) -> str:
    found = item.get(name, default)
    if not isinstance(found, str) or len(found) > _LONGEST_TEXT:
        raise _wrong(name, found, f"text of at most {_LONGEST_TEXT} characters")
    return found


def _number(item: dict[str, Any], name: str, default: int | None, least: int, most: int) -> int:
    found = item.get(name, default)
    if type(found) is not int or not least <= found <= most:
        raise _wrong(name, found, f"a whole number from {least} to {most}")
    return found


def _flag(item: dict[str, Any], name: str) -> bool:
    found = item.get(name, False)
    if not isinstance(found, bool):
        raise _wrong(name, found, "true or false")
    return found


def _wrong(name: str, found: object, wanted: str) -> InvalidAnswer:
    return invalid_answer(f"{name!r} is {shown(found)}, not {wanted}")


def _sized(found: object) -> str:
    return f"a list of {len(found)}" if isinstance(found, list) else shown(found)
