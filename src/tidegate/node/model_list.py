"""What the list of models says of this node's."""

from __future__ import annotations

from tidegate.controller.model_list import list_extension
from tidegate.controller.server_calls import Extension
from tidegate.node.fleet import Fleet
from tidegate.protocols.plain_http.listing import Listed


class ModelList:
    """Answers the call."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def extension(self) -> Extension:
        """Return the call."""
        return list_extension(self._models)

    async def _models(self) -> list[Listed]:
        return [self._listed(name) for name in sorted(self._fleet.models)]

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
