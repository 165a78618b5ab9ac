"""What runs in a process of its own, which imports every framework and nothing of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.matrix.cases import Case


def make(root: Path) -> list[Case]:
    """Write every model into ``root``, and call each through its own framework."""
    from tests.matrix import frameworks

    return frameworks.make(root)


def predict(target: str, case: Case) -> dict[str, Any]:
    """Call ``Predict`` with the client that TensorFlow Serving publishes."""
    from tests.matrix import tensorflow_client

    return tensorflow_client.predict(target, case)


def classify(target: str, case: Case) -> dict[str, Any]:
    """Call ``Classify`` with the client that TensorFlow Serving publishes."""
    from tests.matrix import tensorflow_client

    return tensorflow_client.classify(target, case)


CALLERS = {"tfs-grpc": predict, "tfs-classify": classify}
"""Those whose client needs TensorFlow."""
