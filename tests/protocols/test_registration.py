"""What nodes and gateways say to each other."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import InvalidAnswer, InvalidInput
from tidegate.protocols.registration import (
    LARGEST_BODY,
    MOST_MODELS,
    AnnouncedModel,
    Announcement,
    Grant,
    decode_announcement,
    decode_grant,
    encode_announcement,
    encode_grant,
    node_path,
    read_announcement,
    read_instance,
    read_name,
    written,
)

PLAIN: dict[str, Any] = {"address": "10.0.0.7:8000"}
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def announced_models(draw: st.DrawFn) -> AnnouncedModel:
    versions = tuple(sorted(draw(st.sets(st.integers(1, 2**63 - 1), max_size=4))))
    one = st.sampled_from(versions) if versions else st.nothing()
    return AnnouncedModel(
        name=draw(NAMES),
        versions=versions,
        default_version=draw(st.none() | one),
        labels=draw(st.dictionaries(NAMES, one, max_size=3 if versions else 0)),
        tasks=tuple(map(str, sorted(draw(st.sets(st.integers(0, 10**18 - 1), max_size=3))))),
        ready=draw(st.booleans()),
    )


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    models = draw(st.lists(announced_models(), max_size=4, unique_by=lambda m: m.name))
    return Announcement(
        address=draw(st.sampled_from(["10.0.0.7:8000", "[fd00::1]:8000", "127.0.0.1:1"])),
        models=tuple(sorted(models, key=lambda m: m.name)),
        secure=draw(st.booleans()),
        weight=draw(st.integers(1, 2**20)),
        cores=draw(st.floats(0, 1024)),
        replicas=draw(st.dictionaries(NAMES, st.integers(0, 100), max_size=3)),
        version=draw(st.sampled_from(["", "0.1.0"])),
        instance=draw(st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True)),
    )


@given(announcements())
def test_there_and_back(said: Announcement) -> None:
    assert decode_announcement(encode_announcement(said)) == said
    assert read_announcement(json.loads(json.dumps(written(said)))) == said


def test_the_form_on_the_wire() -> None:
    body = {
        "address": "10.0.0.7:8000",
        "secure": False,
        "models": [
            {
                "name": "m",
                "versions": [1, 2],
                "default_version": 2,
                "labels": {"stable": 1},
                "tasks": ["69"],
                "ready": True,
            }
        ],
        "capacity": {"cores": 8.0, "replicas": {"m": 2}},
        "weight": 100,
        "version": "0.1.0",
        "instance": "a1",
    }
    model = AnnouncedModel("m", (1, 2), 2, {"stable": 1}, ("69",), ready=True)
    said = Announcement(
        "10.0.0.7:8000", (model,), cores=8, replicas={"m": 2}, version="0.1.0", instance="a1"
    )
    assert decode_announcement(json.dumps(body).encode()) == said
    assert json.loads(encode_announcement(said)) == body


def test_what_is_not_said_has_a_default_and_what_is_not_known_is_left_out() -> None:
    body = json.dumps({**PLAIN, "later": {"a": [1]}, "models": [{"name": "m", "x": 1}]})
    assert decode_announcement(body.encode()) == Announcement(
        "10.0.0.7:8000", (AnnouncedModel("m"),)
    )


def model(**members: object) -> dict[str, Any]:
    return {**PLAIN, "models": [{"name": "m", "versions": [1, 2], **members}]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "the announcement is"),
        ({}, "'address' is None"),
        ({"address": "gateway:8000"}, "'address' is 'gateway:8000'"),
        ({"address": "0.0.0.0:8000"}, "of no machine"),
        ({"address": "10.0.0.7"}, "has no port"),
        ({"address": "1" * 10**4}, "'address' is '1"),
        ({**PLAIN, "secure": 1}, "'secure' is 1; send true or false"),
        ({**PLAIN, "weight": 0}, "'weight' is 0"),
        ({**PLAIN, "weight": True}, "'weight' is True"),
        ({**PLAIN, "weight": 1e3}, "'weight' is 1000.0"),
        ({**PLAIN, "models": {}}, "'models' is {}"),
        ({**PLAIN, "models": ["m"]}, "a model is 'm'; send an object"),
        ({**PLAIN, "models": [{}]}, "'name' is None"),
        ({**PLAIN, "models": [{"name": "../m"}]}, "'name' is '../m'"),
        ({**PLAIN, "models": [{"name": "m"}, {"name": "m"}]}, "comes twice"),
        ({**PLAIN, "capacity": {"cores": -1}}, "'capacity.cores' is -1"),
        ({**PLAIN, "capacity": {"cores": True}}, "'capacity.cores' is True"),
        ({**PLAIN, "capacity": {"replicas": {"m": "2"}}}, "'capacity.replicas' of 'm' is '2'"),
        ({**PLAIN, "capacity": {"replicas": {"/": 2}}}, "a key of 'capacity.replicas' is '/'"),
        ({**PLAIN, "instance": "a b"}, "'instance' is 'a b'"),
        ({**PLAIN, "version": "\n"}, "'version' is"),
        (model(versions=[0]), "a version is 0"),
        (model(versions=[2**63]), "a version is 9223372036854775808"),
        (model(versions=["1"]), "a version is '1'"),
        (model(versions=list(range(1, 5000))), "'versions' has 4999 entries"),
        (model(default_version=3), "'default_version' is 3; send one of 'versions'"),
        (model(labels={"stable": 3}), "the version of the label 'stable' is 3"),
        (model(labels={"a/b": 1}), "a label is 'a/b'"),
        (model(tasks=[69]), "a task's id is 69"),
        (model(tasks=["x"]), "a task's id is 'x'"),
        (model(ready="yes"), "'ready' is 'yes'"),
    ],
)
def test_what_is_wrong_is_named(document: object, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_announcement(json.dumps(document).encode())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 10**5, b"\xff", b'"\\ud800"'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_announcement(body)


def test_what_is_too_long_is_not_read() -> None:
    with pytest.raises(InvalidInput, match="send at most"):
        decode_announcement(b" " * (LARGEST_BODY + 1))
    many = {**PLAIN, "models": [{"name": f"m{i}"} for i in range(MOST_MODELS + 1)]}
    with pytest.raises(InvalidInput, match="send at most 4096"):
        decode_announcement(json.dumps(many).encode())


def test_the_largest_body_is_read_in_bounded_memory() -> None:
    # The most objects that a body can hold: a model takes about 14 bytes.
    start = json.dumps({**PLAIN, "models": []}).encode()[:-2]
    body = start + b",".join([b'{"name":"m"}'] * 70_000) + b"]}"
    assert len(body) < LARGEST_BODY
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            decode_announcement(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 * 2**20


@pytest.mark.parametrize("name", ["10.0.0.7:8000", "[fd00::1]:8000", "gpu-7.lab:8000", "a_b:1"])
def test_names_travel_in_paths(name: str) -> None:
    path = node_path(name)
    assert path.isascii()
    assert "[" not in path
    assert read_name(path.removeprefix("/nodes/")) == name
    assert node_path(name, "i-1").endswith("?instance=i-1")


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a b:1", "a%2Fb:1", "../x:1", "%00:1", "a:1/", "x" * 5000]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be the name of a node"):
        read_name(text)


def test_names_are_one_whatever_their_case() -> None:
    assert read_name("GPU-7.lab:8000") == "gpu-7.lab:8000"


def test_an_instance_is_short() -> None:
    assert read_instance("a-1") == "a-1"
    with pytest.raises(InvalidInput):
        read_instance("a" * 65)


def test_grants_travel() -> None:
    assert json.loads(encode_grant(Grant(5.0, 1.5))) == {"lease_ms": 5000, "renew_ms": 1500}
    assert decode_grant(encode_grant(Grant(5.0, 1.5))) == Grant(5.0, 1.5)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"lease_ms": 5000}', b'{"lease_ms": 0, "renew_ms": 0}',
        b'{"lease_ms": 1, "renew_ms": 2}', b'{"lease_ms": 1e400, "renew_ms": 1}',
        b'{"lease_ms": true, "renew_ms": true}', b"<html>", b" " * 10**5,
    ],
)  # fmt: skip
def test_answers_that_are_none_of_a_gateway(body: bytes) -> None:
    with pytest.raises(InvalidAnswer, match="admin port of a gateway"):
        decode_grant(body)
