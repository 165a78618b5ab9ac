"""``import tidegate``: quick, and everything it promises is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tidegate

HEAVY = ("numpy", "httpcore", "httpx", "grpc", "asyncio", "pydantic", "orjson", "google.protobuf")


def test_importing_it_brings_nothing() -> None:
    code = f"import sys, tidegate; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_hooks_need_numpy_alone() -> None:
    others = (*HEAVY[1:], "PIL", "torch", "tidegate.config", "tidegate.replica")
    code = f"import sys, tidegate.hooks; print([m for m in {others!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_client_brings_its_transport_with_the_first_call() -> None:
    code = (
        "import sys, tidegate; tidegate.Client('grpc://127.0.0.1:1'); tidegate.AsyncClient(); "
        "tidegate.serve('models'); print({'httpcore', 'httpx', 'grpc'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


@pytest.mark.parametrize("name", tidegate.__all__)
def test_everything_it_promises_is_there(name: str) -> None:
    assert getattr(tidegate, name) is not None
    assert name in dir(tidegate)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'clint'"):
        tidegate.clint  # type: ignore[attr-defined]  # noqa: B018 - raises


EXTRAS = ("envoy", "hpack", "httptools", "onnxruntime", "psutil", "starlette", "uvicorn", "uvloop")


def test_a_client_needs_no_extra() -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))
from tidegate import Client, errors, serve
for url in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
    try:
        Client(url).infer("m", [1])
    except errors.ServerUnreachable as error:
        print("unreachable")
serve("models")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert (done.stdout.split(), done.stderr) == (["unreachable"] * 2, "")
