"""The protocol of TensorFlow Serving, as a replica speaks it."""

from __future__ import annotations

from tidegate.protocols import tensorflow_serving
from tidegate.protocols.dialect import Dialect
from tidegate.protocols.tensorflow_serving import calls, messages, rest

DIALECT = Dialect(
    name="tensorflow-serving",
    routing=tensorflow_serving.ROUTING,
    inferences={
        tensorflow_serving.PREDICT: calls.read_predict,
        tensorflow_serving.CLASSIFY: calls.read_classify,
        tensorflow_serving.REGRESS: calls.read_regress,
        tensorflow_serving.MULTI_INFERENCE: calls.read_multi_inference,
    },
    questions={tensorflow_serving.GET_MODEL_METADATA: calls.read_metadata},
    paths=(rest.MODELS,),
    read=rest.read_call,
    files=messages.FILES,
)
