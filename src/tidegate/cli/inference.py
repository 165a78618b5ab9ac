"""``tidegate infer``: requests from arguments, files or a pipe; one answer for each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Literal

import click
from rich.status import Status
from rich.table import Table

from tidegate.cli import answers
from tidegate.cli.exits import PARTLY
from tidegate.cli.options import size_text
from tidegate.cli.requests import Reader
from tidegate.cli.targets import Target, is_path, local_model
from tidegate.cli.terminal import new_console
from tidegate.errors import ConfigurationError, MessageTooLarge, TidegateError
from tidegate.types import InferRequest

LONGEST_LINE = 64 * 2**20
_BLOCK = 2**16
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
    version: int | None
    name: str | None
    device: str | None


def infer(asked: Asked) -> int:
    """Ask a model and print each answer as soon as it is there; return the exit status.

    A single request that fails is an error like any other. Of several, each failure is a JSON
    object of its own among the answers, and the status is 1 at the end.

    Raises:
        TidegateError: the model cannot be asked at all, or the only request could not be
            answered.
    """
    if not asked.inputs and asked.data is None:
        raise click.UsageError("give an INPUT, '-' for standard input, or --json DATA")
    scale = _scale(asked.scale)
    with closing(_target(asked)) as target:
        reader = Reader(target.model, target.signature, asked.raw, scale)
        found = _inputs(reader, asked.data, asked.inputs)
        piped = "-" in asked.inputs
        form = asked.form or ("table" if sys.stdout.isatty() and not piped else "json")
        if piped or len(asked.inputs) + (asked.data is not None) > 1:
            return _answer_all(target, found, form)
        (only,) = found
        _print(answers.encoded(target.infer(only.request()), form))
        return 0


def _target(asked: Asked) -> Target:
    if not is_path(asked.model):
        raise ConfigurationError(f"there is no file or folder {asked.model!r}")
    with _waiting("loading the model"):
        return local_model(Path(asked.model), asked.name, asked.version, asked.device)


def _waiting(what: str) -> AbstractContextManager[object]:
    """Tell a person, and nobody else, what takes its time."""
    return new_console(stderr=True).status(what) if sys.stderr.isatty() else nullcontext()


def _scale(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(
            f"{text!r} is no number; write it as 0.5 or 1/255", param_hint="'--scale'"
        ) from None


def _inputs(reader: Reader, json: str | None, names: Iterable[str]) -> Iterator[Input]:
    if json is not None:
        text = os.fsencode(json)
        yield Input({"input": "--json"}, lambda: reader.json(text))
    for name in names:
        if name == "-":
            yield from lines(reader, sys.stdin.buffer)
        else:
            yield Input({"input": name}, lambda name=name: reader.file(name))  # type: ignore[misc]


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


def _answer_all(target: Target, found: Iterable[Input], form: Format) -> int:
    failed = 0
    with _Progress() as progress:
        for each in found:
            answer: bytes | Table
            try:
                answer = answers.encoded(target.infer(each.request()), form)
            except TidegateError as error:
                failed += 1
                answer = answers.failure(error, each.source)
            _print(answer)
            progress.count(failed)
    return PARTLY if failed else 0


def _print(answer: bytes | Table) -> None:
    if isinstance(answer, bytes):
        out = sys.stdout.buffer
        out.write(answer + b"\n")
        out.flush()
        return
    new_console().print(answer)


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
