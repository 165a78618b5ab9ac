"""What the controller answers behind the edge.

Calls about the whole server, and why a model that is known has no replica.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tidegate import __version__
from tidegate.edge.names import CLUSTER_HEADER, MODEL_PREFIX
from tidegate.errors import MethodNotFound, ModelNotFound, ModelNotReady
from tidegate.node.fleet import Fleet
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import grpc as v2_grpc
from tidegate.protocols.open_inference import rest as v2_rest
from tidegate.replica.exchange import Exchange

NAME = "tidegate"
EXTENSIONS = ("binary_tensor_data",)
_HEADER = CLUSTER_HEADER.encode()


def server_metadata() -> bytes:
    """Return the answer of ``GET /v2``."""
    return v2_rest.encode_server_metadata(NAME, __version__, EXTENSIONS)


class ControllerApi:
    """Answers exchanges from the fleet; ``ready`` says how the whole server feels."""

    def __init__(self, fleet: Fleet, ready: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._ready = ready
        self._server: Mapping[str, Callable[[], bytes]] = {
            open_inference.SERVER_LIVE: lambda: v2_grpc.encode_server_live(True),
            open_inference.SERVER_READY: lambda: v2_grpc.encode_server_ready(self._ready()),
            open_inference.SERVER_METADATA: lambda: v2_grpc.encode_server_metadata(
                NAME, __version__, EXTENSIONS
            ),
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer ``exchange``."""
        answer = self._server.get(exchange.path) if exchange.grpc else None
        if answer is not None:
            exchange.reply_grpc((answer(),))
            return
        cluster = exchange.headers.get(_HEADER, b"").decode("latin-1")
        if not cluster.startswith(MODEL_PREFIX):
            exchange.fail(MethodNotFound(f"there is no {exchange.path} here"))
        elif exchange.path == open_inference.MODEL_READY:
            exchange.reply_grpc((v2_grpc.encode_model_ready(False),))
        else:
            exchange.fail(self._why(cluster.removeprefix(MODEL_PREFIX)))

    def _why(self, key: str) -> Exception:
        model, _, version = key.partition(":")
        named = f"version {version} of model {model!r}" if version else f"model {model!r}"
        reason = self._fleet.reason(model, version)
        if reason is None:
            return ModelNotFound(
                f"{named} is not served here: see 'tidegate status' on the server"
            )
        return ModelNotReady(f"{named} is not ready: {reason}")
