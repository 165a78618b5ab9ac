"""The names by which the parts of the edge's configuration refer to each other."""

from __future__ import annotations

MODEL_PREFIX = "model/"
"""Before the name of the cluster of a model: ``model/digits`` or ``model/digits:2``."""
SOLE = "sole/"
"""Stands for the cluster of the only model, when a call names none."""
TASK_PREFIX = "task/"
"""Before a task's id, a slash and the model's name if that ends with it: ``task/69/ocr-69``."""
CONTROLLER_CLUSTER = "tidegate/controller"
XDS_CLUSTER = "tidegate/xds"
LISTENER = "tidegate/clients"
ROUTES = "tidegate/routes"
ROUTING_FILTER = "envoy.filters.http.lua"

CLUSTER_HEADER = "x-tidegate-cluster"
"""Names the cluster that answers; set by the routing script, dropped from what clients send."""
REFUSED_HEADER = "x-tidegate-refused"
"""On a request that the routing script has answered itself, with words of its own."""
ORIGIN_HEADER = "x-tidegate-origin"
"""The site whose page calls, if it is one that may; set by the routing script."""
