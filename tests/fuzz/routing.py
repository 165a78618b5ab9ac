"""The edge's routing script in LuaJIT, which Envoy runs it with, around a request of ours."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import lupa.luajit21
from google.protobuf.message import DecodeError

from tests.fuzz.seeds import infer_messages
from tests.fuzz.tensorflow_serving import good_messages as serving_messages
from tidegate.edge import names
from tidegate.edge.routing_script import routing_script
from tidegate.protocols import open_inference, tensorflow_serving
from tidegate.protocols.grpc_frames import frame_prefix
from tidegate.protocols.open_inference import messages
from tidegate.protocols.routing import LABEL_PATTERN, NAME_PATTERN, VERSION_PATTERN
from tidegate.protocols.tensorflow_serving.messages import PredictRequest

_LIMIT = 2**20
_DRIVER = b"""
return function(name, path, kind, body)
  local headers = {[":path"] = path, ["content-type"] = kind}
  local said = nil
  local head = {
    get = function(_, key) return headers[key] end,
    replace = function(_, key, value) headers[key] = value end,
    remove = function(_, key) headers[key] = nil end,
  }
  local buffer = {
    length = function() return #body end,
    getBytes = function(_, at, size)
      if at < 0 or size < 0 or at + size > #body then error("beyond the body") end
      return string.sub(body, at + 1, at + size)
    end,
  }
  envoy_on_request({
    headers = function() return head end,
    body = function() return buffer end,
    clearRouteCache = function() end,
    respond = function(_, fields, words) said = words end,
  })
  return said, headers[name], headers[":path"]
end
"""


@cache
def _script() -> Any:
    """The script, ready to be called as Envoy calls it."""
    runtime = lupa.luajit21.LuaRuntime(encoding=None, register_eval=False)
    routings = [open_inference.ROUTING, tensorflow_serving.ROUTING]
    runtime.execute(routing_script(routings, _LIMIT).encode())
    return runtime.execute(_DRIVER)


def good_messages() -> tuple[bytes, ...]:
    """One byte: gRPC, a path, or gRPC of TensorFlow Serving. Then the frame, or the path."""
    calls = [b"\0" + frame_prefix(len(m)) + m for m in infer_messages()]
    predicts = [m[1:] for m in serving_messages() if m[:1] == b"\0"]
    calls += [b"\2" + frame_prefix(len(m)) + m for m in predicts]
    paths = (
        b"/v2/models/m/infer",
        b"/v2/models/m/versions/2/infer?x=%2e",
        b"/v2/repository/index",
        b"/v1/models/m:predict",
        b"/v1/models/m/versions/2/metadata",
        b"/v1/models/m/labels/stable:classify",
    )
    return (*calls, *(b"\1" + path for path in paths))


def read(data: bytes) -> None:
    """Route a call: it is refused with words, or goes where protobuf's parser says."""
    name = names.CLUSTER_HEADER.encode()
    if data[:1] == b"\1":
        _, cluster, _ = _script()(name, data[1:], b"application/json", b"")
        assert cluster is None or valid(cluster)
        return
    serving = data[:1] == b"\2"
    method = tensorflow_serving.PREDICT if serving else open_inference.MODEL_INFER
    path, body = method.encode(), data[1:]
    said, cluster, _ = _script()(name, path, b"application/grpc", body)
    assert (said is None) != (cluster is None)
    if cluster is None:
        assert said
        return
    assert valid(cluster)
    try:
        if serving:
            wanted = _wanted(body[5:])
            assert wanted.endswith(":0") or cluster.decode() == names.MODEL_PREFIX + wanted
            return  # a replica refuses version 0, whatever version it is
        request = messages.ModelInferRequest.FromString(body[5:])
    except DecodeError:
        return  # the replica refuses it
    wanted = request.model_name + (f":{request.model_version}" if request.model_version else "")
    assert cluster.decode() == names.MODEL_PREFIX + wanted


def _wanted(message: bytes) -> str:
    """The key of a cluster that a ``PredictRequest`` names."""
    spec = PredictRequest.FromString(message).model_spec
    choice = spec.WhichOneof("version_choice")
    if choice == "version":
        return f"{spec.name}:{spec.version.value}"
    return f"{spec.name}@{spec.version_label}" if spec.version_label else str(spec.name)


def valid(cluster: bytes) -> bool:
    """Whether it is the name of a cluster that callers may reach."""
    text = cluster.decode("latin-1")
    pattern = f"{names.MODEL_PREFIX}{NAME_PATTERN}(:{VERSION_PATTERN}|@{LABEL_PATTERN})?"
    return text == names.CONTROLLER_CLUSTER or re.fullmatch(pattern, text) is not None
