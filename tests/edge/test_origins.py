"""Pages of other sites: which may call, and what a browser is told."""

from __future__ import annotations

import pytest

from tests.edge.harness import Answer, Edge
from tidegate.config.node import NodeConfig

ALLOWED, FOREIGN = "https://app.example", "https://other.example"
PATH = "/v2/models/m/infer"


async def serve(edge: Edge, *origins: str) -> None:
    edge.change(origins=origins)
    await edge.replica("controller")
    await edge.serve(m="a")


async def ask(edge: Edge, origin: str, method: str = "POST", **more: str) -> Answer:
    headers = {"origin": origin, "sec-fetch-site": "cross-site", **more}
    return await edge.rest(method, PATH, b"{}" if method == "POST" else b"", **headers)


async def test_a_page_that_may_call(edge: Edge) -> None:
    await serve(edge, "http://localhost:3000", ALLOWED)
    answer = await ask(edge, ALLOWED)
    assert answer.json["replica"] == "a"
    assert answer.headers["access-control-allow-origin"] == ALLOWED
    assert not {"origin", "sec-fetch-site"} & answer.json["headers"].keys()
    # No server is told which page calls.
    assert ALLOWED not in str(answer.json["headers"])
    asking = {"access-control-request-method": "POST"}
    told = await ask(edge, ALLOWED, "OPTIONS", **asking)
    assert (told.status, told.headers["access-control-allow-origin"]) == (204, ALLOWED)
    assert told.headers["access-control-allow-methods"] == "GET, POST"
    assert "authorization" in told.headers["access-control-allow-headers"]
    missing = await edge.rest("POST", "/nothing", b"{}", origin=ALLOWED)
    assert (missing.status, missing.headers["access-control-allow-origin"]) == (404, ALLOWED)


async def test_a_page_that_may_not(edge: Edge) -> None:
    for origins in ((ALLOWED,), ()):
        await serve(edge, *origins)
        for origin in (FOREIGN, ALLOWED + ".evil.example", "null", ALLOWED.upper()):
            answer = await ask(edge, origin)
            assert answer.json["headers"]["origin"] == origin
            assert "sec-fetch-site" in answer.json["headers"]
            assert "access-control-allow-origin" not in answer.headers


def test_origins_are_what_browsers_send() -> None:
    found = NodeConfig.model_validate({"allowed_origins": f"{ALLOWED}, http://[::1]:3000"})
    assert found.allowed_origins == (ALLOWED, "http://[::1]:3000")
    assert NodeConfig.model_validate({"allowed_origins": [ALLOWED]}).allowed_origins == (ALLOWED,)
    for wrong in ("*", "app.example", ALLOWED + "/", "https://App.example", "ftp://a", 'http://"'):
        with pytest.raises(ValueError, match="allowed_origins"):
            NodeConfig.model_validate({"allowed_origins": wrong})
