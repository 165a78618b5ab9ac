"""The exit statuses: those of the command line itself, and those of the errors."""

from __future__ import annotations

import inspect
import os

from tidegate import errors
from tidegate.protocols.statuses import kinds_by_exit

PARTLY = 1
INTERRUPTED = 130
NOT_READY = os.EX_UNAVAILABLE
_INVALID = os.EX_DATAERR
_FAULT = os.EX_SOFTWARE

OWN = {
    0: "Done; for `serve`: stopped by Ctrl-C or SIGTERM, everything drained",
    PARTLY: "`doctor` found something that would keep `serve`, or a gateway, from working; of "
    "several requests `infer` could not answer some; a call of `bench` failed",
    2: "The command line itself is wrong",
    _INVALID: "`inspect` found something invalid",
    NOT_READY: "`status`: a node or a model of it is not ready",
    _FAULT: "A fault of Tidegate",
    INTERRUPTED: "Interrupted by Ctrl-C",
}
"""What each status says that does not come from an error alone."""

# Only their descendants are raised.
_ROOTS = {errors.TidegateError, errors.ModelError, errors.RequestError}


def documented() -> list[tuple[int, str, str]]:
    """Return each exit status, the names of the errors that have it, and when it is given."""
    rows = []
    by_exit = kinds_by_exit()
    for status in sorted({*OWN, *by_exit}):
        kinds = [kind for kind in by_exit.get(status, ()) if kind not in _ROOTS]
        told = [OWN[status]] if status in OWN else []
        told += [_first_sentence(kind) for kind in kinds]
        rows.append((status, ", ".join(kind.__name__ for kind in kinds), ". ".join(told) + "."))
    return rows


def _first_sentence(kind: type[errors.TidegateError]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split(";")[0].rstrip(".")
