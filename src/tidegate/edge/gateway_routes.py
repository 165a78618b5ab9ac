"""Routes of a gateway: from what the routing script has found in a call to its model's servers.

The script names a model, a version and a label in a header. Its value is looked up in two maps, so
a gateway with a thousand models takes as long for a call as one with two.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto
(``VirtualHost.matcher``) and the xDS matcher API (``xds.type.matcher.v3``).
"""

from __future__ import annotations

import functools
from typing import Literal, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf.message import Message
from xds.type.matcher.v3 import matcher_pb2

from tidegate.edge.forwarding import (
    ask_controller,
    awaited_route,
    crowded_route,
    forward_to_controller,
    leave_out,
    match_cluster,
    read_paths,
    unbound,
)
from tidegate.edge.messages import packed
from tidegate.edge.model_routes import model_routes
from tidegate.edge.names import (
    AWAITED,
    BUFFER_FILTER,
    CLUSTER_HEADER,
    CROWDED,
    KEY_HEADER,
    MODEL_PREFIX,
    ROUTING_FILTER,
    SOLE,
    TASK_PREFIX,
)
from tidegate.edge.own_answers import (
    MESSAGE_ROOM,
    answer_for_server,
    answer_nothing,
    configuration,
    virtual_host,
)
from tidegate.edge.plan import Asked, asked_of
from tidegate.edge.pools import GatewayTopology, RoutedModel
from tidegate.edge.routes import TASK_IN_NAME
from tidegate.edge.settings import USUAL_MESSAGE_SIZE, EdgeSettings
from tidegate.protocols.routing import ONLY_HEADER

LOAD_HEADERS = ("endpoint-load-metrics", "endpoint-load-metrics-bin")
"""How servers report their load to those who balance: not a client's business."""
_INTERNAL_HEADERS = ("x-envoy-upstream-service-time", "x-envoy-attempt-count")
"""What other proxies before the servers may have added."""

_KNOWN = 2**12

_Leaves: TypeAlias = matcher_pb2.Matcher.MatcherTree.MatchMap


def gateway_route_configuration(
    topology: GatewayTopology, settings: EdgeSettings
) -> route_pb2.RouteConfiguration:
    """Return all routes; their clusters are those of :class:`tidegate.edge.plan.Plan`."""
    host = virtual_host(settings)
    host.response_headers_to_remove.extend((*LOAD_HEADERS, *_INTERNAL_HEADERS))
    others = _others(topology)
    found = _looked_up("exact_match_map", _read(settings, others), _on_match(others), ":path")
    exact, prefixes = _leaves(topology, settings)
    _lead(exact, AWAITED, awaited_route(settings.max_message_size + MESSAGE_ROOM))
    _lead(exact, CROWDED, crowded_route())
    found = _looked_up("prefix_match_map", prefixes, found)
    found = _looked_up("exact_match_map", exact, found)
    sole = _sole(topology)
    if sole is not None and _reads_for_us(sole):
        found = _looked_up("exact_match_map", _unread(sole, settings), found, ":path")
    if found.HasField("matcher"):
        host.matcher.CopyFrom(found.matcher)
    else:
        host.matcher.on_no_match.CopyFrom(found)
    routes = configuration(host, topology.server_metadata)
    # With or without keys: a gateway says by it who has called, and nobody else does.
    routes.internal_only_headers.append(KEY_HEADER)
    return routes


def _leaves(topology: GatewayTopology, settings: EdgeSettings) -> tuple[_Leaves, _Leaves]:
    """Return the routes by whole values of the header, and by prefixes of it."""
    exact, prefixes = _Leaves(), _Leaves()
    to_model = functools.partial(_to_model, bound=_bound(settings))
    for model in topology.models.values():
        for asked in asked_of(model):
            leaves = prefixes if asked.any_version or asked.any_label else exact
            key = MODEL_PREFIX + model.name + asked.suffix
            leaves.map[key].CopyFrom(to_model(model, asked))
        for mark in ":@":
            key = MODEL_PREFIX + model.name + mark
            if key not in prefixes.map:
                _lead(prefixes, key, _controller())
        # A name goes before the task that it seems to name.
        task = TASK_IN_NAME.search(model.name)
        if task is not None:
            key = f"{TASK_PREFIX}{task[1]}/{model.name}"
            exact.map[key].CopyFrom(to_model(model, Asked()))
    for task_id, name in topology.tasks.items():
        if name in topology.models:
            key = f"{TASK_PREFIX}{task_id}/"
            prefixes.map[key].CopyFrom(to_model(topology.models[name], Asked(), named=False))
    sole = _sole(topology)
    if sole is not None:
        exact.map[SOLE].CopyFrom(to_model(sole, Asked(), named=False))
    return exact, prefixes


def _sole(topology: GatewayTopology) -> RoutedModel | None:
    """Return the only model, if there is only one."""
    return next(iter(topology.models.values())) if len(topology.models) == 1 else None


