"""The protocol of TensorFlow Serving: PredictionService, ModelService and the REST API.

Source: https://github.com/tensorflow/serving, ``tensorflow_serving/apis`` and ``api_rest.md``.
"""

from __future__ import annotations

from tidegate.protocols.routing import RoutedMethod, RoutedPrefix, Routing

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"

PREDICT = _PREDICTION + "Predict"
CLASSIFY = _PREDICTION + "Classify"
REGRESS = _PREDICTION + "Regress"
MULTI_INFERENCE = _PREDICTION + "MultiInference"
GET_MODEL_METADATA = _PREDICTION + "GetModelMetadata"
GET_MODEL_STATUS = _MODEL + "GetModelStatus"
RELOAD_CONFIG = _MODEL + "HandleReloadConfigRequest"


def _routed(path: str, *spec: int) -> RoutedMethod:
    """Return a method whose message has its ``ModelSpec`` there."""
    return RoutedMethod(path, model=(*spec, 1), number=(*spec, 2, 1), label=(*spec, 4))


ROUTING = Routing(
    methods=(
        _routed(PREDICT, 1),
        _routed(CLASSIFY, 1),
        _routed(REGRESS, 1),
        _routed(MULTI_INFERENCE, 1, 1),
        _routed(GET_MODEL_METADATA, 1),
    ),
    prefixes=(
        RoutedPrefix(
            "/v1/models/", colon=True, labels=True, server_verbs=("",), passed_verbs=("",)
        ),
    ),
    server_methods=(GET_MODEL_STATUS, RELOAD_CONFIG),
    passed_methods=(_routed(GET_MODEL_STATUS, 1),),
)
