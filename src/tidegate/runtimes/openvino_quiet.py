"""OpenVINO, imported without what tells its maker of every import.

``import openvino`` sends that to Google Analytics through the package ``openvino_telemetry``,
unless this is missing; a model server sends nothing that nobody asked it to.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
