"""Every protocol calls a model of every runtime, and gets what that runtime itself computes."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.matrix import cells, worker
from tests.matrix.callers import CALLERS
from tests.matrix.cases import Case, Refused, check, strings
from tests.node.harness import ServedNode

pytestmark = pytest.mark.asyncio(loop_scope="module")

Cases = dict[tuple[str, str], Case]
Asking = Callable[[str, str, Case], Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def frameworks() -> Iterator[ProcessPoolExecutor]:
    """A process that imports all frameworks, and none of Tidegate's."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        yield pool


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix") / "models"


@pytest.fixture(scope="module")
def cases(frameworks: ProcessPoolExecutor, repository: Path) -> Cases:
    repository.mkdir()
    made = frameworks.submit(worker.make, repository).result()
    return dict(zip(cells.models(), made))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(repository: Path, cases: Cases) -> AsyncIterator[ServedNode]:
    async with ServedNode(repository) as served:
        yield served


@pytest.fixture(scope="module")
def ask(frameworks: ProcessPoolExecutor) -> Asking:
    async def asked(protocol: str, target: str, case: Case) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if protocol in worker.CALLERS:
            return await loop.run_in_executor(frameworks, worker.CALLERS[protocol], target, case)
        return await asyncio.to_thread(CALLERS[protocol], target, case)

    return asked


@pytest.mark.parametrize(("protocol", "runtime", "kind"), list(cells.cells()))
async def test_an_answer_is_that_of_the_framework(
    node: ServedNode, cases: Cases, ask: Asking, protocol: str, runtime: str, kind: str
) -> None:
    case = cases[runtime, kind]
    if protocol in cells.CLASSIFYING:
        case = case.classified()
    check(case, await ask(protocol, node.target, case))


async def test_callers_of_all_protocols_at_once(
    node: ServedNode, cases: Cases, ask: Asking
) -> None:
    """They share batches, and each gets its own rows, whose order differs."""

    async def asked(turn: int, protocol: str, case: Case) -> None:
        turned = case.turned(turn)
        if protocol in cells.CLASSIFYING:
            turned = turned.classified()
        check(turned, await ask(protocol, node.target, turned))

    numbers = [cases[runtime, "numbers"] for runtime in cells.RUNTIMES]
    pairs = itertools.product(cells.PROTOCOLS, numbers)
    await asyncio.gather(*(asked(turn, *pair) for turn, pair in enumerate(pairs)))


@pytest.mark.parametrize(("protocol", "runtime", "kind"), list(cells.cells(exist=False)))
async def test_what_does_not_exist_is_refused_in_words(
    node: ServedNode, cases: Cases, ask: Asking, protocol: str, runtime: str, kind: str
) -> None:
    with pytest.raises(Refused) as caught:
        await ask(protocol, node.target, cases[runtime, kind])
    assert_callers_fault(caught.value)


@pytest.mark.parametrize("protocol", list(cells.PROTOCOLS))
async def test_texts_for_a_model_of_numbers_are_refused_in_words(
    node: ServedNode, cases: Cases, ask: Asking, protocol: str
) -> None:
    numbers = cases["torch", "numbers"]
    texts = {"image": strings(b"seven")}
    with pytest.raises(Refused) as caught:
        await ask(protocol, node.target, dataclasses.replace(numbers, kind="texts", inputs=texts))
    assert_callers_fault(caught.value)


@pytest.mark.parametrize("protocol", list(cells.PROTOCOLS))
async def test_a_shape_that_does_not_fit_is_refused_in_words(
    node: ServedNode, cases: Cases, ask: Asking, protocol: str
) -> None:
    numbers = cases["tensorflow", "numbers"]
    narrow = {"image": numbers.inputs["image"][:, :, :, 1:]}
    with pytest.raises(Refused) as caught:
        await ask(protocol, node.target, dataclasses.replace(numbers, inputs=narrow))
    assert_callers_fault(caught.value)


@pytest.mark.parametrize("protocol", list(cells.PROTOCOLS))
async def test_a_model_that_is_not_there_is_not_found(
    node: ServedNode, cases: Cases, ask: Asking, protocol: str
) -> None:
    numbers = cases["onnx", "numbers"]
    absent = dataclasses.replace(numbers, model="absent", task=999)
    with pytest.raises(Refused) as caught:
        await ask(protocol, node.target, absent)
    assert caught.value.code in (404, "404", "NOT_FOUND", "StatusCode.NOT_FOUND")
    assert "absent" in caught.value.said or "999" in caught.value.said


async def test_one_array_for_two_inputs_is_refused_in_words(node: ServedNode) -> None:
    body = b'{"data": {"ndarray": [[1, 2, 3]]}}'
    path = "/seldon/team/integers-onnx/api/v1.0/predictions"
    status, answer = await node.post(path, body, {"content-type": "application/json"})
    assert status == 400
    assert b"the model has the inputs 'number', 'negate'" in answer


def assert_callers_fault(refused: Refused) -> None:
    """Check that a caller is told what was wrong with the request, and not that the server is."""
    assert len(refused.said) > 10
    code = str(refused.code).removeprefix("StatusCode.")
    assert code == "INVALID_ARGUMENT" or 400 <= int(code) < 500, refused
