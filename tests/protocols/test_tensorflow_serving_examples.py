"""Classify and Regress: examples in, classes, scores and values out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.tensorflow_serving import calls, messages, rest
from tidegate.protocols.varints import write_length
from tidegate.types import (
    DType,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    Signature,
    Tensor,
    TensorSpec,
)

FP32, BYTES, INT64 = DType.FP32, DType.BYTES, DType.INT64
SCORES = TensorSpec("p", FP32, ("batch", 3))


def view(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (SCORES,)) -> ModelView:
    return ModelView(ModelMetadata("m", ("3",), "p", Signature(inputs, outputs)), "3")


X = TensorSpec("x", FP32, ("batch", 2))
ONE = view(X)


def message_of(kind: Any, *examples: dict[str, Any], context: dict[str, Any] | None = None) -> Any:
    message = kind()
    message.model_spec.name = "m"
    listed = (
        message.input.example_list if context is None else message.input.example_list_with_context
    )
    for features in examples:
        fill(listed.examples.add(), features)
    if context is not None:
        fill(listed.context, context)
    return message


def fill(example: Any, features: dict[str, Any]) -> None:
    for name, values in features.items():
        feature = example.features.feature[name]
        kinds = {float: feature.float_list, int: feature.int64_list, bytes: feature.bytes_list}
        if values:
            kinds[type(values[0])].value.extend(values)


def classify(
    *examples: dict[str, Any], model: ModelView = ONE, context: dict[str, Any] | None = None
) -> Inference:
    message = message_of(messages.ClassificationRequest, *examples, context=context)
    return calls.read_classify(message.SerializeToString(), model)


def inputs_of(*examples: dict[str, Any], model: ModelView = ONE, **more: Any) -> dict[str, Any]:
    found = classify(*examples, model=model, **more).request.inputs
    return {tensor.name: tensor.data.tolist() for tensor in found}


def test_features_are_the_inputs_of_their_names() -> None:
    assert inputs_of({"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}) == {"x": [[1, 2], [3, 4]]}
    assert inputs_of({"x": [1, 2], "more": [b"a"]}) == {"x": [[1, 2]]}
    mixed = view(
        TensorSpec("a", INT64, ("batch",)),
        TensorSpec("t", BYTES, (None, 1)),
        TensorSpec("b", DType.BOOL, ("batch", "n")),
        TensorSpec("u", DType.UINT8, None),
    )
    rows = ({"a": [1], "t": [b"q"], "b": [1, 0], "u": [7]},) * 2
    assert inputs_of(*rows, model=mixed) == {
        "a": [1, 1],
        "t": [[b"q"], [b"q"]],
        "b": [[True, False]] * 2,
        "u": [7, 7],
    }


def test_the_context_belongs_to_every_example() -> None:
    two = view(X, TensorSpec("y", FP32, ("batch",)))
    found = inputs_of({"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}, model=two, context={"y": [5.0]})
    assert found == {"x": [[1, 2], [3, 4]], "y": [5, 5]}


def test_a_model_without_a_batch_dimension() -> None:
    whole = view(TensorSpec("x", FP32, (2, 2)))
    assert inputs_of({"x": [1.0, 2.0, 3.0, 4.0]}, model=whole) == {"x": [[1, 2], [3, 4]]}
    assert inputs_of({"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}, model=whole) == {"x": [[1, 2], [3, 4]]}
    with pytest.raises(InvalidInput, match=r"3 examples with 2 values each .* shape \[2, 2\]"):
        inputs_of(*[{"x": [1.0, 2.0]}] * 3, model=whole)


def test_a_model_that_takes_serialized_examples() -> None:
    texts = view(TensorSpec("inputs", BYTES, ("batch",)))
    found = classify({"x": [1.0]}, {"x": [2.0]}, model=texts, context={"y": [b"a"]})
    [tensor] = found.request.inputs
    assert (tensor.name, tensor.data.shape) == ("inputs", (2,))
    for data, value in zip(tensor.data.tolist(), (1.0, 2.0)):
        features = messages.Example.FromString(data).features.feature
        assert list(features["x"].float_list.value) == [value]
        assert list(features["y"].bytes_list.value) == [b"a"]
    assert inputs_of({"inputs": [b"a"]}, model=texts) == {"inputs": [b"a"]}


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ((), "the input is empty"),
        (({"y": [1.0]},), "example 0 has no feature 'x', which is an input of the model; it has"),
        (({"x": [1.0, 2.0]}, {}), "example 1 has no feature 'x'"),
        (({"x": [b"a"]},), "is a bytes_list, but the model takes DT_FLOAT"),
        (({"x": [1.0]},), "1 examples with 1 values each"),
        (({"x": [1.0, 2.0]}, {"x": [1.0]}), "from 1 to 2 values"),
        (({"x": [1.0] * 4},), "1 examples with 4 values each"),
        (({"x": []},), "1 examples with 0 values each"),
    ],
)
def test_examples_that_do_not_fit(examples: tuple[dict[str, Any], ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        classify(*examples)


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        (DType.INT8, 128, "has the value 128, which DT_INT8 cannot hold"),
        (DType.UINT8, -1, "has the value -1"),
        (DType.BOOL, 2, "has the value 2, which DT_BOOL cannot hold"),
        (DType.INT8, 1.0, "is a float_list, but the model takes DT_INT8"),
        (DType.BYTES, 1, "is a int64_list, but the model takes DT_STRING"),
    ],
)
def test_values_that_do_not_fit(dtype: DType, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        classify({"x": [value]}, model=view(TensorSpec("x", dtype, ("batch", 1))))


# -- classes, scores and values -------------------------------------------------------------------

NUMBERS = np.array([[0.25, 0.75], [1, 0]], np.float64)
LABELS = np.array([[b"a", b"b"], ["\u4e2d".encode(), b""]], object)


def spec(name: str, dtype: DType, rank: int | None = 2) -> TensorSpec:
    return TensorSpec(name, dtype, None if rank is None else ("batch", "n", "m")[:rank])


def classes(outputs: tuple[TensorSpec, ...], *tensors: Tensor) -> list[list[tuple[str, float]]]:
    """What Classify answers over gRPC; the same must come over REST."""
    model = view(X, outputs=outputs)
    found = classify(*[{"x": [1.0, 2.0]}] * 2, model=model)
    wanted = {output.name for output in found.request.outputs}
    response = InferResponse("m", "3", "", [t for t in tensors if t.name in wanted])
    answer = messages.ClassificationResponse.FromString(b"".join(found.encode(response).parts))
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 3)
    rows = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
    assert on_rest("classify", model, response) == [[[*pair] for pair in row] for row in rows]
    return rows


def on_rest(verb: str, model: ModelView, response: InferResponse) -> Any:
    body = json.dumps({"examples": [{"x": [1, 2]}, {"x": [1.5, 2]}]}).encode()
    call = RestCall("POST", f"/v1/models/m:{verb}", "", {}, body)
    found = rest.read_call(call, model)
    assert isinstance(found, Inference)
    reply = found.encode(response)
    assert isinstance(reply, Reply)
    return json.loads(b"".join(reply.parts))["results"]


def test_classes() -> None:
    scores, labels = Tensor.of("scores", NUMBERS), Tensor.of("classes", LABELS)
    named = (spec("scores", DType.FP64), spec("classes", BYTES))
    both = [[("a", 0.25), ("b", 0.75)], [("\u4e2d", 1), ("", 0)]]
    assert classes(named, scores, labels) == both
    assert classes((*named, spec("z", FP32)), scores, labels) == both
    other = (Tensor.of("q", NUMBERS), Tensor.of("t", LABELS))
    assert classes((spec("q", DType.FP64), spec("t", BYTES), spec("i", INT64)), *other) == both
    assert classes((spec("q", DType.FP64), spec("z", FP32, 3)), *other) == [
        [("", 0.25), ("", 0.75)],
        [("", 1), ("", 0)],
    ]
    assert classes((spec("t", BYTES),), *other)[0] == [("a", 0), ("b", 0)]
    numbers = Tensor.of("classes", np.array([7, 9]))
    assert classes((spec("classes", INT64, 1),), numbers) == [[("7", 0)], [("9", 0)]]


def test_models_that_cannot_classify() -> None:
    for outputs, words in (
        ((spec("a", FP32), spec("b", FP32)), "cannot Classify.* it has 'a' FP32, 'b' FP32"),
        ((spec("a", INT64),), "cannot Classify"),
        ((), "cannot Classify.* it has none"),
    ):
        with pytest.raises(InvalidInput, match=words):
            classes(outputs)
    with pytest.raises(InvalidInput, match=r"'p' has the shape \[3, 2\].* row .* of 2 examples"):
        classes((spec("p", FP32),), Tensor.of("p", np.zeros((3, 2), np.float32)))
    with pytest.raises(InvalidInput, match="needs a score for each class"):
        classes(
            (spec("p", FP32), spec("t", BYTES)),
            Tensor.of("p", np.zeros((2, 3), np.float32)),
            Tensor.of("t", LABELS),
        )
    with pytest.raises(InvalidInput, match=r"label b'.xff', which is no text"):
        classes((spec("t", BYTES, 1),), Tensor.of("t", np.array([b"a", b"\xff"], object)))


def test_what_hooks_say_is_a_label() -> None:
    body = b'{"examples": [{"image": {"b64": "AA=="}}]}'
    picture = view(TensorSpec("image", BYTES, (1,)), outputs=(TensorSpec("payload", BYTES, (1,)),))
    found = rest.read_call(RestCall("POST", "/v1/models/m:classify", "", {}, body), picture)
    assert isinstance(found, Inference)
    reply = found.encode(InferResponse("m", "3", "", (), payload={"digit": 7}))
    assert isinstance(reply, Reply)
    assert json.loads(b"".join(reply.parts)) == {"results": [[['{"digit":7}', 0.0]]]}


def values(outputs: tuple[TensorSpec, ...], *tensors: Tensor) -> list[float]:
    model = view(X, outputs=outputs)
    message = message_of(messages.RegressionRequest, *[{"x": [1.0, 2.0]}] * 2)
    found = calls.read_regress(message.SerializeToString(), model)
    response = InferResponse("m", "3", "", tensors)
    answer = messages.RegressionResponse.FromString(b"".join(found.encode(response).parts))
    rows = [regression.value for regression in answer.result.regressions]
    assert found.request.outputs == (RequestedOutput(tensors[0].name),)
    over_rest = on_rest("regress", model, response)
    assert over_rest == rows or math.isnan(rows[0])
    return rows


def test_values() -> None:
    assert values((spec("q", FP32, 1),), Tensor.of("q", np.array([0.5, 2], np.float32))) == [
        0.5,
        2,
    ]
    column = Tensor.of("outputs", np.array([[1], [2]], np.float64))
    assert values((spec("outputs", DType.FP64), spec("z", FP32)), column) == [1, 2]
    [nan, _] = values((spec("q", FP32, 1),), Tensor.of("q", np.array([np.nan, 2], np.float32)))
    assert math.isnan(nan)
    for outputs in ((spec("a", FP32), spec("b", FP32)), (spec("a", INT64),)):
        with pytest.raises(InvalidInput, match="cannot Regress"):
            values(outputs, column)
    for shape in ((2, 2), (3,), ()):
        with pytest.raises(InvalidInput, match="Regress needs one value for each of 2 examples"):
            values((spec("q", FP32),), Tensor.of("q", np.zeros(shape, np.float32)))


# -- over REST, and the rest ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "'examples' is None; send a list"),
        ({"examples": []}, "send a list of at least one object"),
        ({"examples": [1]}, r"examples\[0\] is 1; send an object"),
        ({"examples": [{"x": [1, "a"]}]}, "send numbers, strings, or bytes"),
        ({"examples": [{"x": None}]}, "send numbers, strings, or bytes"),
        ({"examples": [{"x": [[1]]}]}, "send numbers, strings, or bytes"),
        ({"examples": [{"x": 2**63}]}, "the feature 'x' of examples"),
        ({"examples": [{"x": {"b64": "!"}}]}, "not base64"),
        ({"examples": [{"x": {"b65": "a"}}]}, "an object other than"),
        ({"examples": [{"x": 1}], "context": 1}, "'context' is 1; send an object"),
    ],
)
def test_wrong_documents(document: object, words: str) -> None:
    call = RestCall("POST", "/v1/models/m:classify", "", {}, json.dumps(document).encode())
    with pytest.raises(InvalidInput, match=words):
        rest.read_call(call, ONE)


def test_texts_over_rest() -> None:
    model = view(TensorSpec("x", BYTES, ("batch", 2)), TensorSpec("c", INT64, ("batch",)))
    document = {"context": {"c": 7}, "examples": [{"x": ["a", {"b64": "YWI="}]}]}
    call = RestCall("POST", "/v1/models/m:classify", "", {}, json.dumps(document).encode())
    found = rest.read_call(call, model)
    assert isinstance(found, Inference)
    assert [t.data.tolist() for t in found.request.inputs] == [[[b"a", b"ab"]], [7]]


def test_the_signature_that_answers_is_named() -> None:
    signature = Signature((X,), (SCORES,))
    metadata = ModelMetadata("m", ("3",), "p", signature, {"first": signature, "b": signature})
    for asked, named in (("", "first"), ("b", "b")):
        message = message_of(messages.ClassificationRequest, {"x": [1.0, 2.0]})
        message.model_spec.signature_name = asked
        found = calls.read_classify(message.SerializeToString(), ModelView(metadata, "3"))
        response = InferResponse("m", "3", "", [Tensor.of("p", np.zeros((1, 3), np.float32))])
        answer = messages.ClassificationResponse.FromString(b"".join(found.encode(response).parts))
        assert answer.model_spec.signature_name == named


def test_multi_inference() -> None:
    with pytest.raises(Unsupported, match="call Classify and Regress, each for itself"):
        calls.read_multi_inference(b"", ONE)


@pytest.mark.parametrize(
    ("fields", "words"), [([], "is empty"), (["signature_def", "other"], "'other' is not known")]
)
def test_metadata_of_other_kinds(fields: list[str], words: str) -> None:
    request = messages.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = "m"
    with pytest.raises(InvalidInput, match=words):
        calls.read_metadata(request.SerializeToString(), ONE)


def test_very_many_examples_are_refused_unparsed() -> None:
    listed = b"\x0a\0" * (2**20 + 1)
    examples = b"\x0a" + write_length(len(listed)) + listed
    message = b"\x0a\x03\x0a\x01m\x12" + write_length(len(examples)) + examples
    with pytest.raises(InvalidInput, match="more than 1048576 fields"):
        calls.read_classify(message, ONE)
