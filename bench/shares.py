"""A backend and one three times as fast: how much of both together comes through the gateway.

    python -m bench shares [--rounds 3] [--seconds 10] [--json FILE]

Both wait on timers, so that what they can do is known and the machine has no part in it. A closed
loop with more callers than both have slots takes what there is: from each alone, from both
through the gateway after it has had time to see them, and from both through Envoy's plain round
robin. Shares are of the attempts in the measured time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, proxies
from bench.backends import Kind, Node, nodes
from bench.messages import METHOD, MODEL, infer_message
from bench.proxies import Proxy
from tidegate.load.driver import Result
from tidegate.load.generator import grpc_load

_CONNECTIONS = 4
_FASTER = 3


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave, in calls per second."""

    slow: float
    """The slow backend alone."""
    fast: float
    together: dict[str, float]
    """By proxy."""
    ratios: dict[str, float]
    """How many times as many calls the fast backend got as the slow one, by proxy."""
    p99: dict[str, float]
    """Milliseconds."""

    def part(self, proxy: str) -> float:
        """Return what came through a proxy as a part of the sum of both alone."""
        return self.together[proxy] / (self.slow + self.fast)


async def load(target: str, callers: int, seconds: float, warm_up: float) -> Result:
    """Take what there is.

    Raises:
        SystemExit: a call failed.
    """
    result = await grpc_load(
        target, METHOD, infer_message(), connections=_CONNECTIONS,
        in_flight=callers // _CONNECTIONS, seconds=seconds, warm_up=warm_up,
    )  # fmt: skip
    if result.failed or not result.ok:
        raise SystemExit(f"{target}: {result}\n{result.failures[:3]}")
    return result


@contextlib.asynccontextmanager
async def both(found: Mapping[str, Node], folder: Path) -> AsyncIterator[dict[str, Proxy]]:
    """Run the proxies under comparison."""
    addresses = [node.address for node in found.values()]
    config = {"models": {MODEL: {"endpoints": list(addresses)}}}
    async with (
        proxies.envoy(addresses, folder / "envoy") as plain,
        proxies.gateway(config, folder / "gateway", wait_for=[MODEL]) as ours,
    ):
        yield {"round robin": plain, "gateway": ours}


async def measure(
    found: Mapping[str, Node], running: Mapping[str, Proxy], given: argparse.Namespace
) -> Round:
    """Run one round."""
    slow, fast = found.values()
    alone = [
        (await load(node.address, given.callers, given.seconds / 2, 0.5)).rate
        for node in (slow, fast)
    ]
    together, ratios, p99 = {}, {}, {}
    for name, proxy in running.items():
        # The weights are found in the warm-up; what is seen there does not count.
        await load(proxy.target, given.callers, given.settle, 0.0)
        before = await proxy.counted()
        result = await load(proxy.target, given.callers, given.seconds, 0.0)
        after = await proxy.counted()
        sent = {where: after[where]["rq_total"] - before[where]["rq_total"] for where in after}
        together[name] = result.rate
        ratios[name] = sent[fast.address] / max(1, sent[slow.address])
        p99[name] = result.latency(99)
    return Round(alone[0], alone[1], together, ratios, p99)


def show(console: Console, rounds: Sequence[Round]) -> None:
    """Print the table; each figure is the median of the rounds."""
    middle = statistics.median
    slow, fast = middle(one.slow for one in rounds), middle(one.fast for one in rounds)
    table = Table(title=f"alone {slow:,.0f}/s and {fast:,.0f}/s; together:")
    for heading in ("", "calls/s", "of the sum", "fast : slow", "p99 ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in rounds[0].together:
        table.add_row(
            name,
            f"{middle(one.together[name] for one in rounds):,.0f}",
            f"{middle(one.part(name) for one in rounds):.3f}",
            f"{middle(one.ratios[name] for one in rounds):.2f}",
            f"{middle(one.p99[name] for one in rounds):.0f}",
        )
    console.print(table)


async def run(given: argparse.Namespace) -> int:
    """Measure, print and write."""
    machine = hardware.describe()
    kinds = {
        "slow": Kind(given.service_ms * _FASTER, given.slots),
        "fast": Kind(given.service_ms, given.slots),
    }
    with tempfile.TemporaryDirectory(prefix="tg-") as folder:
        async with nodes(kinds) as found, both(found, Path(folder)) as running:
            rounds = [await measure(found, running, given) for _ in range(given.rounds)]
    console = Console()
    show(console, rounds)
    if given.json:
        document = {
            "machine": machine,
            "callers": given.callers,
            "slots": given.slots,
            "service ms": {name: kind.service_ms for name, kind in kinds.items()},
            "rounds": [asdict(one) for one in rounds],
        }
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench shares", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds before it")
    parser.add_argument("--callers", type=int, default=64, help="of the closed loop")
    parser.add_argument("--slots", type=int, default=8, help="of each backend")
    parser.add_argument("--service-ms", type=float, default=10.0, help="of the fast backend")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
