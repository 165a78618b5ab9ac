"""A replica of a TensorFlow model, within bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tensorflow_models as made
from tests.replica.edge_client import EdgeClient
from tests.replica.process import replica_process
from tests.replica.served import INFER, infer_request, outputs_of
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
        async with EdgeClient(folder / "s") as client:
            for _ in range(2):
                large = infer_request({"size": np.array([2**29], np.int64)})
                reply = await client.grpc(INFER, large)
                assert reply.grpc_status == 14
                assert "OOM when allocating" in reply.grpc_message
                small = infer_request({"size": np.array([3], np.int64)})
                reply = await client.grpc(INFER, small)
                assert outputs_of(reply.message)["y"].tolist() == [0, 0, 0]
