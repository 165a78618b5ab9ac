"""``tidegate bench``: load on any server that speaks the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import math
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from tidegate.cli.running import refuse_tls
from tidegate.errors import ConfigurationError, RuntimeMissing

if TYPE_CHECKING:
    from tidegate.load.report import Point
    from tidegate.load.requests import Encoding, Request

_FAILED = 1
_MOST_IN_FLIGHT = 10_000
_OPEN_GRPC, _OPEN_REST = 1000, 100
"""Calls in flight at most in an open loop, unless told otherwise."""
_MOST_CONNECTIONS = 4
"""Of gRPC by default: each carries many calls."""


class _Numbers(click.ParamType[Any]):
    """A list of numbers, as ``100,200,400``."""

    name = "N[,N]..."

    def __init__(self, kind: type[int] | type[float], most: float) -> None:
        self._kind, self._most = kind, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        return tuple(self._one(part, param, ctx) for part in str(value).split(","))

    def _one(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = self._kind(text)
        except ValueError:
            number = self._kind(0)
        # Not a chain alone: nothing compares with nan.
        if not (math.isfinite(number) and 0 < number <= self._most):
            what = "whole number" if self._kind is int else "number"
            self.fail(f"{text!r} is not a {what} above 0 and up to {self._most:,g}", param, ctx)
        return number


class _Seconds(click.ParamType[Any]):
    """A time: a number of seconds, or with a unit, as ``500ms``."""

    name = "TIME"

    def __init__(self, *, least: float = 0.0, most: float = 86_400.0) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return seconds."""
        from tidegate.config.units import parse_duration

        try:
            seconds = float(value)
        except (TypeError, ValueError):
            try:
                seconds = float(parse_duration(value))  # type: ignore[arg-type]
            except (TypeError, ValueError):
                seconds = math.nan
        if not self._least <= seconds <= self._most:
            self.fail(
                f"{value!r} is not a time from {self._least:g}s to {self._most:g}s, as 500ms",
                param,
                ctx,
            )
        return seconds


