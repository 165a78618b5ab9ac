"""API keys: Envoy's filter for them, and the few calls that need none.

The keys themselves travel with the routes, so that new ones count at once and no connection ends
when they change. The filter has none of its own: without routes nobody is let in.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/api_key_auth_filter
"""

from __future__ import annotations

from envoy.config.core.v3 import extension_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.common.matching.v3 import extension_matcher_pb2
from envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2
from envoy.extensions.filters.http.api_key_auth.v3 import api_key_auth_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from xds.type.matcher.v3 import matcher_pb2

from tidegate.edge.messages import packed
from tidegate.edge.names import KEY_FILTER, KEY_HEADER
from tidegate.edge.trust import ApiKeys

AUTHORIZATION = "authorization"

OPEN_PATHS = (
    "/v2/health/live",
    "/v2/health/ready",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
"""What probes call, which have no key: Envoy answers it, or the controller."""

_FORWARDING = api_key_auth_pb2.Forwarding(header=KEY_HEADER, hide_credentials=True)


def key_headers(keys: ApiKeys) -> tuple[str, ...]:
    """Return the headers that may carry a key, the first that is looked at first."""
    return tuple(dict.fromkeys((keys.header, AUTHORIZATION)))


def key_filter(keys: ApiKeys) -> extension_matcher_pb2.ExtensionWithMatcher:
    """Return the filter that asks for a key, and takes it off what goes on.

    It refuses with 401 and names the key in :data:`~tidegate.edge.names.KEY_HEADER`.
    """
    found = api_key_auth_pb2.ApiKeyAuth()
    for header in key_headers(keys):
        found.key_sources.add(header=header)
    found.forwarding.CopyFrom(_FORWARDING)
    return extension_matcher_pb2.ExtensionWithMatcher(
        extension_config=extension_pb2.TypedExtensionConfig(
            name=KEY_FILTER, typed_config=packed(found)
        ),
        xds_matcher=_none_needed(),
    )


def guard(routes: route_pb2.RouteConfiguration, keys: ApiKeys | None) -> None:
    """Give the keys to the filter, on all of ``routes``.

    Without keys the filter is switched off: connections may still have it that were opened before.
    """
    if keys is None:
        off = route_components_pb2.FilterConfig(disabled=True, is_optional=True)
        routes.typed_per_filter_config[KEY_FILTER].CopyFrom(packed(off))
        return
    # It says what happens to a key that is known, too: without, nothing would.
    known = api_key_auth_pb2.ApiKeyAuthPerRoute(forwarding=_FORWARDING)
    for key in keys.keys:
        known.credentials.add(key=key.secret, client=key.name)
    routes.typed_per_filter_config[KEY_FILTER].CopyFrom(packed(known))
    if KEY_HEADER not in routes.internal_only_headers:
        routes.internal_only_headers.append(KEY_HEADER)


def _none_needed() -> matcher_pb2.Matcher:
    """Match the calls that need no key, by their paths."""
    matcher = matcher_pb2.Matcher()
    tree = matcher.matcher_tree
    tree.input.name = "path"
    tree.input.typed_config.CopyFrom(
        packed(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=":path"))
    )
    for path in OPEN_PATHS:
        found = tree.exact_match_map.map[path].action
        found.name = "open"
        found.typed_config.CopyFrom(packed(skip_action_pb2.SkipFilter()))
    return matcher
