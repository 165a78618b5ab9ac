"""The reference rule: smooth weighted round robin whose weights fall and rise with each call.

It is the rule that dl_inference published, with its weights at their configured values instead
of 0. It sees every call, so it is what the window form (:mod:`tidegate.balancing.window`) is
measured against; whoever picks for itself and knows each outcome may also use it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping


class ReferenceRule:
    """Picks endpoints by weight; halves the weight of one that failed, restores it on success.

    ``weights`` are the configured weights W, whole numbers of at least 1; effective weights
    begin there and stay between 1 and W.

    Raises:
        ValueError: there is no weight, or one is less than 1.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        if not weights:
            raise ValueError("the reference rule needs at least one endpoint")
        for name, weight in weights.items():
            if weight < 1:
                raise ValueError(f"the weight of {name} is {weight}: it must be at least 1")
        self._base = dict(weights)
        self._effective = dict(weights)
        self._current = dict.fromkeys(weights, 0)

    @property
    def weights(self) -> Mapping[str, int]:
        """The effective weights at present, by name."""
        return dict(self._effective)

    def pick(self) -> str:
        """Return whose turn it is.

        Every effective weight is added to its node's current weight; the largest (the first of
        equals) is taken and pays the total.
        """
        current = self._current
        for name, weight in self._effective.items():
            current[name] += weight
        best = max(current, key=current.__getitem__)
        current[best] -= sum(self._effective.values())
        return best

    def succeeded(self, name: str) -> None:
        """Bring the weight half of the way back, rounded up: w + ⌈(W - w) / 2⌉."""
        weight = self._effective[name]
        self._effective[name] = weight + (self._base[name] - weight + 1) // 2

    def failed(self, name: str) -> None:
        """Halve the weight, rounded down, but not below 1: max(1, ⌊w / 2⌋)."""
        self._effective[name] = max(1, self._effective[name] // 2)
