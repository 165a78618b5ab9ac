"""Closed-loop load: how many calls a server answers, how fast, and with which codes.

Each of ``connections`` times ``in_flight`` callers makes its next call as soon as it has the
answer to the last one. Run it in a uvloop loop, or as a process of its own::

    python -m bench.load 127.0.0.1:8000 /inference.GRPCInferenceService/ModelInfer --body FILE
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench._driver import Check, Driver, Failure, Result
from bench._http1 import connect_rest, encode_request
from bench._http2 import connect_grpc
from bench._plan import Plan

__all__ = ["Failure", "Result", "grpc_load", "rest_load"]


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
) -> Result:
    """Call a unary gRPC method over HTTP/2 without TLS until one of the ends is reached.

    Args:
        target: ``host:port``.
        path: ``/package.Service/Method``.
        message: the request's bytes; of several, calls take turns.
        connections: connections open at a time; a lost one is replaced.
        in_flight: concurrent calls on each.
        calls: the number of calls to make.
        seconds: when to start no more calls.
        until: an event that says the same.
        headers: metadata of every call (``grpc-timeout`` for instance).
        timeout: seconds after which a call is cancelled and counted as DEADLINE_EXCEEDED.
        check: gets the message of each success; ``False`` counts it as ``WRONG``.

    A caller without a connection fails with UNAVAILABLE at every attempt to connect, which
    come 20 to 250 ms apart. Calls under way when the end comes are waited for.
    """
    host, port = _split(target)
    messages = [message] if isinstance(message, bytes) else list(message)
    plan = Plan.of(target, path, messages, headers or {})
    driver = Driver(calls, len(messages), check)
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
    method: str = "POST",
) -> Result:
    """Make HTTP/1.1 requests over kept connections, one at a time on each.

    The arguments are those of :func:`grpc_load`; codes are statuses ('200'), and those of
    calls without one are ``DISCONNECTED``, ``UNAVAILABLE`` (no connection) and
    ``DEADLINE_EXCEEDED``. ``check`` gets the body of each 2xx response.
    """
    host, port = _split(target)
    bodies = [body] if isinstance(body, bytes) else list(body)
    requests = [encode_request(method, target, path, one, headers or {}) for one in bodies]
    driver = Driver(calls, len(bodies), check)
    connect = functools.partial(connect_rest, host, port, requests)
    return await driver.run(connect, connections, 1, seconds, until, timeout)


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"the target {target!r} is not of the form host:port")
    return host.strip("[]"), int(port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one load from the command line; the exit status is 1 if any call failed."""
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("target", help="host:port")
    parser.add_argument("path", help="/package.Service/Method, or a URL path with --rest")
    parser.add_argument("--body", type=Path, help="file with the request message (default: empty)")
    parser.add_argument("--rest", action="store_true", help="HTTP/1.1 instead of gRPC")
    parser.add_argument("-c", "--connections", type=int, default=8)
    parser.add_argument("-m", "--in-flight", type=int, default=8, help="per connection (gRPC)")
    parser.add_argument("-n", "--calls", type=int)
    parser.add_argument("-s", "--seconds", type=float)
    parser.add_argument("-t", "--timeout", type=float, help="seconds for each call")
    parser.add_argument("-H", "--header", action="append", default=[], metavar="NAME:VALUE")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args(arguments)
    if given.calls is None and given.seconds is None:
        given.seconds = 5.0
    headers = dict(pair.split(":", 1) for pair in given.header)
    body = given.body.read_bytes() if given.body else b""
    ends = {"calls": given.calls, "seconds": given.seconds, "timeout": given.timeout}
    common = {"connections": given.connections, "headers": headers, **ends}
    if given.rest:
        load = rest_load(given.target, given.path, body, **common)
    else:
        load = grpc_load(given.target, given.path, body, in_flight=given.in_flight, **common)
    result = uvloop.run(load)
    print(json.dumps(figures(result)) if given.json else result)
    for failure in result.failures:
        print(f"{failure.offset:8.3f} s  {failure.code}  {failure.message}", file=sys.stderr)
    return 1 if result.failed else 0


def figures(result: Result) -> dict[str, object]:
    """Return a result as JSON can hold it."""
    return {
        "calls": result.calls,
        "ok": result.ok,
        "codes": dict(result.codes),
        "seconds": round(result.seconds, 6),
        "rate": round(result.rate, 1),
        "refused": result.refused,
        "connections": result.connections,
        "latency_ms": {
            name: round(result.latency(at), 4)
            for name, at in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
        },
    }


if __name__ == "__main__":
    sys.exit(main())
