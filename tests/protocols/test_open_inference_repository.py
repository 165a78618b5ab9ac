from __future__ import annotations

import json

import pytest

from tidegate.errors import InvalidInput, Unsupported
from tidegate.protocols.open_inference import repository
from tidegate.protocols.open_inference.repository import IndexEntry, State

ENTRIES = [
    IndexEntry("a", "1", State.READY),
    IndexEntry("b", "", State.UNAVAILABLE, "no model"),
]


def test_an_index_in_both_forms() -> None:
    from tritonclient.grpc import service_pb2

    assert json.loads(repository.encode_index_body(ENTRIES)) == [
        {"name": "a", "version": "1", "state": "READY", "reason": ""},
        {"name": "b", "version": "", "state": "UNAVAILABLE", "reason": "no model"},
    ]
    message = service_pb2.RepositoryIndexResponse.FromString(repository.encode_index(ENTRIES))
    assert [(m.name, m.state) for m in message.models] == [("a", "READY"), ("b", "UNAVAILABLE")]


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", False), (b" {}\n", False), (b'{"ready": true}', True)]
)
def test_which_entries_are_asked_for(body: bytes, ready: bool) -> None:
    assert repository.decode_index_body(body) is ready


def test_messages_of_a_client() -> None:
    from tritonclient.grpc import service_pb2

    assert repository.decode_index(
        service_pb2.RepositoryIndexRequest(ready=True).SerializeToString()
    )
    load = service_pb2.RepositoryModelLoadRequest(model_name="m")
    assert repository.decode_load(load.SerializeToString()) == "m"
    load.parameters["file:1/model.onnx"].bytes_param = b"x"
    with pytest.raises(Unsupported, match=r"'file:1/model\.onnx'"):
        repository.decode_load(load.SerializeToString())
    unload = service_pb2.RepositoryModelUnloadRequest(model_name="m")
    unload.parameters["unload_dependents"].bool_param = True
    assert repository.decode_unload(unload.SerializeToString()) == "m"
    unload.repository_name = "other"
    with pytest.raises(Unsupported, match="'other'"):
        repository.decode_unload(unload.SerializeToString())
    unload = service_pb2.RepositoryModelUnloadRequest(model_name="../m")
    with pytest.raises(InvalidInput, match=r"'\.\./m' cannot be the name"):
        repository.decode_unload(unload.SerializeToString())
    for decode in (repository.decode_index, repository.decode_load, repository.decode_unload):
        with pytest.raises(InvalidInput):
            decode(b"\xff\xff")
