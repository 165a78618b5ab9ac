"""What balancers and the edge must agree upon."""

from __future__ import annotations

from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2

from tidegate.edge.health_checks import Crowd
from tidegate.edge.plan import PlannedCluster
from tidegate.edge.pools import Server, TrafficPolicy
from tidegate.edge.server_clusters import server_cluster
from tidegate.edge.settings import EdgeSettings
from tidegate.gateway.balancers import POLICY


def test_the_balancer_knows_how_the_edge_picks() -> None:
    """Else one that is probed gets a tenth of the calls that it should, and is out for long."""
    server = Server("127.0.0.1:1")
    planned = PlannedCluster("pool/m", "m", "m", (server,), rest=False, traffic=TrafficPolicy())
    settings = EdgeSettings("127.0.0.1", 1, "/run/controller.sock")
    cluster = server_cluster(planned, settings, Crowd(1, 1))
    picks = least_request_pb2.LeastRequest()
    [policy] = cluster.load_balancing_policy.policies
    assert policy.typed_extension_config.typed_config.Unpack(picks)
    assert picks.active_request_bias.default_value == POLICY.active_request_bias
