"""What Envoy would refuse is refused before: it would refuse all that comes after, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from tests.edge.fake_server import FakeServer
from tests.gateway.harness import ServedGateway
from tidegate.config.gateway import GatewayConfig


def document(place: str = "10.0.0.1:8000", **model: Any) -> dict[str, Any]:
    return {"models": {"m": {"endpoints": [place], **model}}}


@pytest.mark.parametrize(
    "said",
    [
        document(max_in_flight=1_000_001),
        document(timeout=1e9),
        document(timeout=float("inf")),
        document(timeout="0.1ms"),
        document(per_try_timeout="0.0005"),
        document(per_try_timeout=1e300),
        {"idle_timeout": 1e10},
        {"drain_timeout": float("inf")},
        {"models": {"m": {"endpoints": [{"address": "10.0.0.1:1", "versions": [2**63]}]}}},
    ],
    ids=str,
)
def test_what_is_beyond_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"greater|less"):
        GatewayConfig.model_validate(said)


@pytest.fixture
async def servers() -> AsyncIterator[tuple[FakeServer, FakeServer]]:
    async with FakeServer("a") as a, FakeServer("b") as b:
        yield a, b


async def test_envoy_takes_the_extremes(servers: tuple[FakeServer, FakeServer]) -> None:
    a, b = (server.address for server in servers)
    speaking = {"protocol": "tensorflow-serving", "rest": 1}
    edits: tuple[dict[str, Any], ...] = (
        document(a, max_in_flight=1_000_000, timeout=2_592_000, per_try_timeout=2_592_000),
        document(a, timeout="1ms", per_try_timeout="1ms", health_interval=600, retry_budget=0),
        document(a, health_path='/a?b#c{}"\\<>%'),
        document(a, headers=[{"header": "x-a", "value": "a\0b\n€", "endpoints": [b]}]),
        document(a, headers=[{"header": "x-a", "value": "", "endpoints": [b]}]),
        document(
            a,
            canary={"percent": 1e-12, "endpoints": [b]},
            mirror={"percent": 1e-12, "endpoints": [b]},
        ),
        document(
            a,
            canary={"percent": 100, "endpoints": [{"address": b, "weight": 1_000_000}]},
            headers=[{"header": "x-a", "endpoints": [{"address": b, "priority": 16}]}],
        ),
        {
            "models": {
                "m": {
                    "endpoints": [
                        {"address": a, "versions": [2**63 - 1], **speaking},
                        {"address": b, "versions": [1], **speaking},
                    ]
                }
            }
        },
        {
            **document(a),
            "rate_limits": {
                "per_model": {"per_second": 1e-9, "burst": 2**70},
                "models": {"m": {"per_second": 1e6}},
            },
        },
        {**document(a), "idle_timeout": 2_592_000, "max_message_size": 2**31 - 2**20},
        {**document(a), "idle_timeout": "1ms", "retry_size": 2**31 - 2**20},
        {"models": {"m" + "x" * 127: {"endpoints": [a], "tasks": [2**31]}, "m": {}}},
    )
    async with ServedGateway(document(a)) as gateway:
        await gateway.healthy()
        for number, edit in enumerate(edits):
            # The last name tells that the edge has all of it.
            mark = f"mark-{number}"
            edit["models"][mark] = {"endpoints": [a]}
            gateway.write(edit)
            await gateway.healthy(mark)
        assert "not in effect" not in gateway.output
        assert (await gateway.status())["problem"] is None
