"""``ModelSpec``: which model, version and signature a call is for, and which one answered.

Source: ``model.proto`` of TensorFlow Serving.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import checked_name, shown
from tidegate.protocols.routing import check_model
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.varints import write_length
from tidegate.types import DEFAULT_SIGNATURE


class Spec(NamedTuple):
    """What a call says; an empty string is what it does not say."""

    model: str
    version: str = ""
    label: str = ""
    signature: str = ""

    def version_of(self, labels: Mapping[str, str]) -> str:
        """Return the version that is asked for; ``labels`` are those of the model.

        Raises:
            InvalidInput: there is no such label.
        """
        return version_of_label(self.label, labels) if self.label else self.version


def version_of_label(label: str, labels: Mapping[str, str]) -> str:
    """Return the version that is called ``label``.

    Raises:
        InvalidInput: none is.
    """
    version = labels.get(label)
    if version is None:
        known = ", ".join(map(repr, sorted(labels))) or "none"
        raise InvalidInput(
            f"no version of the model has the label {shown(label)}: there is {known}; put it "
            "into versions.labels of model.yaml"
        )
    return version


def spec_of(message: Any) -> Spec:
    """Return what a parsed ``ModelSpec`` says.

    Raises:
        InvalidInput: its model, version or signature can be none.
    """
    choice = message.WhichOneof("version_choice")
    version = str(message.version.value) if choice == "version" else ""
    check_model(message.name, version)
    label = message.version_label if choice == "version_label" else ""
    return Spec(
        message.name, version, label, checked_name("the signature", message.signature_name)
    )


@functools.lru_cache(maxsize=256)
def answered_by(model: str, version: str, signature: str) -> bytes:
    """Return the field ``model_spec`` of an answer in which it has the number 2."""
    spec = messages.ModelSpec(name=model, signature_name=signature or DEFAULT_SIGNATURE)
    spec.version.value = int(version)
    data = spec.SerializeToString()
    return b"\x12" + write_length(len(data)) + bytes(data)
