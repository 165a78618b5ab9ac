from __future__ import annotations

from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.handover import LONGEST, Handover
from tidegate.gateway.models import PoolMembers

A, B, C = (f"10.0.0.{n}:8000" for n in (1, 2, 3))


def pool(*addresses: str) -> PoolMembers:
    return PoolMembers("m", tuple(Endpoint(address, "tidegate") for address in addresses))


class Told:
    def __init__(self) -> None:
        self.handover = Handover()
        self.healthy: set[str] = set()

    def members(self, *addresses: str, now: float = 0.0) -> list[str]:
        found = self.handover.members(pool(*addresses), lambda _, each: each in self.healthy, now)
        return [endpoint.address for endpoint in found.endpoints]


def test_the_old_ones_stay_until_a_new_one_is_healthy() -> None:
    told = Told()
    assert told.members(A) == [A]
    assert told.members(B, C) == [B, C, A]
    assert told.handover.pending
    told.healthy.add(C)
    assert told.members(B, C) == [B, C]
    assert not told.handover.pending


def test_they_do_not_stay_for_ever() -> None:
    told = Told()
    told.members(A)
    assert told.members(B, now=1.0) == [B, A]
    assert told.members(C, now=2.0) == [C, A]
    assert told.members(C, now=1.0 + LONGEST) == [C]


def test_they_go_at_once_where_one_stays_or_none_is_wanted() -> None:
    told = Told()
    told.members(A, B)
    assert told.members(B, C) == [B, C]
    assert told.members() == []
    assert told.members(A) == [A]
    assert not told.handover.pending


def test_pools_that_are_gone_are_forgotten() -> None:
    told = Told()
    told.members(A)
    told.members(B)
    told.handover.forget_all_but(["other"])
    assert not told.handover.pending
    assert told.members(C) == [C]
