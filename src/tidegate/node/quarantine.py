"""Finds the request that kills replicas: the one that two of them were running as they died."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tidegate.replica.flight import Suspect

_REMEMBERED = 4096
_MOST = 256


class Quarantine:
    """Collects what dead replicas were running.

    A request is retried once, on another replica, under the same id. When that one dies
    with it too, its digest is quarantined: the same request sent again is refused. Both may
    die within milliseconds, and the second death may be noticed first.
    """

    def __init__(self, digests: Sequence[str] = ()) -> None:
        self._seen: OrderedDict[bytes, bytes | None] = OrderedDict()
        """The digests, by id; ``None`` where only the first attempt has been seen."""
        self._digests = list(digests)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the quarantined requests, in hexadecimal."""
        return tuple(self._digests)

    def died(self, suspects: Sequence[Suspect]) -> bool:
        """Note what a replica was running when it died; return whether a request is guilty."""
        found = False
        for suspect in suspects:
            twice = suspect.request_id in self._seen
            digest = suspect.digest or self._seen.get(suspect.request_id)
            if twice and digest is not None and digest.hex() not in self._digests:
                self._digests = [*self._digests, digest.hex()][-_MOST:]
                found = True
            self._seen[suspect.request_id] = digest
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return found
