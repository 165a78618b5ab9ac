"""What hooks are given and what becomes of what they return."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.replica.fake_model import FakeModel
from tidegate.config.model import Batching, DeclaredTensor
from tidegate.errors import InferenceFailed, InvalidInput, QueueFull, TidegateError
from tidegate.hooks import Batch, Model, Request, Response
from tidegate.replica.binding import binding
from tidegate.replica.hooks import Functions
from tidegate.replica.loading import Loaded, with_hooks
from tidegate.replica.public import Declared, Side
from tidegate.replica.warmup import can_batch
from tidegate.types import (
    DType,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

ONE = Signature(
    (TensorSpec("a", DType.FP32, ("n", 2)),), (TensorSpec("total", DType.FP32, ("n", 2)),)
)
ROW = np.ones((1, 2), np.float32)


class Doubling(FakeModel):
    """``total = 2 a``."""

    def run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        return {"total": inputs["a"] * 2}


def side(declared: Declared) -> Side:
    return Side.of(declared, "here")


def loaded(functions: Functions, signature: Signature = ONE) -> Loaded:
    return with_hooks(Doubling(signature=signature), functions)


def run(functions: Functions, request: InferRequest | None = None) -> InferResponse:
    """Do what a replica does with one request."""
    found = loaded(functions)
    hooks = found.hooks(binding(found.model.signatures, {"serving_default": True}))
    assert hooks is not None
    sent = request or InferRequest("m", payload="text")
    prepared = hooks.prepare(sent)
    (outcome,) = found.runner(lambda: 0.0).run([prepared.bound]).outcomes
    if isinstance(outcome, BaseException):
        raise outcome
    return hooks.finish(sent, prepared, outcome)


def before(value: Any) -> Functions:
    return Functions(preprocess=lambda request: value)


def after(value: Any, **more: Any) -> Functions:
    return Functions(lambda request: ROW, lambda request, outputs: value, **more)


def noting(requests: list[Request]) -> Callable[[Request], Any]:
    def preprocess(request: Request) -> Any:
        requests.append(request)
        return ROW

    return preprocess


def text(name: str, value: bytes) -> InferRequest:
    data = np.empty(1, np.object_)
    data[0] = value
    return InferRequest("m", inputs=(Tensor(name, DType.BYTES, data),))


@pytest.mark.parametrize(
    "value", [ROW, {"a": ROW}, [[1, 1]], np.ones((1, 2)), {"a": np.ones((1, 2), np.float16)}]
)
def test_what_preprocess_may_return(value: Any) -> None:
    (output,) = run(before(value)).outputs
    assert (output.name, output.dtype, output.data.tolist()) == ("total", DType.FP32, [[2, 2]])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"b": ROW}, "does not fit the model: the model has no input 'b'"),
        (np.ones(2), "does not fit the model: the input 'a' must have 2 dimensions"),
        (np.ones((1, 3)), "must be 2, not 3"),
        (["x"], "must be FP32, not BYTES"),
        ({"a": [[1], [2, 3]]}, "'a' of what preprocess returned is no array"),
        (None, "is no array"),
        (np.ones((1, 2), np.complex64), "no tensor type holds"),
        ({}, "the input 'a' is missing"),
    ],
)
def test_what_preprocess_returns_wrongly_is_the_models_fault(value: Any, said: str) -> None:
    with pytest.raises(InferenceFailed, match="preprocess") as failed:
        run(before(value))
    assert said in str(failed.value)


def test_a_model_of_two_inputs_needs_names() -> None:
    functions = Functions(lambda request: ROW)
    two = Signature((*ONE.inputs, TensorSpec("b", DType.FP32, ("n", 2))), ONE.outputs)
    found = loaded(functions, two)
    hooks = found.hooks(binding(found.model.signatures, {"serving_default": True}))
    assert hooks is not None
    with pytest.raises(InferenceFailed, match="the inputs 'a', 'b': return a dict"):
        hooks.prepare(InferRequest("m"))


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (InvalidInput("send less"), InvalidInput, "send less"),
        (QueueFull("later"), QueueFull, "later"),
        (KeyError("x"), InferenceFailed, "raised KeyError: 'x'"),
        (SystemExit(3), InferenceFailed, "raised SystemExit: 3"),
        (MemoryError(), TidegateError, "ran out of memory"),
    ],
)
def test_what_hooks_raise(raised: BaseException, kind: type[Exception], said: str) -> None:
    def hook(*arguments: Any) -> Any:
        raise raised

    for functions in (
        Functions(preprocess=hook),
        Functions(lambda request: ROW, hook),
        Functions(lambda request: ROW, run_model=hook),
    ):
        with pytest.raises(kind) as failed:
            run(functions)
        assert said in str(failed.value)


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ("a text", "a text"),
        (b"\xff", b"\xff"),
        ({"label": "a", "score": np.float32(0.5)}, {"label": "a", "score": 0.5}),
        ([("a", 1), ("b", 2)], [["a", 1], ["b", 2]]),
        ({"scores": np.ones(2), "n": 1}, {"scores": [1, 1], "n": 1}),
        (np.int64(3), 3),
        ({1: [np.array(["x"])]}, {"1": [["x"]]}),
        ([], []),
        (Response(payload="text"), "text"),
    ],
)
def test_answers_that_are_no_tensors(value: Any, payload: Any) -> None:
    response = run(after(value))
    assert (response.payload, response.outputs) == (payload, ())


@pytest.mark.parametrize(
    ("value", "outputs"),
    [
        (np.arange(2), {"output": (DType.INT64, [0, 1])}),
        ({"x": ROW, "y": np.array(["é"])}, {"x": (DType.FP32, [[1, 1]]),
                                            "y": (DType.BYTES, ["é".encode()])}),
        (Response(tensors={"x": ROW}), {"x": (DType.FP32, [[1, 1]])}),
    ],
)  # fmt: skip
def test_answers_that_are_tensors(value: Any, outputs: Any) -> None:
    response = run(after(value))
    assert response.payload is None
    assert {t.name: (t.dtype, t.data.tolist()) for t in response.outputs} == outputs


@pytest.mark.parametrize(
    ("declared", "value", "said"),
    [
        ("text", b"x", "returned a bytes, but the output is declared as text: return str"),
        ("image", "x", "declared as image: return bytes"),
        ("json", b"x", "holds a bytes, which JSON has not"),
        ("json", {1, 2}, "holds a set, which JSON has not"),
        (None, None, "returned nothing"),
        (None, object(), "holds a object"),
        ([DeclaredTensor(name="x", dtype=DType.FP32, shape=(2,))], "x", "declared as tensors"),
        ([DeclaredTensor(name="x", dtype=DType.FP32, shape=(2,))], {"y": ROW}, "'y'"),
        ([DeclaredTensor(name="x", dtype=DType.INT8, shape=(2,))], {"x": ROW}, "must be INT8"),
    ],
)
def test_answers_of_another_kind_are_the_models_fault(
    declared: Any, value: Any, said: str
) -> None:
    with pytest.raises(InferenceFailed, match="postprocess") as failed:
        run(after(value, outgoing=side(declared)))
    assert said in str(failed.value)


def test_a_cycle_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InferenceFailed, match="nested"):
        run(after(endless))


def test_declared_json_may_be_of_arrays() -> None:
    assert run(after({"x": ROW}, outgoing=side("json"))).payload == {"x": [[1, 1]]}


def test_parameters_and_tags_of_a_response() -> None:
    response = run(after(Response("x", parameters={"p": 1}, tags={"t": [2]})))
    assert (response.parameters, response.tags) == ({"p": 1}, {"t": [2]})


def test_only_outputs_that_are_asked_for() -> None:
    asked = InferRequest("m", payload="x", outputs=(RequestedOutput("y"),))
    (output,) = run(after({"x": ROW, "y": ROW}), asked).outputs
    assert output.name == "y"
    with pytest.raises(InvalidInput, match="no output 'y': it gives 'x'"):
        run(after({"x": ROW}), asked)
    with pytest.raises(InvalidInput, match="no output 'y': it gives 'total'"):
        run(before(ROW), asked)
    with pytest.raises(InvalidInput, match="no output 'y': it gives 'payload'"):
        run(after({"x": 1}, outgoing=side("json")), asked)


@pytest.mark.parametrize(
    ("kind", "sent", "seen"),
    [
        ("text", "a", "a"),
        ("text", "é".encode(), "é"),
        ("json", b'{"a": [1]}', {"a": [1]}),
        ("json", "[1]", [1]),
        ("json", {"a": 1}, {"a": 1}),
        ("bytes", b"\xff", b"\xff"),
        ("image", b"\xff", b"\xff"),
        ("image", {"b64": base64.b64encode(b"\xff").decode()}, b"\xff"),
    ],
)
def test_what_is_sent_is_what_is_declared(kind: Any, sent: Any, seen: Any) -> None:
    requests: list[Request] = []
    functions = Functions(noting(requests), incoming=side(kind))
    run(functions, InferRequest("m", payload=sent))
    assert requests[0].payload == seen
    if isinstance(sent, bytes):
        for request in (text(kind, sent), text(kind, sent)):
            run(functions, request)
        assert requests[1].payload == requests[2].payload == seen
        assert not requests[1].tensors


@pytest.mark.parametrize(
    ("kind", "sent", "said"),
    [
        ("text", InferRequest("m", payload=b"\xff"), "UTF-8"),
        ("text", InferRequest("m", payload=[1]), "a text, not a JSON document"),
        ("json", InferRequest("m", payload=b"{"), "JSON"),
        ("image", InferRequest("m", payload="x"), "not a text"),
        ("image", InferRequest("m", payload={"b64": "ü"}), "no base64"),
        ("image", InferRequest("m", payload={"b64": 1}), "no base64"),
        ("image", InferRequest("m", payload={"a": 1}), "not a JSON document"),
        ("image", text("text", b"x"), "send one BYTES tensor 'image' of one element, not 'text'"),
        ("image", InferRequest("m", inputs=(Tensor.of("image", ROW),)), "'image' FP32 [1, 2]"),
        ("image", InferRequest("m"), "not 0 tensors"),
    ],
)
def test_what_is_sent_wrongly_is_the_callers_fault(
    kind: Any, sent: InferRequest, said: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        run(Functions(lambda request: ROW, incoming=side(kind)), sent)
    assert said in str(refused.value)


def test_declared_tensors_are_checked() -> None:
    declared = [DeclaredTensor(name="x", dtype=DType.INT8, shape=("n", 2))]
    functions = Functions(lambda request: request.tensor("x"), incoming=side(declared))
    x = Tensor.of("x", np.ones((1, 2), np.int8))
    assert run(functions, InferRequest("m", inputs=(x,))).outputs[0].data.tolist() == [[2, 2]]
    assert loaded(functions).public.inputs == (TensorSpec("x", DType.INT8, ("n", 2)),)
    with pytest.raises(InvalidInput, match="'x' must be INT8, not FP32"):
        run(functions, InferRequest("m", inputs=(Tensor.of("x", ROW),)))
    with pytest.raises(InvalidInput, match="send the tensor 'x' INT8, not a text"):
        run(functions, InferRequest("m", payload="text"))


def test_declared_as_the_models_own() -> None:
    functions = Functions(
        lambda request: request.tensors,
        lambda request, outputs: outputs,
        incoming=side("model"),
        outgoing=side("model"),
    )
    assert loaded(functions).public == ONE
    a = InferRequest("m", inputs=(Tensor.of("a", ROW),))
    assert run(functions, a).outputs[0].data.tolist() == [[2, 2]]
    with pytest.raises(InvalidInput, match="'a' is missing"):
        run(functions, InferRequest("m"))


def test_undeclared_is_as_it_came() -> None:
    requests: list[Request] = []
    functions = Functions(noting(requests))
    x = Tensor.of("x", ROW)
    run(functions, InferRequest("m", "1", "7", (x,), (), {"p": 1}, tags={"t": 2}))
    run(functions, text("text", b"word"))
    run(functions, text("other", b"word"))
    assert (requests[0].tensor() == ROW).all()
    assert (requests[0].id, requests[0].parameters, requests[0].tags) == ("7", {"p": 1}, {"t": 2})
    assert requests[1].text == "word"
    assert requests[2].tensor("other")[0] == b"word"
    assert loaded(functions).public == Signature((), ONE.outputs)


def test_the_public_signature() -> None:
    public = loaded(after("x", incoming=side("image"), outgoing=side("json"))).public
    assert public == Signature(
        (TensorSpec("image", DType.BYTES, (1,)),), (TensorSpec("payload", DType.BYTES, (1,)),)
    )
    assert loaded(Functions(None, lambda request, outputs: "x")).public.inputs == ONE.inputs


def test_what_a_request_has_not() -> None:
    request = Request({"x": ROW, "y": ROW}, None)
    for wrong, said in (
        (lambda: request.text, "send a text, not the tensors 'x', 'y'"),
        (lambda: request.data, "send bytes"),
        (lambda: request.json, "send a JSON document"),
        (lambda: request.image(), "send bytes"),
        (lambda: request.tensor(), "send one tensor, not 2"),
        (lambda: request.tensor("z"), "the tensor 'z' is missing; sent were: 'x', 'y'"),
        (lambda: Request(payload=b"abc").text, "not 3 bytes"),
        (lambda: Request(payload="t").data, "not a text"),
        (lambda: Request(payload=[1]).data, "not a JSON document"),
        (lambda: Request().text, "not nothing"),
    ):
        with pytest.raises(InvalidInput) as refused:
            wrong()
        assert said in str(refused.value)


def test_run_model_calls_the_model_as_often_as_it_likes() -> None:
    seen: list[Batch] = []

    def run_model(model: Model, batch: Batch) -> dict[str, Any]:
        seen.append(batch)
        again = model(model(batch.inputs) | {"a": model(batch.inputs)["total"]}, ["total"])
        return {"total": again["total"] + batch.parameters["scale"]}

    functions = Functions(run_model=run_model, group_by=("scale",))
    request = InferRequest("m", inputs=(Tensor.of("a", ROW),), parameters={"scale": 3, "p": 1})
    assert run(functions, request).outputs[0].data.tolist() == [[7, 7]]
    assert (seen[0].rows, list(seen[0].outputs), dict(seen[0].parameters)) == (
        1,
        ["total"],
        {"scale": 3},
    )
    with pytest.raises(InvalidInput, match="'scale' must be a text, a number or a bool"):
        run(functions, InferRequest("m", inputs=(Tensor.of("a", ROW),), tags={"scale": [1]}))


def test_run_model_need_not_take_made_up_samples() -> None:
    def run_model(model: Model, batch: Batch) -> Any:
        return {"total": model(batch.inputs)["total"] * float(str(batch.parameters["scale"]))}

    model = loaded(Functions(run_model=run_model, group_by=("scale",))).model
    assert can_batch(model, Batching())
    assert model.run({"a": ROW}, ["total"])["total"].tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"other": ROW}, "returned 'other', but not 'total'"),
        ({}, "returned nothing, but not 'total'"),
        ({"total": "x"}, "must be FP32"),
        (None, "is no array"),
    ],
)
def test_what_run_model_returns_wrongly(found: Any, said: str) -> None:
    with pytest.raises(InferenceFailed, match="run_model") as failed:
        run(Functions(lambda request: ROW, run_model=lambda model, batch: found))
    assert said in str(failed.value)


def test_run_model_may_give_other_outputs_that_are_declared() -> None:
    functions = Functions(
        run_model=lambda model, batch: {"best": model(batch.inputs)["total"].argmax(1)},
        outgoing=side([DeclaredTensor(name="best", dtype=DType.INT32, shape=("n",))]),
    )
    request = InferRequest("m", inputs=(Tensor.of("a", np.array([[1, 3]], np.float32)),))
    (output,) = run(functions, request).outputs
    assert (output.name, output.dtype, output.data.tolist()) == ("best", DType.INT32, [1])
    assert loaded(functions).public.outputs == (TensorSpec("best", DType.INT32, ("n",)),)
