"""What a client in direct mode knows of one model, and when it is to ask the gateway again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from tidegate.balancing.policy import BalancingPolicy
from tidegate.client.connection import Connection
from tidegate.client.endpoint_connections import EndpointConnections
from tidegate.client.pool import Pool
from tidegate.errors import (
    ConnectionLost,
    DeadlineExceeded,
    MethodNotFound,
    ModelNotFound,
    PermissionDenied,
    ServerUnreachable,
    TidegateError,
    Unauthenticated,
    Unsupported,
)
from tidegate.protocols.open_inference.endpoints import ModelEndpoint, ModelEndpoints

_log = logging.getLogger(__name__)

GRACE = 30.0
"""Seconds for which known endpoints are called on although the gateway says that there are none.

A gateway that was started anew may not have heard of its nodes yet.
"""
SHORTEST_TTL, _LONGEST_TTL = 1.0, 3600.0
_THROUGH_TTL = 5.0
"""Seconds for which a model without endpoints is called by way of the gateway."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
MOST_ENDPOINTS = 100
"""Of one priority and with the same versions, that a client uses."""
_OUTDATED_WAIT = 1.0
"""Seconds for which a call waits for news, when what is known has outlived its time."""


class KnownModel:
    """The endpoints of a model, from the gateway's last good answer; pure.

    ``learned`` says that there was one, ``problem`` why there was none the last time.
    Without endpoints, a model is called by way of the gateway. ``early`` is the part of the usual
    time after which it is asked again: each client has its own, so that many do not ask together.
    """

    def __init__(
        self,
        name: str,
        connections: EndpointConnections,
        policy: BalancingPolicy,
        now: float,
        early: float = 1.0,
    ) -> None:
        self.name = name
        self.pool = Pool(policy, now)
        self.reached: dict[str, Connection] = {}
        """The connections to endpoints, by address."""
        self.learned = False
        self.problem: TidegateError | None = None
        self._connections = connections
        self._early = early
        self._asked = self._ask_at = self._expires = now
        self._pause = _FIRST_PAUSE
        self._emptied: float | None = None

    def waiting_for(self, timeout: float, now: float) -> float | None:
        """Return how long a call waits for the gateway to be asked; ``None``: it need not be."""
        if not self.learned:
            return timeout
        if now < self._ask_at:
            return None
        self._ask_at = now + _FIRST_PAUSE
        outdated = now >= self._expires and self.problem is None
        return min(timeout, _OUTDATED_WAIT) if outdated else 0.0

    def asking(self, now: float) -> None:
        """The gateway is being asked."""
        self._asked = now

    def doubted(self, now: float) -> None:
        """An endpoint does not know the model: the gateway may know better by now."""
        self._ask_at = min(self._ask_at, max(now, self._asked + SHORTEST_TTL))

    def told(self, found: ModelEndpoints, order: Sequence[ModelEndpoint], now: float) -> None:
        """Take the gateway's answer; ``order`` has its endpoints in the order to begin with."""
        if not order and self._grace(now):
            return
        usable = [e for e in order if e.weight > 0 and self._connections.place(e) is not None]
        if order and not usable:
            _log.warning(
                "none of the %d endpoints of model %r can be called directly by this client; "
                "its calls go by way of the gateway", len(order), self.name,
            )  # fmt: skip
        self._take(_some_of(usable), now)
        self._fresh(min(max(found.ttl_ms / 1000, SHORTEST_TTL), _LONGEST_TTL), now)

    def not_told(self, error: TidegateError, now: float) -> None:
        """Go on with what is known, unless the gateway says that it is over."""
        if isinstance(error, Unauthenticated | PermissionDenied):
            self.learned, self.problem = False, error
            return
        if isinstance(error, ModelNotFound | MethodNotFound | Unsupported):
            if not self._grace(now):
                self._take((), now)
                self._fresh(_THROUGH_TTL, now)
            return
        away = isinstance(error, ServerUnreachable | ConnectionLost | DeadlineExceeded)
        if not self.learned and not away:
            # Its edge may well take calls while its controller does not answer.
            self._fresh(_THROUGH_TTL, now)
        elif self.learned and self.problem is None:
            _log.warning("the endpoints of model %r stay as they were: %s", self.name, error)
        self.problem = error
        self._ask_at = now + self._pause * self._early
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def leave(self, now: float) -> None:
        """Need no connection any more; calls that still come go by way of the gateway."""
        self._take((), now)

    def _take(self, endpoints: Sequence[ModelEndpoint], now: float) -> None:
        before = list(self.reached.values())
        self.reached = {e.address: self._connections.hold(e) for e in endpoints}
        for connection in before:
            self._connections.release(connection)
        self.pool.update(endpoints, now)

    def _grace(self, now: float) -> bool:
        """Whether to call known endpoints on although the gateway says that there are none."""
        if not self.reached:
            return False
        if self._emptied is None:
            self._emptied = now
            _log.warning("the gateway knows no endpoint of model %r any more", self.name)
        self.problem = None
        self._ask_at = now + _FIRST_PAUSE
        self._expires = max(self._expires, self._ask_at)
        return now < self._emptied + GRACE

    def _fresh(self, ttl: float, now: float) -> None:
        self.learned, self.problem, self._emptied = True, None, None
        self._pause = _FIRST_PAUSE
        self._ask_at, self._expires = now + ttl / 2 * self._early, now + ttl


def _some_of(endpoints: Sequence[ModelEndpoint]) -> list[ModelEndpoint]:
    """Return the first of very many: connections to all would be too many, on both sides.

    The rest is alike: each priority, and each set of versions, is as well served.
    """
    taken: Counter[tuple[int, frozenset[str] | None]] = Counter()
    found = []
    for endpoint in endpoints:
        kind = endpoint.priority, endpoint.versions
        if taken[kind] < MOST_ENDPOINTS:
            taken[kind] += 1
            found.append(endpoint)
    return found
