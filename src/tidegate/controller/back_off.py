"""When to start a crashed replica again."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST, _LONGEST = 0.5, 30.0
_LOOP = 4


@dataclass(slots=True)
class BackOff:
    """Counts crashes that came soon after the start; a life of some seconds forgives them.

    The first restart is immediate, the next ones wait 0.5 s, 1 s, 2 s … up to 30 s.
    """

    calm: float = 1.0
    """A replica that served for so many seconds did not crash because it was started."""
    crashes: int = 0

    def crashed(self, served: float) -> float:
        """Note a crash after ``served`` seconds of service; return the seconds to wait."""
        if served >= self.calm:
            self.crashes = 0
        self.crashes += 1
        if self.crashes == 1:
            return 0.0
        # Beyond so many doublings it is the longest anyway; a float has an end.
        return min(_LONGEST, _FIRST * 2.0 ** min(self.crashes - 2, 10))

    @property
    def looping(self) -> bool:
        """Whether it crashes again and again."""
        return self.crashes >= _LOOP
