"""One function for each protocol of the matrix: what is sent, as a client of that protocol does.

Each returns the outputs by name, as arrays or as nested lists, and raises :class:`Refused`. A
model of pictures answers with ``payload`` alone.
"""

from __future__ import annotations

import base64
import json
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.matrix.cases import Case, Refused
from tests.matrix.cells import PROTOCOLS
from tidegate.protocols import dl_inference
from tidegate.protocols.open_inference import messages as v2
from tidegate.protocols.seldon.messages import SeldonMessage
from tidegate.protocols.tensorflow_serving import messages as tfs
from tidegate.protocols.tensorflow_serving.dtypes import NUMBERS
from tidegate.types import Array, DType

Answer = dict[str, Any]
TIMEOUT = 30.0


def post(
    target: str, path: str, body: bytes, kind: str = "application/json", **headers: str
) -> bytes:
    """``POST`` as curl does it."""
    url, headers = f"http://{target}{path}", {"content-type": kind, **headers}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            found: bytes = response.read()
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, error.read().decode()) from None


def call(target: str, method: str, request: Any, answer: Any, **metadata: str) -> Any:
    """Make a unary gRPC call."""
    with grpc.insecure_channel(target) as channel:
        ask = channel.unary_unary(method, request_serializer=type(request).SerializeToString)
        try:
            content = ask(request, timeout=TIMEOUT, metadata=tuple(metadata.items()))
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
    return answer.FromString(content)


# -- Open Inference -----------------------------------------------------------------------------


def v2_json(target: str, case: Case) -> Answer:
    if case.kind in PROTOCOLS["v2-json"].without:
        return _bytes_within_json(target, case)
    return _by_tritonclient(tritonclient.http, target, case, binary_data=False)


def _bytes_within_json(target: str, case: Case) -> Answer:
    """Paste the bytes between quotation marks, as a script may do."""
    ((name, array),) = case.inputs.items()
    tensor = {"name": name, "datatype": "BYTES", "shape": [1], "data": ["HERE"]}
    body = json.dumps({"inputs": [tensor]}).encode().replace(b"HERE", array[0])
    document = json.loads(post(target, f"/v2/models/{case.model}/infer", body))
    return {output["name"]: output["data"] for output in document["outputs"]}


def v2_binary(target: str, case: Case) -> Answer:
    return _by_tritonclient(tritonclient.http, target, case, binary_data=True)


def v2_grpc(target: str, case: Case) -> Answer:
    return _by_tritonclient(tritonclient.grpc, target, case)


def _by_tritonclient(module: Any, target: str, case: Case, **binary: bool) -> Answer:
    inputs = []
    for name, array in case.inputs.items():
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        inputs.append(tensor.set_data_from_numpy(array, **binary))
    outputs = [module.InferRequestedOutput(name, **binary) for name in case.outputs]
    with module.InferenceServerClient(target) as client:
        try:
            answer = client.infer(case.model, inputs, outputs=outputs)
        except InferenceServerException as error:
            raise Refused(str(error.status()), error.message()) from None
    return {name: answer.as_numpy(name) for name in case.outputs}


CONTENTS = {
    "float32": "fp32_contents",
    "int64": "int64_contents",
    "bool": "bool_contents",
    "object": "bytes_contents",
}


