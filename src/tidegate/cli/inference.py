"""``tidegate infer``: requests from arguments, files or a pipe; one answer for each."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import click
from rich.status import Status
from rich.table import Table
from rich.text import Text

from tidegate.cli import answers
from tidegate.cli.exits import PARTLY
from tidegate.cli.options import size_text
from tidegate.cli.ordered import in_order
from tidegate.cli.requests import Reader
from tidegate.cli.running import chosen_nodes, only
from tidegate.cli.targets import LocalModel, ServedModel, Target, is_path, local_model
from tidegate.cli.terminal import new_console, waiting
from tidegate.client.blocking import Client
from tidegate.client.face import DEFAULT_TIMEOUT
from tidegate.config.units import parse_duration
from tidegate.controller.local_address import local_address
from tidegate.errors import MessageTooLarge, NodeNotFound, TidegateError
from tidegate.types import InferRequest

LONGEST_LINE = 64 * 2**20
_BLOCK = 2**16
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
_SHOW_EVERY = 0.25

Format = Literal["table", "json", "v2"]


@dataclass(frozen=True, slots=True)
class Input:
    """One request to be: where it comes from, and how to make it."""

    source: dict[str, Any]
    """Its line of standard input, or the argument."""
    request: Callable[[], InferRequest]


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments and options of the command."""

    model: str
    inputs: tuple[str, ...]
    data: str | None
    raw: bool
    scale: str | None
    form: Format | None
    as_json: bool
    version: int | None
    name: str | None
    device: str | None
    url: str | None
    ca_file: Path | None
    certificate_file: Path | None
    key_file: Path | None
    port: str | None
    run_dir: str | None
    timeout: str | None
    concurrency: int


def infer(asked: Asked) -> int:
    """Ask a model and print each answer as soon as it is there; return the exit status.

    A single request that fails is an error like any other. Of several, each failure stands
    among the answers, as a JSON object or in words, and the status is 1 at the end.

    Raises:
        TidegateError: the model cannot be asked at all, or the only request could not be
            answered.
    """
    if not asked.inputs and asked.data is None:
        raise click.UsageError("give an INPUT, '-' for standard input, or --data JSON")
    form = _form(asked)
    scale = _scale(asked.scale)
    with closing(_target(asked)) as target:
        reader = Reader(target.model, target.signature, asked.raw, scale)
        found = _inputs(reader, asked.data, asked.inputs)
        piped = "-" in asked.inputs
        if piped or len(asked.inputs) + (asked.data is not None) > 1:
            return _answer_all(target, found, form, asked.concurrency)
        (only,) = found
        _print(answers.encoded(target.infer(only.request()), form))
        return 0


def _form(asked: Asked) -> Format:
    if asked.as_json:
        if asked.form not in (None, "json"):
            raise click.UsageError(f"--json is --format json; leave it out for {asked.form}")
        return "json"
    piped = "-" in asked.inputs
    return asked.form or ("table" if sys.stdout.isatty() and not piped else "json")


def _target(asked: Asked) -> Target:
    if asked.device is not None and not _DEVICE.fullmatch(asked.device):
        raise click.BadParameter("must be auto, cpu, cuda or cuda:N", param_hint="'--device'")
    files = (asked.ca_file, asked.certificate_file, asked.key_file)
    served = (asked.url, asked.port, asked.run_dir, asked.timeout, *files)
    if all(option is None for option in served) and is_path(asked.model):
        with waiting("loading the model"):
            return local_model(Path(asked.model), asked.name, asked.version, asked.device)
    if asked.name is not None or asked.device is not None:
        raise click.UsageError(
            "--model and --device are for a model that is loaded in this process: give its path "
            "as MODEL, without --url, --port, --run-dir, --timeout and the files of TLS"
        )
    url, ca_file = _server(asked)
    with waiting(f"asking {url}"):
        timeout = _seconds(asked.timeout)
        client = Client(
            url,
            timeout=DEFAULT_TIMEOUT if timeout is None else timeout,
            ca_file=asked.ca_file or ca_file,
            certificate_file=asked.certificate_file,
            key_file=asked.key_file,
        )
        return ServedModel(client, asked.model, asked.version)


