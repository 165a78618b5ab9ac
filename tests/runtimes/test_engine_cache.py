from __future__ import annotations

import fcntl
import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.runtimes.engine_cache import EngineCache, cache_folder, key_of


def build(folder: Path) -> str:
    engine = folder / "model.engine"
    if engine.exists():
        return "taken"
    engine.write_text("engine")
    return "built"


def test_an_engine_is_built_once(tmp_path: Path) -> None:
    assert EngineCache(tmp_path / "e", "k").use(build) == "built"
    assert EngineCache(tmp_path / "e", "k").use(build) == "taken"
    assert EngineCache(tmp_path / "e", "other").use(build) == "built"
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o700


def test_half_an_engine_is_never_taken(tmp_path: Path) -> None:
    def die(folder: Path) -> str:
        (folder / "model.engine").write_text("eng")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EngineCache(tmp_path, "k").use(die)
    assert EngineCache(tmp_path, "k").use(build) == "built"


def test_an_engine_that_is_of_no_use_is_built_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, "k")
    cache.use(build)

    def picky(folder: Path) -> str:
        if (folder / "model.engine").exists():
            raise InvalidModel("of another TensorRT")
        return build(folder)

    assert cache.use(picky) == "built"
    assert cache.use(build) == "taken"

    def unusable(folder: Path) -> str:
        raise ConfigurationError("no GPU here")

    # What is wrong with the machine says nothing of the engines.
    with pytest.raises(ConfigurationError):
        cache.use(unusable)
    assert cache.use(build) == "taken"


def _build_slowly(folder: Path, started: Event, go_on: Event) -> None:
    def slow(inside: Path) -> str:
        started.set()
        go_on.wait(30)
        return build(inside)

    EngineCache(folder, "k").use(slow)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started, go_on = context.Event(), context.Event()
    other = context.Process(target=_build_slowly, args=(tmp_path, started, go_on))
    other.start()
    try:
        assert started.wait(30)
        with (tmp_path / "k.lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        go_on.set()
        assert EngineCache(tmp_path, "k").use(build) == "taken"
    finally:
        go_on.set()
        other.join(30)


def test_the_key_is_of_the_weights_and_of_what_is_built_for(tmp_path: Path) -> None:
    model, weights = tmp_path / "m.onnx", tmp_path / "w.bin"
    model.write_bytes(b"model")
    weights.write_bytes(b"one")
    about = {"precision": "fp16", "gpus": "A"}
    keys = {key_of([model, weights], about), key_of([model, weights], about | {"gpus": "B"})}
    assert len(keys) == 2
    weights.write_bytes(b"two")
    keys.add(key_of([model, weights], about))
    assert len(keys) == 3
    (tmp_path / "copy").mkdir()
    for file in (model, weights):
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    copies = [tmp_path / "copy" / file.name for file in (model, weights)]
    assert key_of(copies, about) in keys
    with pytest.raises(InvalidModel, match=r"missing\.bin cannot be read"):
        key_of([model, tmp_path / "missing.bin"], about)


def test_where_it_lies() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/tidegate/engines")
    for nothing in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert cache_folder(nothing) == Path.home() / ".cache/tidegate/engines"


def test_nobody_else_may_write_there(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    EngineCache(folder, "k").use(build)
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"others may write .* engines are code"):
        EngineCache(folder, "k").use(build)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be written: .*; set XDG_CACHE_HOME"):
        EngineCache(tmp_path / "file/e", "k").use(build)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigurationError, match="Permission denied"):
            EngineCache(tmp_path / "e", "k").use(build)
