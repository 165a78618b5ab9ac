"""What balancers and the edge must agree upon."""

from __future__ import annotations

from dataclasses import replace

from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.edge.health_checks import Crowd
from tidegate.edge.load_reports import EndpointLoad, LoadReport
from tidegate.edge.plan import PlannedCluster
from tidegate.edge.pools import Server, Servers, TrafficPolicy
from tidegate.edge.server_clusters import server_cluster
from tidegate.edge.settings import EdgeSettings
from tidegate.gateway.balancers import POLICY, Balancers
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.figures import Figures
from tidegate.gateway.models import ModelMembers, PoolMembers


def test_the_balancer_knows_how_the_edge_picks() -> None:
    """Else one that is probed gets a tenth of the calls that it should, and is out for long."""
    server = Server("127.0.0.1:1")
    planned = PlannedCluster(
        "pool/m", "m", "m", Servers((server,)), rest=False, traffic=TrafficPolicy()
    )
    settings = EdgeSettings("127.0.0.1", 1, "/run/controller.sock")
    cluster = server_cluster(planned, settings, Crowd(1, 1))
    picks = least_request_pb2.LeastRequest()
    [policy] = cluster.load_balancing_policy.policies
    assert policy.typed_extension_config.typed_config.Unpack(picks)
    assert picks.active_request_bias.default_value == POLICY.active_request_bias


ADDRESSES = [f"10.0.0.{number}:8000" for number in range(1, 5)]


def members(weights: tuple[int, ...], priorities: tuple[int, ...]) -> ModelMembers:
    endpoints = tuple(
        Endpoint(address, "tidegate", weight=weight, priority=priority)
        for address, weight, priority in zip(ADDRESSES, weights, priorities)
    )
    return ModelMembers("m", TrafficPolicy(), 3.0, PoolMembers("m", endpoints))


def report(**loads: EndpointLoad) -> LoadReport:
    return LoadReport(
        0.25, {"pool/m": {f"10.0.0.{n[1:]}:8000": load for n, load in loads.items()}}
    )


def observe(balancers: Balancers, told: LoadReport, now: float) -> None:
    balancers.observe(Figures().note(told, {"pool/m": "m"}), told.elapsed, now)


_LOADS = st.sampled_from(
    [None, EndpointLoad(20, 0, 20, 1), EndpointLoad(0, 20, 20, 0), EndpointLoad(2, 0, 20, 18)]
)
_STEPS = st.one_of(
    st.fixed_dictionaries({f"n{number}": _LOADS for number in range(1, 5)}),
    st.tuples(*[st.integers(1, 200)] * 4),
    st.floats(0.1, 3.0),
)


@settings(max_examples=100, deadline=None)
@given(priorities=st.tuples(*[st.integers(0, 2)] * 4), steps=st.lists(_STEPS, max_size=25))
def test_what_is_told_step_by_step_is_what_was_decided(
    priorities: tuple[int, ...], steps: list[object]
) -> None:
    balancers, now = Balancers(), 0.0
    model = members((100,) * 4, priorities)
    balancers.update([model], now)
    for step in steps:
        now += 0.25
        if isinstance(step, dict):
            loads = {name: load for name, load in step.items() if load is not None}
            observe(balancers, report(**loads), now)
        elif isinstance(step, tuple):
            model = members(step, priorities)
            balancers.update([model], now)
        elif isinstance(step, float):
            now += step
        routed = balancers.routed(model, now)
        assert balancers.routed(model, now) is routed
        weights = [verdict.weight for verdict in balancers.verdicts("m", now).values()]
        told = [0 if server.ejected else server.weight for server in routed.pool.servers]
        assert told == weights
        assert routed.pool.servers.kinds == Servers(routed.pool.servers).kinds


def test_another_weight_makes_one_server_another() -> None:
    balancers, model = Balancers(), members((100,) * 4, (0,) * 4)
    balancers.update([model], 0.0)
    before = balancers.routed(model, 0.0)
    failed, well = EndpointLoad(0, 20, 20, 0), EndpointLoad(20, 0, 20, 1)
    observe(balancers, report(n1=failed, n2=well, n3=well, n4=well), 0.25)
    after = balancers.routed(model, 0.25)
    assert after is not before
    same = [a is b for a, b in zip(before.pool.servers, after.pool.servers)]
    assert same == [False, True, True, True]


