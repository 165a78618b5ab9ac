"""A gateway in Python: ``grpc.aio`` on both sides, messages passed through as bytes.

    python -m bench.reference_grpc_proxy HOST:PORT [HOST:PORT ...]

Round robin over channels, one for each backend; uvloop; nothing is decoded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import signal
from collections.abc import Sequence

import grpc
import grpc.aio
import uvloop

_OPTIONS = [
    ("grpc.optimization_target", "throughput"),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class PassThrough(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every unary method, passed to the backends in turn."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._turns = itertools.cycle(channels)
        self._methods: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return the handler of a method."""
        method = details.method
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = self._handler(method)
        return found

    def _handler(self, method: str) -> grpc.RpcMethodHandler:
        async def call(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
            callee = next(self._turns).unary_unary(method)
            try:
                answer: bytes = await callee(message, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            return answer

        return grpc.unary_unary_rpc_method_handler(call)


async def serve(addresses: Sequence[str], port: int) -> None:
    """Serve until SIGTERM; the line ``listening on PORT`` says when it is ready."""
    channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in addresses]
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((PassThrough(channels),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    gc.freeze()
    print(f"listening on {bound}", flush=True)
    await stop.wait()
    await server.stop(grace=2)
    await asyncio.gather(*(channel.close() for channel in channels))


def main() -> None:
    """Run the proxy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="+", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    uvloop.run(serve(given.backends, given.port))


if __name__ == "__main__":
    main()
