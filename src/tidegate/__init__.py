"""Tidegate: a model server and gateway that speaks the protocols you already use."""

from __future__ import annotations

__version__ = "0.1.0"
