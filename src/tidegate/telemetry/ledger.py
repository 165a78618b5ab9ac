"""Sums over sources that come and go: what one had counted when it ended stays in the sum."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, Protocol, TypeVar

KEPT = 3600.0
"""Seconds for which the sum of a key is told after the last of its sources has ended, unless
the key itself lives on."""


class _Summable(Protocol):
    def __add__(self: _V, other: _V, /) -> _V: ...


_V = TypeVar("_V", bound=_Summable)
_S = TypeVar("_S", bound=Hashable)
_K = TypeVar("_K", bound=Hashable)


class Ledger(Generic[_S, _K, _V]):
    """Sums by key of what sources have counted; a source belongs to one key."""

    def __init__(self) -> None:
        self._living: dict[_S, tuple[_K, _V]] = {}
        self._ended: dict[_K, tuple[float, _V]] = {}
        """When the last source of a key ended, and what those that ended had counted."""

    def note(self, source: _S, key: _K, value: _V) -> None:
        """Remember what a living source has counted since it started."""
        self._living[source] = (key, value)

    def end(self, source: _S, now: float) -> None:
        """Note that a source has ended: what it told last stays. Once is enough."""
        if source not in self._living:
            return
        key, value = self._living.pop(source)
        before = self._ended.get(key)
        self._ended[key] = (now, value if before is None else before[1] + value)

    def sums(self, living: Collection[_K], now: float) -> dict[_K, _V]:
        """Return the sum for each key; those not in ``living`` are forgotten after a while."""
        for key, (ended, _) in list(self._ended.items()):
            if key not in living and now - ended > KEPT:
                del self._ended[key]
        found = {key: value for key, (_, value) in self._ended.items()}
        for key, value in self._living.values():
            found[key] = found[key] + value if key in found else value
        return found
