"""Clusters in virtual time: what the balancer promises of the sick, the healed and the unlike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.balancing.simulation import Backend, Simulation
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.verdict import Verdict

FAULT, HEALED, END = 5.0, 13.0, 21.0
SEEDS = (1, 2, 3)


def cluster(
    count: int = 3, rate: float = 1000.0, seed: int = 1, policy: BalancingPolicy | None = None
) -> Simulation:
    backends = [Backend(f"n{number}", 0.02, spread=0.2) for number in range(count)]
    for backend in backends:
        backend.patience = 0.5
    return Simulation(*backends, rate=rate, seed=seed, policy=policy)


def slow(run: Simulation, name: str) -> None:
    run.backends[name].slowness = 10.0


def freeze(run: Simulation, name: str) -> None:
    run.backends[name].mode = "freeze"


def fail(run: Simulation, name: str) -> None:
    run.backends[name].failing = 1.0


FAULTS: dict[str, Callable[[Simulation, str], None]] = {
    "kill": Simulation.kill,
    "blackhole": Simulation.cut_off,
    "freeze": freeze,
    "slow": slow,
    "fail": fail,
}


def states(run: Simulation, name: str, begin: float = 0.0) -> list[str]:
    """The states of an endpoint in the order in which it had them."""
    seen: list[str] = []
    for time, verdicts in run.history:
        if time >= begin and name in verdicts and verdicts[name].state != (seen or [""])[-1]:
            seen.append(verdicts[name].state)
    return seen


def panics(run: Simulation) -> bool:
    return run.balancer.panic


def latest(run: Simulation, name: str) -> Verdict:
    return run.balancer.verdicts(run.now)[name]


@pytest.mark.parametrize(("count", "seed"), [(2, 1), (3, 1), (3, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_sick_endpoint_leaves_and_returns_when_healed(fault: str, count: int, seed: int) -> None:
    run = cluster(count, rate=400.0 * count, seed=seed)
    run.run(FAULT)
    usual = run.percentile(0.99, 2.0, FAULT)
    FAULTS[fault](run, "n0")
    run.run(HEALED)
    run.heal("n0")
    run.run(END)
    assert run.left("n0", FAULT, HEALED) < 2.0
    assert run.normal(FAULT, HEALED, max(2 * usual, usual + 0.01)) < 3.0
    assert run.returned("n0", HEALED, END) < 5.0
    assert run.failures() == 0  # each was tried again, on another endpoint
    others = {f"n{number}" for number in range(1, count)}
    assert all(states(run, name) == ["serving"] for name in others)


@pytest.mark.parametrize(
    ("rate", "deadline", "within"),
    [(1000.0, 1.0, 2.0), (1000.0, 0.1, 2.0), (30.0, 1.0, 4.0), (30.0, 0.1, 4.0), (4.0, 0.1, 30.0)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_that_hangs_is_found_by_callers_who_give_up(
    rate: float, deadline: float, within: float, seed: int
) -> None:
    """Its health checks pass, and no call of it ends before its deadline."""
    backends = [Backend(f"n{number}", 0.005, spread=0.2) for number in range(3)]
    run = Simulation(*backends, rate=rate, seed=seed, retries=0, deadline=deadline)
    fault, healed = 20.0, 60.0
    run.run(fault)
    freeze(run, "n0")
    run.run(fault + within)
    assert latest(run, "n0").state in ("ejected", "probing")
    run.run(healed)
    probes = [time for time, name in run.sent if name == "n0" and fault + within < time]
    assert len(probes) < 4.0 * (healed - fault - within)
    run.heal("n0")
    run.run(healed + 8.0)
    assert latest(run, "n0").state == "serving"
    run.run(healed + 40.0)
    assert run.shares(healed + 20.0, healed + 40.0)["n0"] == pytest.approx(1 / 3, rel=0.3)


@pytest.mark.parametrize("hopeless", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("rate", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_callers_who_give_up_everywhere_eject_nobody(
    hopeless: float, rate: float, seed: int
) -> None:
    backends = [Backend(f"n{number}", 0.02, spread=0.2) for number in range(3)]
    run = Simulation(*backends, rate=rate, seed=seed, retries=0, hopeless=hopeless)
    run.run(120.0)
    for name in run.backends:
        assert states(run, name) in (["serving"], ["new", "serving"])


@pytest.mark.parametrize("hopeless", [0.1, 0.5])
def test_one_that_has_healed_comes_back_though_callers_give_up(hopeless: float) -> None:
    backends = [Backend(f"n{number}", 0.02, spread=0.2) for number in range(3)]
    run = Simulation(*backends, rate=300.0, seed=1, retries=0, hopeless=hopeless)
    run.run(FAULT)
    fail(run, "n0")
    run.run(HEALED)
    run.heal("n0")
    run.run(HEALED + 20.0)
    assert latest(run, "n0").state == "serving"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flapping_endpoint_does_not_oscillate(seed: int) -> None:
    run = cluster(seed=seed)
    begin, end = 5.0, 31.0
    run.run(begin)
    while run.now < end:
        run.kill("n0")
        run.run(run.now + 1.0)
        run.heal("n0")
        run.run(run.now + 1.0)
    assert run.swings("n0", begin, end) <= 2
    assert run.shares(begin + 8.0, end)["n0"] < 0.03
    reasons = {verdicts["n0"].reason.split(":")[0] for _, verdicts in run.history}
    assert "ejected for 12.0 s, 3 times by now" in reasons
    run.run(end + 60.0)
    assert latest(run, "n0").state == "serving"


def test_after_a_calm_while_a_fault_is_a_first_one_again() -> None:
    run = cluster()
    for begin in (5.0, 12.0, 85.0):
        run.run(begin)
        run.backends["n0"].failing = 1.0
        run.run(begin + 2.0)
        run.heal("n0")
    ejected = [
        verdicts["n0"].reason.split(":")[0]
        for (_, verdicts), (_, before) in zip(run.history[1:], run.history, strict=False)
        if before["n0"].state == "serving" and verdicts["n0"].state == "ejected"
    ]
    first, second = "ejected for 0.8 s", "ejected for 3.0 s, the second time"
    assert ejected == [first, second, first]


def test_when_most_are_sick_all_get_calls() -> None:
    run = cluster(4, rate=400.0)
    run.run(5.0)
    for name in run.backends:
        run.backends[name].failing = 1.0
    run.run(10.0)
    assert panics(run)
    assert all(verdict.weight for verdict in run.balancer.verdicts(run.now).values())
    assert "4 of 4 endpoints are sick" in latest(run, "n0").reason
    shares = run.shares(8.0, 10.0)
    assert min(shares.values()) > 0.15
    for name in run.backends:
        run.heal(name)
    run.run(25.0)
    assert not panics(run)
    assert {verdict.state for verdict in run.balancer.verdicts(run.now).values()} == {"serving"}
    assert min(run.shares(20.0, 25.0).values()) > 0.2


def test_in_a_panic_the_one_that_is_well_still_gets_most() -> None:
    run = cluster(5, rate=400.0)
    run.run(5.0)
    for name in ("n0", "n1", "n2", "n3"):
        run.backends[name].failing = 1.0
    run.run(12.0)
    assert panics(run)
    assert run.shares(8.0, 12.0)["n4"] > 0.75


def test_two_of_three_may_be_out() -> None:
    run = cluster(rate=300.0)
    run.run(5.0)
    run.kill("n0")
    run.kill("n1")
    run.run(12.0)
    assert not panics(run)
    assert run.shares(8.0, 12.0)["n2"] > 0.95
    assert run.failures(8.0) < 0.01 * 300 * 4


def test_an_only_endpoint_is_never_ejected() -> None:
    run = cluster(1, rate=100.0)
    run.run(5.0)
    run.kill("n0")
    run.run(8.0)
    assert latest(run, "n0").weight
    run.heal("n0")
    run.run(10.0)
    assert run.failures(8.5) == 0
    run.run(14.0)
    assert latest(run, "n0").state == "serving"


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("slots", "callers"), [(1, 16), (4, 64), (16, 64), (16, 256)])
def test_three_times_as_fast_is_three_times_the_share(
    bias: float, slots: int, callers: int
) -> None:
    """Saturated by a closed loop: both work at capacity, and neither is taken for sick."""
    fast, slow = Backend("fast", 0.005 * slots, slots), Backend("slow", 0.015 * slots, slots)
    policy = BalancingPolicy(active_request_bias=bias)
    run = Simulation(fast, slow, callers=callers, policy=policy)
    run.run(30.0)
    shares = run.shares(10.0, 30.0)
    assert shares["fast"] / shares["slow"] == pytest.approx(3.0, rel=0.1)
    capacity = 1 / 0.005 + 1 / 0.015
    assert run.throughput(10.0, 30.0) >= (0.97 if bias else 0.93) * capacity
    assert states(run, "slow")[-1:] == states(run, "fast")[-1:] == ["serving"]


def test_without_weights_the_slow_one_holds_the_fast_one_up() -> None:
    """What plain round robin makes of the same two."""
    fast, slow = Backend("fast", 0.02, 4), Backend("slow", 0.06, 4)
    policy = BalancingPolicy(active_request_bias=0)
    run = Simulation(fast, slow, callers=64, policy=policy, balanced=False)
    run.run(20.0)
    assert run.throughput(10.0, 20.0) < 0.55 * (4 / 0.02 + 4 / 0.06)


@pytest.mark.parametrize("load", [0.7, 0.9])
def test_open_loops_share_by_speed(load: float) -> None:
    fast, slow = Backend("fast", 0.08, 16, 0.3), Backend("slow", 0.24, 16, 0.3)
    run = Simulation(fast, slow, rate=load * (200 + 67))
    run.run(30.0)
    shares = run.shares(10.0, 30.0)
    assert shares["fast"] / shares["slow"] == pytest.approx(3.0, rel=0.15)
    assert "slower than the median" in latest(run, "slow").reason
    assert states(run, "slow") == ["new", "serving"] or states(run, "slow") == ["serving"]


@pytest.mark.parametrize(
    ("rate", "service", "slots", "spread"),
    [(300, 0.01, 64, 1.0), (240, 0.01, 1, 0.5), (1000, 0.01, 4, 0.5), (30, 0.5, 16, 1.0)],
)
def test_equals_share_equally_and_none_is_suspected(
    rate: float, service: float, slots: int, spread: float
) -> None:
    """Queues, long tails, few calls: all that looks like sickness and is not."""
    backends = [Backend(f"n{number}", service, slots, spread) for number in range(3)]
    run = Simulation(*backends, rate=rate)
    run.run(100.0)
    assert all(states(run, name)[-1:] == ["serving"] for name in run.backends)
    assert not any("ejected" in states(run, name) for name in run.backends)
    for share in run.shares(5.0, 100.0).values():
        assert share == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize(("rate", "service"), [(100, 0.02), (200, 0.05), (1000, 0.05)])
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_configured_weights_rule_the_shares(bias: float, rate: float, service: float) -> None:
    """Though calls in flight count against a weight, and the larger one has more of them."""
    backends = [Backend("a", service, weight=300), Backend("b", service, weight=100)]
    policy = BalancingPolicy(active_request_bias=bias)
    run = Simulation(*backends, rate=rate, policy=policy)
    run.run(40.0)
    shares = run.shares(5.0, 40.0)
    assert shares["a"] / shares["b"] == pytest.approx(3.0, rel=0.1)


def test_a_newcomer_is_warmed_up_from_its_first_call_on() -> None:
    run = cluster(2, rate=500.0)
    run.run(5.0)
    run.set_backends(*run.backends.values(), Backend("new", 0.02, spread=0.2))
    assert latest(run, "new").reason == "no call has ended yet: weight 10 %"
    run.run(30.0)
    assert states(run, "new") == ["warming", "serving"]
    shares = [run.shares(begin, begin + 1.0)["new"] for begin in (5.5, 8.0, 11.0, 16.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.18
    assert shares[-1] > 0.28


def test_one_that_never_answers_gets_no_more_for_being_new() -> None:
    run = cluster(2, rate=500.0)
    run.run(5.0)
    dead = Backend("dead", 0.02)
    dead.mode = "hang"
    dead.patience = 30.0
    run.set_backends(*run.backends.values(), dead)
    run.run(8.0)
    assert latest(run, "dead").state in ("ejected", "probing")
    assert run.shares(7.0, 8.0)["dead"] < 0.01


def test_a_slow_one_that_stays_slow_is_taken_back_as_it_is() -> None:
    run = cluster(rate=300.0, policy=BalancingPolicy(slow_accepted=20.0))
    run.run(5.0)
    slow(run, "n0")
    run.run(20.0)
    assert latest(run, "n0").state == "probing"
    run.run(60.0)
    assert latest(run, "n0").state == "serving"
    assert latest(run, "n0").latency < 0.4
    assert run.shares(50.0, 60.0)["n0"] < 0.1


def test_busier_ones_get_less() -> None:
    """Two of equal latency of which one has half the room: it says so before it is slow."""
    roomy, narrow = Backend("roomy", 0.1, 40, 0.2), Backend("narrow", 0.1, 20, 0.2)
    run = Simulation(roomy, narrow, rate=300.0, utilization=True)
    run.run(30.0)
    shares = run.shares(10.0, 30.0)
    assert 1.2 < shares["roomy"] / shares["narrow"] < 2.2
    assert "busier than the median" in latest(run, "narrow").reason


def test_a_thousand_endpoints_of_which_a_third_dies() -> None:
    backends = [Backend(f"n{number}", 0.02, spread=0.2) for number in range(1000)]
    run = Simulation(*backends, rate=4000.0, retries=3)
    run.run(3.0)
    dead = [f"n{number}" for number in range(300)]
    for name in dead:
        run.kill(name)
    run.run(8.0)
    shares = run.shares(7.0, 8.0)
    assert sum(shares[name] for name in dead) < 0.12
    for name in dead:
        run.heal(name)
    run.run(20.0)
    shares = run.shares(16.0, 20.0)
    assert sum(shares[name] for name in dead) == pytest.approx(0.3, abs=0.06)
