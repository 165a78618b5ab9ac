"""One pass over a long file gives what PyYAML gives, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.config.gateway import GatewayConfig
from tidegate.config.loading import load_gateway_config
from tidegate.config.plain_yaml import read_plain
from tidegate.config.yaml_file import read_mapping
from tidegate.errors import ConfigurationError

_SAID = """
yes no on Off ~ null Null true 12 012 0x1f 0b1 1_000 1:30 1.5 .5 1e3 1.e+3 .inf .nan -3 +4 1__2 _1
2001-12-14 10.0.0.1:80 1.2.3.4:5 1:2:3.4 node-1:8000 [fd00::1]:80 = << <<x ! & * a b =x 0o7 -.5
- -a ?b 'x' "y"
"""
_WORDS = st.sampled_from(_SAID.split())
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)
_MAPPINGS = st.dictionaries(st.text(max_size=4) | _WORDS, _DATA, max_size=4)
_DUMPED = st.builds(
    lambda data, flow: yaml.dump(data, Dumper=yaml.SafeDumper, default_flow_style=flow),
    _MAPPINGS,
    st.sampled_from([True, False, None]),
)
_LINES = st.lists(
    st.builds("{}{}: {}".format, st.sampled_from(["", "  ", "- "]), _WORDS, _WORDS), max_size=5
).map("\n".join)
_ANYTHING = st.text("abc:-[]{}&*!|>'\"\n #,?%@`0123<", max_size=40)


@settings(max_examples=400, deadline=None)
@given(text=_DUMPED | _LINES | _ANYTHING)
def test_it_is_what_pyyaml_makes_of_it(text: str) -> None:
    found = read_plain(text)
    if found is None:
        return
    data, lines = found
    assert repr(data) == repr(yaml.load(text, yaml.CSafeLoader))
    top: Any = yaml.compose(text, yaml.CSafeLoader)
    marks = {(key.value,): key.start_mark.line + 1 for key, _ in top.value}
    for key, value in top.value:
        if isinstance(value, yaml.MappingNode):
            marks |= {(key.value, k.value): k.start_mark.line + 1 for k, _ in value.value}
    assert lines == marks


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1\nb: *x",
        "a: {<<: {b: 1}}",
        "a: !!str 1",
        "a: !x 1",
        "a: 1\na: 2",
        "1: 2",
        "- a",
        "",
        "a: [",
        "a: 1\n--- \nb: 2",
        "a: 2020-01-01",
        "a: 1\n\ufeffb: 2",
        "a: 1" + ":1" * 100,
        "a: " + "[" * 40 + "]" * 40,
        "{a: " * 2000,
        "a: [" * 100_000,
    ],
)
def test_the_unusual_is_left_to_others(text: str) -> None:
    assert read_plain(text) is None


def _long(endpoint: str) -> str:
    many = "".join(f"  - {{address: 10.0.{i // 250}.{i % 250}:80}}\n" for i in range(300))
    return f"models:\n m:\n  endpoints:\n{many}  - {endpoint}\n  tasks: [1]\n"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (
            "{address: 10.1.0.1:80, weigth: 3}",
            ", line 304: models.m.endpoints.300.weigth: unknown key; did you mean 'weight'?",
        ),
        ("{address: 10.1.0.1}", ", line 304: models.m.endpoints.300.address: '10.1.0.1' has no"),
        ("{address: a:1, address: b:1}", ", line 304: the key 'address' was already given in"),
        ("{address: &a [*a]}", ", line 304: models.m.endpoints.300.address must be a valid"),
        ("{address: 10.1.0.1:80", ", line 305: not valid YAML: "),
    ],
)
def test_a_mistake_in_a_long_file_has_its_line(tmp_path: Path, endpoint: str, says: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(_long(endpoint))
    with pytest.raises(ConfigurationError) as caught:
        load_gateway_config(file, {}, {})
    assert f"{file}{says}" in str(caught.value)


def test_a_long_file_is_as_a_short_one(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(_long("{address: a.test:80, weight: 0x10, file: null}"))
    assert read_plain(file.read_text()) is not None
    data, lines = read_mapping(file)
    assert lines["models", "m"] == 2
    assert lines["models", "m", "endpoints", 300, "weight"] == 304
    assert ("models", "x") not in lines
    assert len(lines) == 609
    config, origins = load_gateway_config(file, {}, {})
    assert config == GatewayConfig.model_validate(data)
    assert config.models["m"].endpoints[300].weight == 16
    assert str(origins["models"]) == f"{file}:1"
