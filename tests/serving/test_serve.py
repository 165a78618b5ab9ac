"""``serve()``: a node that lives as long as the block, or as the program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests import models
from tests.serving.processes import of_node, until
from tidegate import Client, Server, errors, serve

X = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.scale(root / "scale.onnx", 2.0)
    return root


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    models.scale(tmp_path / "scale.onnx", 2.0)
    models.sequence(tmp_path / "sequence.onnx")
    return tmp_path


def run_dir(server: Server) -> Path:
    assert server._node is not None
    return server._node._run_dir


def of_role(processes: list[psutil.Process], role: str) -> psutil.Process:
    (found,) = [p for p in processes if p.cmdline()[2] == role]
    return found


def assert_nothing_left(directory: Path) -> None:
    assert of_node(directory) == []
    assert not directory.exists()


@pytest.mark.usefixtures("no_proxy")
def test_a_block(repository: Path) -> None:
    with serve(repository) as server:
        directory = run_dir(server)
        assert server.model("scale").infer(X)["y"].tolist() == [[2.0] * 4]
        assert server.client.metadata().name == "tidegate"
        with Client(server.grpc_url) as client:
            assert client.infer("scale", {"x": X})["y"][0, 0] == 2
        assert len(of_node(directory)) == 4, "guard, controller, edge and replica"
        with serve(repository) as second:
            assert second.url != server.url
            assert second.model("scale").ready()
        assert server.model("scale").ready(), "another one does not disturb it"
        with pytest.raises(RuntimeError, match="runs already"):
            server.__enter__()
    assert_nothing_left(directory)
    with pytest.raises(RuntimeError, match="with block"):
        server.url  # noqa: B018 - raises
    with server:
        assert server.model("scale").ready(), "it can be entered again"


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that nobody could use."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


async def test_async_with_and_a_block_in_a_running_loop(repository: Path) -> None:
    async with serve(repository) as server:
        directory = run_dir(server)
        answers = await asyncio.gather(
            *(server.async_client.infer("scale", {"x": X * n}) for n in range(8))
        )
        assert [a["y"][0, 0] for a in answers] == [2.0 * n for n in range(8)]
    assert_nothing_left(directory)
    with serve(repository) as server:
        assert server.model("scale").infer(X)["y"][0, 0] == 2


async def test_a_start_that_is_cancelled_leaves_nothing(repository: Path) -> None:
    server = serve(repository)
    entering = asyncio.create_task(server.__aenter__())
    guards = f"tidegate.guard {os.getpid()} "
    await asyncio.to_thread(until, lambda: of_node(guards))
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert of_node(guards) == []


def test_a_model_that_cannot_be_served_is_an_error(broken: Path) -> None:
    with pytest.raises(errors.ModelError, match=r"sequence: .*allow_failed=True"), serve(broken):
        pass
    with serve(broken, allow_failed=True) as server:
        assert server.model("scale").ready()
        assert not server.model("sequence").ready()


def test_options_are_those_of_the_command(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match="no option 'prot': did you mean 'port'"):
        serve(repository, prot=1)
    with (
        pytest.raises(errors.ConfigurationError, match="max-message-size"),
        serve(repository, max_message_size="much"),
    ):
        pass
    with pytest.raises(errors.ConfigurationError, match="does not exist"), serve("/nowhere"):
        pass
    with serve(repository, max_message_size="64KiB", access_log=True) as server:
        with pytest.raises(errors.MessageTooLarge):
            server.model("scale").infer(np.ones((10_000, 4), np.float32))
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(errors.AddressInUse, match=str(port)), serve(repository, port=port):
            pass
        assert server.model("scale").ready()


def test_a_cell_that_starts_it_can_be_run_again(repository: Path) -> None:
    first = serve(repository).start()
    directory = run_dir(first)
    second = serve(repository).start()
    try:
        assert_nothing_left(directory)
        assert second.model("scale").infer(X)["y"][0, 0] == 2
    finally:
        second.stop()
    second.stop()
    assert_nothing_left(directory)


def test_an_interrupt_leaves_nothing(repository: Path) -> None:
    directories = []

    def block() -> None:
        with serve(repository) as server:
            directories.append(run_dir(server))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert_nothing_left(directories[0])


@pytest.mark.parametrize("role", ["tidegate.guard", "tidegate"])
def test_whichever_process_is_killed_nothing_is_left(repository: Path, role: str) -> None:
    with serve(repository) as server:
        directory = run_dir(server)
        of_role(of_node(directory), role).kill()
    until(lambda: not of_node(directory))
    assert_nothing_left(directory)


PROGRAM = """
import os, sys, time
from tidegate import serve
with serve(sys.argv[1]) as server:
    if os.fork() == 0:
        time.sleep(300)   # a worker that has every file of its parent
    print(server._node._run_dir, flush=True)
    time.sleep(300)
"""


@pytest.fixture
def program(repository: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(repository)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_program_that_is_killed_takes_its_node_along(
    program: tuple[subprocess.Popen[str], Path],
) -> None:
    process, directory = program
    assert len(of_node(directory)) == 4
    process.kill()
    until(lambda: not of_node(directory) and not directory.exists())


def test_a_program_that_ends_in_the_middle_takes_its_node_along(repository: Path) -> None:
    code = (
        "import sys; from tidegate import serve; s = serve(sys.argv[1]).start(); "
        "print(s._node._run_dir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(repository)], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_nothing_left(Path(done.stdout.strip()))
