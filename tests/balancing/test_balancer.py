from __future__ import annotations

import pytest

from tidegate.balancing.balancer import Balancer
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import Verdict

REPORT = 0.25


class Cluster:
    """A balancer, and reports of endpoints whose calls do what the test says."""

    def __init__(self, *names: str, policy: BalancingPolicy | None = None) -> None:
        self.balancer = Balancer(policy)
        self.now = 100.0
        self.balancer.update(dict.fromkeys(names, 100), self.now)

    def report(self, times: int = 1, **outcomes: Outcome) -> None:
        for _ in range(times):
            self.now += REPORT
            self.balancer.observe(outcomes, REPORT, self.now)

    def verdict(self, name: str) -> Verdict:
        return self.balancer.verdicts(self.now)[name]

    def weights(self) -> dict[str, int]:
        return {n: v.weight for n, v in self.balancer.verdicts(self.now).items()}


def good(calls: int = 25, in_flight: int = 2) -> Outcome:
    return Outcome(calls, 0, calls, in_flight)


def bad(calls: int = 25) -> Outcome:
    return Outcome(0, calls, calls, 0)


def test_a_cold_cluster_begins_with_full_weights() -> None:
    cluster = Cluster("a", "b", "c")
    assert cluster.weights() == {"a": 10_000, "b": 10_000, "c": 10_000}
    assert cluster.verdict("a").state == "new"
    cluster.report(a=good())
    mean = cluster.verdict("a").mean_latency
    assert mean == pytest.approx(0.02)
    assert cluster.verdict("a") == Verdict(
        10_000, "serving", 100, mean_latency=mean, reason="healthy"
    )
    assert cluster.verdict("b").state == "new"


def test_configured_weights_are_kept_in_proportion() -> None:
    balancer = Balancer()
    balancer.update({"a": 1, "b": 2, "c": 0}, 0.0)
    verdicts = balancer.verdicts(0.0)
    assert verdicts["b"].weight == 2 * verdicts["a"].weight > 1000
    assert verdicts["c"].weight == 0
    assert verdicts["c"].reason == "its configured weight is 0"
    balancer.update({"a": 2**20, "b": 2**18}, 0.0)
    verdicts = balancer.verdicts(0.0)
    assert 2**20 > verdicts["a"].weight == pytest.approx(4 * verdicts["b"].weight, abs=4)
    with pytest.raises(ValueError, match="the weight of a is -1"):
        balancer.update({"a": -1}, 0.0)


def test_a_row_of_failures_ejects_and_probes_let_back_in() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(4, a=good(), b=good(), c=good())
    cluster.report(a=bad(), b=good(), c=good())
    verdict = cluster.verdict("a")
    assert (verdict.weight, verdict.state) == (0, "ejected")
    assert verdict.reason == "ejected for 0.8 s: 25 calls failed in a row"
    cluster.report(4, b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    assert 0 < cluster.verdict("a").weight < 1000
    cluster.report(a=Outcome(3, 0, 3, 0), b=good(), c=good())
    assert cluster.verdict("a").state == "warming"
    cluster.report(6, a=good(), b=good(), c=good())
    assert cluster.verdict("a").state == "serving"
    cluster.report(40, a=good(), b=good(), c=good())
    assert cluster.weights() == pytest.approx({"a": 10_000, "b": 10_000, "c": 10_000}, rel=0.01)


def test_what_was_answered_never_demotes() -> None:
    """A client's INVALID_ARGUMENT is an answer: whoever counts says that it succeeded."""
    cluster = Cluster("a", "b")
    cluster.report(40, a=good(), b=good())
    assert cluster.weights() == {"a": 10_000, "b": 10_000}


def test_nothing_changes_without_calls() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=Outcome(20, 5, 25, 2), c=good())
    before, version = cluster.weights(), cluster.balancer.version
    assert before["b"] < before["a"]
    cluster.report(4000)
    assert cluster.weights() == before
    assert cluster.balancer.version == version
    assert cluster.balancer.next_change(cluster.now) is None
