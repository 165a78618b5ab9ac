"""Three backends behind the gateway, one of them sick: what the callers notice, and how long.

    python -m bench faults [--faults kill blackhole slow flap] [--json FILE]

An open loop of calls is due at a fixed rate, whatever happens. At second 5 one backend falls ill,
at second 13 it is well again. Each fault has a gateway of its own, so that every one is the first.
What is judged: calls that failed, against those that the sick backend had in flight at the fault;
seconds until p99 is normal again (at most twice what it was, or 10 ms more); seconds until the
backend's share of the attempts stays below 1 %; seconds from healing to nine tenths of its fair
share. ``--front envoy`` measures a bare Envoy with a retry, health checks and outlier detection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench import hardware, proxies
from bench.backends import Kind, Node, nodes
from bench.balancing_plot import draw
from bench.messages import METHOD, MODEL, infer_message
from bench.proxies import Proxy
from bench.recording import Recording
from bench.timeline import to_attempts
from bench.verdicts import HEADINGS, PERIOD, SICK, Seen, rows, timeline, verdict
from tidegate.load.arrivals import PATTERNS

_TIMES = (5.0, 13.0, 21.0)
"""Of the fault, the healing and the end: seconds after the beginning of the load."""
_FLAPPING = (5.0, 21.0, 31.0)
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Fault:
    """How a backend falls ill and is healed."""

    about: str
    begin: Callable[[Node], Awaitable[object]]
    end: Callable[[Node], Awaitable[object]]


def _told(fault: str, well: str = "well") -> tuple[Callable[[Node], Awaitable[object]], ...]:
    return (lambda node: node.tell(fault), lambda node: node.tell(well))


async def _cut(node: Node) -> None:
    if node.can_be_cut:
        node.cut()
    else:
        node.freeze()


async def _join(node: Node) -> None:
    if node.can_be_cut:
        node.join()
    else:
        node.thaw()


async def _freeze(node: Node) -> None:
    node.freeze()


async def _thaw(node: Node) -> None:
    node.thaw()


FAULTS: Mapping[str, Fault] = {
    "kill": Fault("killed (SIGKILL), and started again", Node.kill, Node.start),
    "blackhole": Fault("every packet to and from it is dropped", _cut, _join),
    "slow": Fault("ten times as slow", *_told("slow 10")),
    "flap": Fault("down for a second, up for a second", *_told("down", "up")),
    "freeze": Fault("stopped (SIGSTOP)", _freeze, _thaw),
    "silent": Fault("takes calls and answers nothing", *_told("silent")),
    "mute": Fault("answers nothing but that it is healthy", *_told("mute")),
    "error": Fault("answers UNAVAILABLE to everything", *_told("error")),
    "reset": Fault("breaks the connection in the middle of answers", *_told("reset")),
    "garbage": Fault("answers what is not HTTP", *_told("garbage")),
}


class Watch:
    """Looks at a proxy's counters again and again."""

    def __init__(self, proxy: Proxy, names: Mapping[str, str], load: Recording) -> None:
        self._proxy = proxy
        self._names = names
        self._load = load
        self.times: list[float] = []
        self.looks: list[dict[str, dict[str, int]]] = []

    async def look(self) -> dict[str, dict[str, int]]:
        """Return the counters now, by the backends' names."""
        counted = await self._proxy.counted()
        self.times.append(self._load.elapsed)
        self.looks.append(
            {self._names[where]: seen for where, seen in counted.items() if where in self._names}
        )
        return self.looks[-1]

    async def run(self) -> None:
        """Look every tenth of a second."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK)


async def observe(
    name: str, proxy: Proxy, found: Mapping[str, Node], given: argparse.Namespace
) -> Seen:
    """Run the load, the fault and the healing."""
    fault, sick = FAULTS[name], found[SICK]
    flaps = name == "flap"
    began, healed, ended = (at * given.scale for at in (_FLAPPING if flaps else _TIMES))
    times = PATTERNS["poisson"](given.rate, ended)
    names = {node.address: node.name for node in found.values()}
    load = Recording(proxy.target, METHOD, [infer_message()], times, deadline=given.deadline)
    async with load:
        watch = Watch(proxy, names, load)
        looking = asyncio.create_task(watch.run())
        try:
            await load.until(began)
            in_flight = (await watch.look()).get(SICK, {}).get("rq_active", 0)
            began = load.elapsed
            if flaps:
                healing = healed = await _flap(fault, sick, load, began, healed)
            else:
                await fault.begin(sick)
                await load.until(healed)
                healing = load.elapsed
                await fault.end(sick)
                healed = load.elapsed
            await load.until(ended)
            await watch.look()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
    attempts = to_attempts(*_in_order(watch))
    words = tuple(dict.fromkeys(f"{f.code}: {f.message}" for f in load.recorder.result.failures))
    calls = load.recorder.calls()
    return Seen(name, calls, attempts, in_flight, began, healing, healed, ended, words)


def _in_order(watch: Watch) -> tuple[list[float], list[dict[str, dict[str, int]]]]:
    order = sorted(range(len(watch.times)), key=watch.times.__getitem__)
    return [watch.times[i] for i in order], [watch.looks[i] for i in order]


async def _flap(fault: Fault, sick: Node, load: Recording, began: float, until: float) -> float:
    at = began
    while at < until - PERIOD / 4:
        await fault.begin(sick)
        await load.until(at + PERIOD / 2)
        await fault.end(sick)
        at += PERIOD
        await load.until(min(at, until))
    return at - PERIOD / 2


@contextlib.asynccontextmanager
async def front(
    name: str, found: Mapping[str, Node], folder: Path, given: argparse.Namespace
) -> AsyncIterator[Proxy]:
    """Run the gateway, or what stands in for it."""
    addresses = [node.address for node in found.values()]
    if name == "envoy":
        async with proxies.envoy(addresses, folder, protected=True) as proxy:
            yield proxy
        return
    model = {
        "endpoints": [{"address": address} for address in addresses],
        "per_try_timeout": f"{given.per_try:g}s",
    }
    async with proxies.gateway({"models": {MODEL: model}}, folder, wait_for=[MODEL]) as proxy:
        yield proxy


async def run(given: argparse.Namespace) -> int:
    """Go through the faults."""
    console = Console(stderr=True)
    machine = hardware.describe()
    kind = Kind(given.service_ms, given.slots)
    told: dict[str, Any] = {}
    spaces = False
    for name in given.faults:
        with tempfile.TemporaryDirectory(prefix="tg-") as folder:
            async with (
                nodes(dict.fromkeys("abc", kind), namespaces=True) as found,
                front(given.front, found, Path(folder), given) as proxy,
            ):
                spaces = found[SICK].can_be_cut
                seen = await observe(name, proxy, found, given)
        judged = verdict(seen, given.deadline)
        told[name] = {**judged, "timeline": timeline(seen)}
        told[name] |= {"began": round(seen.began, 3), "healed": round(seen.healed, 3)}
        console.print(f"{name}: {json.dumps(judged)}")
    document = {
        "machine": machine,
        "front": given.front,
        "rate": given.rate,
        "deadline": given.deadline,
        "per try": given.per_try,
        "service ms": given.service_ms,
        "namespaces": spaces,
        "faults": told,
    }
    show(document)
    if given.json:
        given.json.write_text(json.dumps(document) + "\n")
    if given.plot:
        draw(given.plot, document)
    return 0


def show(document: Mapping[str, Any]) -> None:
    """Print the table."""
    console = Console()
    deadline, per_try = (f"{document[key]:g} s" for key in ("deadline", "per try"))
    table = Table(
        title=f"three backends behind {document['front']}, {document['rate']:g} calls/s, deadline "
        f"{deadline}, {per_try} for a try; * does not hold"
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for row in rows(document["faults"]):
        table.add_row(*row)
    console.print(table)
    if not document["namespaces"]:
        console.print("no network namespaces here: the blackhole is a stopped process")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument(
        "--faults", nargs="+", choices=tuple(FAULTS), default=list(FAULTS), metavar="FAULT",
        help=", ".join(f"{name} ({fault.about})" for name, fault in FAULTS.items()),
    )  # fmt: skip
    parser.add_argument("--front", choices=("gateway", "envoy"), default="gateway")
    parser.add_argument("--rate", type=float, default=1000.0, help="calls a second")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds, of each call")
    parser.add_argument("--per-try", type=float, default=0.5, help="seconds that a try may take")
    parser.add_argument("--service-ms", type=float, default=20.0, help="of a backend")
    parser.add_argument("--slots", type=int, default=64, help="of a backend")
    parser.add_argument("--scale", type=float, default=1.0, help="of the time that all this takes")
    parser.add_argument("--json", type=Path, help="write all of it there")
    parser.add_argument("--plot", type=Path, help="draw shares over time there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
