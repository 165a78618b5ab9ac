"""``GET /models``: the models, as a page for a browser and as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import orjson

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.protocols.dialect import Reply
from tidegate.protocols.plain_http import listing
from tidegate.protocols.plain_http.headers import HTML, JSON, prefers
from tidegate.protocols.plain_http.listing import Listed
from tidegate.protocols.plain_http.paths import LIST


def list_extension(listed: Callable[[], Awaitable[Iterable[Listed]]]) -> Extension:
    """Return the call; ``listed`` tells the models in their order."""

    async def answer(call: Call) -> bytes | Reply:
        models = await listed()
        if prefers(call.accept, HTML, JSON):
            return listing.page(models)
        return orjson.dumps([model.document() for model in models])

    summary = "The models; a page for a browser"
    return Extension(endpoints=(Endpoint("GET", LIST, answer, summary, listing.SCHEMA),))