def _server(asked: Asked) -> tuple[str, Path | None]:
    """Return the URL of the server to ask, and who vouches for it."""
    if asked.url is not None:
        if asked.port is not None or asked.run_dir is not None:
            raise click.UsageError("--url says where the server is: leave out --port, --run-dir")
        return asked.url, None
    try:
        node = only(chosen_nodes(asked.port, asked.run_dir))
    except NodeNotFound as error:
        raise NodeNotFound(
            f"{asked.model!r} is no file or folder here, and {error}; --url names another server"
        ) from error
    record = node.load()
    if record is None:
        return f"grpc://127.0.0.1:{node.port}", None
    address = local_address(record.config, node.port)
    address.check(certified=asked.certificate_file is not None)
    return address.url("grpc"), address.ca_file


def _seconds(timeout: str | None) -> float | None:
    try:
        seconds = parse_duration(timeout)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--timeout'") from None
    if not isinstance(seconds, float | None) or seconds == 0:
        raise click.BadParameter("must be more than 0", param_hint="'--timeout'")
    return seconds


def _scale(text: str | None) -> float | None:
    if text is None:
        return None
    above, _, below = text.partition("/")
    try:
        scale = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        scale = math.nan
    if not math.isfinite(scale):
        raise click.BadParameter(
            f"{text!r} is no number; write it as 0.5 or 1/255", param_hint="'--scale'"
        )
    return scale


def _inputs(reader: Reader, json: str | None, names: Iterable[str]) -> Iterator[Input]:
    if json is not None:
        text = os.fsencode(json)
        yield Input({"input": "--data"}, lambda: reader.json(text))
    for name in names:
        if name == "-":
            yield from lines(reader, _standard_input())
        else:
            yield Input({"input": name}, lambda name=name: reader.file(name))  # type: ignore[misc]


def _standard_input() -> BinaryIO:
    """Return it, but not ``sys.stdin``: a thread may wait for it when the interpreter ends."""
    if sys.stdin is None:  # closed; another file may have its number by now
        raise click.UsageError("'-' stands for standard input, which is closed")
    return open(0, "rb", closefd=False)


def lines(reader: Reader, stream: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[Input]:
    """Yield the requests of a stream, one a line, as they come; blank lines do not count."""
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        source = {"line": number}
        if len(line) > longest and not line.endswith(b"\n"):
            _skip_line(stream)
            yield Input(source, lambda: _refuse_long(longest))
        elif line.strip():
            yield Input(source, lambda line=line: reader.line(line))  # type: ignore[misc]


def _skip_line(stream: BinaryIO) -> None:
    while (piece := stream.readline(_BLOCK)) and not piece.endswith(b"\n"):
        pass


def _refuse_long(longest: int) -> InferRequest:
    raise MessageTooLarge(
        f"the line is longer than {size_text(longest)}; put the request into a file, and the "
        "file's name into the line"
    )


def _answer_all(target: Target, found: Iterable[Input], form: Format, width: int) -> int:
    def ask(each: Input) -> bytes | Table | Text:
        return answers.encoded(target.infer(each.request()), form)

    if isinstance(target, LocalModel):
        width = 1
    failed = 0
    with _Progress() as progress, in_order(ask, found, width, target.close) as asked:
        for each, result in asked:
            answer: bytes | Table | Text
            try:
                answer = result()
            except TidegateError as error:
                failed += 1
                answer = answers.failure(error, each.source, form)
            if form == "table":
                _print(answers.heading(each.source))
            _print(answer)
            progress.count(failed)
    return PARTLY if failed else 0


def _print(answer: bytes | Table | Text) -> None:
    if isinstance(answer, bytes):
        out = sys.stdout.buffer
        out.write(answer + b"\n")
        out.flush()
        return
    new_console().print(answer, soft_wrap=isinstance(answer, Text))


class _Progress:
    """Tells a person how far it is, when the answers go elsewhere."""

    def __init__(self) -> None:
        self._status: Status | None = None
        self._answered = 0
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty() and not sys.stdout.isatty():
            self._status = new_console(stderr=True).status("waiting for requests")
            self._status.start()
        return self

    def count(self, failed: int) -> None:
        """Count one more answer; ``failed`` is how many failed so far."""
        self._answered += 1
        now = time.monotonic()
        if self._status is None or now - self._shown < _SHOW_EVERY:
            return
        self._shown = now
        pace = self._answered / (now - self._started)
        self._status.update(f"{self._answered} requests, {failed} failed, {pace:.0f}/s")

    def __exit__(self, *exc: object) -> None:
        if self._status is not None:
            self._status.stop()
