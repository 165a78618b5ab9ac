"""What the routes of a gateway depend on, and what not."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.edge.gateway_routes import gateway_route_configuration
from tidegate.edge.messages import packed
from tidegate.edge.plan import PROTOCOLS, Plan, outline_of
from tidegate.edge.pools import GatewayTopology, HeaderPool, Pool, RoutedModel, Server, Servers
from tidegate.edge.settings import EdgeSettings

SETTINGS = EdgeSettings("127.0.0.1", 1, "/c.sock", gateway=True)

servers = st.lists(
    st.builds(
        Server,
        address=st.sampled_from(["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]),
        protocol=st.sampled_from(PROTOCOLS),
        rest=st.sampled_from([None, "10.0.0.9:2"]),
        weight=st.integers(1, 9),
        priority=st.integers(0, 2),
        ejected=st.booleans(),
        versions=st.sampled_from([None, frozenset(), frozenset({1}), frozenset({1, 2})]),
        labels=st.sampled_from([None, frozenset({"a"}), frozenset({"a", "b"})]),
        secure=st.booleans(),
        name=st.sampled_from(["", "x"]),
    ),
    max_size=5,
).map(Servers)


@st.composite
def models(draw: st.DrawFn) -> RoutedModel:
    pools = [Pool(name, draw(servers)) for name in ("m", "m/canary", "m/mirror", "m/0")]
    return RoutedModel(
        "m",
        pools[0],
        canary=draw(st.sampled_from([None, (10.0, pools[1])])),
        mirror=draw(st.sampled_from([None, (50.0, pools[2])])),
        headers=draw(st.sampled_from([(), (HeaderPool("x-team", None, pools[3]),)])),
    )


def routes_of(model: RoutedModel) -> bytes:
    topology = GatewayTopology({"m": model, "n": model}, True, b"{}", {"7": "m"})
    return packed(gateway_route_configuration(topology, SETTINGS)).value


def clusters_in(configuration: bytes) -> set[str]:
    """Names of clusters as they stand in a configuration, strings of protobuf's."""
    found = set()
    for part in configuration.split(b"pool/")[1:]:
        size = configuration[configuration.index(b"pool/" + part) - 1]
        found.add((b"pool/" + part)[:size].decode())
    return found


@settings(deadline=None)
@given(models())
def test_routes_depend_on_the_outline_alone(model: RoutedModel) -> None:
    assert routes_of(outline_of(model)) == routes_of(model)


@settings(deadline=None)
@given(models())
def test_every_route_leads_to_a_cluster_that_there_is(model: RoutedModel) -> None:
    plan = Plan(GatewayTopology({"m": model}, True, b"{}"))
    empty = {f"pool/{pool.name}" for pool in model.pools if not pool.servers}
    assert clusters_in(routes_of(model)) <= set(plan.clusters) | empty


@settings(deadline=None)
@given(models())
def test_the_kinds_of_a_clusters_servers_are_as_if_they_were_counted(model: RoutedModel) -> None:
    for cluster in Plan(GatewayTopology({"m": model}, True, b"{}")).clusters.values():
        assert cluster.servers.kinds == Servers(cluster.servers).kinds


@settings(deadline=None)
@given(models())
def test_the_order_and_the_weights_of_servers_are_no_part_of_an_outline(
    model: RoutedModel,
) -> None:
    turned = Servers(
        replace(server, weight=server.weight + 1, ejected=not server.ejected, address="10.9.9.9:9")
        for server in reversed(model.pool.servers)
    )
    other = replace(model, pool=replace(model.pool, servers=turned))
    assert outline_of(other) == outline_of(model)
