"""Our .proto files against TensorFlow Serving's own stubs, in one process with TensorFlow."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

import tests.tensorflow_models  # noqa: F401 - it imports TensorFlow quietly
from tidegate.protocols.tensorflow_serving import messages

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

MESSAGES = sorted(
    name
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and issubclass(kind, Message)
)


def facts(descriptor: Any, into: dict[str, set[Any]]) -> dict[str, set[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        into[descriptor.full_name] = {
            (f.name, f.number, f.type, f.label) for f in descriptor.fields
        }
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.full_name not in into:
            facts(field.message_type, into)
    return into


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_have_the_numbers_and_types_that_tensorflow_gives_them(name: str) -> None:
    pool = descriptor_pool.Default()
    for message, fields in facts(getattr(messages, name).DESCRIPTOR, {}).items():
        found: dict[str, set[Any]] = {}
        theirs = facts(pool.FindMessageTypeByName(message), found)[message]
        assert fields <= theirs, message


@pytest.mark.parametrize("name", ["tensorflow.DataType", "tensorflow.error.Code"])
def test_enums_have_their_values(name: str) -> None:
    pool = descriptor_pool.Default()
    known = {v.name: v.number for v in pool.FindEnumTypeByName(name).values}
    mine = messages.TensorProto.DESCRIPTOR.file.pool.FindEnumTypeByName(name)
    assert {v.name: v.number for v in mine.values}.items() <= known.items()


@pytest.mark.parametrize("module", [prediction_service_pb2, model_service_pb2])
def test_services_have_the_same_methods(module: Any) -> None:
    for name, service in module.DESCRIPTOR.services_by_name.items():
        pool = messages.TensorProto.DESCRIPTOR.file.pool
        ours = pool.FindServiceByName(f"tensorflow.serving.{name}")
        assert methods(ours) == methods(service)


def methods(service: Any) -> dict[str, tuple[str, str]]:
    return {m.name: (m.input_type.full_name, m.output_type.full_name) for m in service.methods}


def test_they_live_in_a_pool_of_their_own() -> None:
    assert messages.TensorProto.DESCRIPTOR.file.pool is not descriptor_pool.Default()
