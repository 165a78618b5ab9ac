"""Whose turn it is among the endpoints of a model, as time passes and calls end."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest

from tidegate.balancing.policy import BalancingPolicy
from tidegate.client.address import Address
from tidegate.client.calls import Incoming
from tidegate.client.connection import Connection
from tidegate.client.direct import Direct
from tidegate.client.endpoint_connections import EndpointConnections
from tidegate.client.known_model import GRACE, MOST_ENDPOINTS, KnownModel
from tidegate.client.pool import Pool
from tidegate.errors import (
    ConnectionLost,
    InvalidAnswer,
    ModelNotFound,
    PermissionDenied,
    ServerUnreachable,
)
from tidegate.protocols.open_inference.endpoints import (
    ModelEndpoint,
    ModelEndpoints,
    encode_endpoints,
)

A, B, C = (ModelEndpoint(f"10.0.0.{n}:8000") for n in (1, 2, 3))


def at(number: int, **fields: Any) -> ModelEndpoint:
    return ModelEndpoint(f"10.0.0.{number}:8000", **fields)


class Driven:
    """A pool and a clock; each call takes some milliseconds."""

    def __init__(self, *endpoints: ModelEndpoint) -> None:
        self.now = 100.0
        policy = BalancingPolicy(active_request_bias=0, latency_evidence=0.1)
        self.pool = Pool(policy, self.now)
        self.pool.update(endpoints, self.now)
        self.refusing: set[str] = set()
        self.bad: set[str] = set()
        self.seconds: dict[str, float] = {}

    def call(self, version: str = "", tried: tuple[str, ...] = ()) -> str | None:
        """Make a call; return who got it."""
        picked = self.pool.pick(version, tried, self.now)
        if picked is None:
            return None
        self.pool.begun(picked, self.now)
        if picked in self.refusing:
            self.pool.ended(picked, None, self.now)
            self.pool.refused(picked, self.now)
        else:
            self.now += self.seconds.get(picked, 0.005)
            self.pool.ended(picked, picked not in self.bad, self.now)
        return picked

    def calls(self, number: int) -> Counter[str | None]:
        """Make some; return who got how many."""
        return Counter(self.call() for _ in range(number))


def test_three_equals_share_equally() -> None:
    assert set(Driven(A, B, C).calls(300).values()) == {100}


def test_nobody() -> None:
    driven = Driven()
    assert driven.call() is None
    assert Driven(A).call(tried=(A.address,)) is None


def test_one_that_refuses_gets_one_call_in_a_while() -> None:
    driven = Driven(A, B, C)
    driven.refusing.add(A.address)
    begin = driven.now
    counts = driven.calls(4000)
    assert driven.now - begin > 19
    assert counts[A.address] <= 10
    driven.refusing.clear()
    begin = driven.now
    while driven.call() != A.address:
        assert driven.now - begin < 3.5
    assert driven.calls(30)[A.address] == pytest.approx(10, abs=1)


def test_only_one_of_many_calls_tries_whether_it_is_back() -> None:
    driven = Driven(A, B)
    pool = driven.pool
    for _ in range(8):
        pool.refused(A.address, driven.now)
    driven.now += 0.6
    picked = [pool.pick("", (), driven.now) for _ in range(10)]
    assert picked.count(A.address) == 1
    pool.refused(A.address, driven.now)
    driven.now += 0.9  # not yet: it rests for twice as long now
    assert A.address not in {pool.pick("", (), driven.now) for _ in range(10)}
    driven.now += 0.2
    assert A.address in {pool.pick("", (), driven.now) for _ in range(10)}


def test_when_all_refuse_only_the_desperate_call_them() -> None:
    driven = Driven(A, B)
    driven.refusing.update((A.address, B.address))
    assert {driven.call(), driven.call()} == {A.address, B.address}
    assert driven.call() is None
    found = driven.pool.pick("", (), driven.now, desperate=True)
    assert found is not None
    assert driven.pool.pick("", (found,), driven.now, desperate=True) not in (None, found)


def test_one_that_fails_is_ejected_probed_and_taken_back() -> None:
    driven = Driven(A, B, C)
    driven.calls(300)
    driven.bad.add(A.address)
    driven.calls(300)
    counts = driven.calls(1000)
    assert counts[A.address] < 20
    driven.bad.clear()
    begin = driven.now
    while driven.now < begin + 10:
        counts = driven.calls(30)
    assert counts[A.address] == pytest.approx(10, abs=2)


def test_one_that_is_slow_gets_less() -> None:
    driven = Driven(A, B)
    driven.seconds[A.address] = 0.015
    driven.calls(3000)
    counts = driven.calls(400)
    assert counts[B.address] / counts[A.address] == pytest.approx(2.6, rel=0.2)


def test_priorities_overflow_and_return() -> None:
    first, second, third = at(1), at(2), at(3, priority=1)
    driven = Driven(first, second, third)
    assert third.address not in driven.calls(100)
    driven.refusing.update((first.address, second.address))
    counts = driven.calls(1000)
    assert counts[third.address] > 980
    driven.refusing.clear()
    begin = driven.now
    while driven.now < begin + 5:
        driven.calls(1)
    assert third.address not in driven.calls(100)


def test_a_sick_priority_is_probed_with_little() -> None:
    first, second, third = at(1), at(2), at(3, priority=1)
    driven = Driven(first, second, third)
    driven.refusing.add(second.address)
    driven.bad.add(first.address)
    driven.calls(300)
    assert driven.calls(1000)[third.address] > 950


def test_what_is_thought_of_each_can_be_seen() -> None:
    driven = Driven(A, B, C)
    driven.calls(100)
    driven.pool.refused(B.address, driven.now)
    driven.pool.begun(C.address, driven.now)
    found = {state.address: state for state in driven.pool.states(driven.now)}
    assert [state.state for state in found.values()] == ["serving", "refused", "serving"]
    assert "in 0.5 s" in found[B.address].reason
    assert (found[A.address].in_flight, found[C.address].in_flight) == (0, 1)
    assert found[A.address].weight == found[C.address].weight
    driven.now += 5
    assert "with the next call" in driven.pool.states(driven.now)[1].reason


def test_an_overflow_pool_shares_by_weight() -> None:
    pools = (at(1), at(2, priority=1), at(3, priority=1, weight=300))
    driven = Driven(*pools)
    driven.refusing.add(pools[0].address)
    driven.calls(2)
    counts = driven.calls(800)
    assert counts[pools[2].address] / counts[pools[1].address] == pytest.approx(3, rel=0.25)


def test_versions() -> None:
    driven = Driven(at(1, versions=frozenset({"1"})), at(2, versions=frozenset({"1", "2"})), C)
    assert Counter(driven.call("2") for _ in range(10)) == {B.address: 5, C.address: 5}
    assert Counter(driven.call("3") for _ in range(10)) == {C.address: 10}
    assert len(Counter(driven.call("1") for _ in range(9))) == 3


def test_whether_anybody_is_well() -> None:
    driven = Driven(A, B)
    assert driven.pool.anybody_well(but=A.address)
    driven.pool.refused(B.address, driven.now)
    assert not driven.pool.anybody_well(but=A.address)
    assert not Driven(A).pool.anybody_well(but=A.address)


def test_calls_of_one_that_has_left_count_no_more() -> None:
    driven = Driven(A, B)
    driven.pool.begun(A.address, driven.now)
    driven.pool.update((B,), driven.now)
    driven.pool.ended(A.address, good=True, now=driven.now)
    driven.pool.refused(A.address, driven.now)
    assert driven.calls(3) == {B.address: 3}


# -- what the gateway says ----------------------------------------------------------------------


def known(scheme: str = "http") -> tuple[KnownModel, EndpointConnections]:
    gateway = Connection(Address.parse(f"{scheme}://gateway"), {"authorization": "secret"})
    connections = EndpointConnections(gateway, {"x": "y"})
    return KnownModel("m", connections, BalancingPolicy(), 0.0), connections


def tell(model: KnownModel, *endpoints: ModelEndpoint, now: float, ttl_ms: int = 4000) -> None:
    model.told(ModelEndpoints("m", ttl_ms, endpoints), endpoints, now)


class Standing:
    """A clock that stands."""

    def now(self) -> float:
        return 0.0


def test_of_very_many_endpoints_some_are_used() -> None:
    model, _ = known()
    many = [ModelEndpoint(f"10.0.{p}.{n}:8000", priority=p) for n in range(1, 251) for p in (0, 1)]
    rare = ModelEndpoint("10.0.9.9:8000", versions=frozenset({"7"}))
    tell(model, *many, rare, now=0.0)
    assert len(model.reached) == 2 * MOST_ENDPOINTS + 1
    assert model.pool.pick("7", (), 0.0) is not None
    before = dict(model.reached)
    tell(model, *many[4:], rare, now=1.0)
    assert len(model.reached.keys() - before.keys()) == 4


def test_when_the_gateway_is_asked() -> None:
    model, _ = known()
    assert model.waiting_for(7.0, 0.0) == 7.0
    tell(model, A, now=0.0)
    assert model.waiting_for(7.0, 1.9) is None
    assert model.waiting_for(7.0, 2.1) == 0.0
    assert model.waiting_for(7.0, 2.2) is None  # it is being asked
    assert model.waiting_for(7.0, 9.0) == 1.0  # outdated, so news are worth waiting for
    model.not_told(ServerUnreachable("dead"), 9.0)
    assert model.waiting_for(7.0, 9.1) is None
    assert model.waiting_for(7.0, 9.6) == 0.0  # but not while there are none
    model.not_told(ServerUnreachable("dead"), 9.6)
    assert model.waiting_for(7.0, 10.5) is None
    assert model.waiting_for(7.0, 10.7) == 0.0
    tell(model, B, now=10.7)
    assert set(model.reached) == {B.address}


def test_clients_that_begin_together_do_not_ask_together_for_ever() -> None:
    gateway = Connection(Address.parse("http://gateway"), {})
    asked = set()
    for seed in range(20):
        direct = Direct(gateway, Standing(), {}, seed)
        model = direct._known("m")
        tell(model, A, now=0.0)
        assert model.waiting_for(7.0, 1.49) is None
        asked.add(next(n for n in range(150, 202) if model.waiting_for(7.0, n / 100) is not None))
    assert len(asked) > 5


def test_a_call_whose_model_others_have_displaced_goes_by_way_of_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was about to pick an endpoint, or waited for the gateway to name some."""
    monkeypatch.setattr("tidegate.client.direct._MOST_MODELS", 1)
    direct = Direct(Connection(Address.parse("http://gateway"), {}), Standing(), {}, 1)
    model = direct._known("m")
    tell(model, A, now=0.0)
    assert direct._pick(model, "", {}, desperate=False) is not None
    direct._known("n")
    assert direct._pick(model, "", {}, desperate=False) is None
    steps = direct._learn(model)
    next(steps)
    with contextlib.suppress(StopIteration):
        steps.send(Incoming(200, encode_endpoints(ModelEndpoints("m", 4000, (A,)))))
    assert model.learned
    assert not model.reached


