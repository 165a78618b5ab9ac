"""Clients in direct mode, and machines that they call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.client.fake_gateway import Node
from tidegate import AsyncClient, Client

X = {"x": np.ones((1, 4), np.float32)}


class Both:
    """One client of either kind, called alike."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        make = AsyncClient if self._loop else Client
        self.client: Any = make(url, direct=True, timeout=20, **options)

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Make one call."""
        if self._loop is None:
            return call(self.client)

        async def awaited() -> Any:
            return await call(self.client)

        return self._loop.run_until_complete(awaited())

    def infer(self, model: str = "m", **options: Any) -> Any:
        """Run a model once."""
        return self.run(lambda client: client.infer(model, X, **options))

    def close(self) -> None:
        """End."""
        self.run(lambda client: client.close())
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(params=["blocking", "async"])
def direct(request: pytest.FixtureRequest) -> Iterator[Callable[..., Both]]:
    """Makes clients in direct mode."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> Both:
            client = Both(request.param, url, **options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Three machines."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Node()) for _ in range(3)]
