"""The yardstick: ModelInfer served by ``grpc.aio`` itself, in one process, without a proxy.

It is written as one would write such a server by hand when speed matters: uvloop, the C
implementation of protobuf, the tensor read from the message's bytes in place, the model run
in the event loop (at a few microseconds a run, a thread would cost more than it frees).

    python -m bench.reference_grpc_aio MODEL.onnx [--port PORT] [--loop asyncio] [--threads 2]

It serves any ONNX model of numbers, one request a run: what batches requests is a server's queue.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal

import grpc
import grpc.aio
import numpy as np
import onnxruntime
import uvloop
from tritonclient.grpc import service_pb2

SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"
_DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}
_OPTIONS = [
    ("grpc.optimization_target", "throughput"),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_NAMES = {np.dtype(value): name for name, value in _DTYPES.items()}


class InferenceService:
    """One model behind ModelInfer."""

    def __init__(self, path: str, name: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._name = name
        self._outputs = [output.name for output in self._session.get_outputs()]

    async def model_infer(
        self,
        request: service_pb2.ModelInferRequest,
        context: grpc.aio.ServicerContext,
    ) -> service_pb2.ModelInferResponse:
        """Run the model on one request."""
        if request.model_name != self._name:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")
        try:
            feeds = {
                tensor.name: np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tensor.shape)
                for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
            }
        except (KeyError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        results = self._session.run(self._outputs, feeds)
        response = service_pb2.ModelInferResponse(model_name=self._name, id=request.id)
        for name, value in zip(self._outputs, results, strict=True):
            response.outputs.add(name=name, datatype=_NAMES[value.dtype], shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response


async def serve(path: str, name: str, port: int, threads: int) -> None:
    """Serve until SIGTERM; the line ``listening on PORT`` says when it is ready."""
    service = InferenceService(path, name, threads)
    handler = grpc.unary_unary_rpc_method_handler(
        service.model_infer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelInferResponse.SerializeToString,
    )
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    gc.freeze()
    print(f"listening on {bound}", flush=True)
    await stop.wait()
    await server.stop(grace=2)


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", default="mlp")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="within one operator")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    given = parser.parse_args()
    run = uvloop.run if given.loop == "uvloop" else asyncio.run
    run(serve(given.model, given.name, given.port, given.threads))


if __name__ == "__main__":
    main()
