"""Classify and Regress: which outputs of a model are classes, scores or values, and the answers.

Source: ``classification.proto``, ``regression.proto`` and ``classifier.cc``, ``regressor.cc`` of
TensorFlow Serving. A signature that was exported for Classify has outputs named ``classes``,
``scores`` or both, one for Regress an output named ``outputs``; these names go first. Of any other
model it is the only output of texts and the only one of floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.payloads import as_tensors
from tidegate.protocols.tensorflow_serving import messages
from tidegate.types import Array, InferResponse, RequestedOutput, Signature, TensorSpec

CLASSES, SCORES, OUTPUTS = "classes", "scores", "outputs"


class Classified(NamedTuple):
    """The outputs of a classification; an empty name: there is none."""

    classes: str
    scores: str
    examples: int
    """How many there were."""

    @property
    def wanted(self) -> tuple[RequestedOutput, ...]:
        """What to ask the model for."""
        return tuple(RequestedOutput(name) for name in (self.classes, self.scores) if name)


class Regressed(NamedTuple):
    """The output of a regression."""

    output: str
    examples: int
    """How many there were."""

    @property
    def wanted(self) -> tuple[RequestedOutput, ...]:
        """What to ask the model for."""
        return (RequestedOutput(self.output),)


def classified(signature: Signature, count: int) -> Classified:
    """Return which outputs of ``signature`` say the classes of ``count`` examples.

    Raises:
        InvalidInput: none does, or it is not clear which.
    """
    outputs = signature.outputs
    classes, scores = _named(outputs, CLASSES, "Oiu"), _named(outputs, SCORES, "fViu")
    if not classes and not scores:
        classes, scores = _only(outputs, "O"), _only(outputs, "fV")
    if not classes and not scores:
        raise InvalidInput(
            f"the model cannot Classify: it needs one output of classes (strings), one of scores "
            f"(floating-point numbers) or both, and it has {_listed(outputs)}; call Predict"
        )
    return Classified(classes, scores, count)


def regressed(signature: Signature, count: int) -> Regressed:
    """Return which output of ``signature`` is the value of ``count`` examples.

    Raises:
        InvalidInput: none is, or it is not clear which.
    """
    outputs = signature.outputs
    name = _named(outputs, OUTPUTS, "fViu") or _only(outputs, "fV")
    if not name:
        raise InvalidInput(
            f"the model cannot Regress: it needs one output of floating-point numbers, and it has "
            f"{_listed(outputs)}; call Predict"
        )
    return Regressed(name, count)


def rows_of(found: Classified, response: InferResponse) -> list[list[tuple[str, np.float32]]]:
    """Return for each example the labels and scores of its classes.

    A label is empty where the model gives none, a score is 0 then.

    Raises:
        InvalidInput: the outputs have not a row for each example, or a label is no text.
    """
    outputs = {tensor.name: tensor.data for tensor in as_tensors(response)}
    classes = _rows(outputs, found.classes, found.examples)
    scores = _rows(outputs, found.scores, found.examples)
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise InvalidInput(
            f"the model answered with {list(classes.shape)} classes and {list(scores.shape)} "
            "scores, and Classify needs a score for each class; call Predict"
        )
    if scores is None:
        assert classes is not None
        return [[(_text(label), np.float32(0)) for label in row] for row in classes.tolist()]
    # Not Python's numbers, which are written as text with more digits than there are.
    numbers = [list(row) for row in scores.astype(np.float32)]
    if classes is None:
        return [[("", score) for score in row] for row in numbers]
    return [
        [(_text(label), score) for label, score in zip(labels, row)]
        for labels, row in zip(classes.tolist(), numbers)
    ]


def values_of(found: Regressed, response: InferResponse) -> Array:
    """Return the value of each example, as FP32.

    Raises:
        InvalidInput: the output has not one for each.
    """
    outputs = {tensor.name: tensor.data for tensor in response.outputs}
    data = outputs[found.output]
    if data.size != found.examples or data.ndim > 2 or data.shape[:1] != (found.examples,):
        raise InvalidInput(
            f"the model's output {found.output!r} has the shape {list(data.shape)}, and Regress "
            f"needs one value for each of {found.examples} examples; call Predict"
        )
    return data.reshape(-1).astype(np.float32)


def classification_result(rows: Sequence[Sequence[tuple[str, np.float32]]]) -> bytes:
    """Return a ``ClassificationResponse`` with nothing but its result."""
    response = messages.ClassificationResponse()
    response.result.SetInParent()
    for row in rows:
        listed = response.result.classifications.add().classes
        for label, score in row:
            listed.add(label=label, score=float(score))
    return bytes(response.SerializeToString())


def regression_result(values: Array) -> bytes:
    """Return a ``RegressionResponse`` with nothing but its result."""
    response = messages.RegressionResponse()
    for value in values.tolist():
        response.result.regressions.add(value=value)
    return bytes(response.SerializeToString())


def _named(outputs: Sequence[TensorSpec], name: str, kinds: str) -> str:
    """Return ``name`` if there is such an output of a type of these kinds, or nothing."""
    fits = any(spec.name == name and spec.dtype.numpy.kind in kinds for spec in outputs)
    return name if fits else ""


def _only(outputs: Sequence[TensorSpec], kinds: str) -> str:
    """Return the name of the only output of such a type that can be a table, or nothing."""
    found = [
        spec.name
        for spec in outputs
        if spec.dtype.numpy.kind in kinds and (spec.shape is None or 1 <= len(spec.shape) <= 2)
    ]
    return found[0] if len(found) == 1 else ""


def _rows(outputs: dict[str, Array], name: str, count: int) -> Array | None:
    if not name:
        return None
    data = outputs[name]
    if data.ndim == 1:  # one class of each
        data = data.reshape(-1, 1)
    if data.ndim != 2 or data.shape[0] != count:
        raise InvalidInput(
            f"the model's output {name!r} has the shape {list(data.shape)}, and Classify needs a "
            f"row of classes for each of {count} examples; call Predict"
        )
    return data


def _text(label: Any) -> str:
    if not isinstance(label, bytes):
        return str(label)
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"the model answered with the label {shown(label)}, which is no text in UTF-8; call "
            "Predict"
        ) from None


def _listed(outputs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec.dtype.value}" for spec in outputs) or "none"
