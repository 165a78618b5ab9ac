"""Where the protocol lives."""

from __future__ import annotations

import re
from typing import NamedTuple

from tidegate.errors import MethodNotFound
from tidegate.protocols.routing import check_model

LIST = "/models"
"""Lists the models; the controller answers."""
PREFIX = "/models/"
_MODEL = re.compile(r"/models/([^/]+)(?:/versions/([^/]+))?")


class ModelPath(NamedTuple):
    """What a path names; ``version`` is empty for the default one."""

    model: str
    version: str


def read_path(path: str) -> ModelPath:
    """Return what ``path`` names.

    Raises:
        MethodNotFound: it is no path of this protocol.
        InvalidInput: it names what can be no model or no version.
    """
    match = _MODEL.fullmatch(path)
    if match is None:
        raise MethodNotFound(
            f"there is no path {path[:256]}: there are /models, /models/MODEL and "
            "/models/MODEL/versions/VERSION"
        )
    found = ModelPath(*match.groups(default=""))
    check_model(*found)
    return found


def write_path(model: str, version: str = "") -> str:
    """Return the path of a model, whose name needs no escapes."""
    return f"{PREFIX}{model}" + (f"/versions/{version}" if version else "")
