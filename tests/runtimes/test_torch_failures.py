"""PyTorch models that fail, and files that are damaged or hostile."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import torch_models
from tests.runtimes.torch_folder import AUTO, Trap, X, load_folder, run
from tests.torch_models import (
    exported,
    old_state_dict,
    scripted,
    settings,
    state_dict,
    tensors,
)
from tidegate.config.model import ModelConfig
from tidegate.errors import (
    ConfigurationError,
    InferenceFailed,
    InsufficientMemory,
    InvalidModel,
    RuntimeMissing,
    TidegateError,
)
from tidegate.replica.warmup import can_batch, warm_up
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.torch_tensors import reraise


@pytest.mark.parametrize("kind", ["script", "eager"])
def test_an_error_of_the_model_has_its_words(tmp_path: Path, kind: str) -> None:
    settings(tmp_path / "m", torch_models.SIGNATURE + "trust: pickle\n")
    if kind == "script":
        torch_models.script(tmp_path / "m/model.pt", torch_models.Picky())
    else:
        torch_models.whole(tmp_path / "m/model.pth", torch_models.Picky())
    model = load_folder(tmp_path / "m")
    with pytest.raises(InferenceFailed, match=r"^ValueError: no value may be above 100$"):
        run(model, x=X * 100)
    assert run(model, x=X)["output"].tolist() == X.tolist()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_no_memory_is_told_apart(error: Exception) -> None:
    with pytest.raises(InsufficientMemory):
        reraise(error, InferenceFailed)


def write_cut(folder: Path, write: Callable[[Path], None], kept: float) -> None:
    write(folder)
    (path,) = (p for p in folder.iterdir() if p.suffix in {".pt", ".pt2", ".pth", ".safetensors"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kept", [0.3, 0.95])
@pytest.mark.parametrize("write", [scripted, exported, state_dict, tensors, old_state_dict])
def test_files_that_are_cut_short(
    tmp_path: Path, write: Callable[[Path], None], kept: float
) -> None:
    write_cut(tmp_path / "m", write, kept)
    with pytest.raises(InvalidModel):
        load_folder(tmp_path / "m")


@pytest.mark.parametrize("write", [scripted, exported, state_dict, tensors, old_state_dict])
def test_files_with_damage_inside(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "m")
    (path,) = (p for p in (tmp_path / "m").iterdir() if p.suffix not in {".py", ".yaml", ""})
    data = path.read_bytes()
    random = np.random.default_rng(5)
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 8):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            run(load_folder(tmp_path / "m"), x=X)
        except TidegateError:
            continue


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write an archive again with other contents."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


HOSTILE_EXPORTS: dict[str, tuple[str, bytes, bytes]] = {
    "function": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"torch.os.system"),
    "dunder": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"torch.ops.aten.__class__.x"),
    "method": ("models/model.json", b"torch.ops.aten.mul.Tensor", b"_operator.methodcaller"),
    "call": ("models/model.json", b"Symbol('s", b"__import__('os').system('s"),
    "attribute": ("models/model.json", b"Symbol('s", b"Symbol.mro() or Symbol('s"),
    "string": ("models/model.json", b"Symbol('s", b"sympify('open(1)') or Symbol('s"),
    "name": ("models/model.json", b'"name": "x"', b'"name": "x):\\n import os;("'),
    "pickled weight": (
        "model_weights_config.json",
        b'"use_pickle": false',
        b'"use_pickle": true',
    ),
}


@pytest.mark.parametrize("name", HOSTILE_EXPORTS)
def test_an_export_that_would_run_code(tmp_path: Path, name: str) -> None:
    member, old, new = HOSTILE_EXPORTS[name]
    exported(tmp_path / "m")

    def change(place: str, content: bytes) -> bytes:
        if not place.endswith(member):
            return content
        assert old in content
        return content.replace(old, new)

    rewritten(tmp_path / "m/model.pt2", change)
    with pytest.raises(InvalidModel, match="could run any code"):
        load_folder(tmp_path / "m")


def test_sample_inputs_of_an_export_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(((Trap(mark),), {}), buffer)
    exported(tmp_path / "m")
    rewritten(
        tmp_path / "m/model.pt2",
        lambda name, content: buffer.getvalue() if "sample_inputs" in name else content,
    )
    with pytest.raises(InvalidModel, match=r"sample inputs in model\.pt2 are a pickle"):
        load_folder(tmp_path / "m")
    assert not mark.exists()


def test_an_archive_that_fills_the_memory(tmp_path: Path) -> None:
    scripted(tmp_path / "m")
    path = tmp_path / "m/model.pt"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/9", bytes(80 * 2**20))
    with pytest.raises(InvalidModel, match="would unpack to"):
        load_folder(tmp_path / "m")


def test_an_export_in_machine_code(tmp_path: Path) -> None:
    exported(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m/model.pt2", "a") as archive:
        archive.writestr("model/data/aotinductor/model/a.so", b"\x7fELF")
    with pytest.raises(InvalidModel, match="AOTInductor"):
        load_folder(tmp_path / "m")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    state_dict(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE + "torch: {compile: true}\n")
    model = load_folder(tmp_path / "m")
    assert list((tmp_path / "cache").rglob("*.so"))
    warm_up(model)
    assert can_batch(model, AUTO)
    # One row is a case of its own; every other number is one.
    compiled = sorted((tmp_path / "cache").rglob("*.so"))
    for rows in (1, 3, 7):
        x = np.full((rows, 4), rows, np.float32)
        assert run(model, x=x)["output"].tolist() == (2 * x).tolist()
    assert sorted((tmp_path / "cache").rglob("*.so")) == compiled, "compiled before requests"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiling_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no-compiler")))
    exported(tmp_path / "m")
    settings(tmp_path / "m", "torch: {compile: true}\n")
    with pytest.raises(
        ConfigurationError, match=r"torch\.compile could not compile .*no-compiler"
    ):
        load_folder(tmp_path / "m")


def test_compiling_torchscript_is_a_mistake(tmp_path: Path) -> None:
    scripted(tmp_path / "m")
    settings(tmp_path / "m", torch_models.SIGNATURE + "torch: {compile: true}\n")
    with pytest.raises(ConfigurationError, match="compiled already"):
        load_folder(tmp_path / "m")


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "tidegate.runtimes.torch", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'tidegate\[torch\]'"):
        registry.load("torch", Path("m.pt2"), RuntimeOptions())


def test_options_reach_the_model_through_its_settings() -> None:
    config = ModelConfig.model_validate(
        {"torch": {"compile": True}, "resources": {"threads": 3}, "warmup": "a.npz"}
    )
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
