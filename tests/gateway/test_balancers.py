from __future__ import annotations

from tidegate.edge.load_reports import EndpointLoad, LoadReport
from tidegate.edge.pools import TrafficPolicy
from tidegate.gateway.balancers import Balancers
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.models import ModelMembers, PoolMembers

FIRST, NEXT, OTHER = "10.0.0.1:8000", "10.0.1.1:8000", "10.0.1.2:8000"
GOOD = EndpointLoad(20, 0, 20, 2, None)
BAD = EndpointLoad(0, 20, 20, 0, None)


def endpoint(address: str, priority: int = 0) -> Endpoint:
    return Endpoint(address, "tidegate", priority=priority)


def model(*endpoints: Endpoint) -> ModelMembers:
    return ModelMembers("m", TrafficPolicy(), 10.0, PoolMembers("m", endpoints))


def test_one_that_is_probed_alone_in_its_priority_does_not_get_all_calls() -> None:
    """Its weight would mean nothing there: it is probed among those who have the calls now."""
    members = model(endpoint(FIRST), endpoint(NEXT, 1), endpoint(OTHER, 1))
    balancers = Balancers()
    balancers.update([members], 0.0)

    def told(now: float, **loads: EndpointLoad) -> dict[str, tuple[int, bool]]:
        by_address = {
            {"first": FIRST, "next": NEXT, "other": OTHER}[k]: v for k, v in loads.items()
        }
        balancers.observe(LoadReport(0.25, {"m": by_address}), {"m": "m"}, now)
        servers = balancers.routed(members, now).pool.servers
        return {server.address: (server.priority, server.ejected) for server in servers}

    assert told(0.25, first=GOOD)[FIRST] == (0, False)
    # The other priority has calls as well, or nobody could tell whose fault it is.
    assert told(0.5, first=BAD, next=GOOD)[FIRST] == (0, True)
    for step in range(3, 5):
        assert told(step / 4, next=GOOD, other=GOOD)[FIRST] == (0, True)
    assert told(1.25, next=GOOD, other=GOOD) == {
        FIRST: (1, False),
        NEXT: (1, False),
        OTHER: (1, False),
    }
    weights = {s.address: s.weight for s in balancers.routed(members, 1.25).pool.servers}
    assert weights[FIRST] < 0.1 * weights[NEXT]
    answered = EndpointLoad(3, 0, 3, 0, None)
    assert told(1.5, first=answered, next=GOOD, other=GOOD)[FIRST] == (0, False)


def test_beside_one_that_serves_the_probed_keeps_its_priority() -> None:
    members = model(endpoint(FIRST), endpoint(NEXT), endpoint(OTHER, 1))
    balancers = Balancers()
    balancers.update([members], 0.0)
    for step in range(1, 12):
        loads = {NEXT: GOOD} if step > 1 else {FIRST: BAD, NEXT: GOOD}
        now = step / 4
        balancers.observe(LoadReport(0.25, {"m": loads}), {"m": "m"}, now)
        servers = {s.address: s for s in balancers.routed(members, now).pool.servers}
        assert servers[FIRST].priority == 0
    assert balancers.verdicts("m", now)[FIRST].state == "probing"
