"""Models in Python, in environments of their own, and Caffe's, on a real node."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from sklearn.datasets import load_digits

from tests import caffe_models
from tests.environments import ONLY_HERE, make_environment
from tests.node.harness import ServedNode
from tidegate.cli.main import cli

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = """
import sys
from pathlib import Path
{imports}
from tidegate.errors import InvalidInput


class Model:
    signature = {{
        "inputs": [{{"name": "x", "dtype": "FP32", "shape": ["batch"]}}],
        "outputs": [
            {{"name": "inverse", "dtype": "FP32", "shape": ["batch"]}},
            {{"name": "prefix", "dtype": "BYTES", "shape": ["batch"]}},
        ],
    }}

    def load(self, context):
        self.ended = Path("{ended}")

    def run(self, inputs):
        x = inputs["x"].tolist()
        if any(value < 0 for value in x):
            raise InvalidInput("nothing below zero, please")
        return {{"inverse": [1 / value for value in x], "prefix": [sys.prefix] * len(x)}}

    def unload(self):
        with self.ended.open("a") as file:
            file.write("ended ")
"""


def write(root: Path, name: str, imports: str = "", settings: str = "") -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL.format(imports=imports, ended=root.parent / name))
    if settings:
        (folder / "model.yaml").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environment") / "venv")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(
    tmp_path_factory: pytest.TempPathFactory, second: Path
) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("python") / "models"
    root.mkdir()
    write(root, "first")
    write(root, "second", f"import {ONLY_HERE}", f"environment: python:{second}\n")
    write(root, "lost", "", "environment: python:/nowhere/bin/python\n")
    write(root, "lacking", f"import {ONLY_HERE}")
    caffe_models.lenet(root / "digits")
    path = caffe_models.lenet(root / "deadly").with_name("deploy.prototxt")
    path.write_text(caffe_models.LENET.replace("stride: 2", "stride: 0"))
    async with ServedNode(root) as served:
        yield served
        await served.stop()
    # Whatever was ready was told of its end.
    assert (root.parent / "first").read_text().endswith("ended ")
    assert (root.parent / "second").read_text().endswith("ended ")


async def invoke(arguments: list[str]) -> Result:
    """Run a command where there is no event loop."""
    return await asyncio.to_thread(CliRunner().invoke, cli, arguments, env={"COLUMNS": "200"})


async def infer(node: ServedNode, model: str, *x: float) -> tuple[int, dict[str, Any]]:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(x)], "data": x}]}
    status, answer = await node.post(f"/v2/models/{model}/infer", json.dumps(body).encode())
    return status, json.loads(answer)


async def until_answered(node: ServedNode, model: str) -> None:
    while (await infer(node, model, 2))[0] != 200:  # noqa: ASYNC110 - over HTTP
        await asyncio.sleep(0.02)


async def prefix(node: ServedNode, model: str) -> str:
    status, answer = await infer(node, model, 2)
    assert status == 200, answer
    inverse, found = answer["outputs"]
    assert inverse["data"] == [0.5]
    return str(found["data"][0])


async def told(node: ServedNode, model: str) -> dict[str, Any]:
    models = (await node.status())["models"]
    return next(found for found in models if found["name"] == model)


async def test_each_runs_in_its_environment(node: ServedNode, second: Path) -> None:
    assert await prefix(node, "first") == sys.prefix
    assert await prefix(node, "second") == str(second.parents[1])
    (version,) = (await told(node, "second"))["versions"]
    assert version["environment"] == f"python:{second}"
    assert version["replicas"][0]["python"] == ".".join(map(str, sys.version_info[:3]))
    (version,) = (await told(node, "first"))["versions"]
    assert version["environment"] is None


async def test_status_shows_it(node: ServedNode, second: Path) -> None:
    options = ["--port", str(node.port), "--run-dir", str(node.run_dir)]
    shown = (await invoke(["status", *options])).output
    assert f"second  runs in python:{second} (3." in shown
    assert "environment: /nowhere/bin/python does not exist; make it with" in shown


async def test_what_cannot_be_served_says_why(node: ServedNode) -> None:
    status, answer = await infer(node, "lost", 2)
    assert (status, "/nowhere/bin/python does not exist" in answer["error"]) == (503, True)
    status, answer = await infer(node, "lacking", 2)
    assert (status, f"No module named '{ONLY_HERE}'" in answer["error"]) == (503, True)
    status, answer = await infer(node, "deadly", 2)
    assert status == 503
    assert "OpenCV " in answer["error"]


async def test_errors_of_the_caller_and_of_the_model(node: ServedNode) -> None:
    status, answer = await infer(node, "first", -1)
    assert (status, answer["error"]) == (400, "nothing below zero, please")
    status, answer = await infer(node, "first", 0)
    assert status == 500
    assert answer["error"] == "run() of model.py raised ZeroDivisionError: float division by zero"
    log = (node.run_dir / str(node.port) / "logs" / "first-1.0.log").read_text()
    assert "Traceback" in log
    assert 'model.py", line' in log


async def test_a_caffe_model_answers_as_its_weights_do_elsewhere(node: ServedNode) -> None:
    images = load_digits().images[:3].astype(np.float32)[:, None]
    session = onnxruntime.InferenceSession(caffe_models.DIGITS)
    expected = session.run(["probabilities"], {"image": images})[0]
    data = images.ravel().tolist()
    tensor = {"name": "data", "datatype": "FP32", "shape": [3, 1, 8, 8], "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, answer = await node.post("/v2/models/digits/infer", body)
    assert status == 200
    (output,) = json.loads(answer)["outputs"]
    assert (output["name"], output["shape"]) == ("prob", [3, 10])
    np.testing.assert_allclose(np.reshape(output["data"], (3, 10)), expected, atol=1e-5)


async def test_another_controller_adopts_replicas_of_another_python(
    node: ServedNode, second: Path
) -> None:
    before = node.replicas("second")
    node.kill_controller()
    assert node.process is not None
    await node.process.wait()
    assert await prefix(node, "second") == str(second.parents[1])
    await node.serve()
    await node.until(lambda: "adopted the running edge" in node.output)
    assert node.replicas("second") == before
    # One that dies is started by the same interpreter.
    psutil.Process(before[0]).kill()
    await node.until(lambda: node.replicas("second") not in ([], before))
    await until_answered(node, "second")
    assert await prefix(node, "second") == str(second.parents[1])


async def test_a_change_of_environment_is_a_change_of_the_model(
    node: ServedNode, second: Path
) -> None:
    folder = write(node.repository, "moves")
    await node.until_ready("moves")
    await until_answered(node, "moves")
    assert await prefix(node, "moves") == sys.prefix
    (folder / "model.yaml").write_text(f"environment: python:{second}\n")
    ended = node.repository.parent / "moves"
    await node.until(ended.exists)
    assert await prefix(node, "moves") == str(second.parents[1])
    # What is no environment leaves the old one serving.
    (folder / "model.yaml").write_text(f"environment: python:{second}9\n")
    await node.until(lambda: f"{second}9 does not exist" in node.output)
    assert await prefix(node, "moves") == str(second.parents[1])
    shutil.rmtree(folder)


async def test_inspect_loads_by_that_python(node: ServedNode, second: Path) -> None:
    shown = await invoke(["inspect", str(node.repository / "second"), "--json"])
    (model,) = json.loads(shown.output)["models"]
    assert [tensor["name"] for tensor in model["outputs"]] == ["inverse", "prefix"]
    assert not model["problems"]
    shown = await invoke(["inspect", str(node.repository / "second")])
    assert f"runs in   {second}" in shown.output
    shown = await invoke(["inspect", str(node.repository / "lost")])
    assert "/nowhere/bin/python does not exist" in shown.output


async def test_infer_says_where_to_ask(node: ServedNode, second: Path) -> None:
    arguments = ["infer", str(node.repository / "second"), "--data", "{}"]
    shown = await invoke(arguments)
    assert f"ask it with '{second} -m tidegate infer'" in str(shown.exception)