@pytest.mark.parametrize("error", [ServerUnreachable, ConnectionLost, InvalidAnswer])
def test_what_was_known_stays(error: type[Exception]) -> None:
    model, _ = known()
    tell(model, A, now=0.0)
    for now in range(1, 1000):
        model.not_told(error("why"), float(now))  # type: ignore[arg-type]
    assert set(model.reached) == {A.address}


def test_a_gateway_that_knows_nobody_is_believed_after_a_while() -> None:
    model, connections = known()
    tell(model, A, now=0.0)
    tell(model, now=5.0)
    model.not_told(ModelNotFound("m"), 4.0 + GRACE)
    assert set(model.reached) == {A.address}
    model.not_told(ModelNotFound("m"), 5.0 + GRACE)
    assert not model.reached
    assert model.learned
    assert [c.address.url for c in connections.take_gone()] == ["http://10.0.0.1:8000"]


def test_a_gateway_that_refuses_is_believed_at_once() -> None:
    model, _ = known()
    tell(model, A, now=0.0)
    model.not_told(PermissionDenied("no"), 1.0)
    assert not model.learned


def test_connections_are_shared_and_end_when_nobody_needs_them() -> None:
    one, connections = known()
    other = KnownModel("n", connections, BalancingPolicy(), 0.0)
    tell(one, A, B, now=0.0)
    tell(other, A, now=0.0)
    assert one.reached[A.address] is other.reached[A.address]
    assert one.reached[A.address].headers == {"x": "y"}
    connections.hold_again(one.reached[B.address])  # a call
    late = one.reached[B.address]
    tell(one, C, now=1.0)
    assert connections.take_gone() == ()
    connections.release(late)
    assert connections.take_gone() == (late,)
    kept = other.reached[A.address]
    other.leave(1.0)
    assert connections.take_gone() == (kept,)


