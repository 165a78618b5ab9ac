"""Settings that would end the process, or keep it busy for hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.config.yaml_file import read_mapping
from tidegate.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "[" * 500_000, "line 1: lists in lists"),
        ("a:\n" + "- " * 400_000, "line 2: lists in lists"),
        ("{a: " * 200_000, "lists in lists"),
        ("a: " + "[" * 20_000, "not valid YAML"),
        ("a: 1" + ":1" * 500_000, "'1:1:1:1:1:1:1:1:1:1:'… is a number of 1000001 characters"),
        ("a: 1" + ":1" * 500_000 + ".5", "is a number of"),
        ("a: [0x" + "f" * 5000 + "]", "is a number of 5002 characters"),
        ("x: y\n1" + ":1" * 400 + ": a", "line 2: '1:1:"),
        ("1" + ":1" * 1000, "is a number of"),
        ("a: &a [*a]", None),
    ],
    ids=str.split("flow blocks mappings short base60 float hex key top itself"),
)
def test_is_refused_quickly(tmp_path: Path, text: str, says: str | None) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(text)
    if says is None:
        read_mapping(path)
        return
    with pytest.raises(ConfigurationError) as caught:
        read_mapping(path, 2**22)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_long_file_of_ordinary_depth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("a:\n" + "- {b: [1, 0x10, 1.5, '1:1']}\n" * 5000)
    data, lines = read_mapping(path)
    assert len(data["a"]) == 5000
    assert lines["a", 4999] == 5001
