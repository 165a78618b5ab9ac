"""Leases of nodes that announce themselves, by an injected clock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.errors import InvalidInput, QueueFull
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.registry import Registry
from tidegate.protocols.registration import AnnouncedModel, Announcement

READY = AnnouncedModel("m", (1, 2), 2, {"stable": 1}, ("69",), ready=True)
A, B, C = "a:8000", "b:8000", "c:8000"


def said(number: int, *models: AnnouncedModel, instance: str = "") -> Announcement:
    return Announcement(f"10.0.0.{number}:8000", models or (READY,), instance=instance)


def addresses(registry: Registry, now: float, model: str = "m") -> list[str]:
    return [endpoint.address for endpoint in registry.models(now).get(model, ())]


def joined(*numbers: int, lease: float = 5.0) -> Registry:
    registry = Registry(lease)
    for number in numbers:
        registry.register("abcdefgh"[number - 1] + ":8000", said(number), 0.0)
    return registry


def test_an_announcement_makes_endpoints_of_the_models_that_are_ready() -> None:
    registry = Registry()
    models = (READY, AnnouncedModel("loading", (1,)), AnnouncedModel("none", ready=True))
    grant = registry.register("GPU:8000", replace(said(1, *models), weight=7, secure=True), 0.0)
    assert (grant.lease, grant.renew) == (5.0, 1.5)
    assert registry.models(0.0) == {
        "m": (
            Endpoint(
                "10.0.0.1:8000",
                "tidegate",
                weight=7,
                versions=frozenset({1, 2}),
                labels=frozenset({"stable"}),
                name="GPU",
                secure=True,
            ),
        )
    }
    assert registry.tasks(0.0) == {"69": "m"}


def test_a_renewal_changes_nothing_but_the_lease() -> None:
    registry = joined(1)
    before, revision = registry.models(0.0), registry.revision
    registry.register(A, said(1), 1.5)
    assert registry.revision == revision
    assert registry.models(6.0) is before
    assert registry.silent(6.4) == {}
    assert set(registry.silent(6.6)) == {A}


def test_a_change_is_taken_at_once() -> None:
    registry = joined(1)
    revision = registry.revision
    registry.register(A, said(1, replace(READY, ready=False)), 1.0)
    assert registry.revision > revision
    assert registry.models(1.0) == {}
    assert registry.tasks(1.0) == {}


def test_a_lease_ends_while_others_are_heard() -> None:
    registry = joined(1, 2)
    for second in range(1, 5):
        registry.register(B, said(2), float(second))
        assert addresses(registry, second - 0.01) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    revision = registry.revision
    assert registry.expire(5.0) == (A,)
    assert registry.revision > revision
    assert addresses(registry, 5.0) == ["10.0.0.2:8000"]


def test_when_nobody_is_heard_all_stay() -> None:
    """The way to the gateway is broken, or its controller was paused: they fall silent in turn."""
    registry = Registry()
    for number in (1, 2, 3):
        registry.register("abc"[number - 1] + ":8000", said(number), 0.4 * number)
    for tenth in range(100):
        assert registry.expire(tenth / 10) == ()
    assert len(addresses(registry, 1e6)) == 3
    states = {node["name"]: node for node in registry.describe(1e6)}
    assert {node["state"] for node in states.values()} == {"silent"}
    assert "it is not heard" in states[A]["reason"]


def test_when_one_is_heard_again_the_others_get_a_lease_to_be_heard_too() -> None:
    registry = joined(1, 2, 3)
    registry.register(A, said(1), 600.0)
    registry.register(B, said(2), 603.0)
    registry.register(A, said(1), 604.0)
    assert len(addresses(registry, 604.9)) == 3
    assert registry.expire(604.9) == ()
    assert registry.expire(605.0) == (C,)
    assert addresses(registry, 605.0) == ["10.0.0.1:8000", "10.0.0.2:8000"]


def test_who_is_silent_and_fails_its_checks_is_forgotten() -> None:
    registry = joined(1, 2)
    assert registry.silent(4.9) == {}
    assert registry.silent(6.0) == {A: "10.0.0.1:8000", B: "10.0.0.2:8000"}
    assert registry.note_unwell([A], 6.0) == ()
    assert registry.note_unwell([A], 35.0) == ()
    assert registry.note_unwell([A], 36.0) == (A,)
    assert addresses(registry, 36.0) == ["10.0.0.2:8000"]
    assert registry.note_unwell([B], 40.0) == ()
    assert registry.note_unwell([], 50.0) == ()  # it has passed one meanwhile
    assert registry.note_unwell([B], 60.0) == ()
    assert registry.note_unwell([B], 80.0) == ()
    registry.register(B, said(2), 81.0)
    assert registry.note_unwell([B], 82.0) == ()  # it is heard
    assert registry.note_unwell([B], 91.0) == ()
    assert registry.note_unwell([B], 121.0) == (B,)
    assert registry.describe(121.0) == []


def test_looking_at_the_nodes_changes_nothing() -> None:
    registry = joined(1, 2)
    registry.register(B, said(2), 4.0)
    assert [node["name"] for node in registry.describe(5.0)] == [A, B]
    assert registry.expire(5.0) == (A,)
    assert [node["name"] for node in registry.describe(5.0)] == [B]


def test_who_leaves_is_gone_at_once() -> None:
    registry = joined(1, 2)
    assert registry.leave(A, 1.0)
    assert addresses(registry, 1.0) == ["10.0.0.2:8000"]
    assert not registry.leave(A, 1.0)
    assert registry.leave(B, 1.0)
    assert registry.models(1.0) == {}


def test_what_was_sent_before_a_node_left_is_not_taken_afterwards() -> None:
    registry = Registry()
    registry.register(A, said(1, instance="old"), 0.0)
    registry.leave(A, 1.0, "old")
    with pytest.raises(InvalidInput, match="has left"):
        registry.register(A, said(1, instance="old"), 1.1)
    registry.register(A, said(1, instance="new"), 1.2)
    assert addresses(registry, 1.2) == ["10.0.0.1:8000"]
    # It does not take back what the new one has announced.
    assert not registry.leave(A, 1.3, "old")
    assert addresses(registry, 1.3) == ["10.0.0.1:8000"]
    # Nor is it remembered for ever.
    registry.leave(A, 2.0, "new")
    registry.register(A, said(1, instance="new"), 60.0)


def test_a_node_that_was_started_again_takes_its_own_place() -> None:
    registry = joined(1)
    # Elsewhere under the same name, and under another name at the same address.
    registry.register(A, said(9), 1.0)
    assert addresses(registry, 1.0) == ["10.0.0.9:8000"]
    registry.register(B, said(9), 2.0)
    assert addresses(registry, 2.0) == ["10.0.0.9:8000"]
    assert [node["name"] for node in registry.describe(2.0)] == [B]
    # What it was before is free for others.
    registry.register(A, said(1), 3.0)
    assert addresses(registry, 3.0) == ["10.0.0.1:8000", "10.0.0.9:8000"]


def test_two_nodes_of_one_address_are_told_apart_from_one_that_was_started_again() -> None:
    def reasons(now: float) -> list[str | None]:
        return [node["reason"] for node in registry.describe(now)]

    registry = joined(1)
    registry.register(B, said(1, instance="b"), 1.0)
    registry.register(B, said(1, instance="b2"), 2.0)
    assert reasons(2.0) == [None]
    registry.register(A, said(1), 3.0)
    registry.register(B, said(1, instance="b2"), 3.5)
    assert reasons(3.5) == [
        "a:8000 announces its address, too; give each an --advertise of its own"
    ]
    registry.register(B, said(1, instance="b2"), 5.0)
    assert reasons(5.0) == [None]
    for now in (6.0, 7.0):
        registry.register(B, said(1, instance="b3"), now)
        registry.register(B, said(1, instance="b2"), now + 0.5)
    assert reasons(8.0) == [
        "another one of its name announces its address, too; give each an --advertise of its own"
    ]


def test_there_is_an_end_of_nodes_and_of_their_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.gateway.registry.MOST_PLACES", 5)
    registry = Registry(most_nodes=2)
    registry.register(A, said(1), 0.0)
    registry.register(B, said(2), 0.0)
    with pytest.raises(QueueFull, match="no room for c:8000"):
        registry.register(C, said(3), 0.0)
    many = [AnnouncedModel(f"m{i}", (1,), ready=True) for i in range(5)]
    with pytest.raises(QueueFull, match="6 models"):
        registry.register(B, said(2, *many), 0.0)
    assert addresses(registry, 0.0) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    registry.register(B, said(2, *many[:4]), 0.0)


def test_the_more_nodes_the_rarer_their_announcements() -> None:
    registry = Registry()
    for number in range(1000):
        grant = registry.register(
            f"n{number}:1", Announcement(f"10.1.{number >> 8}.{number & 255}:1"), 0.0
        )
    assert grant.renew == pytest.approx(10.0, rel=0.01)
    assert grant.lease == pytest.approx(grant.renew / 0.3)


def test_another_gateway_process_knows_the_same_nodes() -> None:
    registry = joined(1, 2)
    document = json.loads(json.dumps(registry.dump()))
    again = Registry()
    again.restore(document, 100.0)
    assert again.models(100.0) == registry.models(0.0)
    # Each has a lease to be heard in; when none is, it may be this gateway that is not reached.
    again.register(A, said(1), 104.0)
    assert again.expire(105.0) == (B,)
    third = Registry()
    third.restore(document, 100.0)
    assert len(addresses(third, 1000.0)) == 2


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"nodes": 7}, {"nodes": [None, {}, {"name": "a:1"}, {"name": 7, "said": {}}]}],
)
def test_what_cannot_be_restored_is_left_out(data: object) -> None:
    registry = Registry()
    registry.restore(data, 0.0)
    assert registry.models(0.0) == {}


def test_one_that_can_be_restored_is() -> None:
    document = joined(1).dump()
    document["nodes"].insert(0, {"name": "b:1", "said": {"address": "nowhere"}})
    registry = Registry()
    registry.restore(document, 0.0)
    assert addresses(registry, 0.0) == ["10.0.0.1:8000"]


TINY = 1e-6
"""Seconds, for rounding."""
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["renew", "renew", "renew", "leave", "expire"]),
        st.integers(1, 4),
        st.floats(0, 4),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_whatever_happens_in_whatever_order(events: list[tuple[str, int, float]]) -> None:
    registry, now, revision = Registry(), 0.0, 0
    before: object = registry.models(now)
    heard: dict[int, float] = {}
    last = float("-inf")
    for event, number, passed in events:
        now += passed
        name = "abcd"[number - 1] + ":8000"
        if event == "renew":
            registry.register(name, said(number), now)
            heard[number] = last = now
        elif event == "leave":
            if registry.leave(name, now):
                last = now
            heard.pop(number, None)
        else:
            for gone in registry.expire(now):
                number = "abcd".index(gone[0]) + 1
                # Nobody is dropped within its lease, nor while nobody else was heard.
                assert now - heard.pop(number) > 5.0 - TINY
                assert now - last < 3.0 + TINY
        models = registry.models(now)
        found = set(addresses(registry, now))
        # Who was heard within a lease is there; who left, or was never there, is not.
        assert {f"10.0.0.{n}:8000" for n, at in heard.items() if now - at < 5.0 - TINY} <= found
        heard = {n: at for n, at in heard.items() if f"10.0.0.{n}:8000" in found}
        assert len(found) == len(heard)
        # Whoever follows the revision misses nothing.
        assert registry.revision != revision or models == before
        before, revision = models, registry.revision
        # And it outlives its process.
        again = Registry()
        again.restore(json.loads(json.dumps(registry.dump())), now)
        assert again.models(now) == models
