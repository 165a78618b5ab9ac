"""A gateway with 200 models of 100 endpoints each: what a change of gateway.yaml takes.

    python -m bench reload [--models 200] [--endpoints 100] [--rate 500] [--json FILE]

Every model has endpoints of its own, addresses of the loopback network behind which a few backends
listen, so that all 20,000 answer, are checked and can be called. While calls go to all models at
a fixed rate, gateway.yaml is edited again and again: the weights of all endpoints change and a
model comes, or goes. A reload has been made when the edge acts on it: a call of the new model is
answered, one of the old model is not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop
from rich.console import Console

from bench import hardware, proxies
from bench.backends import Kind, Node, nodes
from bench.messages import METHOD, infer_message
from bench.proxies import Proxy
from bench.recording import Recording
from tidegate.load.arrivals import PATTERNS
from tidegate.load.generator import grpc_load

_NEW = "newcomer"
_PATIENCE = 60.0
_AFTER = 3.0
"""Seconds after a reload in which what it costs is still seen."""
_POLL = 0.02
_FILES = 2**17
_IDLE = 3.0
"""Seconds after which backends close a connection; to all addresses there would be too many."""


@dataclass(frozen=True, slots=True)
class Reload:
    """One edit."""

    seconds: float
    """From the edit to when the edge acts on it."""
    cpu: float
    """Seconds of the controller's CPU time, until a little later."""
    what: str


def address(model: int, endpoint: int, port: int) -> str:
    """Return an address of the loopback network that no other endpoint has."""
    return f"127.{10 + model // 250}.{model % 250}.{1 + endpoint}:{port}"


def configuration(
    ports: Sequence[int], given: argparse.Namespace, weight: int, *, new: bool
) -> dict[str, Any]:
    """Return ``gateway.yaml``; every endpoint has ``weight``."""

    def model(index: int) -> dict[str, Any]:
        port = ports[index % len(ports)]
        endpoints = (address(index, e, port) for e in range(given.endpoints))
        return {"endpoints": [{"address": where, "weight": weight} for where in endpoints]}

    models = {name(index): model(index) for index in range(given.models)}
    if new:
        models[_NEW] = model(given.models)
    return {"models": models}


def name(index: int) -> str:
    """Return a model's name."""
    return f"model-{index:03}"


async def code_of(target: str, model: str) -> str:
    """Return the code of one call."""
    result = await grpc_load(
        target, METHOD, infer_message(64, model), connections=1, in_flight=1, calls=1, timeout=2.0
    )
    (code,) = result.codes
    return code


async def until(target: str, model: str, *, known: bool) -> None:
    """Wait until calls of a model are answered, or no more.

    Raises:
        TimeoutError: that takes too long.
    """
    async with asyncio.timeout(_PATIENCE):
        while (await code_of(target, model) == "OK") != known:  # noqa: ASYNC110 - elsewhere
            await asyncio.sleep(_POLL)


