from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.replica.fake_model import FakeModel, ask
from tidegate.errors import InferenceFailed, InsufficientMemory, InvalidInput
from tidegate.replica.batch import BatchRunner, Outcome, Run
from tidegate.replica.binding import Binder, Bound
from tidegate.types import Array


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 1.0


def runner(model: FakeModel) -> BatchRunner:
    ticks = ticking()
    return BatchRunner(model, lambda: next(ticks))


def bind(model: FakeModel, value: float, rows: int = 1, outputs: Sequence[str] = ()) -> Bound:
    return Binder(model.signature, batched=True).bind(ask(value, rows, outputs=outputs))


def batch_of(model: FakeModel, values: Sequence[float]) -> list[Bound]:
    return [bind(model, value) for value in values]


def answer(outcome: Outcome) -> Mapping[str, Array]:
    assert not isinstance(outcome, BaseException), outcome
    return outcome


def refuse(*culprits: float) -> FakeModel:
    def meddle(array: Array) -> None:
        bad = set(culprits).intersection(array[:, 0].tolist())
        if bad:
            raise InferenceFailed(f"cannot take {min(bad):g}")

    return FakeModel(meddle)


def test_one_request_runs_as_it_is() -> None:
    model = FakeModel()
    bound = bind(model, 3.0, rows=2)
    ran = runner(model).run([bound])
    assert answer(ran.outcomes[0])["total"].tolist() == [[3.5, 3.5]] * 2
    assert ran.runs == [Run(2, 1, 1.0)]
    assert ran.clamp is None


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_every_request_gets_its_own_rows(sizes: list[int]) -> None:
    model = FakeModel()
    batch = [bind(model, float(index), rows) for index, rows in enumerate(sizes)]
    ran = runner(model).run(batch)
    assert len(model.runs) == 1
    (run,) = ran.runs
    assert run[:3] == (sum(sizes) if len(sizes) > 1 else max(1, sizes[0]), len(sizes), 1.0)
    # Whoever runs alone is neither joined nor split.
    assert run[3:] == ((1.0, 1.0) if len(sizes) > 1 else (0.0, 0.0))
    for index, (rows, outcome) in enumerate(zip(sizes, ran.outcomes)):
        assert answer(outcome)["total"].tolist() == [[index + 0.5] * 2] * rows
        assert answer(outcome)["twice"].tolist() == [[index * 2.0] * 2] * rows


def test_only_what_somebody_asked_for_is_computed() -> None:
    model = FakeModel()
    batch = [bind(model, 1.0, outputs=("twice",)), bind(model, 2.0, outputs=("twice",))]
    ran = runner(model).run(batch)
    assert model.asked == [("twice",)]
    assert [list(answer(outcome)) for outcome in ran.outcomes] == [["twice"]] * 2


def test_each_gets_what_it_asked_for_in_its_order() -> None:
    model = FakeModel()
    wishes = [("twice",), ("twice", "total"), ("total", "twice"), ()]
    ran = runner(model).run([bind(model, 1.0, outputs=wish) for wish in wishes])
    assert len(model.runs) == 1
    found = [tuple(answer(outcome)) for outcome in ran.outcomes]
    assert found == [("twice",), ("twice", "total"), ("total", "twice"), ("total", "twice")]


@given(st.integers(1, 16).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_only_the_culprits_fail(case: tuple[int, set[int]]) -> None:
    count, culprits = case
    model = refuse(*map(float, culprits))
    ran = runner(model).run(batch_of(model, [float(index) for index in range(count)]))
    for index, outcome in enumerate(ran.outcomes):
        if index in culprits:
            assert isinstance(outcome, InferenceFailed)
            assert str(outcome) == f"cannot take {index}"
        else:
            assert answer(outcome)["twice"].tolist() == [[index * 2.0] * 2]
    assert ran.clamp is None


def test_one_culprit_costs_a_logarithm() -> None:
    model = refuse(13.0)
    runner(model).run(batch_of(model, [float(index) for index in range(32)]))
    assert len(model.runs) == 1 + 2 * 5


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (InvalidInput("not UTF-8"), InvalidInput, "not UTF-8"),
        (ValueError("no"), InferenceFailed, "the model raised ValueError: no"),
        (SystemExit(3), InferenceFailed, "the model raised SystemExit: 3"),
        (MemoryError("4 GiB"), InsufficientMemory, "the model ran out of memory: 4 GiB"),
    ],
    ids=repr,
)
def test_whatever_the_model_raises_becomes_one_of_ours(
    raised: BaseException, kind: type[Exception], message: str
) -> None:
    def meddle(array: Array) -> None:
        raise raised

    model = FakeModel(meddle)
    ran = runner(model).run(batch_of(model, [1.0, 2.0]))
    for outcome in ran.outcomes:
        assert type(outcome) is kind
        assert str(outcome) == message
    assert ran.runs == []


@pytest.mark.parametrize("error", [InsufficientMemory, MemoryError])
@pytest.mark.parametrize("fits", [1, 2, 3, 4, 7])
def test_what_does_not_fit_is_split_and_clamped(fits: int, error: type[Exception]) -> None:
    def meddle(array: Array) -> None:
        if len(array) > fits:
            raise error("no room")

    model = FakeModel(meddle)
    ran = runner(model).run(batch_of(model, [float(index) for index in range(8)]))
    assert [answer(o)["twice"][0, 0] for o in ran.outcomes] == [2.0 * i for i in range(8)]
    assert ran.clamp == {1: 1, 2: 2, 3: 2, 4: 4, 7: 4}[fits]


@pytest.mark.parametrize("place", range(8))
def test_one_that_never_fits_does_not_make_all_batches_small(place: int) -> None:
    def meddle(array: Array) -> None:
        if 99.0 in array:
            raise InsufficientMemory("no room")

    model = FakeModel(meddle)
    values = [float(index) for index in range(8)]
    values[place] = 99.0
    ran = runner(model).run(batch_of(model, values))
    for index, outcome in enumerate(ran.outcomes):
        assert isinstance(outcome, InsufficientMemory) is (index == place)
    assert ran.clamp is None


class _Scalar(FakeModel):
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        super().run(inputs, outputs)
        return {name: np.float32(7) for name in outputs}  # type: ignore[misc]


class _OneRow(FakeModel):
    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return {name: array[:1] for name, array in super().run(inputs, outputs).items()}


@pytest.mark.parametrize("kind", [_Scalar, _OneRow])
def test_outputs_that_cannot_be_split_are_run_one_by_one(kind: type[FakeModel]) -> None:
    model = kind()
    ran = runner(model).run(batch_of(model, [1.0, 2.0, 3.0]))
    assert [len(run) for run in model.runs][-1] == 1
    for outcome in ran.outcomes:
        assert set(answer(outcome)) == {"total", "twice"}