def test_what_is_in_flight_is_that_of_the_last_report() -> None:
    figures = Figures()
    figures.note(report(n1=EndpointLoad(1, 0, 3, 2)), {"pool/m": "m"})
    figures.note(report(n2=EndpointLoad(1, 1, 3, 1)), {"pool/m": "m"})
    first, second = (figures.of("m", address) for address in ADDRESSES[:2])
    assert (first.succeeded, first.issued, first.in_flight) == (1, 3, 0)
    assert (second.succeeded, second.failed, second.in_flight) == (1, 1, 1)


def test_the_first_are_a_last_resort_where_all_of_them_are_sick() -> None:
    """As many would be a panic, and calls would go on to fail, were there no overflow."""
    balancers, model = Balancers(), members((100,) * 4, (0, 0, 0, 1))
    balancers.update([model], 0.0)
    well, failed = EndpointLoad(20, 0, 20, 1), EndpointLoad(0, 20, 20, 0)
    for number in range(8):
        observe(balancers, report(n1=well, n2=well, n3=well), 0.25 * number)
    observe(balancers, report(n1=failed, n2=failed), 2.0)
    servers = balancers.routed(model, 2.0).pool.servers
    assert [s.ejected for s in servers] == [True, True, False, False]
    assert not any(s.last_resort for s in servers)
    observe(balancers, report(n3=failed), 2.25)
    servers = balancers.routed(model, 2.25).pool.servers
    assert [s.last_resort for s in servers] == [True, True, True, False]


def test_an_edit_of_the_slow_start_forgets_nobody_s_faults() -> None:
    balancers, model = Balancers(), members((100,) * 4, (0,) * 4)
    balancers.update([model], 0.0)
    well, failed = EndpointLoad(20, 0, 20, 1), EndpointLoad(0, 20, 20, 0)
    observe(balancers, report(n1=failed, n2=well, n3=well, n4=well), 0.25)
    assert balancers.routed(model, 0.25).pool.servers[0].ejected
    model = replace(model, slow_start=30.0)
    balancers.update([model], 0.5)
    assert balancers.routed(model, 0.5).pool.servers[0].ejected
    assert balancers.ejections("m") == 1


def test_calls_that_are_no_longer_in_flight_and_have_not_ended_were_cancelled() -> None:
    figures, pool_of = Figures(), {"pool/m": "m", "pool/m/rest": "m"}
    figures.note(report(n1=EndpointLoad(0, 0, 5, 5)), pool_of)
    outcomes = figures.note(report(n1=EndpointLoad(1, 1, 4, 3)), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 4
    outcomes = figures.note(report(), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 3
    assert figures.of("m", ADDRESSES[0]).cancelled == 7
    assert figures.note(LoadReport(0.25, {}), pool_of) == {}
    # A connection that is refused is a failure of a call that was never sent.
    outcomes = figures.note(report(n1=EndpointLoad(0, 3, 0, 0)), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 0
    # Over REST, a call counts as answered when its body is still on its way.
    figures.note(report(n1=EndpointLoad(4, 0, 5, 5)), pool_of)
    outcomes = figures.note(report(n1=EndpointLoad(0, 0, 2, 4)), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 0
    outcomes = figures.note(report(n1=EndpointLoad(0, 0, 0, 2)), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 1
    figures.note(report(n1=EndpointLoad(2, 0, 0, 0)), pool_of)
    assert figures.of("m", ADDRESSES[0]).cancelled == 8
    # One endpoint in two clusters: what is in flight is that of both.
    loads = {ADDRESSES[0]: EndpointLoad(0, 0, 2, 2)}
    figures.note(LoadReport(0.25, dict.fromkeys(pool_of, loads)), pool_of)
    outcomes = figures.note(LoadReport(0.25, {"pool/m": loads}), pool_of)
    assert outcomes["m"][ADDRESSES[0]].cancelled == 4
