"""Any gRPC method or URL under load, with a request from a file.

    python -m bench.load 127.0.0.1:8000 /inference.GRPCInferenceService/ModelInfer --body FILE

``tidegate bench`` makes the requests itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load, rest_load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one load from the command line; the exit status is 1 if any call failed."""
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
