"""Where a person looks, and where a program reads."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.markup import escape

_UNBOUNDED = 10_000


def new_console(*, stderr: bool = False) -> Console:
    """Return a console that breaks lines for a terminal only: ``grep`` wants them whole."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(stderr=stderr)
    return Console(stderr=stderr, width=_UNBOUNDED)


def waiting(what: str) -> AbstractContextManager[object]:
    """Tell a person, and nobody else, what takes its time."""
    if not sys.stderr.isatty():
        return nullcontext()
    return new_console(stderr=True).status(escape(what))
