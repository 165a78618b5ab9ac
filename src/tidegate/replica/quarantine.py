"""Requests that kill replicas: how they are told from others, and which are not run again."""

from __future__ import annotations

import hashlib
from collections.abc import Container

from tidegate.errors import Quarantined
from tidegate.protocols.open_inference.tensors import to_raw
from tidegate.replica.exchange import Bytes, Exchange
from tidegate.replica.flight import tag
from tidegate.types import InferRequest


class Quarantine:
    """What this replica knows of deadly requests.

    Args:
        whose: the model, its version and its files, as a text: what kills one model may be sent to
            another, and to this one when it has been mended.
        casualties: the ids of the requests that were being run when another replica died.
        shared_memory: whether tensors may lie in memory that is shared with the client.
    """

    def __init__(self, whose: str, casualties: Container[bytes], *, shared_memory: bool) -> None:
        self.refused: frozenset[bytes] = frozenset()
        """The digests of requests that are not run again."""
        self._key = hashlib.blake2b(whose.encode()).digest()
        self._casualties = casualties
        self._shared_memory = shared_memory

    def deadly(self, exchange: Exchange) -> bool:
        """Say whether another replica died while it was running this request."""
        return exchange.request_id in self._casualties

    def entry(self, exchange: Exchange, request: InferRequest, retried: bool) -> bytes | None:
        """Return the request's entry in the flight recorder; ``None`` if it has no id.

        Raises:
            Quarantined: it may not run at all.
        """
        shared = self._shared_memory and b"shared_memory_region" in exchange.body
        # The same message stands for whatever lies in the memory.
        digest = self.digest(exchange.body, *map(to_raw, request.inputs if shared else ()))
        if digest in self.refused:
            raise Quarantined(
                "this very request was being run when two replicas died, and is not run "
                "again: see the model's log on the server, or change the request"
            )
        request_id = exchange.request_id
        return None if request_id is None else tag(request_id, digest if retried else None)

    def digest(self, *data: Bytes) -> bytes:
        """Return 16 bytes that tell a request to these files of this version from others."""
        hashed = hashlib.blake2b(digest_size=16, key=self._key)
        for part in data:
            hashed.update(part)
        return hashed.digest()
