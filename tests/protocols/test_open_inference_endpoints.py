"""The answer to where a model can be called."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import jsonschema
import pytest

from tidegate.errors import InvalidAnswer
from tidegate.protocols.open_inference.endpoints import (
    LARGEST_BODY,
    MOST_ENDPOINTS,
    SCHEMA,
    ModelEndpoint,
    ModelEndpoints,
    check_address,
    decode_endpoints,
    encode_endpoints,
)

PLAIN = {"address": "10.0.0.1:8000"}


def answer(*endpoints: object, **members: object) -> bytes:
    document = {"model_name": "m", "ttl_ms": 5000, "endpoints": list(endpoints), **members}
    return json.dumps(document).encode()


def test_there_and_back() -> None:
    found = ModelEndpoints(
        "m",
        5000,
        (
            ModelEndpoint("10.0.0.1:8000"),
            ModelEndpoint("[fd00::1]:8000", "tidegate", 7, 2, True, frozenset({"1", "2"})),
            ModelEndpoint("10.0.0.2:8001", "open-inference", rest="10.0.0.2:8000"),
            ModelEndpoint("10.0.0.3:8000", versions=frozenset()),
        ),
    )
    body = encode_endpoints(found)
    assert decode_endpoints(body) == found
    jsonschema.validate(json.loads(body), SCHEMA)


def test_the_form_on_the_wire() -> None:
    found = ModelEndpoints(
        "m", 5000, (ModelEndpoint("10.0.0.1:8000", versions=frozenset({"10", "2"})),)
    )
    assert json.loads(encode_endpoints(found)) == {
        "model_name": "m",
        "ttl_ms": 5000,
        "endpoints": [
            {
                "address": "10.0.0.1:8000",
                "weight": 100,
                "priority": 0,
                "protocol": "tidegate",
                "secure": False,
                "versions": ["2", "10"],
            }
        ],
    }


def test_what_is_left_out_has_its_default_and_what_is_not_known_is_no_harm() -> None:
    found = decode_endpoints(answer({**PLAIN, "versions": None, "zone": "a"}, more=[{}]))
    assert found.endpoints == (ModelEndpoint("10.0.0.1:8000"),)


def test_an_address_that_comes_twice_counts_once() -> None:
    again = {"address": "[FD00:0::1]:08000", "weight": 9}
    found = decode_endpoints(answer({"address": "[fd00::1]:8000"}, again))
    assert found.endpoints == (ModelEndpoint("[fd00::1]:8000"),)


BAD: list[Any] = [
    b"",
    b"\xff",
    b"[]",
    b"3",
    b'{"model_name":"m"}',
    b'{"model_name":"m","ttl_ms":1,"endpoints":{}}',
    answer(model_name=3),
    answer(model_name="m" * 129),
    answer(ttl_ms=0),
    answer(ttl_ms=1.5),
    answer(ttl_ms=True),
    answer(ttl_ms=10**12),
    answer(endpoints=None),
    answer("10.0.0.1:8000"),
    answer([]),
    answer({}),
    answer({"address": 3}),
    answer({**PLAIN, "protocol": None}),
    answer({**PLAIN, "weight": -1}),
    answer({**PLAIN, "weight": "100"}),
    answer({**PLAIN, "weight": 2**63}),
    answer({**PLAIN, "priority": -1}),
    answer({**PLAIN, "secure": "no"}),
    answer({**PLAIN, "versions": "12"}),
    answer({**PLAIN, "versions": [1]}),
    answer({**PLAIN, "versions": ["1"] * 5000}),
    answer({**PLAIN, "rest": "localhost:1"}),
    b'{"model_name":"m","ttl_ms":1,"endpoints":' + b"[" * 100_000,
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(InvalidAnswer) as caught:
        decode_endpoints(body)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":8000",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:-1",
        "10.0.0.1:8000/v2",
        "10.0.0.1:" + "9" * 100,
        "10.0.0.1:\u0663",
        "010.0.0.1:8000",
        "10.1:8000",
        "node.example:8000",
        "localhost:8000",
        "user@10.0.0.1:8000",
        "http://10.0.0.1:8000",
        "unix:/run/docker.sock",
        "[10.0.0.1]:8000",
        "fd00::1:8000",
        "[fd00::1]",
        "[fe80::1%eth0]:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "224.0.0.1:8000",
        "[ff02::1]:8000",
        "10.0.0.1 :8000",
        "10.0.0.1:8000\r\nx: y",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_address(address)
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidAnswer):
        decode_endpoints(answer({"address": address}))


def test_a_huge_answer_is_refused_with_little_memory() -> None:
    with pytest.raises(InvalidAnswer, match="10001"):
        decode_endpoints(answer(*[PLAIN] * (MOST_ENDPOINTS + 1)))
    body = answer() + b" " * LARGEST_BODY
    tracemalloc.start()
    try:
        with pytest.raises(InvalidAnswer, match="are more than"):
            decode_endpoints(body)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_as_many_as_there_may_be() -> None:
    many = [{"address": f"10.{n // 65536}.{n // 256 % 256}.{n % 256}:8000"} for n in range(10_000)]
    assert len(decode_endpoints(answer(*many)).endpoints) == MOST_ENDPOINTS
