"""Whatever is reported, in whatever order: what always holds of verdicts."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidegate.balancing.balancer import Balancer
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.verdict import MAX_WEIGHT

NAMES = st.sampled_from("abcdefgh")
COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 2000), st.just(2**40))
OUTCOMES = st.builds(
    Outcome,
    COUNTS,
    COUNTS,
    COUNTS,
    st.one_of(COUNTS, st.floats(0, 1e6)),
    st.one_of(st.none(), st.floats(-1, 3)),
    COUNTS,
)
SECONDS = st.one_of(st.just(0.25), st.floats(0, 3), st.floats(0, 1e5))


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.balancer = Balancer()
        self.now = 0.0
        self.bases: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.version = -1

    @rule(bases=st.dictionaries(NAMES, st.sampled_from([0, 1, 3, 100, 2**31])))
    def update(self, bases: dict[str, int]) -> None:
        self.bases = bases
        self.balancer.update(bases, self.now)

    @rule(outcomes=st.dictionaries(NAMES, OUTCOMES), elapsed=SECONDS)
    def observe(self, outcomes: dict[str, Outcome], elapsed: float) -> None:
        self.now += elapsed
        self.balancer.observe(outcomes, elapsed, self.now)

    @rule(times=st.integers(2, 12), outcomes=st.dictionaries(NAMES, OUTCOMES, min_size=2))
    def observe_again(self, times: int, outcomes: dict[str, Outcome]) -> None:
        for _ in range(times):
            self.observe(outcomes, 0.25)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def verdicts_make_sense(self) -> None:
        verdicts = self.balancer.verdicts(self.now)
        assert set(verdicts) == set(self.bases)
        for address, verdict in verdicts.items():
            assert verdict.base == self.bases[address]
            assert 0 <= verdict.weight <= MAX_WEIGHT
            assert verdict.weight or verdict.state == "ejected" or not verdict.base
            assert 0 < verdict.reliability <= 1
            assert 0.09 < verdict.latency < 11
            assert 0.49 < verdict.utilization < 2.1
            assert 0.09 < verdict.warmth <= 1
            assert verdict.reason
            assert (verdict.until is not None) == (verdict.state == "ejected")
            assert verdict.mean_latency is None or math.isfinite(verdict.mean_latency)

    @invariant()
    def somebody_gets_calls(self) -> None:
        verdicts = self.balancer.verdicts(self.now)
        wanted = [v for v in verdicts.values() if v.base]
        without = [v for v in wanted if not v.weight]
        assert not wanted or len(without) < len(wanted)
        assert len(without) <= 0.7 * len(wanted)

    @invariant()
    def changes_are_told(self) -> None:
        """Who looks whenever the version has grown knows every weight."""
        verdicts = self.balancer.verdicts(self.now)
        weights = {address: verdict.weight for address, verdict in verdicts.items()}
        assert self.balancer.version >= self.version
        if self.balancer.version > self.version:
            self.version, self.told = self.balancer.version, weights
        assert self.told == weights


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
