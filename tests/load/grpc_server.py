"""A real ``grpc.aio`` server, in the test's process or, to be killed, in one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio

from tests.ports import free_port

WORDS = "wrong shape é %: 3 ≠ 4"


async def _echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


async def _refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, WORDS)
    raise AssertionError


async def _late_error(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.send_initial_metadata((("early", "1"),))
    await context.abort(grpc.StatusCode.DATA_LOSS, "after the headers")
    raise AssertionError


async def _time_left(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return f"{context.time_remaining():.3f}".encode()


async def _slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.sleep(float(request))
    return request


async def _grow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request * 3


async def start(port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Return a server that serves ``/t.S/{Echo,Refuse,LateError,TimeLeft,Slow,Grow}``.

    Its port stays free when it has ended, unless another one is started there.
    """
    methods = {
        "Echo": _echo,
        "Refuse": _refuse,
        "LateError": _late_error,
        "TimeLeft": _time_left,
        "Slow": _slow,
        "Grow": _grow,
    }
    handlers = {n: grpc.unary_unary_rpc_method_handler(m) for n, m in methods.items()}
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    bound = server.add_insecure_port(f"127.0.0.1:{port or free_port()}")
    await server.start()
    return server, bound


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[str]:
    """Run the server in this loop; gives ``host:port``."""
    server, port = await start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def process(port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run the server as a process; gives it and its port."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(port),
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdout is not None
    try:
        yield child, int(await child.stdout.readline())
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _main(port: int) -> None:
    server, bound = await start(port)
    print(bound, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
