"""Whose turn it is by weight, for those who pick the endpoint of a call themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Turns:
    """Smooth weighted round robin (nginx's): exact over a cycle, and no bursts within it.

    In any run of picks with weights that do not change, each name's count stays within one of
    its share as long as nobody is excluded. A pick costs time in proportion to the endpoints.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights: dict[str, float] = {}
        self._current: dict[str, float] = {}
        self.set(weights or {})

    def set(self, weights: Mapping[str, float]) -> None:
        """Replace the weights; a name whose weight is 0 or less is never picked.

        Names that stay keep their place in the cycle, so that setting weights often favours
        nobody. A newcomer begins in the middle, neither owing nor owed.
        """
        old, self._weights = self._weights, {n: w for n, w in weights.items() if w > 0}
        total, before = sum(self._weights.values()), sum(old.values())
        # The place in the cycle is a share of the whole: one whose weight fell to a hundredth
        # would otherwise pay its old debt for a hundred cycles.
        scale = total / before if before else 0.0
        self._current = {
            name: max(-total, min(total, self._current.get(name, 0.0) * scale))
            for name in self._weights
        }

    def pick(self, excluding: Collection[str] = ()) -> str | None:
        """Return whose turn it is; ``None`` when all are excluded, or there is nobody.

        Those in ``excluding``, such as the one that has just failed this call, lose nothing but
        this turn.
        """
        current = self._current
        best: str | None = None
        total = highest = 0.0
        for name, weight in self._weights.items():
            if name in excluding:
                continue
            total += weight
            credit = current[name] = current[name] + weight
            if best is None or credit > highest:
                best, highest = name, credit
        if best is not None:
            current[best] -= total
        return best
