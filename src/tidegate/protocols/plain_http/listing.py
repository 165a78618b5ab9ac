"""The list of models: what it says, and its page for a browser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from tidegate.protocols.dialect import Reply
from tidegate.protocols.plain_http.page import link, make_page, table
from tidegate.protocols.plain_http.paths import write_path

_TEXT = {"type": "string"}
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "model": _TEXT,
            "state": {"type": "string", "enum": ["ready", "not ready", "unloaded"]},
            "version": _TEXT,
            "versions": {"type": "array", "items": _TEXT},
            "reason": _TEXT,
            "path": _TEXT,
        },
    },
}
"""Of the list in JSON."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in the list.

    ``version`` is the default one, ``versions`` are those that answer, ``reason`` says why none
    does.
    """

    name: str
    state: str
    version: str = ""
    versions: tuple[str, ...] = ()
    reason: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "model": self.name,
            "state": self.state,
            "version": self.version,
            "versions": list(self.versions),
            "reason": self.reason,
            "path": write_path(self.name),
        }


def page(models: Iterable[Listed]) -> Reply:
    """Return the page of all models."""
    rows = [
        [
            f'<a href="{escape(write_path(model.name))}">{escape(model.name)}</a>',
            escape(model.state) + (f": {escape(model.reason)}" if model.reason else ""),
            ", ".join(link(model.name, version) for version in model.versions),
        ]
        for model in models
    ]
    body = table(["Model", "State", "Versions"], rows) if rows else "<p>There is none yet.</p>"
    return make_page("Models", ["<h1>Models</h1>", body], "")
