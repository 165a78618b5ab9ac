"""TCP ports for what tests start."""

from __future__ import annotations

import functools
import itertools
import os
import random
import socket
from collections.abc import Iterator

# Below those that a system gives to whoever asks for any port: one that was free a moment ago
# would be taken by then now and again, with tests running beside each other.
_LOWEST, _HIGHEST = 12_000, 32_000


def free_port() -> int:
    """A TCP port that nobody has; another one each time, and for each of pytest's workers."""
    for port in _own():
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the ports go round")


@functools.cache
def _own() -> Iterator[int]:
    """The ports of this worker, in any order, again and again."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = list(range(_LOWEST + number, _HIGHEST, workers))
    random.Random().shuffle(ports)  # somebody else may run these tests at the same time
    return itertools.cycle(ports)
