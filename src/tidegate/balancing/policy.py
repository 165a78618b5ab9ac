"""Every number of the balancer, with its default."""

from __future__ import annotations

from dataclasses import dataclass

ACTIVE_REQUEST_BIAS = 0.5
"""The power of the calls in flight by which an edge divides a weight when it picks. Who decides
the weights must know of it: else one that is probed gets a tenth of the calls that it should."""


@dataclass(frozen=True, slots=True)
class BalancingPolicy:
    """How one cluster is balanced. Times are in seconds, shares and rates between 0 and 1."""

    active_request_bias: float = ACTIVE_REQUEST_BIAS
    """Who picks divides a weight by this power of its calls in flight, and one more, as Envoy's
    least request does; 0: it does not. Without, the shares of endpoints that have more to do
    than they can swing: reports are a quarter of a second old, and queues are quicker."""
    crowd_window: float = 5.0
    """The time constant in which it is learnt how many calls endpoints have in flight, so that a
    larger weight is not held against them."""

    # Failures
    consecutive_failures: int = 5
    """As many failed calls without a success between them eject an endpoint."""
    relapse_failures: int = 2
    """The same for one that was ejected lately. An edge that avoids who breaks off leaves few
    failures to be seen of one that comes and goes."""
    failure_rate: float = 0.3
    """An endpoint of which as large a share of calls fails is ejected, if the others fail less
    than half as often."""
    failure_rate_calls: int = 20
    """No failure rate is judged by fewer calls than this."""
    failure_window: float = 3.0
    """The time constant in which failures are forgotten for the two rules above."""

    # Calls that nobody waited for any longer
    chance: float = 1e-7
    """So unlikely it must be that calls of one endpoint were cancelled one after the other without
    its doing, each with the probability that calls of the others are, for it to be ejected."""
    probe_chance: float = 0.05
    """The same for one that is probed to be left out."""

    # Silence
    stuck_after: float = 0.5
    """An endpoint that ends no call for this long is ejected as stuck, if others do end theirs."""
    stuck_calls: int = 3
    """As many calls at least must wait in one that is stuck."""
    stuck_missed: float = 8.0
    """How many calls it should have ended meanwhile, by its usual latency."""

    # Ejection
    ejection_time: float = 0.75
    """How long a first ejection lasts before the endpoint is probed."""
    ejection_growth: float = 4.0
    """How many times longer each relapse lasts than the one before."""
    longest_ejection: float = 60.0
    """The longest of these."""
    calm: float = 60.0
    """An endpoint that served for this long without an ejection starts again with the first."""
    max_ejected: float = 0.7
    """The panic threshold. When a larger share of the endpoints is sick, none is ejected: those
    that are left would break down under the load of all."""
    probe_share: float = 0.006
    """The share of the cluster's calls that an endpoint gets while it is probed."""
    slow_probe_share: float = 0.003
    """The same for one that is slow: each of its probes is a caller who waits for long, and
    at 1 % of the calls they would be the cluster's 99th percentile."""
    probe_rate: float = 3.0
    """The least number of calls per second that it gets then, so that healing is noticed in a
    cluster with little to do."""
    probe_calls: int = 3
    """As many calls must succeed before the endpoint serves again."""
    recovery: float = 1.5
    """How long the share of one that has healed takes to grow to the full one; after relapses
    longer, as ejections are, up to :attr:`slow_start`."""

    # Newcomers
    slow_start: float = 10.0
    """How long the share of a newcomer takes to grow, from its first outcome on."""
    slow_start_floor: float = 0.1
    """The part of its weight with which a newcomer, or one that has healed, begins."""

    # Latency and load
    latency_window: float = 1.0
    """The time constant of the mean latency that weights follow."""
    latency_damping: float = 0.7
    """The time constant with which the latency factor moves to where the latency asks for."""
    latency_clamp: float = 10.0
    """An endpoint gets at most this many times its weight for being fast, and at least this
    part of it for being slow."""
    latency_evidence: float = 1.0
    """How many calls must have been seen in flight before a latency that differs by a factor of
    e counts by half. Smaller differences need more, by their square."""
    slow_outlier: float = 5.0
    """An endpoint that becomes this many times slower than it used to be, against the
    others, is ejected until it is well. One that always was slower only gets less."""
    slow_outlier_calls: float = 8.0
    """How many calls more than usual must have been seen in flight, in all, for that."""
    slow_probing: float = 1.5
    """After so many seconds of quick probes an outlier is well again, however few they were."""
    slow_accepted: float = 300.0
    """One that is slow for this long is taken back as it is: it gets less, by its latency."""
    habit: float = 60.0
    """The time constant in which an endpoint's usual latency, against the others, is learnt."""
    utilization_clamp: float = 2.0
    """The same as :attr:`latency_clamp` for the load that endpoints report."""
