"""What was decided about one endpoint, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["new", "warming", "serving", "ejected", "probing"]
"""``new``: nothing is known of it yet. ``warming``: its share grows to the full one.
``serving``: the usual. ``ejected``: gets no calls. ``probing``: gets a few, to see whether it
has healed."""

MAX_WEIGHT = 2**20
"""The largest weight: Envoy adds those of a cluster in 32 bits."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an endpoint gets: ``weight`` is relative to the others of its cluster.

    ``weight`` is what the edge is told, 1 to :data:`MAX_WEIGHT`, and 0 only where ``state`` is
    ``ejected``, or the configured weight is 0. It is the configured weight ``base`` times the
    factors, each 1 where it changes nothing, in a scale of its cluster (100 becomes 10,000):

    - ``reliability``: the effective weight of the reference rule over the configured one
    - ``latency``: how fast it is against the others
    - ``utilization``: how busy it says it is, against the others
    - ``warmth``: how far it has come in its slow start

    ``mean_latency`` is in seconds, ``None`` while nothing is known; ``until`` is the time at
    which an ejected one is probed. ``reason`` says all of it in words.
    """

    weight: int
    state: State
    base: int
    reliability: float = 1.0
    latency: float = 1.0
    utilization: float = 1.0
    warmth: float = 1.0
    mean_latency: float | None = None
    until: float | None = None
    reason: str = ""
