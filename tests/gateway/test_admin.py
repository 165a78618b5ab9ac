"""Whom the admin API of a gateway answers, where other machines can reach it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tidegate.cli.running import admin_url
from tidegate.config.gateway import GatewayConfig
from tidegate.controller.life import listen
from tidegate.controller.machine import is_from_here
from tidegate.controller.run_directory import GatewayRecord
from tidegate.gateway.admin import Guard
from tidegate.gateway.registration_calls import no_registration_routes

TOKEN = "0123456789abcdef"
SHOWN = {"authorization": f"Bearer {TOKEN}"}


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("told")


async def status_for(
    client: str, path: str, token: str | None, headers: dict[str, str] | None = None
) -> int:
    app = Guard(Starlette(routes=[Route("/{path:path}", answer)]), lambda: token)
    transport = httpx.ASGITransport(app, client=(client, 50000))
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1:8002") as http:
        return (await http.get(path, headers=headers)).status_code


@pytest.mark.parametrize("path", ["/status", "/debug/balancing", "/v2/repository/index", "/x"])
async def test_other_machines_must_show_the_token(path: str) -> None:
    assert await status_for("10.0.0.9", path, TOKEN) == 401
    assert await status_for("10.0.0.9", path, TOKEN, {"authorization": "Bearer no"}) == 401
    assert await status_for("10.0.0.9", path, TOKEN, {"x-forwarded-for": "127.0.0.1"}) == 401
    assert await status_for("10.0.0.9", path, TOKEN, SHOWN) == 200
    assert await status_for("10.0.0.9", path, None) == 403
    assert await status_for("10.0.0.9", path, None, SHOWN) == 403
    for here in ("127.0.0.1", "10.0.0.1", "::1"):
        assert await status_for(here, path, TOKEN) == 200


async def test_probes_need_none_and_nodes_are_asked_elsewhere() -> None:
    for path in ("/live", "/metrics", "/nodes", "/nodes/n"):
        assert await status_for("10.0.0.9", path, TOKEN) == 200


async def test_a_gateway_that_lets_no_nodes_join_says_how_it_would() -> None:
    transport = httpx.ASGITransport(Starlette(routes=no_registration_routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8002") as http:
        for answer in (await http.put("/nodes/10.0.0.7:8000"), await http.get("/nodes")):
            assert answer.status_code == 403
            assert "write 'registration: {}' into its gateway.yaml" in answer.json()["error"]


def test_who_is_on_this_machine() -> None:
    assert is_from_here(("::ffff:127.0.0.1", 1), ("::ffff:127.0.0.1", 2))
    assert is_from_here(("fd00::1", 1, 0, 0), ("fd00::1", 2, 0, 0))
    assert not is_from_here(("::ffff:10.0.0.9", 1), ("::ffff:10.0.0.1", 2))
    assert not is_from_here(None, ("10.0.0.1", 2))
    assert not is_from_here(("", 0), None)


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("127.0.0.1", "http://127.0.0.1:9"),
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("10.0.0.1", "http://10.0.0.1:9"),
        ("::", "http://[::1]:9"),
        ("fd00::1", "http://[fd00::1]:9"),
    ],
)
def test_commands_find_the_admin_api_wherever_it_listens(host: str, place: str) -> None:
    config = GatewayConfig(admin_host=host, admin_port=9)
    assert admin_url(GatewayRecord(file=Path("/g.yaml"), config=config)) == place


def test_the_admin_api_listens_on_addresses_of_both_families() -> None:
    for host in ("127.0.0.1", "::1", "::"):
        with listen(0, host) as socket:
            assert socket.getsockname()[1]
