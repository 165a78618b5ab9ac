"""dl_inference's unified prediction service: the messages of three other protocols in one service.

A model goes by its own name, or by the id of a task (``task_ids`` in model.yaml): TensorFlow's and
Triton's messages have it behind the last ``-`` of the model's name, Seldon's among their tags. An
answer names the model as the request did.

Source: https://github.com/wuba/dl_inference (DLPredictOnline), as its clients call it.
"""

from __future__ import annotations

import functools
import re

from tidegate.errors import InvalidInput, ModelNotFound
from tidegate.protocols import seldon
from tidegate.protocols.descriptors import read_files
from tidegate.protocols.dialect import Dialect, Inference, ModelView, Reply
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import grpc as v2
from tidegate.protocols.routing import RoutedMethod, Routing
from tidegate.protocols.seldon import grpc as seldon_grpc
from tidegate.protocols.seldon.content import request_of
from tidegate.protocols.tensorflow_serving import grpc as tensorflow
from tidegate.types import InferResponse

_SERVICE = "/com.bj58.ailab.dlpredictonline.grpc.WpaiDLPredictOnlineService/"
PREDICT = f"{_SERVICE}Predict"
PYTORCH_PREDICT = f"{_SERVICE}PytorchPredict"
CAFFE_PREDICT = f"{_SERVICE}CaffePredict"
TIS_PREDICT = f"{_SERVICE}TisPredict"

TASK_KEYS = ("taskId", "taskid")
_TASK = re.compile(r".*-([0-9]{1,18})")
_TAGS = (2, 2)
"""``meta.tags`` of a SeldonMessage."""


def read_tensorflow(message: Buffer, model: ModelView) -> Inference:
    """Read a call of ``Predict``.

    Raises:
        InvalidInput: it is malformed.
        ModelNotFound: it is for another model.
    """
    request = tensorflow.decode_predict(message, model.limit, model.labels)
    name, request.model = request.model, _owner(request.model, model)
    return Inference(request, functools.partial(_tensorflow_reply, name, request.signature))


def read_seldon(message: Buffer, model: ModelView) -> Inference:
    """Read a call of ``PytorchPredict`` or ``CaffePredict``.

    Raises:
        InvalidInput: it is malformed, or not what the model takes.
        ModelNotFound: it is for another model.
    """
    content = seldon_grpc.decode(message, model.limit)
    tasks = [_number(content.tags[key]) for key in TASK_KEYS if key in content.tags]
    if tasks and tasks[0] not in model.tasks:
        raise ModelNotFound(
            f"the task {tasks[0]} is not that of {model.metadata.name!r}: put it into task_ids in "
            "the model.yaml of its model"
        )
    request = request_of(content, model)
    return Inference(request, functools.partial(seldon_grpc.reply, request, content.form))


def read_triton(message: Buffer, model: ModelView) -> Inference:
    """Read a call of ``TisPredict``.

    Raises:
        InvalidInput: it is malformed.
        ModelNotFound: it is for another model.
    """
    request = v2.decode_infer(message)
    name, request.model = request.model, _owner(request.model, model)
    return Inference(request, functools.partial(_triton_reply, name))


def _tensorflow_reply(name: str, signature: str, response: InferResponse) -> Reply:
    response.model = name
    return Reply(tensorflow.encode_predict(response, signature))


def _triton_reply(name: str, response: InferResponse) -> Reply:
    response.model = name
    return Reply(v2.encode_infer_parts(response))


def _owner(name: str, model: ModelView) -> str:
    """Return the model's own name for ``name``, if that is its task's."""
    task = _TASK.fullmatch(name)
    if name != model.metadata.name and task is not None and int(task[1]) in model.tasks:
        return model.metadata.name
    return name


def _number(task: object) -> int:
    if isinstance(task, str) and task.isdecimal() and len(task) <= 18:
        return int(task)
    if isinstance(task, float) and task.is_integer():
        return int(task)
    raise InvalidInput(f"{task!r} is not the id of a task: it is a whole number, as 69")


DIALECT = Dialect(
    name="dl-inference",
    routing=Routing(
        methods=(
            RoutedMethod(PREDICT, model=(1, 1), number=(1, 2, 1), label=(1, 4), task_in_name=True),
            RoutedMethod(TIS_PREDICT, model=(1,), version=(2,), task_in_name=True),
            *(
                RoutedMethod(path, tags=_TAGS, task_keys=TASK_KEYS, header=seldon.HEADER)
                for path in (PYTORCH_PREDICT, CAFFE_PREDICT)
            ),
        ),
        prefixes=(),
    ),
    inferences={
        PREDICT: read_tensorflow,
        PYTORCH_PREDICT: read_seldon,
        CAFFE_PREDICT: read_seldon,
        TIS_PREDICT: read_triton,
    },
    files=read_files(__package__ or "", "wpai"),
)