@pytest.mark.parametrize(
    ("scheme", "endpoint", "place"),
    [
        ("http", at(1), "http://10.0.0.1:8000"),
        ("grpc", at(1), "grpc://10.0.0.1:8000"),
        ("http", at(1, secure=True), "https://10.0.0.1:8000"),
        ("grpc", at(1, secure=True), "grpcs://10.0.0.1:8000"),
        ("https", at(1, secure=True), "https://10.0.0.1:8000"),
        ("https", at(1), None),
        ("grpcs", at(1), None),
        ("http", at(1, rest="10.0.0.1:9000"), "http://10.0.0.1:9000"),
        ("grpc", at(1, rest="10.0.0.1:9000"), "grpc://10.0.0.1:8000"),
        ("http", at(1, protocol="open-inference"), None),
        ("http", at(1, protocol="open-inference", rest="10.0.0.1:9"), "http://10.0.0.1:9"),
        ("grpc", at(1, protocol="open-inference"), "grpc://10.0.0.1:8000"),
        ("grpc", at(1, protocol="seldon"), None),
        ("http", ModelEndpoint("[fd00::1]:8000"), "http://[fd00::1]:8000"),
    ],
)
def test_where_an_endpoint_is_called(
    scheme: str, endpoint: ModelEndpoint, place: str | None
) -> None:
    connections = known(scheme)[1]
    assert connections.place(endpoint) == place
    if place is not None:
        assert connections.hold(endpoint).address.url == place
