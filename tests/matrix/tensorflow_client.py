"""TensorFlow Serving's own client: the stubs and messages of ``tensorflow-serving-api``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from tests.matrix.cases import Case, Refused
from tests.tensorflow_models import tf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorflow_serving.apis import (
        classification_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

TIMEOUT = 30.0


def predict(target: str, case: Case) -> dict[str, Any]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = case.model
    for name, array in case.inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    answer = _call(target, lambda stub: stub.Predict(request, timeout=TIMEOUT))
    return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}


def classify(target: str, case: Case) -> dict[str, Any]:
    """Send a ``tf.Example`` for each row; return labels, scores or both."""
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = case.model
    rows = len(next(iter(case.inputs.values())))
    for row in range(rows):
        example = request.input.example_list.examples.add()
        for name, array in case.inputs.items():
            feature = example.features.feature[name]
            _values(feature, array.dtype).extend(np.ravel(array[row]).tolist())
    answer = _call(target, lambda stub: stub.Classify(request, timeout=TIMEOUT))
    found = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
    return case.of_classes(found)


def _values(feature: Any, dtype: np.dtype[Any]) -> Any:
    kinds = {"f": feature.float_list, "O": feature.bytes_list}
    return kinds.get(dtype.kind, feature.int64_list).value


def _call(target: str, ask: Callable[[Any], Any]) -> Any:
    with grpc.insecure_channel(target) as channel:
        try:
            return ask(prediction_service_pb2_grpc.PredictionServiceStub(channel))
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
