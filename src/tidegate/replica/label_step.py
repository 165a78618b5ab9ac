"""``postprocess: {softmax, labels, top_k}``: from the scores of classes to names, without code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.config.steps import Postprocess
from tidegate.errors import ConfigurationError, InferenceFailed, InvalidModel
from tidegate.hooks import Outputs, Request, Response
from tidegate.types import Array, Dimension, DType, TensorSpec

LABEL, CLASS, SCORE = "label", "class", "score"
_USUAL = 5
_LARGEST_FILE = 2**26


class LabelPostprocess:
    """Makes probabilities of scores, and names of the best classes."""

    def __init__(
        self, step: Postprocess, spec: TensorSpec, labels: tuple[str, ...] | None
    ) -> None:
        self._step = step
        self._spec = spec
        self._labels = labels
        self._bytes = None
        if labels is not None:
            self._bytes = np.empty(len(labels), np.object_)
            self._bytes[:] = [label.encode() for label in labels]
        count = None if spec.shape is None else spec.shape[-1]
        if labels is not None and isinstance(count, int) and count != len(labels):
            raise ConfigurationError(
                f"{step.labels} has {len(labels)} labels, but the output {spec.name!r} "
                f"{count} classes"
            )
        self._top = step.top_k or (_USUAL if labels is not None else None)
        known = count if isinstance(count, int) else None if labels is None else len(labels)
        if self._top is not None and known is not None:
            self._top = min(self._top, known)
        self._first: Dimension = "batch"
        if spec.shape:
            self._first = spec.shape[0]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that come of it."""
        if self._top is None:
            return (TensorSpec(self._spec.name, DType.FP32, self._spec.shape),)
        shape = (self._first, self._top)
        kind = TensorSpec(CLASS, DType.INT64, shape)
        if self._labels is not None:
            kind = TensorSpec(LABEL, DType.BYTES, shape)
        return (kind, TensorSpec(SCORE, DType.FP32, shape))

    def __call__(self, request: Request, outputs: Outputs) -> Response:
        """Return the best classes as tensors ``[rows, top_k]``, and as JSON for people.

        Raises:
            InferenceFailed: the output is not ``[rows, classes]``.
        """
        scores = outputs[self._spec.name]
        if scores.ndim != 2 or (self._labels and scores.shape[1] != len(self._labels)):
            wanted = len(self._labels) if self._labels else "classes"
            raise InferenceFailed(
                f"the output {self._spec.name!r} has the shape {list(scores.shape)}, but "
                f"postprocess takes [rows, {wanted}]"
            )
        values = self._probabilities(scores.astype(np.float32))
        if self._top is None:
            return Response(_said(values.tolist()), {self._spec.name: values})
        best = np.argsort(-values, axis=1, kind="stable")[:, : self._top]
        top = np.take_along_axis(values, best, axis=1)
        names = best if self._bytes is None else self._bytes[best]
        key = CLASS if self._labels is None else LABEL
        rows = [
            [
                {key: kind if self._labels is None else self._labels[kind], SCORE: score}
                for kind, score in zip(classes, row)
            ]
            for classes, row in zip(best.tolist(), top.tolist())
        ]
        return Response(_said(rows), {key: names, SCORE: top})

    def _probabilities(self, scores: Array) -> Array:
        if self._step.sigmoid:
            # Of the absolute value: e to a large power is infinite.
            small = np.exp(-np.abs(scores))
            return np.asarray(np.where(scores >= 0, 1, small) / (1 + small))
        if self._step.softmax and scores.size:
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return scores


def _said(rows: list[Any]) -> Any:
    """Return the JSON, which is the row itself where there is only one."""
    return rows[0] if len(rows) == 1 else rows


def label_postprocess(
    step: Postprocess, outputs: tuple[TensorSpec, ...], find: Callable[[str], Path | None]
) -> LabelPostprocess:
    """Return the step for a model of these outputs; ``find`` returns a file of its folder.

    Raises:
        ConfigurationError: there is no such output, or it is none of scores.
        InvalidModel: there is no such file of labels, or it is damaged.
    """
    found = [spec for spec in outputs if step.output in (None, spec.name)]
    if len(found) > 1:  # a model may tell the best class beside the scores
        found = [spec for spec in found if _may_be_scores(spec)]
    if len(found) != 1:
        names = ", ".join(repr(spec.name) for spec in outputs)
        raise ConfigurationError(
            f"postprocess does not know which output has the scores: write output, one of {names}"
        )
    (spec,) = found
    if not _may_be_scores(spec):
        raise ConfigurationError(
            f"postprocess: the output {spec.name!r} is {spec.dtype.value} "
            f"{list(spec.wire_shape)}, not scores of [batch, classes]"
        )
    return LabelPostprocess(
        step, spec, None if step.labels is None else _labels(step.labels, find)
    )


def _may_be_scores(spec: TensorSpec) -> bool:
    return spec.dtype.numpy.kind in "fV" and len(spec.shape or (1, 1)) == 2


def _labels(name: str, find: Callable[[str], Path | None]) -> tuple[str, ...]:
    path = find(name)
    if path is None:
        raise InvalidModel(
            f"there is no {name} in the model's folder, which postprocess.labels names"
        )
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InvalidModel(f"{name} is larger than 64 MiB: it is no file of labels")
        text = path.read_text("utf-8")
        labels: Sequence[Any] = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"{name} is no file of labels: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidModel(
            f"{name} is no list of labels: write one a line, or a JSON list of texts"
        )
    while labels and not labels[-1].strip():
        labels.pop()
    if not labels:
        raise InvalidModel(f"{name} has no labels")
    return tuple(labels)
