"""``GET /models``: the models of this node, as a page for a browser and as JSON."""

from __future__ import annotations

import orjson

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.node.fleet import Fleet
from tidegate.protocols.dialect import Reply
from tidegate.protocols.plain_http import listing
from tidegate.protocols.plain_http.headers import HTML, JSON, prefers
from tidegate.protocols.plain_http.listing import Listed
from tidegate.protocols.plain_http.paths import LIST


class ModelList:
    """Answers the call."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def extension(self) -> Extension:
        """Return the call."""
        summary = "The models; a page for a browser"
        return Extension(endpoints=(Endpoint("GET", LIST, self._answer, summary, listing.SCHEMA),))

    async def _answer(self, call: Call) -> bytes | Reply:
        models = [self._listed(name) for name in sorted(self._fleet.models)]
        if prefers(call.accept, HTML, JSON):
            return listing.page(models)
        return orjson.dumps([model.document() for model in models])

    def _listed(self, name: str) -> Listed:
        fleet = self._fleet
        state, default = fleet.state(name), fleet.default(name)
        served = sorted(g.version for g in fleet.generations(name) if g.live and g.ready)
        return Listed(
            name,
            state,
            str(default.version) if default is not None and state == "ready" else "",
            tuple(map(str, served)),
            "" if state == "ready" else fleet.reason(name) or "",
        )
