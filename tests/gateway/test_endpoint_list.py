from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.endpoint_list import parse_endpoints
from tidegate.gateway.endpoints import Endpoint, Traits

SEVEN = Endpoint("10.0.0.7:8000", "tidegate")
EIGHT = Endpoint(
    "10.0.0.8:8500",
    "tensorflow-serving",
    rest="10.0.0.8:8501",
    weight=300,
    priority=1,
    versions=frozenset({1, 2}),
    labels=frozenset({"stable"}),
    name="gpu-8",
)


def read(text: str | bytes, path: str = "e.yaml", traits: Traits | None = None) -> object:
    content = text.encode() if isinstance(text, str) else text
    return parse_endpoints(content, path, traits or Traits())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "e.yaml",
            """
            endpoints:
            - 10.0.0.7:8000
            - address: 10.0.0.8:8500
              protocol: tensorflow-serving
              rest: 8501
              weight: 300
              priority: 1
              versions: [1, 2]
              labels: [stable]
              name: gpu-8
            """,
        ),
        (
            "e.json",
            """[{"address": "10.0.0.7:8000"}, {"address": "10.0.0.8:8500",
            "protocol": "tensorflow-serving", "rest": 8501, "weight": 300, "priority": 1,
            "versions": [2, 1], "labels": ["stable"], "name": "gpu-8"}]""",
        ),
        (
            "endpoints",
            """# the new ones
            10.0.0.7:8000   # alone

            10.0.0.8:8500 protocol=tensorflow-serving rest=8501 weight=300 priority=1 \
versions=1,2 labels=stable name=gpu-8
            """,
        ),
    ],
)
def test_three_formats_say_the_same(path: str, text: str) -> None:
    assert read(text, path) == (SEVEN, EIGHT)


def test_what_a_file_does_not_say_comes_from_the_configuration() -> None:
    traits = Traits("open-inference", 8000, 7, 2, frozenset({3}), None, True)
    text = "- 10.0.0.7:8001\n- {address: '10.0.0.8:8001', weight: 9, rest: 1}"
    assert read(text, "e.yml", traits) == (
        Endpoint(
            "10.0.0.7:8001", "open-inference", "10.0.0.7:8000", 7, 2, frozenset({3}), secure=True
        ),
        Endpoint(
            "10.0.0.8:8001", "open-inference", "10.0.0.8:1", 9, 2, frozenset({3}), secure=True
        ),
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [("e.yaml", "[]"), ("e.yaml", "endpoints: []"), ("e.json", "[]"), ("e.txt", "# none")],
)
def test_no_endpoints_have_to_be_said(path: str, text: str) -> None:
    assert read(text, path) == ()


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("e.yaml", "", "is empty; write"),
        ("e.json", " \n", "is empty; write"),
        ("e.txt", "", "is empty; write"),
        ("e.yaml", "# nothing", "must be a list of endpoints"),
        ("e.yaml", "a: [", "line 2: not valid YAML"),
        ("e.yaml", "- 10.0.0.7:8000\n- }", "e.yaml, line 2: not valid YAML"),
        ("e.yaml", "- a\n---\n- b", "not valid YAML"),
        ("e.json", "[1,\n}", "e.json, line 2: not valid JSON"),
        ("e.yaml", "endpoint: [10.0.0.7:1]", "the only key is endpoints, not 'endpoint'"),
        ("e.yaml", "{}", "the only key is endpoints"),
        ("e.yaml", "hello", "must be a list of endpoints, not 'hello'"),
        ("e.json", "null", "must be a list of endpoints, not nothing"),
        ("e.json", '{"endpoints": {}}', "must be a list of endpoints, not a dict"),
        ("e.json", "[1]", "e.json, endpoint 1: must be IP:PORT"),
        ("e.json", "[[]]", "must be IP:PORT, or a mapping with an address, not a list"),
        ("e.json", "[{}]", "address must be text, not nothing"),
        ("e.json", '[{"address": 7}]', "address must be text, not 7"),
        ("e.yaml", "- {address: '10.0.0.7:1', wieght: 3}", "did you mean 'weight'"),
        ("e.yaml", "- {address: '10.0.0.7:1', weight: much}", "weight must be a whole number"),
        (
            "e.json",
            '[{"address":"10.0.0.7:1","weight":1e99}]',
            "must be a whole number, not 1e+99",
        ),
        ("e.json", '[{"address":"10.0.0.7:1","weight":true}]', "must be a whole number, not True"),
        (
            "e.json",
            '[{"address":"10.0.0.7:1","weight":0}]',
            "weight must be a whole number from 1",
        ),
        ("e.yaml", "- {address: '10.0.0.7:1', rest: 99999}", "from 1 to 65535"),
        ("e.yaml", "- {address: '10.0.0.7:1', versions: 3}", "versions must be a list of numbers"),
        ("e.yaml", "- {address: '10.0.0.7:1', versions: [0]}", "numbers from 1 to"),
        ("e.yaml", "- {address: '10.0.0.7:1', labels: [[]]}", "each of labels must be text"),
        ("e.yaml", "- {address: '10.0.0.7:1', protocol: grpc}", "must be one of tidegate, tensor"),
        ("e.txt", "10.0.0.7:1 weight", "e.txt, line 1: 'weight' is not key=value"),
        ("e.txt", "10.0.0.7:1 weight=1 weight=2", "'weight' is there twice"),
        ("e.txt", "10.0.0.7:1 address=10.0.0.8:1", "'address' is there twice"),
        ("e.txt", "\n10.0.0.7", "e.txt, line 2: '10.0.0.7' has no port"),
        ("e.txt", "gpu-7:8000", "is a name: a list holds IP addresses"),
        ("e.txt", "10.0.0.7:1\n10.0.0.7:01", "line 2: 10.0.0.7:1 is there twice"),
        ("e.txt", "a\0b", "is not text"),
    ],
)
def test_each_mistake_names_its_place(path: str, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text, path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("e.yaml", b"[" * 1_000_000, "lists in lists"),
        ("e.yaml", b"- " * 1_000_000, "lists in lists"),
        ("e.json", b"[" * 1_000_000, "not valid JSON"),
        ("e.yaml", b"- 1" + b":1" * 1_000_000, "brackets"),
        ("e.yaml", b"&a [*a]", "not valid YAML"),
        ("e.yaml", b"- !!python/object/apply:os.system ['true']", "must be IP:PORT"),
        ("e.yaml", b"\xff\xfe", "is not UTF-8"),
        ("e.txt", b"x" * (4 * 2**20 + 1), "larger than 4 MiB"),
        ("e.txt", b"x\n" * 1_000_000, "and more"),
    ],
)
def test_hostile_files_are_refused_quickly(path: str, content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        read(content, path)
    assert len(str(caught.value)) < 500


def test_too_many() -> None:
    lines = (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:8000" for n in range(100_000))
    with pytest.raises(ConfigurationError, match="more than 10000 endpoints"):
        read("\n".join(lines), "e.txt")


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a: &a [x, x]"]
    lines += [f"{c}: &{c} [*{b}, *{b}]" for b, c in zip("abcdefgh", "bcdefghi")]
    with pytest.raises(ConfigurationError, match="the only key is endpoints"):
        read("\n".join(lines))


@given(st.sampled_from(["e.yaml", "e.json", "e"]), st.text(max_size=100))
def test_any_text_is_a_list_or_an_error(path: str, text: str) -> None:
    try:
        read(text, path)
    except ConfigurationError as error:
        assert str(error).startswith(path)  # noqa: PT017 - either outcome is right
