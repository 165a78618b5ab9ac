"""onnxruntime, imported without its telemetry.

Version 1.31 for Linux keeps a device's number and a database of events in ``~/.cache/Microsoft``,
for its maker, unless this variable is set before the import; ``disable_telemetry_events`` comes
too late. A model server sends nothing that nobody asked it to.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
