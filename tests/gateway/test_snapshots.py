"""After any edits, the edge is told what it would be told by a gateway that starts now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.harness import edge_settings
from tidegate.config.endpoints import Endpoints
from tidegate.config.gateway import GatewayConfig
from tidegate.edge.ads import CLUSTERS, ENDPOINTS, ROUTES, SECRETS
from tidegate.edge.gateway_resources import GatewayResources
from tidegate.edge.pools import GatewayTopology
from tidegate.gateway.balancers import Balancers
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import fixed_endpoint
from tidegate.gateway.models import members_of, tasks_of

_ENDPOINTS = st.lists(
    st.fixed_dictionaries(
        {"address": st.sampled_from([f"10.0.0.{number}:80" for number in range(1, 5)])},
        optional={
            "protocol": st.sampled_from(["tensorflow-serving", "open-inference", "seldon"]),
            "rest": st.integers(1, 2),
            "weight": st.sampled_from([1, 50, 1_000_000]),
            "priority": st.sampled_from([1, 5]),
            "versions": st.sampled_from([[1], [2], [1, 2]]),
            "tls": st.booleans(),
        },
    ),
    min_size=1,
    max_size=4,
)
_PART = st.fixed_dictionaries({"percent": st.sampled_from([0, 10, 100]), "endpoints": _ENDPOINTS})
_HEADER = st.fixed_dictionaries(
    {"header": st.just("x-a"), "endpoints": _ENDPOINTS},
    optional={"value": st.sampled_from(["1", "2"])},
)
_MODEL = st.fixed_dictionaries(
    {},
    optional={
        "endpoints": _ENDPOINTS,
        "canary": _PART,
        "mirror": _PART,
        "headers": st.lists(_HEADER, max_size=2),
        "timeout": st.sampled_from([1, 2]),
    },
)
_EDITS = st.lists(st.dictionaries(st.sampled_from("mno"), _MODEL), min_size=2, max_size=5)


def found(entry: Endpoints) -> tuple[Endpoint, ...]:
    endpoint = fixed_endpoint(entry)
    assert endpoint is not None
    return (endpoint,)


@settings(max_examples=40, deadline=None)
@given(edits=_EDITS)
def test_edits_lead_where_a_start_leads(edits: list[dict[str, Any]]) -> None:
    resources, balancers, now = GatewayResources(), Balancers(), 0.0
    edge = edge_settings(Path("/tmp"), gateway=True, load_reports=True)
    for edit in edits:
        config = GatewayConfig.model_validate({"models": edit})
        members = members_of(config, found, {}, {})
        balancers.update(members.values(), now)
        routed = {name: balancers.routed(model, now) for name, model in members.items()}
        topology = GatewayTopology(routed, True, b"{}", tasks_of(config, {}, ()))
        resources.snapshot(topology, edge, now)
        now += 60.0  # those that left help out for a moment
        after = resources.snapshot(topology, edge, now).resources
        anew = GatewayResources().snapshot(topology, edge, now).resources
        assert (
            after[CLUSTERS].keys()
            == anew[CLUSTERS].keys()
            == {*after[ENDPOINTS]} | (after[CLUSTERS].keys() - after[ENDPOINTS].keys())
        )
        for kind in (ENDPOINTS, ROUTES, SECRETS):
            assert after[kind] == anew[kind]
