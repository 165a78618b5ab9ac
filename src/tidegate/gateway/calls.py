"""What a gateway's controller answers behind its edge."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tidegate.controller.api import server_extension, why_nobody
from tidegate.controller.grpc_services import HealthCalls, ReflectionCalls
from tidegate.controller.model_list import list_extension
from tidegate.controller.server_calls import Call, Endpoint, Extension, ServerCalls
from tidegate.edge.names import MODEL_PREFIX
from tidegate.errors import InvalidInput, ModelNotFound, ModelNotReady
from tidegate.gateway.figures import Figures
from tidegate.gateway.handshake import TlsTroubles
from tidegate.gateway.health import NOT_ASKED, EndpointHealth
from tidegate.gateway.models import ModelMembers
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import endpoints as endpoints_codec
from tidegate.protocols.open_inference import repository
from tidegate.protocols.open_inference.endpoints import ModelEndpoint, ModelEndpoints
from tidegate.protocols.open_inference.repository import IndexEntry, State
from tidegate.protocols.plain_http.listing import Listed
from tidegate.protocols.routing import check_model

if TYPE_CHECKING:
    from tidegate.gateway.controller import GatewayController

_CALLABLE = ("tidegate", "open-inference")
"""What clients in direct mode speak."""
_NOBODY = "it has no endpoint that can answer"


class GatewayCalls:
    """Answers for the models of ``controller``."""

    def __init__(self, controller: GatewayController) -> None:
        self._controller = controller
        self.figures = Figures()
        self.endpoint_health = EndpointHealth(controller.edge.process.clusters, controller.clock)
        self.tls_troubles = TlsTroubles(controller.clock)
        self.health = HealthCalls(lambda: controller.ready, self._models, self._look)
        self.server = ServerCalls(
            (
                self.health.extension(),
                ReflectionCalls().extension(),
                server_extension(lambda: controller.ready, self.extension_names),
                self._endpoints_extension(),
                self._index_extension(),
                list_extension(self._listed),
            )
        )

    def extension_names(self) -> tuple[str, ...]:
        """Return what the server's metadata names: what any of the servers may know."""
        return ("binary_tensor_data", "model_configuration")

    def why(self, cluster: str, grpc: bool) -> Exception:
        """Return why nobody answers a call for ``cluster``, as the edge names it."""
        if not cluster.startswith(MODEL_PREFIX):
            advice = "put tasks: [{task}] into gateway.yaml"
            return why_nobody(cluster, self._controller.members, advice)
        name, mark, asked = _split(cluster.removeprefix(MODEL_PREFIX))
        model = self._controller.members.get(name)
        if model is None:
            return ModelNotFound(f"model {name!r} is not served here: see GET /models")
        endpoints = model.pool.endpoints
        if not endpoints:
            return ModelNotReady(f"model {name!r} has no endpoint now; try again")
        if mark == ":":
            known = sorted({v for e in endpoints for v in e.versions or ()})
            return ModelNotFound(
                f"no endpoint of model {name!r} has version {asked}: there is "
                f"{', '.join(map(str, known)) or 'none that is known'}"
            )
        if mark == "@":
            labels = sorted({each for e in endpoints for each in e.labels or ()})
            return InvalidInput(
                f"no endpoint of model {name!r} knows the label {asked!r}: there is "
                f"{', '.join(map(repr, labels)) or 'none'}"
            )
        return ModelNotReady(f"no endpoint of model {name!r} can answer now; try again")

    def _models(self) -> dict[str, bool]:
        return {name: self._servable(name) for name in self._controller.members}

    async def _look(self) -> None:
        await self.endpoint_health.look(self._controller.plan.clusters)

    async def look_closely(self) -> None:
        """Look, and find out why endpoints are not well whose TLS may be the reason."""
        await self._look()
        controller, feels = self._controller, self.endpoint_health.of
        pools = (pool for model in controller.members.values() for pool in model.pools)
        unwell = [e for p in pools for e in p.endpoints if feels(p.name, e.address) in NOT_ASKED]
        tls = controller.settings.trust.upstream_tls
        await self.tls_troubles.look(unwell, tls, controller.config.endpoint_tls)

    def _servable(self, name: str) -> bool:
        """Whether some endpoint of a model gets calls, by what is decided here and checked."""
        controller, health = self._controller, self.endpoint_health
        pool = controller.members[name].pool
        verdicts = controller.balancers.verdicts(pool.name, controller.clock.now())
        checked = health.recent
        return any(
            verdicts[e.address].weight > 0
            and not (checked and health.of(pool.name, e.address) in NOT_ASKED)
            for e in pool.endpoints
        )

    def _endpoints_extension(self) -> Extension:
        summary = "Where a model can be called without the gateway, and with which shares"
        path = "/v2/models/{model}/endpoints"
        return Extension(
            endpoints=(Endpoint("GET", path, self._endpoints, summary, endpoints_codec.SCHEMA),)
        )

    async def _endpoints(self, call: Call) -> bytes:
        controller, name = self._controller, call.parameters["model"]
        check_model(name)
        model = controller.members.get(name)
        if model is None:
            raise ModelNotFound(f"model {name!r} is not served here: see GET /models")
        await self._look()
        pool = model.pool
        verdicts = controller.balancers.verdicts(pool.name, controller.clock.now())
        found = [
            ModelEndpoint(
                address=endpoint.address,
                protocol=endpoint.protocol,
                # As configured: a client finds out by its own calls who is slow, and who is
                # slow for it; both factors together would count twice.
                weight=endpoint.weight,
                priority=endpoint.priority,
                secure=endpoint.secure,
                versions=None
                if endpoint.versions is None
                else frozenset(map(str, endpoint.versions)),
                rest=endpoint.rest,
            )
            for endpoint in pool.endpoints
            if endpoint.protocol in _CALLABLE
            and verdicts[endpoint.address].weight > 0
            # One that the edge leaves alone for a moment is told: clients see for themselves.
            and self.endpoint_health.of(pool.name, endpoint.address)
            not in ("unhealthy", "unchecked")
        ]
        if not found and pool.endpoints:
            raise ModelNotReady(f"no endpoint of model {name!r} can be called directly now")
        ttl = round(controller.config.endpoints_ttl * 1000)
        return endpoints_codec.encode_endpoints(ModelEndpoints(name, ttl, tuple(found)))

    def _index_extension(self) -> Extension:
        async def rest(call: Call) -> bytes:
            only_ready = repository.decode_index_body(call.body)
            await self._look()
            return repository.encode_index_body(self._index(only_ready))

        async def grpc(call: Call) -> bytes:
            only_ready = repository.decode_index(call.body)
            await self._look()
            return repository.encode_index(self._index(only_ready))

        path = "/v2/repository/index"
        return Extension(
            endpoints=(Endpoint("POST", path, rest, "The models behind this gateway"),),
            methods={open_inference.REPOSITORY_INDEX: grpc},
        )

    def _index(self, only_ready: bool) -> list[IndexEntry]:
        entries = []
        for name, model in sorted(self._controller.members.items()):
            ready = self._servable(name)
            if only_ready and not ready:
                continue
            state = State.READY if ready else State.UNAVAILABLE
            reason = "" if ready else _NOBODY
            entries += [
                IndexEntry(name, version, state, reason) for version in _versions(model) or ("",)
            ]
        return entries

    async def _listed(self) -> list[Listed]:
        await self._look()
        return [
            Listed(name, "ready", versions=_versions(model))
            if self._servable(name)
            else Listed(name, "not ready", reason=_NOBODY)
            for name, model in sorted(self._controller.members.items())
        ]


def _versions(model: ModelMembers) -> tuple[str, ...]:
    """Return the versions that are known of a model's endpoints."""
    return tuple(map(str, sorted({v for e in model.pool.endpoints for v in e.versions or ()})))


def _split(key: str) -> tuple[str, str, str]:
    """Take a key apart: the model, ``:`` or ``@`` or nothing, and the version or label."""
    name = re.split("[:@]", key, maxsplit=1)[0]
    return name, key[len(name) : len(name) + 1], key[len(name) + 1 :]
