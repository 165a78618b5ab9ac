"""Loads on a server: how many calls it answers, how fast, and with which codes.

In a closed loop each of ``connections`` times ``in_flight`` callers makes its next call as soon as
it has the answer to the last one. With ``times`` the loop is open: the calls are sent when they
are due. Both run best in a uvloop loop.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence

from tidegate.errors import ConfigurationError
from tidegate.load.arrivals import Times
from tidegate.load.driver import Check, Driver, Result
from tidegate.load.http1 import connect_rest, encode_request
from tidegate.load.http2 import connect_grpc
from tidegate.load.paced import PacedDriver
from tidegate.load.request_fields import Plan


async def grpc_load(
    target: str,
    path: str,
    message: bytes | Sequence[bytes],
    *,
    connections: int,
    in_flight: int,
    calls: int | None = None,
    seconds: float | None = None,
    until: asyncio.Event | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: Check | None = None,
    warm_up: float = 0.0,
    times: Times | None = None,
) -> Result:
    """Call a unary gRPC method over HTTP/2 without TLS until one of the ends is reached.

    Args:
        target: ``host:port``.
        path: ``/package.Service/Method``.
        message: the request's bytes; of several, calls take turns.
        connections: connections open at a time; a lost one is replaced.
        in_flight: concurrent calls on each.
        calls: the number of calls to make.
        seconds: when to start no more calls, after the warm-up.
        until: an event that says the same.
        headers: metadata of every call (``grpc-timeout`` for instance).
        timeout: seconds after which a call is cancelled and counted as DEADLINE_EXCEEDED.
        check: gets the message of each success; ``False`` counts it as ``WRONG``.
        warm_up: seconds at the start of which nothing counts.
        times: of an open loop: when calls are due, seconds after the start, ascending. It
            takes ``seconds``, and neither ``calls`` nor ``until``.

    A caller without a connection fails with UNAVAILABLE at every attempt to connect, which
    come 20 to 250 ms apart. Calls under way when the end comes are waited for.
    """
    host, port = split_target(target)
    messages = [message] if isinstance(message, bytes) else list(message)
    plan = Plan.of(target, path, messages, headers or {})
    driver = _driver(calls, len(messages), check, warm_up, times)
    connect = functools.partial(connect_grpc, host, port, plan)
    return await driver.run(connect, connections, in_flight, seconds, until, timeout)


async def rest_load(
    target: str,
    path: str,
    body: bytes | Sequence[bytes],
    *,
    connections: int,
    calls: int | None = None,
    seconds: float | None = None,
    until: asyncio.Event | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: Check | None = None,
    warm_up: float = 0.0,
    times: Times | None = None,
    method: str = "POST",
) -> Result:
    """Make HTTP/1.1 requests over kept connections, one at a time on each.

    The arguments are those of :func:`grpc_load`; codes are statuses ('200'), and those of
    calls without one are ``DISCONNECTED``, ``UNAVAILABLE`` (no connection) and
    ``DEADLINE_EXCEEDED``. ``check`` gets the body of each 2xx response.
    """
    host, port = split_target(target)
    bodies = [body] if isinstance(body, bytes) else list(body)
    requests = [encode_request(method, target, path, one, headers or {}) for one in bodies]
    driver = _driver(calls, len(bodies), check, warm_up, times)
    connect = functools.partial(connect_rest, host, port, requests)
    return await driver.run(connect, connections, 1, seconds, until, timeout)


def _driver(
    calls: int | None, messages: int, check: Check | None, warm_up: float, times: Times | None
) -> Driver:
    if times is None:
        return Driver(calls, messages, check, warm_up)
    return PacedDriver(times, messages, check, warm_up)


def split_target(target: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 address has brackets around it.

    Raises:
        ConfigurationError: it is something else.
    """
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigurationError(
            f"the target {target!r} is not of the form HOST:PORT, as 127.0.0.1:8000"
        )
    return host.strip("[]"), int(port)
