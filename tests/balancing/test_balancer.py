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


def test_another_configured_weight_holds_at_once_however_little_it_differs() -> None:
    cluster = Cluster("a", "b")
    version = cluster.balancer.version
    cluster.balancer.update({"a": 101, "b": 100}, cluster.now)
    assert cluster.weights() == {"a": 10_100, "b": 10_000}
    assert cluster.balancer.version > version


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


def test_new_weights_keep_what_is_known() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=Outcome(20, 5, 25, 2), c=good())
    reliability = cluster.verdict("b").reliability
    assert reliability == pytest.approx(0.8, abs=0.01)
    cluster.balancer.update({"a": 100, "b": 200, "d": 100}, cluster.now)
    verdicts = cluster.balancer.verdicts(cluster.now)
    assert list(verdicts) == ["a", "b", "d"]
    assert verdicts["b"].reliability == reliability
    # A little more than that: with more calls it will have more in flight.
    assert verdicts["b"].weight == pytest.approx(200 * reliability * 100, rel=0.05)
    assert verdicts["d"].state == "new"
    cluster.report(c=good())  # it has left: what is still heard of it means nothing
    assert "c" not in cluster.balancer.verdicts(cluster.now)


def test_one_that_answers_nothing_is_ejected_while_the_others_answer() -> None:
    cluster = Cluster("a", "b")
    cluster.report(4, a=good(), b=good())
    cluster.report(a=Outcome(0, 0, 20, 22), b=good())
    assert cluster.verdict("a").state == "serving"
    cluster.report(a=Outcome(0, 0, 20, 42), b=good())
    assert cluster.verdict("a").reason == (
        "ejected for 0.8 s: 42 calls wait, none was answered for 0.5 s"
    )


def test_silence_of_all_says_nothing_of_one() -> None:
    cluster = Cluster("a", "b")
    cluster.report(4, a=good(), b=good())
    cluster.report(8, a=Outcome(0, 0, 20, 22), b=Outcome(0, 0, 20, 22))
    assert {cluster.verdict(name).state for name in "ab"} == {"serving"}


def test_a_stream_that_stays_open_is_no_silence() -> None:
    cluster = Cluster("a", "b")
    cluster.report(a=Outcome(0, 0, 2, 2), b=good())
    cluster.report(400, a=Outcome(0, 0, 0, 2), b=good())
    assert cluster.verdict("a").state in ("new", "serving")
    assert cluster.verdict("a").weight


def test_few_failures_among_many_calls_demote_and_do_not_eject() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(40, a=Outcome(45, 5, 50, 2), b=good(50, 4), c=good(50, 4))
    verdict = cluster.verdict("a")
    assert verdict.state == "serving"
    assert verdict.reliability == pytest.approx(0.9, abs=0.01)
    assert "calls failed lately: weight 90 %" in verdict.reason


def test_what_fails_everywhere_ejects_nobody() -> None:
    """A third of all calls fails, wherever they go: the calls are to blame."""
    cluster = Cluster("a", "b", "c")
    third = Outcome(30, 15, 45, 3)
    cluster.report(20, a=third, b=third, c=third)
    assert {cluster.verdict(name).state for name in "abc"} == {"serving"}


def test_the_version_grows_when_a_weight_does_change_by_time_alone_too() -> None:
    cluster = Cluster("a", "b")
    balancer, new = cluster.balancer, cluster.balancer.version
    assert new > 0
    cluster.report(8, a=good(), b=good())
    assert balancer.version == new
    cluster.report(a=bad(), b=good())
    ejected = balancer.version
    assert ejected > new
    assert balancer.verdicts(cluster.now + 0.74)["a"].state == "ejected"
    assert balancer.version == ejected
    assert balancer.verdicts(cluster.now + 0.76)["a"].state == "probing"
    assert balancer.version > ejected


def test_one_that_the_edge_avoids_after_failures_is_ejected() -> None:
    """Few failures among many successes, and then no call at all: it went down in between."""
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=good(), c=good())
    cluster.report(a=Outcome(20, 3, 23, 0), b=good(), c=good())
    assert cluster.verdict("a").state == "serving"
    cluster.report(b=good(), c=good())
    assert cluster.verdict("a").reason == (
        "ejected for 0.8 s: 3 calls failed, and the edge avoids it"
    )


