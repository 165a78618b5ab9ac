"""What the gateway's cases send: ModelInfer of a model that no backend has to know."""

from __future__ import annotations

from tidegate.protocols.open_inference import MODEL_INFER, messages

MODEL = "m"
METHOD = MODEL_INFER


def infer_message(size: int = 600, model: str = MODEL) -> bytes:
    """Return a request of about ``size`` bytes."""
    request = messages.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="UINT8", shape=(max(size, 1),))
    room = size - len(request.SerializeToString()) - 4
    request.raw_input_contents.append(bytes(max(1, room)))
    return bytes(request.SerializeToString())
