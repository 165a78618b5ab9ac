from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import watchfiles

from tidegate.config.model import ModelConfig
from tidegate.repository.entries import ModelEntry, Repository
from tidegate.repository.watching import Settling, changes


def seen(**models: tuple[str, float]) -> Repository:
    return Repository(
        {
            name: ModelEntry(name, ModelConfig(), {}, (), fingerprint, changed)
            for name, (fingerprint, changed) in models.items()
        }
    )


def shown(repository: Repository) -> dict[str, str]:
    return {name: entry.fingerprint for name, entry in repository.models.items()}


def begun(quiet: float = 1.0) -> Settling:
    settling = Settling(quiet)
    settling.look(seen(), -100.0, 0.0)
    return settling


def test_the_first_look_believes_what_is_there() -> None:
    settled, again = Settling().look(seen(a=("1", 100.0)), now=0.0, wall=100.0)
    assert (shown(settled), again) == ({"a": "1"}, None)


def test_old_files_are_settled_at_first_sight() -> None:
    settled, again = begun().look(seen(a=("1", 90.0)), now=0.0, wall=100.0)
    assert (shown(settled), again) == ({"a": "1"}, None)


def test_a_model_being_copied_is_held_back_until_it_is_quiet() -> None:
    settling = begun(quiet=1.0)
    settled, again = settling.look(seen(a=("1", 100.0), b=("b", 1.0)), 0.0, 100.0)
    assert (shown(settled), again) == ({"b": "b"}, 1.0)
    settled, again = settling.look(seen(a=("2", 100.6), b=("b", 1.0)), 0.6, 100.6)
    assert (shown(settled), again) == ({"b": "b"}, 1.0)
    settled, again = settling.look(seen(a=("2", 100.6), b=("b", 1.0)), 1.0, 101.0)
    assert shown(settled) == {"b": "b"}
    assert again == pytest.approx(0.6)
    settled, again = settling.look(seen(a=("2", 100.6), b=("b", 1.0)), 1.6, 101.6)
    assert (shown(settled), again) == ({"a": "2", "b": "b"}, None)


def test_a_changing_model_keeps_its_former_state() -> None:
    settling = Settling()
    settling.look(seen(a=("1", 0.0)), 0.0, 100.0)
    settled, again = settling.look(seen(a=("2", 100.0)), 0.0, 100.0)
    assert (shown(settled), again) == ({"a": "1"}, 1.0)
    settled, again = settling.look(seen(a=("1", 100.0)), 0.5, 100.5)
    assert (shown(settled), again) == ({"a": "1"}, None)


def test_a_file_system_whose_clock_is_ahead_settles_too() -> None:
    settling = begun()
    settling.look(seen(a=("1", 9999.0)), 0.0, 100.0)
    settled, again = settling.look(seen(a=("1", 9999.0)), 1.0, 101.0)
    assert (shown(settled), again) == ({"a": "1"}, None)


def test_removal_is_believed_after_a_while() -> None:
    settling = Settling()
    settling.look(seen(a=("1", 0.0)), 0.0, 100.0)
    settled, again = settling.look(seen(), 5.0, 105.0)
    assert (shown(settled), again) == ({"a": "1"}, 1.0)
    settled, again = settling.look(seen(), 6.0, 106.0)
    assert (shown(settled), again) == ({}, None)


def test_what_never_settled_and_went_is_forgotten() -> None:
    settling = begun()
    settling.look(seen(a=("1", 100.0)), 0.0, 100.0)
    assert settling.look(seen(), 0.1, 100.1)[1] is None
    # Its first sight is a first sight again.
    assert settling.look(seen(a=("1", 200.0)), 50.0, 200.0)[1] == 1.0


async def test_a_change_is_told(tmp_path: Path) -> None:
    watching = changes(tmp_path, tick=60)
    await anext(watching)
    told = asyncio.ensure_future(anext(watching))
    try:
        async with asyncio.timeout(60):
            number = 0
            while not told.done():  # The watch begins at some moment after the call.
                number += 1
                (tmp_path / f"{number}.onnx").write_bytes(b"x")
                await asyncio.wait([told], timeout=0.5)
    finally:
        told.cancel()
        await asyncio.wait([told])
        await watching.aclose()


async def test_the_tick_comes_without_a_change(tmp_path: Path) -> None:
    watching = changes(tmp_path, tick=0.2)
    async with asyncio.timeout(60):
        await anext(watching)
        await anext(watching)
        await anext(watching)
    await watching.aclose()


async def test_a_root_that_goes_and_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "models"
    watching = changes(root, tick=0.1)
    async with asyncio.timeout(60):
        await anext(watching)
        await anext(watching)
        root.mkdir()
        await anext(watching)
        shutil.rmtree(root)
        await anext(watching)
    await watching.aclose()


async def test_polls_when_the_system_gives_no_notifications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = watchfiles.awatch

    def limited(*paths: Path, force_polling: bool | None, **options: object) -> object:
        if not force_polling:
            raise OSError("OS file watch limit reached")
        return real(*paths, force_polling=force_polling, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(watchfiles, "awatch", limited)
    watching = changes(tmp_path, tick=0.2)
    async with asyncio.timeout(60):
        await anext(watching)
        await anext(watching)
    await watching.aclose()