class _Shape(click.ParamType[Any]):
    """An input's shape, as ``image=1,3,224,224``."""

    name = "NAME=N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name and the dimensions."""
        if isinstance(value, tuple):
            return value
        name, _, dimensions = str(value).rpartition("=")
        parts = dimensions.split(",")
        if not name or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            self.fail(
                f"{value!r} is not of the form NAME=N,N,..., as image=1,3,224,224", param, ctx
            )
        return name, tuple(map(int, parts))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for on the command line."""

    target: str
    model: str
    version: str
    encoding: Encoding
    rates: tuple[float, ...]
    arrivals: str
    concurrencies: tuple[int, ...]
    connections: int | None
    duration: float
    warm_up: float
    timeout: float
    inputs: Path | None
    batch: int
    shapes: dict[str, tuple[int, ...]]


@click.command(name="bench", short_help="Measure how fast a server answers calls of a model.")
@click.argument("target", metavar="HOST:PORT")
@click.option("-m", "--model", required=True, help="the model to call")
@click.option("--version", default="", help="its version (default: the server's choice)")
@click.option(
    "--protocol", type=click.Choice(["grpc", "rest"]), default="grpc", show_default=True,
    help="how to call it",
)  # fmt: skip
@click.option(
    "--encoding", type=click.Choice(["raw", "typed", "json", "binary"]),
    help="of the tensors: raw (default) or typed with grpc, json (default) or binary with rest",
)  # fmt: skip
@click.option(
    "-r", "--rate", "rates", type=_Numbers(float, 1e6),
    help="open loop: calls a second, due at planned times; several as 100,200,400",
)  # fmt: skip
@click.option(
    "--arrivals", type=click.Choice(["poisson", "uniform"]), default="poisson", show_default=True,
    help="with --rate: the calls of independent callers, or evenly spaced ones",
)  # fmt: skip
@click.option(
    "-c", "--concurrency", "concurrencies", type=_Numbers(int, _MOST_IN_FLIGHT),
    help="closed loop: calls in flight, each followed by the next; several as 1,8,64 "
    f"[default: 8]; with --rate: at most so many [default: {_OPEN_GRPC}, rest {_OPEN_REST}]",
)  # fmt: skip
@click.option(
    "--connections", type=click.IntRange(1, _MOST_IN_FLIGHT),
    help=f"of grpc [default: up to {_MOST_CONNECTIONS}]; rest has one for each call in flight",
)  # fmt: skip
@click.option(
    "-d", "--duration", type=_Seconds(least=0.01), default="10s", show_default=True,
    help="of each load",
)  # fmt: skip
@click.option(
    "--warm-up", type=_Seconds(), default="1s", show_default=True,
    help="before it, at the same load; does not count",
)  # fmt: skip
@click.option(
    "--timeout", type=_Seconds(least=0.001), default="30s", show_default=True,
    help="after which a call is given up",
)  # fmt: skip
@click.option(
    "-i", "--input", "inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=".npz file with an array for each input (default: random numbers that fit the model)",
)  # fmt: skip
@click.option(
    "-b", "--batch", type=click.IntRange(1, 100_000), default=1, show_default=True,
    help="rows of a request of random numbers, where the first dimension is dynamic",
)  # fmt: skip
@click.option(
    "--shape", "shapes", type=_Shape(), multiple=True,
    help="the whole shape of an input of random numbers, as image=1,3,224,224 "
    "(default: dynamic dimensions behind the first are 1)",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="write the figures there, in JSON, besides the table",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print the figures in JSON, no table")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE",
    help="draw latency and throughput over the load: .png, .svg or .pdf",
)  # fmt: skip
def bench(as_json: bool, output: Path | None, plot: Path | None, **options: Any) -> int:
    """Measure how fast the server at HOST:PORT answers calls of a model.

    Any server of the Open Inference Protocol v2 will do. With --rate, calls are sent at planned
    times and their latency counts from then, whatever the server does meanwhile; without, each
    of --concurrency callers waits for its answer before it calls again. Requests are made from
    the model's metadata.

    The exit status is 1 when a call failed.
    """
    _check_parts()
    wanted = _wanted(**options)
    refuse_tls(wanted.target)
    if plot is not None:
        from tidegate.load.plot import check

        check(plot)
    document = _run(_measure(wanted))
    _tell(document, as_json, output, plot)
    return _FAILED if any(point["failed"] for point in document["points"]) else 0


def _wanted(
    protocol: str,
    encoding: str | None,
    rates: tuple[float, ...] | None,
    concurrencies: tuple[int, ...] | None,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    **others: Any,
) -> Wanted:
    from tidegate.load.generator import split_target
    from tidegate.load.requests import Encoding

    split_target(others["target"])
    chosen = Encoding(encoding or ("raw" if protocol == "grpc" else "json"))
    if chosen.grpc != (protocol == "grpc"):
        raise click.UsageError(
            f"--encoding {chosen.value} does not go with --protocol {protocol}: grpc has raw and "
            "typed, rest has json and binary"
        )
    if rates and concurrencies and len(concurrencies) > 1:
        raise click.UsageError("with --rate, give one --concurrency: the most calls in flight")
    if rates is None:
        concurrencies = concurrencies or (8,)
    else:
        concurrencies = concurrencies or (_OPEN_GRPC if chosen.grpc else _OPEN_REST,)
    connections = others["connections"]
    if connections is not None and not chosen.grpc:
        raise click.UsageError("--connections is for grpc: rest has one for each call in flight")
    if connections is not None and any(c % connections for c in concurrencies):
        raise click.UsageError(
            f"{connections} connections cannot share {concurrencies[0]} calls in flight equally: "
            "give a --concurrency that is a multiple"
        )
    return Wanted(
        encoding=chosen,
        rates=rates or (),
        concurrencies=concurrencies,
        shapes=dict(shapes),
        **others,
    )


def _check_parts() -> None:
    if importlib.util.find_spec("hpack") is None:
        raise RuntimeMissing(
            "this is an install without the load generator (hpack missing); install it: "
            "pip install 'tidegate[bench]'"
        )


def _run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def _measure(wanted: Wanted) -> dict[str, Any]:
    """Ask for the signature, make the requests, run every load."""
    from tidegate import __version__
    from tidegate.load.report import figures
    from tidegate.load.requests import encode, random_inputs, read_inputs
    from tidegate.load.target import signature_of

    grpc = wanted.encoding.grpc
    signature = await signature_of(wanted.target, wanted.model, wanted.version, grpc=grpc)
    if wanted.inputs is None:
        sets = random_inputs(signature, wanted.batch, wanted.shapes)
    else:
        sets = read_inputs(wanted.inputs, signature)
    requests = [encode(wanted.encoding, wanted.model, wanted.version, one) for one in sets]
    first = sets[0]
    rows = min((t.shape[0] for t in first if t.shape), default=1)
    size = len(requests[0].body)
    points = []
    for rate, concurrency in _loads(wanted):
        click.echo(_heading(wanted, rate, concurrency), err=True)
        point = await _load(wanted, requests, rate, concurrency)
        points.append(figures(point, rows, size))
    return {
        "tidegate": __version__,
        "target": wanted.target,
        "model": wanted.model,
        "version": wanted.version or None,
        "protocol": "grpc" if grpc else "rest",
        "encoding": wanted.encoding.value,
        "arrivals": wanted.arrivals if wanted.rates else None,
        "duration": wanted.duration,
        "warm_up": wanted.warm_up,
        "request": {
            "bytes": size,
            "rows": rows,
            "inputs": [
                {"name": t.name, "datatype": t.dtype.value, "shape": list(t.shape)} for t in first
            ],
        },
        "points": points,
    }


def _loads(wanted: Wanted) -> list[tuple[float | None, int]]:
    if wanted.rates:
        return [(rate, wanted.concurrencies[0]) for rate in wanted.rates]
    return [(None, concurrency) for concurrency in wanted.concurrencies]


def _heading(wanted: Wanted, rate: float | None, concurrency: int) -> str:
    load = f"{concurrency} in flight" if rate is None else f"{rate:g} calls/s"
    return f"{load} for {wanted.duration:g} s, after {wanted.warm_up:g} s of warm-up"


async def _load(
    wanted: Wanted, requests: Sequence[Request], rate: float | None, concurrency: int
) -> Point:
    from tidegate.load.arrivals import after_warm_up
    from tidegate.load.generator import grpc_load, rest_load
    from tidegate.load.report import Point
    from tidegate.load.target import infer_path
    from tidegate.protocols.open_inference import MODEL_INFER

    times = None
    if rate is not None:
        times = after_warm_up(wanted.arrivals, rate, wanted.warm_up, wanted.duration)
    ends: dict[str, Any] = {
        "seconds": wanted.duration,
        "warm_up": wanted.warm_up,
        "timeout": wanted.timeout,
        "times": times,
    }
    bodies = [request.body for request in requests]
    if wanted.encoding.grpc:
        shared = [n for n in range(1, _MOST_CONNECTIONS + 1) if concurrency % n == 0]
        connections = wanted.connections or shared[-1]
        load = functools.partial(
            grpc_load, wanted.target, MODEL_INFER, bodies, connections=connections,
            in_flight=concurrency // connections, **ends,
        )  # fmt: skip
    else:
        path = infer_path(wanted.model, wanted.version)
        load = functools.partial(
            rest_load, wanted.target, path, bodies, connections=concurrency,
            headers=requests[0].headers, **ends,
        )  # fmt: skip
    return Point(rate, concurrency, await load())


def _tell(document: dict[str, Any], as_json: bool, output: Path | None, plot: Path | None) -> None:
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if as_json:
        click.echo(text, nl=False)
    else:
        _show(document)
    if output is not None:
        _write(output, lambda: output.write_bytes(text))
    if plot is not None:
        from tidegate.load.plot import draw

        title = f"{document['model']}, {document['protocol']} {document['encoding']}"
        _write(plot, lambda: draw(plot, title, document["points"]))


def _write(path: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape

    from tidegate.cli.terminal import new_console
    from tidegate.load.report import show

    console = new_console()
    request = document["request"]
    inputs = ", ".join(f"{i['name']} {i['datatype']} {i['shape']}" for i in request["inputs"])
    console.print(
        escape(
            f"{document['model']} at {document['target']}, {document['protocol']} "
            f"{document['encoding']}: requests of {request['bytes']:,} bytes ({inputs})"
        ),
        highlight=False,
        soft_wrap=True,
    )
    show(console, document["points"])
