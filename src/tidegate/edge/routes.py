"""Routes of a node: what Envoy answers itself, and where the rest goes."""

from __future__ import annotations

import re

from envoy.config.route.v3 import route_components_pb2, route_pb2

from tidegate.edge.forwarding import (
    ask_controller,
    awaited_route,
    crowded_route,
    forward_inference,
    forward_to_controller,
    leave_out,
    match_cluster,
    read_paths,
)
from tidegate.edge.limits import mark_model
from tidegate.edge.names import (
    AWAITED,
    CLUSTER_HEADER,
    CROWDED,
    KEPT_HEADER,
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
from tidegate.edge.settings import EdgeSettings
from tidegate.edge.topology import Topology

TASK_IN_NAME = re.compile("-([0-9]{1,18})$")
"""What may be a task's id at the end of a model's name."""


def route_configuration(
    topology: Topology, settings: EdgeSettings
) -> route_pb2.RouteConfiguration:
    """Return all routes; they name no model, unless there is only one."""
    host = virtual_host(settings)
    host.include_request_attempt_count = True
    if topology.sole is not None:
        for routing in settings.routings:
            for method in routing.methods:
                if not method.header:
                    # A replica does not see which model a header names.
                    _forward_unread(host, method.path, topology.sole)
    answer_for_server(host, topology.ready, topology.server_metadata)
    forward_to_controller(host)
    _forward_labelled(host, topology)
    if settings.limits.of_models:
        _forward_limited(host, topology)
    _forward_to_model(host)
    _forward_named_otherwise(host, topology)
    _keep(host, settings)
    _await(host, settings)
    answer_nothing(host)
    routes = configuration(host, topology.server_metadata)
    routes.internal_only_headers.append(KEPT_HEADER)
    return routes


def _forward_unread(host: route_components_pb2.VirtualHost, path: str, key: str) -> None:
    """Send a gRPC method to the only model that there is, as its messages come.

    The routing script would take a quarter of Envoy's time for a small message.
    """
    route = host.routes.add(name=path)
    route.match.path = path
    route.match.grpc.SetInParent()
    forward_inference(route)
    _lead_to(route, key)
    leave_out(route, ROUTING_FILTER)


def _await(host: route_components_pb2.VirtualHost, settings: EdgeSettings) -> None:
    """Let whole messages be held until it is known where they go."""
    largest = _largest(settings)
    for path in read_paths(settings.routings):
        route = awaited_route(largest)
        route.match.path = path
        route.match.grpc.SetInParent()
        route.match.headers.add(name=CLUSTER_HEADER, present_match=True, invert_match=True)
        host.routes.append(route)
    route = awaited_route(largest)
    match_cluster(route, exact=AWAITED)
    host.routes.append(route)
    route = crowded_route()
    match_cluster(route, exact=CROWDED)
    host.routes.append(route)


def _keep(host: route_components_pb2.VirtualHost, settings: EdgeSettings) -> None:
    """Let large messages be held for whose calls the routing script has found room."""
    routes = list(host.routes)
    del host.routes[:]
    for route in routes:
        named = any(header.name == CLUSTER_HEADER for header in route.match.headers)
        if named and route.route.retry_policy.retry_host_predicate:
            kept = host.routes.add()
            kept.CopyFrom(route)
            kept.match.headers.add(name=KEPT_HEADER, present_match=True)
            kept.request_headers_to_remove.append(KEPT_HEADER)
            kept.request_body_buffer_limit.value = _largest(settings)
        host.routes.append(route)


def _largest(settings: EdgeSettings) -> int:
    return settings.max_message_size + MESSAGE_ROOM


def _forward_labelled(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Send calls to the versions that have labels; the controller answers for other labels."""
    for key in filter(lambda key: "@" in key, topology.clusters):
        route = host.routes.add(name=key)
        route.match.prefix = "/"
        match_cluster(route, exact=MODEL_PREFIX + key)
        forward_inference(route)
        _lead_to(route, key)
    route = host.routes.add(name="label")
    route.match.prefix = "/"
    match_cluster(route, contains="@")
    ask_controller(route)


def _forward_limited(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Tell the models apart, so that each has a bucket, and names that are none have not."""
    for name in topology.models:
        for pattern in ({"exact": MODEL_PREFIX + name}, {"prefix": f"{MODEL_PREFIX}{name}:"}):
            route = _forward_to_model(host)
            del route.match.headers[:]
            match_cluster(route, **pattern)
            mark_model(route, name)


def _forward_to_model(host: route_components_pb2.VirtualHost) -> route_components_pb2.Route:
    route = host.routes.add(name="model")
    route.match.prefix = "/"
    match_cluster(route, prefix=MODEL_PREFIX)
    forward_inference(route)
    route.route.cluster_header = CLUSTER_HEADER
    route.route.cluster_not_found_response_code = route_components_pb2.RouteAction.NOT_FOUND
    return route


def _forward_named_otherwise(host: route_components_pb2.VirtualHost, topology: Topology) -> None:
    """Send calls to the model that has a task, or that is the only one.

    The controller answers those that lead nowhere.
    """

    def forward(to: str, **pattern: str) -> None:
        route = host.routes.add(name=next(iter(pattern.values())))
        route.match.prefix = "/"
        match_cluster(route, **pattern)
        forward_inference(route)
        _lead_to(route, to)

    models = topology.models
    if len(models) == 1 and models[0] in topology.clusters:
        forward(models[0], exact=SOLE)
    for name in models:
        # A name goes before the task that it seems to name.
        task = TASK_IN_NAME.search(name)
        if task is not None and name in topology.clusters:
            forward(name, exact=f"{TASK_PREFIX}{task[1]}/{name}")
    for task_id, name in topology.tasks.items():
        forward(name, prefix=f"{TASK_PREFIX}{task_id}/")
    for pattern in ({"exact": SOLE}, {"prefix": TASK_PREFIX}):
        route = host.routes.add(name="nobody")
        route.match.prefix = "/"
        match_cluster(route, **pattern)
        ask_controller(route)


def _lead_to(route: route_components_pb2.Route, key: str) -> None:
    """Send calls to a key of the topology's clusters."""
    route.route.cluster = MODEL_PREFIX + key
    mark_model(route, re.split("[:@]", key)[0])
