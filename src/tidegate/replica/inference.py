"""An inference in the queue, and how its outcome becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tidegate.errors import InferenceFailed, TidegateError
from tidegate.protocols.open_inference import grpc as v2_grpc
from tidegate.protocols.open_inference import rest as v2_rest
from tidegate.protocols.open_inference.places import Placed, places_of
from tidegate.protocols.open_inference.tensors import to_raw
from tidegate.replica.binding import Bound
from tidegate.replica.dialects import Spoken, send
from tidegate.replica.engine import Answer, RequestSlot
from tidegate.replica.exchange import Exchange
from tidegate.replica.header_blocks import text_of
from tidegate.replica.regions import Regions
from tidegate.scheduling.slot import Slot
from tidegate.telemetry.statistics import GRPC, REST
from tidegate.types import NO_PARAMETERS, InferRequest, InferResponse

if TYPE_CHECKING:
    from tidegate.replica.service import Service
    from tidegate.replica.tracing import Trace

log = logging.getLogger(__name__)


class InferenceSlot(Slot[Bound, Answer]):
    """A slot, and what the answer to its request needs."""

    __slots__ = ("exchange", "request", "service", "spoken", "trace")

    exchange: Exchange
    request: InferRequest
    service: Service
    spoken: Spoken | None
    """How to answer in another protocol than the Open Inference Protocol."""
    trace: Trace | None
    """Where there is a tracer: the trace, if this is traced and not told yet."""

    def abandon(self) -> None:
        """The caller has gone."""
        self.cancel()
        self.service.discard(self)

    def answer(self) -> None:
        """There is an outcome."""
        exchange, request = self.exchange, self.request
        # A finished slot may lie in a heap for a while.
        del self.exchange, self.request
        counters = self.service.counters
        if self.result is None:
            assert self.error is not None
            grpc = exchange.head.grpc
            counters.failed(self.error, self._protocol(grpc), grpc=grpc, arrived=self.arrived)
            exchange.fail(self.error)
            self._trace_failure(self.error)
            return
        try:
            response = self.service.response(request, self.result)
            regions = self.service.regions
            if self.spoken is not None:
                reply = self.spoken.encode(response)
                send(exchange, reply)
                code = "OK" if exchange.head.grpc else str(reply.status)
                counters.answered(self.spoken.protocol, code)
                return
            if regions is not None and request.outputs:
                _reply_placed(exchange, request, response, regions)
            elif exchange.head.grpc:
                exchange.reply_grpc(v2_grpc.encode_infer_parts(response))
            else:
                _reply_rest(exchange, request, response)
            if not exchange.head.grpc:
                counters.answered(REST, "200")
        except Exception as error:
            if not isinstance(error, TidegateError):
                log.exception("an answer cannot be sent", extra=about(exchange))
                error = InferenceFailed(f"the answer cannot be sent: {error}")
            grpc = exchange.head.grpc
            counters.spoilt(error, self._protocol(grpc), grpc=grpc, arrived=self.arrived)
            exchange.fail(error)
            self._trace_failure(error)

    def _protocol(self, grpc: bool) -> str:
        if self.spoken is not None:
            return self.spoken.protocol
        return GRPC if grpc else REST

    def _trace_failure(self, error: BaseException) -> None:
        tracer = self.service.tracer
        if tracer is not None:
            tracer.failed(self.trace, error)
            self.trace = None


def _reply_placed(
    exchange: Exchange, request: InferRequest, response: InferResponse, regions: Regions
) -> None:
    """Answer after the outputs that are wanted in shared memory have been put there."""
    places = places_of(request.outputs)
    placed = {
        tensor.name: regions.write(tensor.name, places[tensor.name], to_raw(tensor))
        for tensor in response.outputs
        if tensor.name in places
    }
    if not exchange.head.grpc:
        _reply_rest(exchange, request, response, placed)
    elif placed:
        exchange.reply_grpc((v2_grpc.encode_infer_placed(response, placed),))
    else:
        exchange.reply_grpc(v2_grpc.encode_infer_parts(response))


def _reply_rest(
    exchange: Exchange,
    request: InferRequest,
    response: InferResponse,
    placed: Mapping[str, Placed] = NO_PARAMETERS,
) -> None:
    parts, header_length = v2_rest.encode_infer(response, request, placed)
    if header_length is None:
        exchange.reply(parts)
        return
    exchange.reply(
        parts,
        content_type=b"application/octet-stream",
        headers=[(b"inference-header-content-length", b"%d" % header_length)],
    )


def about_slot(slot: RequestSlot) -> dict[str, str]:
    """Return what a record of the log says of a request that was queued."""
    exchange = getattr(slot, "exchange", None)  # it is gone once there is an answer
    return {} if exchange is None else about(exchange)


def about(exchange: Exchange) -> dict[str, str]:
    """Return what a record of the log says of a request."""
    request_id = exchange.request_id
    return {} if request_id is None else {"request_id": text_of(request_id)}
