"""What the gateway costs: it, a bare Envoy, nginx, HAProxy and a Python proxy, one core each.

    python -m bench gateway [--rounds 5] [--seconds 2] [--json FILE]

600-byte unary calls to backends that answer at once; the same load for all, in turns within one
run, every figure the median of the rounds. A proxy has one worker thread, and one core for all
its processes and threads (the gateway's controller, gRPC's pollers); the load and the backends
have the others. So it does not matter where the system puts whom. The bare Envoy has a static
round robin cluster and nothing else: no routing on the model, no retries, no health checks. nginx
has ``grpc_pass``. A gateway of one model does not read the calls; after it comes one of three
models, which finds the model's name in each, beside a bare Envoy again. Then messages of 64 MiB
through each of both gateways, and the memory of its Envoy under a hundred of them at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, proxies
from bench.backends import Kind, nodes
from bench.large import large
from bench.messages import METHOD, MODEL, infer_message
from bench.proxies import Proxy
from tidegate.load.generator import grpc_load

_WARM_UP = 1.0
_SIZES = {"max_message_size": "64MiB"}
_WIDTH = 120
_SEVERAL = (MODEL, "b", "c")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one proxy gave."""

    rate: float
    """Calls per second."""
    p50: float
    """Milliseconds."""
    p99: float
    cpu: float
    """Microseconds of the proxy's CPU time per call, all its processes."""


async def measure(proxy: Proxy, given: argparse.Namespace, seconds: float) -> Round:
    """Drive a proxy for one round.

    Raises:
        SystemExit: a call failed.
    """
    before = proxy.server.cpu_seconds()
    result = await grpc_load(
        proxy.target, METHOD, infer_message(600), connections=given.connections,
        in_flight=given.in_flight, seconds=seconds,
    )  # fmt: skip
    cpu = proxy.server.cpu_seconds() - before
    if result.failed or not result.ok:
        raise SystemExit(f"{proxy.server.name}: {result}\n{result.failures[:3]}")
    return Round(result.rate, result.latency(50), result.latency(99), cpu / result.ok * 1e6)


@contextlib.asynccontextmanager
async def contestants(
    addresses: Sequence[str], folder: Path, models: Sequence[str], against: Sequence[str]
) -> AsyncIterator[list[Proxy]]:
    """Run a gateway of these models, and all others that are installed."""
    config: dict[str, Any] = {
        "models": {model: {"endpoints": list(addresses)} for model in models},
        **_SIZES,
    }
    name = "tidegate gateway" + (f", {len(models)} models" if len(models) > 1 else "")
    async with contextlib.AsyncExitStack() as stack:
        run = proxies.gateway(config, folder / "gateway", wait_for=models, name=name)
        started = [await stack.enter_async_context(run)]
        for name in against:
            if proxies.installed(name):
                other = proxies.STATIC[name](addresses, folder / name)
                started.append(await stack.enter_async_context(other))
            else:
                Console(stderr=True).print(f"{name} is not installed: left out")
        yield started


async def compare(running: Sequence[Proxy], given: argparse.Namespace) -> dict[str, list[Round]]:
    """Return the rounds by proxy; the proxies take turns."""
    console = Console(stderr=True)
    found: dict[str, list[Round]] = {proxy.server.name: [] for proxy in running}
    for proxy in running:
        await measure(proxy, given, min(given.seconds, _WARM_UP))
    for number in range(given.rounds):
        # Each round begins with another one, so that none always runs after the same.
        first = number % len(running)
        for proxy in (*running[first:], *running[:first]):
            found[proxy.server.name].append(await measure(proxy, given, given.seconds))
        rates = (f"{name} {done[-1].rate:,.0f}/s" for name, done in found.items())
        console.print(f"round {number + 1} of {given.rounds}: {', '.join(rates)}")
    return found


def median(rounds: Sequence[Round]) -> Round:
    """Return the median of each figure by itself."""
    columns = zip(*(asdict(one).values() for one in rounds), strict=True)
    return Round(*(statistics.median(column) for column in columns))


def busy(rounds: Sequence[Round]) -> float:
    """Return how much of a core a proxy took: one that took little was held up by the others."""
    return statistics.median(one.rate * one.cpu * 1e-6 for one in rounds)


def ratio(ours: Sequence[Round], theirs: Sequence[Round]) -> float:
    """Return how many times as many calls ours answered: the median of the rounds' ratios."""
    return statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True))


def show(console: Console, found: dict[str, list[Round]], given: argparse.Namespace) -> None:
    """Print the table."""
    subject = next(iter(found))
    table = Table(
        title=f"600-byte unary gRPC, one core each, {given.connections} connections x "
        f"{given.in_flight} in flight"
    )
    for heading in ("proxy", "calls/s", "lowest", "highest", "p50 ms", "p99 ms", "CPU us/call",
                    "of a core", f"{subject} is faster by"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "proxy" else "right")
    for name, rounds in found.items():
        middle, rates = median(rounds), [one.rate for one in rounds]
        table.add_row(
            name,
            *(f"{rate:,.0f}" for rate in (middle.rate, min(rates), max(rates))),
            *(f"{value:.2f}" for value in (middle.p50, middle.p99)),
            f"{middle.cpu:.1f}",
            f"{busy(rounds):.2f}",
            "" if name == subject else f"{ratio(found[subject], rounds):.2f}",
        )
    console.print(table)


async def run(given: argparse.Namespace) -> int:
    """Start the proxies, compare them, print and write the figures."""
    machine = hardware.describe()
    kinds = {f"backend-{index}": Kind() for index in range(given.backends)}
    cores = [] if given.anywhere else hardware.cores()
    own, others = (cores[:1], cores[1:]) if len(cores) > 1 else ([], [])
    figures, sizes = [], []
    with hardware.confined(others):
        async with nodes(kinds) as found:
            addresses = [node.address for node in found.values()]
            for models in (MODEL,), _SEVERAL:
                against = [n for n in given.against if len(models) == 1 or n == "envoy"]
                async with contextlib.AsyncExitStack() as stack:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg-")))
                    with hardware.confined(own):
                        running = await stack.enter_async_context(
                            contestants(addresses, folder, models, against)
                        )
                    figures.append(await compare(running, given))
                    gateway = running[0]
                    for count in given.large:
                        size = await large(gateway, count)
                        sizes.append({"proxy": gateway.server.name, **size})
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in figures:
        show(console, table, given)
    for size in sizes:
        console.print(f"64 MiB: {size}")
    if given.json:
        one, several = (
            {name: [asdict(one) for one in done] for name, done in table.items()}
            for table in figures
        )
        load = f"{given.connections} x {given.in_flight}"
        told = {"machine": machine, "load": load, "rounds": one, "several": several}
        given.json.write_text(json.dumps({**told, "large": sizes}, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=16, help="on each connection")
    parser.add_argument("--backends", type=int, default=2)
    parser.add_argument(
        "--against", nargs="*", choices=tuple(proxies.STATIC), default=list(proxies.STATIC)
    )
    parser.add_argument(
        "--large", nargs="*", type=int, default=[1, 100], metavar="N",
        help="so many messages of 64 MiB at once",
    )  # fmt: skip
    parser.add_argument(
        "--anywhere", action="store_true", help="let the system choose the cores of all"
    )
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
