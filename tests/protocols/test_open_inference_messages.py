from __future__ import annotations

import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message

from tidegate.protocols.open_inference import messages

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "src/tidegate/protocols").glob("*/*.proto"))


def test_the_shipped_descriptors_are_those_of_the_proto_files(tmp_path: Path) -> None:
    import sys

    subprocess.run(
        [ROOT / "scripts/protos", tmp_path],
        check=True,
        timeout=60,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )

    def parsed(file: Path) -> descriptor_pb2.FileDescriptorSet:
        return descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes())

    assert len(PROTOS) > 2
    for proto in PROTOS:
        shipped, compiled = proto.with_suffix(".binpb"), tmp_path / f"{proto.stem}.binpb"
        assert parsed(shipped) == parsed(compiled), "run scripts/protos, commit what it writes"


def test_they_live_in_a_pool_of_their_own() -> None:
    pool = messages.ModelInferRequest.DESCRIPTOR.file.pool
    assert pool is not descriptor_pool.Default()


MESSAGES = sorted(
    name
    for name, kind in vars(messages).items()
    if isinstance(kind, type) and issubclass(kind, Message)
)
PARTS = ("ModelConfigResponse", "ModelStatisticsResponse")
"""Messages of which Tidegate has a part of the fields."""


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_have_the_numbers_and_types_that_triton_gives_them(name: str) -> None:
    from tritonclient.grpc import service_pb2

    def facts(descriptor: object, into: dict[str, set[Any]]) -> dict[str, set[Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fields = descriptor.fields  # type: ignore[attr-defined]
            name = descriptor.full_name  # type: ignore[attr-defined]
            into[name] = {(f.name, f.number, f.type, f.label) for f in fields}
        for field in fields:
            if field.message_type is not None and field.message_type.full_name not in into:
                facts(field.message_type, into)
        return into

    theirs = facts(getattr(service_pb2, name).DESCRIPTOR, {})
    for message, fields in facts(getattr(messages, name).DESCRIPTOR, {}).items():
        assert message in theirs
        if name in PARTS:
            assert fields <= theirs[message]
        else:
            assert fields == theirs[message]