def v2_typed(target: str, case: Case) -> Answer:
    request = service_pb2.ModelInferRequest(model_name=case.model)
    for name, array in case.inputs.items():
        kind = np_to_triton_dtype(array.dtype)
        tensor = request.inputs.add(name=name, datatype=kind, shape=array.shape)
        contents = getattr(tensor.contents, CONTENTS[array.dtype.name])
        contents.extend(array.reshape(-1).tolist())
    with grpc.insecure_channel(target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelInfer(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
    result = tritonclient.grpc.InferResult(answer)
    return {output.name: result.as_numpy(output.name) for output in answer.outputs}


# -- TensorFlow's tensors -----------------------------------------------------------------------

FIELDS = {1: "float_val", 3: "int_val", 7: "string_val", 9: "int64_val", 10: "bool_val"}


def tensor_proto(array: Array) -> Any:
    """Return an array as a ``TensorProto``."""
    proto = tfs.TensorProto(dtype=NUMBERS[DType.of(array.dtype)])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.string_val.extend(array.tolist())
    else:
        proto.tensor_content = array.tobytes()
    return proto


def array_of(proto: Any) -> Array:
    """Return the array in a ``TensorProto``."""
    dtype = next(dtype for dtype, number in NUMBERS.items() if number == proto.dtype)
    values = list(getattr(proto, FIELDS[proto.dtype]))
    return np.array(values, dtype.numpy).reshape([dim.size for dim in proto.tensor_shape.dim])


# -- TensorFlow Serving, REST -------------------------------------------------------------------


def tfs_columns(target: str, case: Case) -> Answer:
    inputs = {name: nested(array) for name, array in case.inputs.items()}
    found = _tensorflow_rest(target, case, {"inputs": inputs})["outputs"]
    return found if isinstance(found, dict) else {"": found}


def tfs_rows(target: str, case: Case) -> Answer:
    columns = [nested(array) for array in case.inputs.values()]
    rows = [dict(zip(case.inputs, row)) for row in zip(*columns)]
    found = _tensorflow_rest(target, case, {"instances": rows})["predictions"]
    if isinstance(found[0], dict):
        return {name: [row[name] for row in found] for name in found[0]}
    return {"": found}


def tfs_classes(target: str, case: Case) -> Answer:
    """Send an example for each row; return labels, scores or both."""
    columns = [nested(a if a.ndim == 1 else a.reshape(len(a), -1)) for a in case.inputs.values()]
    rows = [dict(zip(case.inputs, row)) for row in zip(*columns)]
    found = _tensorflow_rest(target, case, {"examples": rows}, "classify")["results"]
    return case.of_classes(found)


def _tensorflow_rest(target: str, case: Case, document: Any, verb: str = "predict") -> Any:
    path = f"/v1/models/{case.model}:{verb}"
    return decoded(json.loads(post(target, path, json.dumps(document).encode())))


def nested(array: Array) -> Any:
    """Return nested lists; strings that are no text as TensorFlow Serving writes them."""
    return [_written(element) for element in array] if array.dtype == object else array.tolist()


def _written(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element).decode()}


def decoded(value: Any) -> Any:
    """Return a JSON document with the bytes that stand in it as base64."""
    if isinstance(value, list):
        return [decoded(element) for element in value]
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: decoded(element) for key, element in value.items()}
    return value


# -- Seldon, and two methods of dl_inference ----------------------------------------------------


SELDON_PREDICT = "/seldon.protos.Seldon/Predict"


def seldon_document(case: Case) -> dict[str, Any]:
    """Return what fits: a file, named arrays, an array of texts, or a tensor of numbers."""
    if case.file is not None:
        return {"binData": base64.b64encode(case.file).decode()}
    if len(case.inputs) > 1:
        return {"jsonData": {name: array.tolist() for name, array in case.inputs.items()}}
    (array,) = case.inputs.values()
    if case.kind == "bytes":
        return {"data": {"tftensor": json_format.MessageToDict(tensor_proto(array))}}
    if array.dtype == object:
        return {"data": {"ndarray": nested(array)}}
    return {"data": {"tensor": {"shape": array.shape, "values": array.reshape(-1).tolist()}}}


def read_seldon(case: Case, document: Any) -> Answer:
    if "binData" in document:
        return {"payload": base64.b64decode(document["binData"])}
    if "jsonData" in document:
        found = document["jsonData"]
        return _of_file(found) if case.file is not None else dict(found)
    data = document["data"]
    if "ndarray" in data:
        rows = data["ndarray"]
        return {"": rows} if case.file is None else _of_file(rows)
    if "tftensor" in data:
        return {"": array_of(json_format.ParseDict(data["tftensor"], tfs.TensorProto()))}
    shape = [int(size) for size in data["tensor"]["shape"]]
    return {"": np.reshape(data["tensor"]["values"], shape).tolist()}


