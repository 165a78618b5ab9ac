"""Clients of the node that a module serves by its fixture ``node``."""

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.http

from tests.node.harness import ServedNode


@pytest.fixture
def http(node: ServedNode) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(node.target, network_timeout=60) as client:
        yield client


@pytest.fixture
def rpc(node: ServedNode) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(node.target) as client:
        yield client
