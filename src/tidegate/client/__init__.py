"""Calling models from Python: any server of the Open Inference Protocol v2, by HTTP or gRPC.

:class:`Client` blocks, :class:`AsyncClient` is awaited; both take the same steps. httpcore and
grpcio are imported with the first call that needs them.
"""

from __future__ import annotations

from tidegate.client.asynchronous import AsyncClient, AsyncModel
from tidegate.client.blocking import Client, Model
from tidegate.client.pool import EndpointState
from tidegate.client.result import InferResult

__all__ = ["AsyncClient", "AsyncModel", "Client", "EndpointState", "InferResult", "Model"]