def test_one_without_calls_after_a_failure_is_not_avoided_if_nobody_has_any() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=good(), c=good())
    cluster.report(a=Outcome(20, 3, 23, 0), b=good(), c=good())
    cluster.report(40)
    assert cluster.verdict("a").state == "serving"


def test_in_a_panic_who_is_probed_is_told() -> None:
    """Its weight is that of the others, and who picks may have to lead its calls elsewhere."""
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=good(), c=good())
    cluster.report(2, a=bad(), b=bad(), c=bad())
    assert cluster.balancer.panic
    assert cluster.verdict("a").state == "ejected"
    version = cluster.balancer.version
    cluster.report(4)
    assert cluster.verdict("a").state == "probing"
    assert cluster.balancer.version > version


def test_probes_whose_callers_gave_up_are_not_waited_for() -> None:
    """They end neither well nor badly; one that gets no more probes would be out for ever."""
    cluster = Cluster("a", "b")
    cluster.report(8, a=good(), b=good())
    cluster.report(a=bad(), b=good())
    cluster.report(4, b=good())
    share = cluster.verdict("a").weight
    assert cluster.verdict("a").state == "probing"
    cluster.report(8, a=Outcome(0, 0, 1, 0), b=good())
    assert cluster.verdict("a").weight == share
    cluster.report(a=Outcome(0, 0, 6, 6), b=good())
    assert cluster.verdict("a").weight == 1
    cluster.report(b=good())
    assert cluster.verdict("a").weight >= share
    assert "not answered" not in cluster.verdict("a").reason
    cluster.report(a=Outcome(3, 0, 3, 0), b=good())
    assert cluster.verdict("a").state == "warming"


def test_a_busy_hour_is_forgotten_when_nobody_calls() -> None:
    """One that fails in the quiet after it gets as many probes as a quiet cluster gives."""
    cluster = Cluster("a", "b")
    cluster.report(40, a=good(500), b=good(500))
    cluster.report()
    cluster.now += 600
    for _ in range(5):
        cluster.report(a=Outcome(0, 1, 1, 0))
    assert cluster.verdict("a").state == "ejected"
    cluster.now += 1
    assert cluster.verdict("a").state == "probing"
    assert cluster.verdict("a").weight == 10_000


def test_another_policy_keeps_what_is_known() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=good(), c=good())
    cluster.report(a=bad(), b=good(), c=good())
    cluster.balancer.follow(BalancingPolicy(slow_start=1.0, ejection_time=5.0, probe_calls=50))
    assert cluster.verdict("a").state == "ejected"
    cluster.report(4, b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=Outcome(49, 0, 49, 0), b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=bad(1), b=good(), c=good())
    assert cluster.verdict("a").reason.startswith("ejected for 5.0 s")


def test_the_sick_stay_out_while_there_is_overflow_that_is_well() -> None:
    cluster = Cluster()
    bases = dict.fromkeys("abcd", 100)
    cluster.balancer.update(bases, cluster.now, overflow="d")
    cluster.report(8, a=good(), b=good(), c=good())
    version = cluster.balancer.version
    cluster.report(2, a=bad(), b=bad(), c=bad())
    assert cluster.weights() == {"a": 0, "b": 0, "c": 0, "d": 10_000}
    assert (cluster.balancer.leaning, cluster.balancer.panic) == (True, False)
    assert cluster.balancer.version > version
    cluster.report(2, d=bad())
    assert (cluster.balancer.leaning, cluster.balancer.panic) == (False, True)
    assert all(cluster.weights().values())
    cluster.balancer.update(bases, cluster.now)
    assert cluster.balancer.panic


def given_up(calls: int = 3) -> Outcome:
    return Outcome(0, 0, calls, 0, cancelled=calls)


def test_one_whose_callers_all_give_up_is_ejected_and_probed() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(4, a=good(), b=good(), c=good())
    cluster.report(2, a=given_up(), b=good(), c=good())
    assert cluster.verdict("a").state == "serving"  # it may be one client that has gone away
    cluster.report(a=given_up(), b=good(), c=good())
    assert cluster.verdict("a").reason == (
        "ejected for 0.8 s: 9 calls in a row were given up by their callers"
    )
    cluster.report(4, b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=given_up(1), b=good(), c=good())
    assert cluster.verdict("a").reason == "ejected for 0.8 s: a probe was given up by its caller"


