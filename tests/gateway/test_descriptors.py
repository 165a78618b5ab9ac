"""A gateway with more endpoints than its limit of open files allows."""

from __future__ import annotations

import resource

import pytest

from tests.gateway.harness import ServedGateway
from tests.ports import free_port


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of others are Linux's")
async def test_too_many_endpoints_are_told_of() -> None:
    port = free_port()
    document = {"models": {"m": {"endpoints": [f"127.0.1.{n}:{port}" for n in range(1, 201)]}}}
    async with ServedGateway({"models": {}}) as gateway:
        assert gateway.process is not None
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (300, 300))
        await gateway.edit(document)
        await gateway.until(lambda: "200 endpoints take 400 open files" in gateway.output)
        assert "LimitNOFILE" in gateway.output