def _of_file(document: Any) -> Answer:
    """Return what a model of pictures says in JSON: that of hooks, or labels and scores."""
    if not isinstance(document, list):
        return {"payload": json.dumps(document)}
    return {name: [[best[name] for best in document]] for name in document[0]}


def seldon_rest(target: str, case: Case) -> Answer:
    path = f"/seldon/team/{case.model}/api/v1.0/predictions"
    document = seldon_document(case)
    return read_seldon(case, json.loads(post(target, path, json.dumps(document).encode())))


def seldon_grpc(target: str, case: Case) -> Answer:
    document = seldon_document(case)
    return _seldon_message(target, SELDON_PREDICT, case, document, seldon=case.model)


def dl_pytorch(target: str, case: Case) -> Answer:
    return _by_task(target, dl_inference.PYTORCH_PREDICT, case)


def dl_caffe(target: str, case: Case) -> Answer:
    return _by_task(target, dl_inference.CAFFE_PREDICT, case)


def _by_task(target: str, method: str, case: Case) -> Answer:
    document = {**seldon_document(case), "meta": {"tags": {"taskId": case.task}}}
    return _seldon_message(target, method, case, document)


def _seldon_message(
    target: str, method: str, case: Case, document: Any, **metadata: str
) -> Answer:
    message = json_format.ParseDict(document, SeldonMessage())
    answer = call(target, method, message, SeldonMessage, **metadata)
    return read_seldon(case, json_format.MessageToDict(answer, preserving_proto_field_name=True))


# -- dl_inference, the other two ----------------------------------------------------------------


def dl_predict(target: str, case: Case) -> Answer:
    request = tfs.PredictRequest()
    request.model_spec.name = f"tensorflow-{case.task}"
    for name, array in case.inputs.items():
        request.inputs[name].CopyFrom(tensor_proto(array))
    answer = call(target, dl_inference.PREDICT, request, tfs.PredictResponse)
    assert answer.model_spec.name == request.model_spec.name
    return {name: array_of(proto) for name, proto in answer.outputs.items()}


def dl_tis(target: str, case: Case) -> Answer:
    request = v2.ModelInferRequest(model_name=f"triton-{case.task}")
    for name, array in case.inputs.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        parts = (struct.pack("<I", len(e)) + e for e in array) if array.dtype == object else ()
        request.raw_input_contents.append(b"".join(parts) or array.tobytes())
    answer = call(target, dl_inference.TIS_PREDICT, request, v2.ModelInferResponse)
    assert answer.model_name == request.model_name
    result = tritonclient.grpc.InferResult(
        service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    )
    return {output.name: result.as_numpy(output.name) for output in answer.outputs}


# -- plain HTTP ---------------------------------------------------------------------------------


def plain(target: str, case: Case) -> Answer:
    path = f"/models/{case.model}"
    if case.file is not None:
        form, kind = multipart(case.file)
        answer = post(target, path, form, kind)
        return {"payload": answer} if case.kind == "picture" else _of_file(json.loads(answer))
    body = json.dumps({name: nested(array) for name, array in case.inputs.items()})
    outputs: Answer = decoded(json.loads(post(target, path, body.encode()))["outputs"])
    return outputs


def multipart(file: bytes) -> tuple[bytes, str]:
    """Return a form with a file as ``curl -F data=@digit.png`` sends it, and its type."""
    head = (
        '--tide\r\nContent-Disposition: form-data; name="data"; filename="digit.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    return head.encode() + file + b"\r\n--tide--\r\n", "multipart/form-data; boundary=tide"


CALLERS: dict[str, Callable[[str, Case], Answer]] = {
    "v2-json": v2_json,
    "v2-binary": v2_binary,
    "v2-grpc": v2_grpc,
    "v2-typed": v2_typed,
    "tfs-rows": tfs_rows,
    "tfs-columns": tfs_columns,
    "tfs-classes": tfs_classes,
    "seldon-rest": seldon_rest,
    "seldon-grpc": seldon_grpc,
    "dl-predict": dl_predict,
    "dl-pytorch": dl_pytorch,
    "dl-caffe": dl_caffe,
    "dl-tis": dl_tis,
    "plain": plain,
}
"""All but those of TensorFlow Serving over gRPC: see ``worker``."""