def cpu(process: psutil.Process) -> float:
    """Return the CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def edit(proxy: Proxy, path: Path, text: str, *, known: bool) -> Reload:
    """Write the file and wait until it holds."""
    assert proxy.controller is not None
    before = cpu(proxy.controller)
    start = time.monotonic()
    proxies.replace(path, text)
    await until(proxy.target, _NEW, known=known)
    took = time.monotonic() - start
    await asyncio.sleep(_AFTER)
    what = f"all weights change, a model {'comes' if known else 'goes'}"
    return Reload(took, cpu(proxy.controller) - before, what)


async def measure(
    proxy: Proxy, ports: Sequence[int], folder: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """Make calls all the time, rest, and edit."""
    assert proxy.controller is not None
    messages = [infer_message(600, name(index)) for index in range(given.models)]
    # Of every edit and what follows as much as can be, and the rest before.
    seconds = given.rest + given.edits * (_PATIENCE / 4 + _AFTER)
    times = PATTERNS["uniform"](given.rate, seconds)
    reloads: list[Reload] = []
    # Ready before the load begins, which would be held up by writing 20,000 lines.
    texts = [
        proxies.yaml_of(
            {**configuration(ports, given, 101 + number, new=number % 2 == 0), **proxy.own}
        )
        for number in range(given.edits)
    ]
    load = Recording(proxy.target, METHOD, messages, times, deadline=given.deadline, in_flight=250)
    async with load:
        await load.until(given.rest / 2)
        before, start = cpu(proxy.controller), time.monotonic()
        await load.until(given.rest)
        idle = (cpu(proxy.controller) - before) / (time.monotonic() - start)
        began = load.elapsed
        for number, text in enumerate(texts):
            reloads.append(await edit(proxy, folder / "gateway.yaml", text, known=number % 2 == 0))
        ended = load.elapsed
        load.stop()
    calls = load.recorder.calls()
    return {
        "controller at rest": round(idle, 4),
        "reloads": [asdict(one) for one in reloads],
        "controller in reloads": round(sum(one.cpu for one in reloads) / (ended - began), 4),
        "calls": len(calls.codes),
        "failed before": dict(calls.failures(0, began)),
        "failed in reloads": dict(calls.failures(began, ended + 1)),
        "words": [f"{each.code}: {each.message}" for each in load.recorder.result.failures],
        "p99 ms before": round(calls.percentile(99, 0, began), 2),
        "p99 ms in reloads": round(calls.percentile(99, began, ended), 2),
        "MiB controller": round(proxy.controller.memory_info().rss / 2**20),
        "MiB edge": round(proxy.rss() / 2**20),
    }


async def run(given: argparse.Namespace) -> int:
    """Start everything, measure, print and write."""
    _allow_files()
    machine = hardware.describe()
    kinds = {f"backend-{index}": Kind(idle=_IDLE) for index in range(given.backends)}
    with tempfile.TemporaryDirectory(prefix="tg-") as place:
        folder = Path(place)
        async with nodes(kinds, hosts=["0.0.0.0"]) as found:
            ports = [node.port for node in found.values()]
            config = configuration(ports, given, 100, new=False)
            start = time.monotonic()
            last = [name(0), name(given.models - 1)]
            async with proxies.gateway(config, folder, wait_for=last) as proxy:
                for index in range(given.models):
                    await until(proxy.target, name(index), known=True)
                ready = time.monotonic() - start
                told = await measure(proxy, ports, folder, given)
                told["backends"] = [await _counts(node) for node in found.values()]
    document = {
        "machine": machine,
        "models": given.models,
        "endpoints": given.endpoints,
        "rate": given.rate,
        "deadline": given.deadline,
        "ready after": round(ready, 2),
        **told,
    }
    show(document)
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


async def _counts(node: Node) -> dict[str, int]:
    counted: dict[str, int] = await node.tell("count")
    return counted


def _allow_files() -> None:
    """Let children have a connection or two to each of many endpoints."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else max(_FILES, most)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def show(document: dict[str, Any]) -> None:
    """Print what was found."""
    console = Console()
    console.print(
        f"{document['models']} models x {document['endpoints']} endpoints, "
        f"{document['rate']:g} calls/s; ready after {document['ready after']:.1f} s"
    )
    seconds = [one["seconds"] for one in document["reloads"]]
    console.print(
        f"reload {statistics.median(seconds):.2f} s in the median of {len(seconds)}, "
        f"{max(seconds):.2f} s at most; failed {sum(document['failed in reloads'].values())}"
    )
    console.print(
        f"controller {document['controller at rest']:.1%} of a core at rest, "
        f"{document['controller in reloads']:.1%} while reloading: "
        f"{statistics.median(one['cpu'] for one in document['reloads']):.2f} s for an edit"
    )
    console.print({k: v for k, v in document.items() if k not in ("machine", "reloads")})


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench reload", description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--endpoints", type=int, default=100, help="of each model")
    parser.add_argument("--rate", type=float, default=500.0, help="calls a second, to all models")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds, of each call")
    parser.add_argument("--rest", type=float, default=20.0, help="seconds before the first edit")
    parser.add_argument("--edits", type=int, default=6)
    parser.add_argument("--backends", type=int, default=2, help="processes behind all addresses")
    parser.add_argument("--json", type=Path, help="write all of it there")
    return uvloop.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
