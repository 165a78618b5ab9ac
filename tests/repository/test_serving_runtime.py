from __future__ import annotations

import pytest

from tidegate.config.model import ModelConfig
from tidegate.repository.formats import FORMATS, REQUIREMENTS, Format
from tidegate.repository.serving_runtime import Refusal, choose

ANY = Format("any", "a file of many runtimes", ("torch", "onnx"))


def chosen(
    text: dict[str, object], found: Format = ANY, missing: tuple[str, ...] = ()
) -> str | Refusal:
    config = ModelConfig.model_validate(text)
    return choose("m.any", found, config, lambda runtime: runtime not in missing)


def refused(
    text: dict[str, object], found: Format = ANY, missing: tuple[str, ...] = ()
) -> Refusal:
    refusal = chosen(text, found, missing)
    assert isinstance(refusal, Refusal)
    return refusal


def test_the_usual_runtime_and_another_on_request() -> None:
    assert chosen({}) == "torch"
    assert chosen({"runtime": "onnx"}) == "onnx"
    assert chosen({"onnx": {"spin": 0}, "runtime": "onnx"}) == "onnx"


def test_a_runtime_that_does_not_serve_the_format() -> None:
    refusal = refused({"runtime": "abacus"})
    assert refusal.kind == "invalid"
    assert "asks for the runtime 'abacus'" in refusal.reason
    assert refusal.hint == "remove the key or write runtime: torch or onnx"


def test_options_of_another_runtime() -> None:
    refusal = refused({"onnx": {"spin": 0}})
    assert refusal.kind == "invalid"
    assert "options under onnx" in refusal.reason
    assert "served by the runtime torch" in refusal.reason
    assert refusal.hint == "remove them or write runtime: onnx"
    only = Format("one", "a file of one runtime", ("torch",))
    assert refused({"onnx": {"spin": 0}}, only).hint == "remove them"


def test_a_runtime_that_is_not_installed() -> None:
    refusal = refused({}, missing=("torch",))
    assert refusal.kind == "skipped"
    assert refusal.hint == "install it: pip install 'tidegate[torch]', or write runtime: onnx"
    # Never another by itself: the same folder is served alike everywhere.
    assert (
        refused({}, missing=("torch", "onnx")).hint == "install it: pip install 'tidegate[torch]'"
    )
    assert isinstance(chosen({"runtime": "onnx"}, missing=("onnx",)), Refusal)


def test_a_format_without_a_runtime() -> None:
    assert refused({}, Format("none", "a file", advice="do something")).hint == "do something"


@pytest.mark.parametrize("found", FORMATS.values(), ids=lambda f: f.name)
def test_every_runtime_of_a_format_is_known(found: Format) -> None:
    assert set(found.runtimes) <= set(REQUIREMENTS)
