"""``tidegate logs``: what the replicas, the edge and the controller of a node wrote."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import click
import orjson

from tidegate.cli.running import chosen_nodes, only
from tidegate.cli.serving import check_serving_parts
from tidegate.config.loading import nearest
from tidegate.controller.run_directory import RunDirectory
from tidegate.errors import ModelNotFound

_BLOCK = 2**16
_LONGEST_LINE = 2**20
_GATHER_MS, _LOOK_MS = 50, 25
"""Changes of so many milliseconds are told at once; a signal is seen as quickly."""

Files = Callable[[], dict[str, Path]]
"""Finds the files to show, by what their lines are marked with."""


def logs(
    of: str,
    version: int | None,
    replica: int | None,
    port: str | None,
    run_dir: str | None,
    *,
    lines: int,
    follow: bool,
    as_json: bool,
) -> int:
    """Print the last ``lines`` of each log; with ``follow``, go on until the node stops.

    Raises:
        NodeNotFound: no node of this user runs.
        ModelNotFound: the node has no such model, or no log of it.
    """
    node = only(chosen_nodes(port, run_dir))
    find = _finder(node, of, version, replica)
    found = find()
    if not found:
        raise _nothing(node, of, version, replica)
    screen = _Screen(as_json=as_json, marked=follow or len(found) > 1)
    if follow:
        check_serving_parts()
        _follow(node, find, lines, screen)
        return 0
    for name, path in found.items():
        with closing(Tail(path, lines)) as tail:
            for line in tail.read():
                screen.show(name, line)
            if rest := tail.rest():
                screen.show(name, rest)
    screen.flush()
    return 0


def _finder(node: RunDirectory, of: str, version: int | None, replica: int | None) -> Files:
    if version is None and replica is None and of in ("edge", "controller"):
        path = node.edge_log if of == "edge" else node.controller_log
        return lambda: {of: path} if path.exists() else {}

    def replicas() -> dict[str, Path]:
        return {
            f"{log.model}/{log.version}/{log.replica}": log.path
            for log in node.replica_logs()
            if log.model == of
            and version in (None, log.version)
            and replica in (None, log.replica)
        }

    return replicas


def _nothing(
    node: RunDirectory, of: str, version: int | None, replica: int | None
) -> ModelNotFound:
    have = node.replica_logs()
    if of in ("edge", "controller"):
        return ModelNotFound(f"there is no log of the {of} in {node.path}")
    if not any(log.model == of for log in have):
        names = {*(log.model for log in have), "edge", "controller"}
        return ModelNotFound(
            f"no replica of a model {of!r} has run on the node on port {node.port}; "
            f"{nearest(of, names)} ('tidegate status' shows why a model is not served)"
        )
    places = ", ".join(f"{log.version}/{log.replica}" for log in have if log.model == of)
    wanted = "" if version is None else f" of version {version}"
    wanted += "" if replica is None else f" with number {replica}"
    return ModelNotFound(f"{of!r} has no replica{wanted}; there are (version/replica) {places}")


def _follow(node: RunDirectory, find: Files, lines: int, screen: _Screen) -> None:
    from watchfiles._rust_notify import RustNotify

    # Watching begins before the first look, so that nothing falls between the two.
    paths = [str(node.path), str(node.logs)]
    with RustNotify(paths, False, False, 0, False, True) as changes:
        tails = {name: Tail(path, lines) for name, path in find().items()}
        while True:
            # Before the look: what was written until then is the last that there is.
            stopped = node.load() is None
            for name, path in find().items():
                tail = tails.setdefault(name, Tail(path, None))
                for line in tail.read():
                    screen.show(name, line)
            screen.flush()
            if stopped:
                click.echo(f"the node on port {node.port} has stopped", err=True)
                return
            if changes.watch(_GATHER_MS, _LOOK_MS, 0, None) == "signal":
                raise KeyboardInterrupt


@dataclass(slots=True)
class Tail:
    """Reads a growing log by lines, wherever it is rotated or truncated to.

    ``last`` is how many lines of what is there already are wanted; ``None``: all of them.
    """

    path: Path
    last: int | None
    _file: BinaryIO | None = None
    _partial: bytearray = field(default_factory=bytearray)
    _earlier: list[bytes] = field(default_factory=list)
    """Lines of the older file, where the one that is written to has too few."""

    def read(self) -> Iterator[bytes]:
        """Yield the lines that were completed since the last call, without their ends."""
        if self._file is None and not self._open():
            return
        yield from self._earlier
        self._earlier = []
        while True:
            yield from self._lines()
            if not self._moved():
                return

    def rest(self) -> bytes:
        """Return what follows the last end of a line."""
        return bytes(self._partial)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> bool:
        try:
            self._file = self.path.open("rb")
        except FileNotFoundError:
            return False  # between the two steps of a rotation
        if self.last is not None:
            start = start_of_last_lines(self._file, self.last)
            if start == 0:
                self._earlier = self._of_older_file(self.last - _count_lines(self._file))
            self._file.seek(start)
            self.last = None
        return True

    def _of_older_file(self, count: int) -> list[bytes]:
        try:
            with self.path.with_name(f"{self.path.name}.1").open("rb") as older:
                older.seek(start_of_last_lines(older, max(0, count)))
                return older.read().splitlines()
        except FileNotFoundError:
            return []

    def _lines(self) -> Iterator[bytes]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # truncated
            self._partial.clear()
        while block := self._file.read(_BLOCK):
            *whole, last = block.split(b"\n")
            for line in whole:
                self._partial += line
                yield bytes(self._partial)
                self._partial.clear()
            self._partial += last
            if len(self._partial) > _LONGEST_LINE:
                yield bytes(self._partial)
                self._partial.clear()

    def _moved(self) -> bool:
        """Whether another file lies at the path by now; it is open then."""
        assert self._file is not None
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
                return False
        except FileNotFoundError:
            return False
        # What was written between the last look and the renaming is still in the old file.
        if self._file.read(1):
            self._file.seek(-1, os.SEEK_CUR)
            return True
        self._file.close()
        return self._open()


def _count_lines(file: BinaryIO) -> int:
    """Return how many lines a file has, of which the last may have no end yet."""
    file.seek(0)
    count, last = 0, b"\n"
    while block := file.read(_BLOCK):
        count += block.count(b"\n")
        last = block[-1:]
    return count + (last != b"\n")


def start_of_last_lines(file: BinaryIO, count: int) -> int:
    """Return where the last ``count`` lines of a file begin, read from its end."""
    position = file.seek(0, os.SEEK_END)
    if count == 0:
        return position
    wanted = count
    if position:
        file.seek(position - 1)
        wanted += file.read(1) == b"\n"
    while position:
        start = max(0, position - _BLOCK)
        file.seek(start)
        block = file.read(position - start)
        ends = block.count(b"\n")
        if ends >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return start + at + 1
        wanted -= ends
        position = start
    return 0


class _Screen:
    """Writes lines to standard output, marked with their source where there are several."""

    def __init__(self, *, as_json: bool, marked: bool) -> None:
        self._out = sys.stdout.buffer
        self._as_json = as_json
        self._marked = marked
        self._colour = sys.stdout.isatty()

    def show(self, name: str, line: bytes) -> None:
        if self._as_json:
            text = line.decode("utf-8", "replace")
            self._out.write(orjson.dumps({"log": name, "line": text}) + b"\n")
            return
        if self._marked:
            mark = f"{name} | "
            self._out.write((click.style(mark, fg="cyan") if self._colour else mark).encode())
        self._out.write(line + b"\n")

    def flush(self) -> None:
        self._out.flush()
