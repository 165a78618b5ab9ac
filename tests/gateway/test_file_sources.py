from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from tests.gateway.following import Following
from tests.gateway.waiting import Waits
from tidegate.gateway.discovery.files import EndpointFile, Nodefile, WatchedFile

SEVEN, EIGHT, NINE = "10.0.0.7:8000", "10.0.0.8:8000", "10.0.0.9:8000"


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.parametrize("how", ["in place", "replaced"])
async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, how: str) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text(f"- {SEVEN}")
    async with Following(EndpointFile(path)) as seen:
        await seen.until_known(SEVEN)
        if how == "in place":
            path.write_text(f"[{SEVEN}, {EIGHT}]")
        else:
            replace(path, f"[{SEVEN}, {EIGHT}]")
        await seen.until_known(SEVEN, EIGHT)
    assert seen.problems == []


async def test_a_bad_edit_keeps_the_last_good_set(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text(f"- {SEVEN}")
    async with Following(EndpointFile(path)) as seen:
        await seen.until_known(SEVEN)
        path.write_text(f"- {SEVEN}\n- 10.0.0.8:80000")
        await seen.until_problem(f"{path}, endpoint 2: '10.0.0.8:80000'")
        path.write_text("")
        await seen.until_problem("is empty")
        path.write_text(f"- {SEVEN}")
        await seen.until_problem(None)
        assert len(seen.sets) == 1


async def test_a_file_that_is_not_there_yet_and_goes_again(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.txt"
    async with Following(EndpointFile(path)) as seen:
        await seen.until_problem("there is no such file")
        assert seen.known == ()
        path.write_text(SEVEN)
        await seen.until_known(SEVEN)
        await seen.until_problem(None)
        path.unlink()
        await seen.until_problem("there is no such file")
        path.write_text(f"{SEVEN}\n{EIGHT}")
        await seen.until_known(SEVEN, EIGHT)
        await seen.until_problem(None)
        assert len(seen.sets) == 3


async def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "later" / "endpoints.txt"
    async with Following(EndpointFile(path)) as seen:
        await seen.until_problem("there is no such file")
        path.parent.mkdir()
        path.write_text(SEVEN)
        await seen.until_known(SEVEN)


async def test_a_config_map_of_kubernetes(tmp_path: Path) -> None:
    """A link to a link to a folder, which is exchanged."""
    for number, address in enumerate((SEVEN, EIGHT)):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "endpoints.txt").write_text(address)
    (tmp_path / "..data").symlink_to("..0")
    path = tmp_path / "endpoints.txt"
    path.symlink_to("..data/endpoints.txt")
    async with Following(EndpointFile(path)) as seen:
        await seen.until_known(SEVEN)
        (tmp_path / "..data_tmp").symlink_to("..1")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        await seen.until_known(EIGHT)


async def test_the_target_of_a_link_elsewhere(tmp_path: Path) -> None:
    target, path = tmp_path / "a" / "t", tmp_path / "b" / "endpoints.txt"
    target.parent.mkdir()
    path.parent.mkdir()
    path.symlink_to(target)
    target.write_text(SEVEN)
    async with Following(EndpointFile(path)) as seen:
        await seen.until_known(SEVEN)
        target.write_text(EIGHT)
        await seen.until_known(EIGHT)


async def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**33)
    for path, says in (
        (pipe, "is not a file"),
        (tmp_path, "is not a file"),
        (loop, "cannot be read"),
        (large, "larger than 4 MiB"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (large / "x", "cannot be read"),
    ):
        async with Following(EndpointFile(path)) as seen:
            await seen.until_problem(says)
            assert seen.known == ()


async def test_a_nodefile_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "nodefile.txt"
    async with Following(Nodefile(path)) as seen:
        await seen.until_problem("there is no such file")
        path.write_text("69=100,10.0.0.7:8500\n")
        await seen.until(lambda: bool(seen.known))
        assert seen.sets[0] == ()
        path.write_text("69=100,10.0.0.7:8500\n70=x\n")
        await seen.until_problem("nodefile.txt, line 2: the timeout 'x' of task 70")
        path.write_text("# nothing any more\n")
        await seen.until(lambda: seen.known == ())
        await seen.until_problem(None)


async def test_a_file_counts_when_nobody_writes_to_it_any_more(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("1\n")
    told: list[bytes] = []
    waits = Waits()
    file = WatchedFile(
        path, lambda content, _: content, 100, sleep=waits, wall=lambda: path.stat().st_mtime
    )
    following = asyncio.create_task(file.follow(told.append, pytest.fail))
    try:
        assert await waits.reached() == 0.5
        path.write_text("1\n2")
        await waits.go()
        assert waits.asked[-1] == 0.25
        path.write_text("1\n22")
        await waits.go()
        assert (waits.asked[-1], told) == (0.25, [b"1\n"])
        await waits.go()
        assert (waits.asked[-1], told) == (0.5, [b"1\n", b"1\n22"])
        await waits.go()
        assert len(told) == 2
    finally:
        following.cancel()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux does")
async def test_many_files_take_none_of_the_few_watches_of_the_system(tmp_path: Path) -> None:
    def watches() -> int:
        links = list(Path("/proc/self/fd").iterdir())
        return sum("inotify" in str(link.readlink()) for link in links if link.is_symlink())

    before = watches()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(150):
            path = tmp_path / str(number)
            path.write_text(SEVEN)
            seen = await stack.enter_async_context(Following(EndpointFile(path)))
        await seen.until_known(SEVEN)
        path.write_text(EIGHT)
        await seen.until_known(EIGHT)
        assert watches() == before
