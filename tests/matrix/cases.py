"""One model's inputs, and what its framework makes of them when it is called directly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tidegate.types import Array

TOLERANCE = 1e-5
"""Of FP32, relative; integers, truths, strings and pictures are compared exactly."""


class Refused(Exception):
    """The server answered with an error: an HTTP status, or the name of a gRPC code."""

    def __init__(self, code: int | str, said: str) -> None:
        super().__init__(code, said)
        self.code, self.said = code, said


@dataclass(slots=True)
class Case:
    """What is sent to a model and what must come back; strings are ``bytes`` in object arrays."""

    model: str
    task: int
    kind: str
    inputs: dict[str, Array]
    outputs: dict[str, Array] = field(default_factory=dict)

    def turned(self, rows: int) -> Case:
        """Return it with the last ``rows`` rows before the others, in and out."""
        inputs = {name: np.roll(array, rows, axis=0) for name, array in self.inputs.items()}
        outputs = {name: np.roll(array, rows, axis=0) for name, array in self.outputs.items()}
        return replace(self, inputs=inputs, outputs=outputs)

    def classified(self) -> Case:
        """Return what must come back when only scores and labels do."""
        outputs = {name: array for name, array in self.outputs.items() if array.dtype.kind in "fO"}
        return replace(self, outputs=outputs)

    def of_classes(self, rows: list[list[tuple[str, float]]]) -> dict[str, Any]:
        """Return what Classify answered, as outputs: for each row labels with their scores."""
        found = {}
        for name, wanted in self.classified().outputs.items():
            column = [[pair[wanted.dtype.kind == "f"] for pair in row] for row in rows]
            found[name] = column if wanted.ndim > 1 else [first for (first,) in column]
        return found

    @property
    def file(self) -> bytes | None:
        """The picture that is sent."""
        if "image" not in self.inputs or self.kind == "numbers":
            return None
        content: bytes = self.inputs["image"][0]
        return content


def strings(*elements: bytes) -> Array:
    """Return a one-dimensional array of strings."""
    found = np.empty(len(elements), np.object_)
    found[:] = elements
    return found


def check(case: Case, answer: Mapping[str, Any]) -> None:
    """Compare an answer, as arrays or as nested lists, with what must come back.

    What has no name in an answer (that of an only output) is under the empty one.
    """
    if answer.keys() == {""} and len(case.outputs) == 1:
        answer = {next(iter(case.outputs)): answer[""]}
    assert answer.keys() == case.outputs.keys()
    for name, wanted in case.outputs.items():
        _check_one(case, name, answer[name], wanted)


def _check_one(case: Case, name: str, found: Any, wanted: Array) -> None:
    if case.kind == "image":
        assert json.loads(_only(found)) == json.loads(wanted[0])
        return
    if case.kind == "picture":
        assert _only(found) == wanted[0]
        return
    assert np.shape(found) == wanted.shape, name
    if isinstance(found, np.ndarray) and found.dtype.kind not in "OSU":
        assert found.dtype == wanted.dtype, name
    if wanted.dtype == object:
        texts = [_bytes(element) for element in np.asarray(found, np.object_).reshape(-1)]
        assert texts == wanted.reshape(-1).tolist()
    elif wanted.dtype.kind == "f":
        numbers = np.asarray(found, np.float32)
        np.testing.assert_allclose(numbers, wanted, rtol=TOLERANCE, atol=TOLERANCE / 10)
    else:
        assert np.asarray(found).tolist() == wanted.tolist()


def _only(found: Any) -> bytes:
    if isinstance(found, bytes | str):
        return _bytes(found)
    assert np.shape(found) == (1,)
    return _bytes(found[0])


def _bytes(element: Any) -> bytes:
    return element.encode() if isinstance(element, str) else bytes(element)
