"""The endpoints of a model, asked of a node: it has none but itself, and says so.

A node does not know the address that its clients see it by, behind a proxy or a forwarded port.
"""

from __future__ import annotations

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.errors import Unsupported
from tidegate.protocols.open_inference.endpoints import SCHEMA

PATH = "/v2/models/{model}/endpoints"


def endpoints_extension() -> Extension:
    """Return the call."""
    summary = "Where a model can be called: answered by gateways; a node has no others to tell of"
    return Extension(endpoints=(Endpoint("GET", PATH, _refuse, summary, SCHEMA),))


async def _refuse(call: Call) -> bytes:
    model = call.parameters["model"]
    raise Unsupported(
        f"this is a node and no gateway: {model!r} has no endpoint here but this very address; "
        "call the model where you asked"
    )
