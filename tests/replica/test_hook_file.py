"""``hooks.py``: what it may say, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidegate.config.model import HookSettings
from tidegate.errors import InvalidModel, TidegateError
from tidegate.replica.hook_file import read_hooks
from tidegate.replica.hooks import Functions
from tidegate.runtimes.folder_code import code_in
from tidegate.types import DType, TensorSpec

BOTH = """
def preprocess(request): ...
def postprocess(request, outputs): ...
"""


def read(folder: Path, source: str, **settings: Any) -> Functions:
    (folder / "hooks.py").write_text(source)
    code = code_in(folder / "model.onnx", folder)
    found = read_hooks(code, HookSettings.model_validate(settings))
    assert found is not None
    return found


def test_what_it_declares(tmp_path: Path) -> None:
    source = BOTH + (
        'INPUT = "image"\n'
        'OUTPUT = [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]\n'
        'GROUP_BY = ("scale",)\n'
    )
    found = read(tmp_path, source)
    assert found.incoming.kind == "image"
    assert found.outgoing.specs == (TensorSpec("x", DType.FP32, ("batch", 3)),)
    assert found.group_by == ("scale",)
    assert found.run_model is None


def test_model_yaml_counts_more(tmp_path: Path) -> None:
    source = BOTH + 'INPUT = "image"\nOUTPUT = "json"\nGROUP_BY = ("a",)\n'
    tensor = {"name": "x", "dtype": "INT8", "shape": [2]}
    found = read(tmp_path, source, input="text", output=[tensor], group_by=["b"])
    assert (found.incoming.kind, found.outgoing.kind) == ("text", None)
    assert found.outgoing.specs == (TensorSpec("x", DType.INT8, (2,)),)
    assert found.group_by == ("b",)


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert read_hooks(code_in(tmp_path / "m", tmp_path), HookSettings()) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "has none of the functions preprocess, postprocess, run_model"),
        ("preprocess = 3", "preprocess in hooks.py is a int, no function"),
        ("def preprocess(): ...", "preprocess in hooks.py must take (request), not ()"),
        ("def postprocess(x): ...", "must take (request, outputs), not (x)"),
        ("def run_model(a, b, c): ...", "must take (model, batch), not (a, b, c)"),
        ("async def preprocess(r): ...", "is async, but is called in a thread"),
        (BOTH + "INPUT = 'picture'", "INPUT in hooks.py is 'picture'; it is one of 'image'"),
        (BOTH + "INPUT = 3", "INPUT in hooks.py is no list of tensors"),
        (BOTH + "INPUT = [{'nam': 'x'}]", "is no list of tensors"),
        (BOTH + "OUTPUT = [{'name': 'x'}]", "the tensor 'x' needs a dtype"),
        (BOTH + "GROUP_BY = 'scale'", "GROUP_BY in hooks.py is 'scale'; it is a tuple"),
        ("def postprocess(r, o): ...\nINPUT = 'text'", "has no preprocess"),
        ("def preprocess(r): ...\nOUTPUT = 'text'", "has no postprocess"),
        ("\n1 / 0", "hooks.py, line 2, raised ZeroDivisionError"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(TidegateError) as refused:
        read(tmp_path, source)
    assert said in str(refused.value)


def test_arguments_may_be_many_or_have_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "def preprocess(request, size=3, *more, **named): ...").preprocess
    with pytest.raises(InvalidModel):
        read(tmp_path, "def preprocess(request, size, **named): ...")
