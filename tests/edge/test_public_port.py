"""What is for those who run a server is not to be had on the port of those who call it."""

from __future__ import annotations

import pytest

from tests.edge.harness import Edge, Rest

ADMIN = (
    # the controller's own
    "/status", "/live", "/metrics", "/debug/balancing", "/nodes/a", "/nodes", "/v1/status",
    # Envoy's
    "/config_dump", "/stats", "/stats/prometheus", "/server_info", "/clusters", "/listeners",
    "/certs", "/ready", "/runtime", "/logging?level=debug", "/memory", "/help",
    "/hot_restart_version", "/quitquitquit", "/healthcheck/fail", "/drain_listeners",
    "/reset_counters", "/reopen_logs", "/runtime_modify?a=b", "/tap", "/contention",
    "/heapprofiler?enable=y",
)  # fmt: skip
DISCOVERY = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_nothing_of_an_admin_port_answers(edge: Edge, method: str) -> None:
    await edge.replica("controller")
    await edge.serve(m="a")
    client = Rest(edge.port)
    for path in ADMIN:
        for spelling in (path, "/" + path, f"/v2/..{path}", f"{path}/", f"/.{path}"):
            answer = await client.call(method, spelling)
            assert answer.status == 404, spelling
            assert answer.json["error"].startswith(f"there is no {method} ")
        # The name of a cluster from outside leads nowhere, whoever it names.
        for cluster in ("tidegate/controller", "tidegate/xds", "sole/"):
            answer = await client.call(method, path, x_tidegate_cluster=cluster)
            assert answer.status == 404, (path, cluster)
    await client.close()
    code, _ = await edge.failure(b"", method=DISCOVERY)
    assert code == "UNIMPLEMENTED"
    assert edge.replicas["controller"].requests == edge.replicas["a"].requests == 0
    assert (await edge.call())["replica"] == "a"
