"""The gRPC calls of TensorFlow Serving that are answered by a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tidegate.errors import InvalidInput, SignatureNotFound, Unsupported
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.dialect import Inference, ModelView, Reply
from tidegate.protocols.tensorflow_serving import messages
from tidegate.protocols.tensorflow_serving.bounds import CLASSIFY, check_message
from tidegate.protocols.tensorflow_serving.classification import (
    Classified,
    Regressed,
    classification_result,
    classified,
    regressed,
    regression_result,
    rows_of,
    values_of,
)
from tidegate.protocols.tensorflow_serving.examples import examples_of, tensors_of
from tidegate.protocols.tensorflow_serving.grpc import decode_predict, encode_predict
from tidegate.protocols.tensorflow_serving.metadata import (
    decode_metadata,
    encode_metadata,
    signature_of,
    signatures_of,
)
from tidegate.protocols.tensorflow_serving.model_spec import answered_by, spec_of
from tidegate.types import InferRequest, InferResponse, Signature


def read_predict(message: bytes | memoryview, view: ModelView) -> Inference:
    """Read ``Predict``."""
    request = decode_predict(message, view.limit, view.labels)
    if request.signature:
        try:
            signature_of(view.metadata, request.signature)
        except InvalidInput as error:
            raise SignatureNotFound(str(error)) from error
    return Inference(request, functools.partial(_write_predict, _name(request.signature, view)))


def read_classify(message: bytes | memoryview, view: ModelView) -> Inference:
    """Read ``Classify``."""
    return _read_examples(
        messages.ClassificationRequest, message, view, classified, _write_classes
    )


def read_regress(message: bytes | memoryview, view: ModelView) -> Inference:
    """Read ``Regress``."""
    return _read_examples(messages.RegressionRequest, message, view, regressed, _write_values)


def read_multi_inference(message: bytes | memoryview, view: ModelView) -> Inference:
    """Refuse ``MultiInference``."""
    raise Unsupported("MultiInference is not offered: call Classify and Regress, each for itself")


def read_metadata(message: bytes | memoryview, view: ModelView) -> Reply:
    """Answer ``GetModelMetadata``."""
    spec = decode_metadata(message)
    return Reply(
        (encode_metadata(view.metadata, view.version),),
        model=spec.model,
        version=spec.version_of(view.labels),
    )


def _read_examples(
    kind: Any,
    message: bytes | memoryview,
    view: ModelView,
    choose: Callable[[Signature, int], Any],
    write: Callable[[str, Any, InferResponse], Reply],
) -> Inference:
    check_message(message, CLASSIFY)
    sent = parsed(kind, message)
    spec = spec_of(sent.model_spec)
    signature = signature_of(view.metadata, spec.signature)
    examples = examples_of(sent.input)
    found = choose(signature, len(examples.rows))
    request = InferRequest(
        spec.model,
        spec.version_of(view.labels),
        inputs=tensors_of(examples, signature),
        outputs=found.wanted,
        signature=spec.signature,
    )
    return Inference(request, functools.partial(write, _name(spec.signature, view), found))


def _name(signature: str, view: ModelView) -> str:
    """Return the name of the signature that answers: the model's first one by default."""
    return signature or next(iter(signatures_of(view.metadata)))


def _write_predict(signature: str, response: InferResponse) -> Reply:
    return Reply(encode_predict(response, signature))


def _write_classes(signature: str, found: Classified, response: InferResponse) -> Reply:
    return _with_spec(classification_result(rows_of(found, response)), signature, response)


def _write_values(signature: str, found: Regressed, response: InferResponse) -> Reply:
    return _with_spec(regression_result(values_of(found, response)), signature, response)


def _with_spec(result: bytes, signature: str, response: InferResponse) -> Reply:
    return Reply((result, answered_by(response.model, response.version, signature)))
