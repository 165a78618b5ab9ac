from __future__ import annotations

import inspect

import pytest

from tidegate import errors
from tidegate.protocols import statuses
from tidegate.protocols.statuses import GrpcCode, status_of

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TidegateError)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_row_of_its_own(kind: type[errors.TidegateError]) -> None:
    assert kind in statuses._TABLE


def test_the_table_has_no_row_but_theirs() -> None:
    assert set(statuses._TABLE) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_row_is_a_success_or_says_nothing(kind: type[errors.TidegateError]) -> None:
    status = status_of(kind("why"))
    assert status.grpc not in (GrpcCode.OK, GrpcCode.UNKNOWN)
    assert 400 <= status.http <= 599
    assert 64 <= status.exit <= 78


def test_what_the_caller_must_change_is_a_4xx_and_what_may_pass_is_not_an_internal_error() -> None:
    assert status_of(errors.InvalidInput("x"))[:2] == (400, GrpcCode.INVALID_ARGUMENT)
    assert status_of(errors.QueueFull("x"))[:2] == (429, GrpcCode.RESOURCE_EXHAUSTED)
    assert status_of(errors.ModelNotReady("x"))[:2] == (503, GrpcCode.UNAVAILABLE)


def test_a_kind_without_a_row_takes_its_ancestors() -> None:
    class Stranger(errors.InvalidInput):
        pass

    assert status_of(Stranger("x")) == status_of(errors.InvalidInput("x"))


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()])
def test_what_is_not_of_the_tree_is_a_fault_of_ours(error: BaseException) -> None:
    assert status_of(error)[:2] == (500, GrpcCode.INTERNAL)
