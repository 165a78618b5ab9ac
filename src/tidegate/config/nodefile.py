"""``nodefile.txt``, in which dl_inference lists the servers of each task; pure.

A line is ``taskid=timeout_ms,ip:port,ip:port…``; lines that begin with ``#`` are comments.
What dl_inference passes over in silence (a line without ``=``, a port that is no number, a task
that is there twice) is an error here: it is a server that would be missed one day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.config.addresses import place, shortened
from tidegate.errors import ConfigurationError
from tidegate.protocols.routing import TASK_PATTERN

LARGEST_NODEFILE = 4 * 2**20
"""Bytes; a hundred thousand addresses."""
LARGEST_TASK = 10_000
"""Addresses of one task."""
_LONGEST_TIMEOUT = 2**31 - 1
_MISTAKES_SHOWN = 5
_FORM = "write TASKID=TIMEOUT_MS,IP:PORT,IP:PORT as 69=100,10.0.0.7:8500"


@dataclass(frozen=True, slots=True)
class NodefileTask:
    """One task of dl_inference, and where it is served."""

    task: str
    """Its id, a whole number without leading zeros."""
    timeout: float
    """Seconds that one call may take."""
    addresses: tuple[str, ...]
    """``10.0.0.7:8500``, ``[fd00::7]:8500`` or ``gpu-1:8500``, in the order of the file."""
    line: int
    """Where it stands in the file, from 1."""


def parse_nodefile(content: bytes, path: str) -> tuple[NodefileTask, ...]:
    """Read what stands in the file ``path``; blank lines and comments count for nothing.

    A file in which nothing stands but comments has no tasks.

    Raises:
        ConfigurationError: something in it is wrong; the message names file, line and value of
            the first few mistakes, and what to write.
    """
    text = _text(content, path)
    tasks: dict[str, NodefileTask] = {}
    mistakes = []
    for number, line in _lines(text):
        try:
            task = _task(line, number)
            if task.task in tasks:
                raise ValueError(
                    f"the task {task.task} was already given in line {tasks[task.task].line}; "
                    "put all of its addresses into one line"
                )
        except ValueError as error:
            mistakes.append(f"{path}, line {number}: {error}")
            if len(mistakes) > _MISTAKES_SHOWN:
                mistakes[-1] = "and more"
                break
        else:
            tasks[task.task] = task
    if mistakes:
        raise ConfigurationError("; ".join(mistakes))
    return tuple(tasks.values())


def _text(content: bytes, path: str) -> str:
    if len(content) > LARGEST_NODEFILE:
        raise ConfigurationError(f"{path}: larger than 4 MiB, which no nodefile is")
    if not content:
        # What an editor leaves for a moment, or a full disk for good; never meant to say "none".
        raise ConfigurationError(
            f"{path}: is empty; {_FORM}, or a comment line if there are no tasks"
        )
    try:
        text = content.decode("utf-8-sig")  # Editors on Windows put a mark before the text.
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: is not UTF-8 text (byte {error.start}); {_FORM}"
        ) from None
    if "\0" in text:
        raise ConfigurationError(f"{path}: is not text (byte 0 at {text.index(chr(0))}); {_FORM}")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield what says something, with the number of its line."""
    for number, whole in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = whole.partition("#")[0].strip()
        if line:
            yield number, line


def _task(line: str, number: int) -> NodefileTask:
    task, equals, rest = (part.strip() for part in line.partition("="))
    if not equals:
        raise ValueError(f"{shortened(line)} has no '=': {_FORM}")
    if not re.fullmatch(TASK_PATTERN, task):
        raise ValueError(f"the task {shortened(task)} is not a whole number: {_FORM}")
    if rest.count(",") > LARGEST_TASK:
        raise ValueError(f"the task {task} has more than {LARGEST_TASK} addresses")
    timeout, *addresses = (part.strip() for part in rest.split(","))
    return NodefileTask(
        str(int(task)), _seconds(task, timeout), _addresses(task, addresses), number
    )


def _seconds(task: str, text: str) -> float:
    ok = re.fullmatch(r"[0-9]{1,10}", text) and 1 <= int(text) <= _LONGEST_TIMEOUT
    if not ok:
        raise ValueError(
            f"the timeout {shortened(text)} of task {task} must be milliseconds from 1 to "
            f"{_LONGEST_TIMEOUT}: {_FORM}"
        )
    return int(text) / 1000


def _addresses(task: str, texts: list[str]) -> tuple[str, ...]:
    if texts and not texts[-1]:
        texts = texts[:-1]  # dl_inference takes no notice of a comma at the end either.
    if not texts:
        raise ValueError(f"the task {task} has no address: {_FORM}")
    found: dict[str, None] = {}
    for text in texts:
        address = place(text)
        if address in found:
            raise ValueError(
                f"the task {task} has the address {shortened(address)} twice; keep one of them"
            )
        found[address] = None
    return tuple(found)