def test_one_that_many_callers_give_up_is_ejected() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(8, a=good(), b=good(), c=good())
    cluster.report(20, a=Outcome(5, 0, 10, 0, cancelled=5), b=good(), c=good())
    assert "callers gave up" in cluster.verdict("a").reason
    assert cluster.verdict("a").state in ("ejected", "probing")


def test_callers_who_give_up_everywhere_say_nothing_of_one() -> None:
    cluster = Cluster("a", "b", "c")
    half = Outcome(5, 0, 10, 0, cancelled=5)
    cluster.report(80, a=half, b=half, c=half)
    cluster.report(80, a=given_up(), b=given_up(), c=given_up())
    assert {cluster.verdict(name).state for name in "abc"} == {"serving"}


def test_a_client_that_goes_away_with_all_its_calls_ejects_nobody() -> None:
    cluster = Cluster("a", "b")
    cluster.report(8, a=good(), b=good())
    cluster.report(a=Outcome(0, 0, 50, 50), b=good(40))
    cluster.report(a=Outcome(0, 0, 0, 0, cancelled=50), b=good(40))
    cluster.report(8, b=good(40))
    assert cluster.verdict("a").state == "serving"


def test_probes_that_nobody_waited_for_do_not_keep_it_out() -> None:
    """Some callers give up everywhere: of those that probe it, too."""
    cluster = Cluster("a", "b", "c")
    some = Outcome(20, 0, 30, 0, cancelled=10)
    cluster.report(20, a=some, b=some, c=some)
    cluster.report(a=bad(), b=some, c=some)
    cluster.report(4, b=some, c=some)
    assert cluster.verdict("a").state == "probing"
    for _ in range(3):
        cluster.report(a=given_up(1), b=some, c=some)
        cluster.report(a=Outcome(1, 0, 1, 0), b=some, c=some)
    assert cluster.verdict("a").state == "warming"


def test_what_was_in_flight_before_it_was_probed_is_no_probe_that_was_given_up() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.report(4, a=good(), b=good(), c=good())
    cluster.report(a=Outcome(0, 25, 35, 10), b=good(), c=good())
    cluster.report(4, a=Outcome(0, 0, 0, 10), b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=Outcome(0, 0, 2, 2, cancelled=10), b=good(), c=good())
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=Outcome(3, 0, 1, 0), b=good(), c=good())
    assert cluster.verdict("a").state == "warming"


def test_calls_from_before_a_probe_are_not_left_out_for_ever() -> None:
    """Newer ones take their places. It would seem quicker than it is, and get too many calls."""
    cluster = Cluster("a", "b", "c")
    usual = Outcome(25, 0, 25, 40)
    cluster.report(40, a=usual, b=usual, c=usual)
    for in_flight in (65, 90, 115):
        cluster.report(a=Outcome(0, 0, 25, in_flight), b=usual, c=usual)
    cluster.report(4, a=Outcome(0, 0, 0, 115), b=usual, c=usual)
    assert cluster.verdict("a").state == "probing"
    cluster.report(a=Outcome(3, 0, 3, 115), b=usual, c=usual)
    assert cluster.verdict("a").state == "warming"
    cluster.report(a=Outcome(85, 0, 10, 40), b=usual, c=usual)
    for _ in range(160):
        cluster.report(a=usual, b=usual, c=usual)
        assert cluster.verdict("a").latency <= 1.05
    assert cluster.verdict("a").latency == pytest.approx(1.0, abs=0.05)
    assert cluster.verdict("a").mean_latency == pytest.approx(0.4, rel=0.05)


def test_a_load_that_is_told_no_more_is_forgotten() -> None:
    """Another server may have taken the address, which says nothing of itself."""
    cluster = Cluster("a", "b")
    busy, idle = (Outcome(25, 0, 25, 2, utilization=u) for u in (0.9, 0.3))
    cluster.report(40, a=busy, b=idle)
    assert cluster.verdict("a").utilization < 0.7
    assert cluster.verdict("b").utilization > 1.3
    cluster.report(40, a=good(), b=idle)
    assert 0.9 < cluster.verdict("a").utilization < 1.0
    cluster.report(100, a=good(), b=idle)
    assert cluster.verdict("a").utilization == cluster.verdict("b").utilization == 1.0
    assert cluster.weights() == pytest.approx({"a": 10_000, "b": 10_000}, rel=0.02)
