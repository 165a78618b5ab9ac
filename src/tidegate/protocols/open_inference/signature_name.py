"""The request parameter ``signature_name``: which of a model's signatures a request is for.

The Open Inference Protocol knows one signature; the name is that of TensorFlow Serving's
``ModelSpec.signature_name``.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import shown
from tidegate.types import Parameter

SIGNATURE_NAME = "signature_name"


def signature_name(parameters: Mapping[str, Parameter]) -> str:
    """Return the name of the signature that a request asks for; empty: the default one.

    Raises:
        InvalidInput: it is no text.
    """
    name = parameters.get(SIGNATURE_NAME, "")
    if not isinstance(name, str):
        raise InvalidInput(
            f"the parameter {SIGNATURE_NAME} is {shown(name)}; send the name of a signature"
        )
    return name
