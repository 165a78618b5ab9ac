"""A replica of a TensorFlow model, within bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import tensorflow_models as made
from tests.replica.process import replica_process
from tests.replica.served import fails_alone
from tests.tensorflow_models import tf


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's data")
async def test_a_request_that_does_not_fit_fails_alone(folder: Path) -> None:
    model = made.save_function(
        folder / "zeros", lambda size: {"y": tf.zeros([size[0]])}, size=([1], tf.int64)
    )
    bounds = {"resources": {"memory": "700MiB"}}
    async with replica_process(
        folder, model, runtime="tensorflow", threads=2, **bounds
    ) as replica:
        await replica.ready()
        await fails_alone(folder / "s", ("size", 2**29), "y", "OOM when allocating")
