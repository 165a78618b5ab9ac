"""Folders of dl_inference in this process: the contract of the interface file."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import dl_inference, torch_models
from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError, InferenceFailed, InvalidInput, InvalidModel
from tidegate.replica.binding import binding
from tidegate.replica.loading import Loaded, load
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch_whole import moved
from tidegate.types import DType, InferRequest, InferResponse, Tensor

TAGS = {"taskId": 69}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dl")
    for form in ("tensor", "dict", "list"):
        dl_inference.write(root / form, form=form)
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Iterator[Path]:
    with contextlib.chdir(tmp_path):
        yield shutil.copytree(written, tmp_path / "models")


def loaded(folder: Path, processor: str | None = None, **settings: Any) -> Loaded:
    if processor is not None:
        (folder / "processor.py").write_text(processor)
    config = ModelConfig.model_validate({"trust": "pickle"} | settings)
    options = RuntimeOptions(settings.get("device", "cpu"), 1, folder, config)
    return load("torch", folder / "model.pth", options, enter=True)


def asked(model: Loaded, payload: Any = None, **more: Any) -> InferResponse:
    hooks = model.hooks(binding(model.model.signatures, {"serving_default": False}))
    assert hooks is not None
    request = InferRequest("m", payload=payload, **{"tags": TAGS} | more)
    prepared = hooks.prepare(request)
    (outcome,) = model.runner(lambda: 0.0).run([prepared.bound]).outcomes
    if isinstance(outcome, BaseException):
        raise outcome
    return hooks.finish(request, prepared, outcome)


def tensor(name: str, array: Any) -> dict[str, Any]:
    return {"inputs": (Tensor.of(name, np.asarray(array)),)}


def test_all_kinds_of_data(root: Path) -> None:
    model = loaded(root / "tensor")
    expected = {"sum": 20.0, "tags": TAGS, "file": "2", "list": [[20.0, 2.0]]}
    text = np.empty(1, np.object_)
    text[0] = b"1 2 3 4"
    for response in (
        asked(model, "1 2 3 4"),
        asked(model, b"1 2 3 4"),
        asked(model, {"numbers": [1, 2, 3, 4]}),
        asked(model, [1, 2, 3, 4]),
        asked(model, **tensor("data", [1.0, 2, 3, 4])),
        asked(model, inputs=(Tensor("text", DType.BYTES, text),)),
    ):
        assert response.payload == expected
    assert asked(model, "1 2 3 4", parameters={"a": 1, "priority": 3}).payload["tags"] == {  # type: ignore[call-overload, index]
        "a": 1,
        "taskId": 69,
    }
    with pytest.raises(InvalidInput, match="has no data"):
        asked(model)


BARE = "def preprocess(data, **kwargs):\n    return data\n"


def test_without_run_model_and_postprocess(root: Path) -> None:
    model = loaded(root / "tensor", BARE)
    (output,) = asked(model, **tensor("data", np.ones((2, 4)))).outputs
    assert (output.name, output.dtype) == ("output", DType.FP32)
    assert output.data.tolist() == [[4, 1], [4, 1]]


def test_tags_are_arguments_of_the_model_when_there_are_several(root: Path) -> None:
    model = loaded(root / "dict", BARE)
    tags = {"taskId": 7, "scale": "3"}
    response = asked(model, **tensor("x", np.ones((1, 4), np.float32)), tags=tags)
    assert {o.name: o.data.tolist() for o in response.outputs} == {
        "y": [[12, 3]],
        "more_0": [15],
        "more_1_task": 7,
    }
    with pytest.raises(InferenceFailed, match="unexpected keyword argument 'other'"):
        asked(model, **tensor("x", np.ones((1, 4))), tags={"other": 1, "taskId": 1})


def test_lists_of_tensors(root: Path) -> None:
    model = loaded(root / "list", BARE)
    outputs = asked(model, **tensor("x", np.ones((1, 4)))).outputs
    assert [(o.name, o.data.tolist()) for o in outputs] == [
        ("output_0", [[4, 1]]),
        ("output_1", [0]),
    ]


@pytest.mark.parametrize(
    ("returned", "payload"),
    [
        ("'a text'", "a text"),
        ("b'bytes'", b"bytes"),
        ("[1, 'a']", [1, "a"]),
        ("[[1], [2, 3]]", [[1], [2, 3]]),
        ("[{'a': data}]", [{"a": [[4, 1]]}]),
        ("[]", []),
        ("{'y': data, 'n': np.float32(1)}", {"y": [[4, 1]], "n": 1}),
        ("json.dumps({'a': 1})", '{"a": 1}'),
    ],
)
def test_what_postprocess_may_return(root: Path, returned: str, payload: Any) -> None:
    source = (
        f"import json\nimport numpy as np\ndef postprocess(data, **kwargs):\n return {returned}"
    )
    model = loaded(root / "tensor", source)
    assert asked(model, **tensor("x", np.ones((1, 4)))).payload == payload


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ("data.numpy()", [[4, 1]]),
        ("data.tolist()", [[4, 1]]),
        ("['a', 'b']", [b"a", b"b"]),
    ],
)
def test_arrays_and_lists_are_a_tensor(root: Path, returned: str, output: Any) -> None:
    model = loaded(root / "tensor", f"def postprocess(data, **kwargs): return {returned}")
    response = asked(model, **tensor("x", np.ones((1, 4))))
    assert [(o.name, o.data.tolist()) for o in response.outputs] == [("output", output)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def preprocess(data, **kwargs): return 1 / 0", "preprocess raised ZeroDivisionError"),
        ("def run_model(model, x, **kwargs): return x['a']", "IndexError"),
        ("def postprocess(data, **kwargs): return 1 / 0", "postprocess raised ZeroDivisionError"),
        ("def postprocess(data, **kwargs): pass", "postprocess returned nothing"),
        ("def preprocess(data): return data", "unexpected keyword argument 'meta'"),
    ],
)
def test_what_raises_is_the_models_fault(root: Path, source: str, said: str) -> None:
    model = loaded(root / "tensor", source)
    with pytest.raises(InferenceFailed) as failed:
        asked(model, **tensor("x", np.ones((1, 4))))
    assert said in str(failed.value)


def test_what_cannot_be_served(root: Path) -> None:
    folder = root / "tensor"
    with pytest.raises(InvalidModel, match="trust: pickle"):
        loaded(folder, trust=None)
    with pytest.raises(ConfigurationError, match=r"batching\.enabled is true"):
        loaded(folder, batching={"enabled": True})
    with pytest.raises(InvalidModel, match=r"processor\.py, line 1, raised ZeroDivisionError"):
        loaded(folder, "1 / 0")
    with pytest.raises(InvalidModel, match="has none of the functions preprocess"):
        loaded(folder, "x = 1")
    with pytest.raises(InvalidModel, match=r"run_model in processor\.py is a int"):
        loaded(folder, "run_model = 3")
    (folder / "processor.py").write_text(dl_inference.PROCESSOR)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="needs a GPU"):
            loaded(folder, device="cuda")


def test_hooks_py_goes_before_it(root: Path) -> None:
    folder = root / "tensor"
    (folder / "hooks.py").write_text(
        "def run_model(model, batch):\n"
        "    assert type(model.native).__name__ == 'Net' and model.device == 'cpu'\n"
        "    model.native.layer.weight.data.fill_(float(batch.parameters['weight']))\n"
        "    return model(batch.inputs)\n"
        "GROUP_BY = ('weight',)\n"
    )
    declared = {"inputs": [{"name": "x", "dtype": "FP32", "shape": ["batch", 4]}]}
    with pytest.raises(InvalidModel, match="does not say what it takes"):
        loaded(folder, warmup={"dimensions": {}}, signature={"inputs": [{"name": "x"}]})
    model = loaded(folder, signature=declared)
    x = tensor("x", np.ones((1, 4), np.float32))
    for weight in (2, 3):
        (output,) = asked(model, **x, parameters={"weight": weight}).outputs
        assert output.data.tolist() == [[4 * weight] * 2]


def test_torchscript_beside_it(root: Path) -> None:
    folder = root / "tensor"
    torch_models.script(folder / "model.pth", torch.nn.Linear(4, 1))
    (folder / "models" / "net.py").unlink()
    model = loaded(folder, BARE, trust=None)
    assert asked(model, **tensor("x", np.ones((1, 4)))).outputs[0].shape == (1, 1)
    assert model.model.platform == "pytorch_torchscript"


def test_tensors_are_moved_wherever_they_lie() -> None:
    from collections import OrderedDict, namedtuple

    pair = namedtuple("pair", "a b")
    one = torch.ones(1)

    class Own(OrderedDict[str, Any]):
        pass

    class Packed:
        device: Any = None

        def to(self, device: Any) -> Packed:
            self.device = device
            return self

    meta = torch.device("meta")
    found = moved(
        {"t": one, "l": [one, "x"], "p": pair(one, 1), "o": Own(y=one), "n": None, "k": Packed()},
        meta,
    )
    assert found["t"].device == found["l"][0].device == found["p"].a.device == meta
    assert isinstance(found["p"], pair)
    assert isinstance(found["o"], Own)
    assert found["o"]["y"].device == found["k"].device == meta
    assert (found["l"][1], found["p"].b, found["n"]) == ("x", 1, None)
    assert one.device.type == "cpu"