def _looked_up(
    kind: Literal["exact_match_map", "prefix_match_map"],
    leaves: _Leaves,
    others: matcher_pb2.Matcher.OnMatch,
    header: str = CLUSTER_HEADER,
) -> matcher_pb2.Matcher.OnMatch:
    """Return the tree that looks a header up, as a whole or by its longest prefix."""
    if not leaves.map:
        return others  # Envoy takes no empty map
    found = matcher_pb2.Matcher.OnMatch()
    tree = found.matcher.matcher_tree
    tree.input.name = header
    tree.input.typed_config.CopyFrom(
        packed(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=header))
    )
    getattr(tree, kind).CopyFrom(leaves)
    found.matcher.on_no_match.CopyFrom(others)
    return found


def _reads_for_us(model: RoutedModel) -> bool:
    """Whether a model's servers are ours, and are asked the same whatever a message says."""
    servers = [server for pool in model.pools for server in pool.servers]
    return (
        model.canary is None
        and all(server.protocol == "tidegate" for server in servers)
        and len({(server.versions, server.labels) for server in servers}) == 1
    )


def _bound(settings: EdgeSettings) -> bool:
    """Whether servers of ours may take more than the gateway: they take what is usual."""
    return settings.max_message_size < USUAL_MESSAGE_SIZE


def _read(settings: EdgeSettings, others: route_components_pb2.RouteList) -> _Leaves:
    """Return the routes of calls whose message names the model, until it has been read.

    When it has, and what it names is not ours, they are among the ``others``.
    """
    leaves = _Leaves()
    unread = awaited_route(settings.max_message_size + MESSAGE_ROOM)
    unread.match.grpc.SetInParent()
    leave_out(unread, BUFFER_FILTER)  # the routing script bounds what it reads
    unread.match.headers.add(name=CLUSTER_HEADER, present_match=True, invert_match=True)
    routes = route_components_pb2.RouteList(routes=[unread, *others.routes])
    for path in read_paths(settings.routings):
        _lead(leaves, path, routes)
    return leaves


def _unread(model: RoutedModel, settings: EdgeSettings) -> _Leaves:
    """Return the routes of gRPC calls to the only model that there is, as their messages come.

    The routing script would take a quarter of Envoy's time for a small message. A node may have
    other models, which are not offered here, so it is told which one a call may be for.
    """
    routes = model_routes(model, Asked())
    for route in routes.routes:
        route.match.grpc.SetInParent()
        leave_out(route, ROUTING_FILTER)
        if _bound(settings):
            route.typed_per_filter_config.pop(BUFFER_FILTER, None)
        else:
            leave_out(route, BUFFER_FILTER)
        # It asks for reports of the load, too: each header that is added is 1.5 % of the time.
        del route.request_headers_to_add[:]
        route.request_headers_to_add.add(
            header=base_pb2.HeaderValue(key=ONLY_HEADER, value=model.name),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    answer_nothing(routes)
    leaves = _Leaves()
    for routing in settings.routings:
        for method in routing.methods:
            # Some messages name no model, and some a task or the whole server.
            if not (method.header or method.task_in_name or method.server):
                _lead(leaves, method.path, routes)
    return leaves


def _lead(leaves: _Leaves, key: str, action: Message) -> None:
    leaves.map[key].CopyFrom(_on_match(action))


def _on_match(action: Message) -> matcher_pb2.Matcher.OnMatch:
    leaf = matcher_pb2.Matcher.OnMatch()
    leaf.action.name = "route"
    leaf.action.typed_config.CopyFrom(packed(action))
    return leaf


@functools.lru_cache(maxsize=_KNOWN)
def _to_model(
    model: RoutedModel, asked: Asked, *, named: bool = True, bound: bool
) -> matcher_pb2.Matcher.OnMatch:
    """Return what leads to a model, the same while that is the same; nobody may change it.

    A model that comes or goes is told with the routes of all others.
    """
    return _on_match(model_routes(model, asked, named=named, bound=bound))


def _controller() -> route_components_pb2.Route:
    """Return the route of what no server has: the controller says so."""
    route = route_components_pb2.Route(name="nobody")
    route.match.prefix = "/"
    ask_controller(route)
    return route


def _others(topology: GatewayTopology) -> route_components_pb2.RouteList:
    """Return the routes of calls that name no model of ours."""
    routes = route_components_pb2.RouteList()
    answer_for_server(routes, topology.ready, topology.server_metadata)
    forward_to_controller(routes)
    unknown = routes.routes.add(name="unknown")
    unknown.match.prefix = "/"
    match_cluster(unknown, prefix=MODEL_PREFIX)
    # There is no such cluster, and the reply says so.
    unknown.route.cluster_header = CLUSTER_HEADER
    unknown.route.cluster_not_found_response_code = route_components_pb2.RouteAction.NOT_FOUND
    for pattern in ({"exact": SOLE}, {"prefix": TASK_PREFIX}):
        nobody = _controller()
        match_cluster(nobody, **pattern)
        routes.routes.append(nobody)
    answer_nothing(routes)
    for route in routes.routes:
        unbound(route)
    return routes
