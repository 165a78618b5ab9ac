"""Tidegate: a model server and gateway that speaks the protocols you already use.

::

    from tidegate import AsyncClient, Client, serve

What it is made of is imported when it is first asked for: ``import tidegate`` alone is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidegate.client import AsyncClient, Client, InferResult
    from tidegate.serving import Server, serve

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "InferResult", "Server", "__version__", "serve"]

_HOMES = {
    "AsyncClient": "tidegate.client",
    "Client": "tidegate.client",
    "InferResult": "tidegate.client",
    "Server": "tidegate.serving",
    "serve": "tidegate.serving",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is asked for (PEP 562)."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'tidegate' has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
