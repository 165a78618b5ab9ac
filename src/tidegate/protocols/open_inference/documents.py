"""JSON documents of the calls about the whole server: small, and checked key by key."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import shown

LARGEST = 2**20
"""Bytes of such a document; none of them comes near."""


def read_object(body: bytes, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the JSON object in ``body``; an empty body is an empty object.

    Args:
        body: the whole body.
        keys: those that the object may have; ``None``: any.

    Raises:
        InvalidInput: it is too long, not JSON, not an object, or has another key.
    """
    if len(body) > LARGEST:
        raise InvalidInput(f"the body has {len(body)} bytes; send at most {LARGEST}")
    if not body.strip():
        return {}
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}; send a JSON object") from error
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is {shown(document)}; send a JSON object")
    for key in document:
        if keys is not None and key not in keys:
            known = ", ".join(map(repr, sorted(keys)))
            raise InvalidInput(f"the key {shown(key)} is not known; use {known}")
    return document


def read_bool(document: dict[str, Any], key: str) -> bool:
    """Return the value of ``key``; false when it is absent.

    Raises:
        InvalidInput: it is not true or false.
    """
    value = document.get(key, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"{key!r} is {shown(value)}; send true or false")
    return value


def read_text(document: dict[str, Any], key: str) -> str:
    """Return the value of ``key``.

    Raises:
        InvalidInput: it is absent or not a string.
    """
    value = document.get(key)
    if not isinstance(value, str):
        raise InvalidInput(f"{key!r} is {shown(value)}; send a string")
    return value


def read_size(document: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return the value of ``key``, a number of bytes.

    Raises:
        InvalidInput: it is absent without a default, or no whole number from 0 to 2^63 - 1.
    """
    value = document.get(key, default)
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidInput(f"{key!r} is {shown(value)}; send a number of bytes")
    return value
