"""Messages of the same names: ours, and those that importing TensorFlow registers."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = """
    from tidegate.runtimes.tensorflow_framework import tf
    from google.protobuf import descriptor_pool
    from tidegate.protocols import registry
    from tidegate.protocols.descriptors import message_classes
    from tidegate.protocols.open_inference import messages

    assert messages.ModelInferRequest(model_name="m").SerializeToString() == b"\\n\\x01m"
    everybodys = descriptor_pool.Default()
    assert everybodys.FindMessageTypeByName("tensorflow.TensorProto")
    classes = message_classes(list({file.name: file for file in registry.FILES}.values()))
    for name, made in classes.items():
        assert made.DESCRIPTOR.file.pool is not everybodys, name
"""
"""A replica imports TensorFlow after the protocols, and this before them."""


def test_neither_meets_the_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
