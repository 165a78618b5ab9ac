"""Spans of single requests for OpenTelemetry: one a request, with an event for each of its steps.

The caller decides which requests are traced: those whose ``traceparent`` has the sampled flag
(https://www.w3.org/TR/trace-context/). Without a collector there is no tracer at all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tidegate import __version__
from tidegate.clock import Clock
from tidegate.protocols.statuses import status_of
from tidegate.replica.batch import Ran
from tidegate.replica.exchange import Exchange
from tidegate.replica.header_blocks import text_of
from tidegate.replica.otlp import OtlpExporter

if TYPE_CHECKING:
    from tidegate.replica.hooked import HookTimes

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_EXPORT_TIMEOUT = 5
Attributes = Mapping[str, str | int]


@dataclass(slots=True)
class Trace:
    """One request that is traced."""

    parent: SpanContext
    name: str
    attributes: dict[str, str | int]
    began: float
    queued: float | None = None


class Tracer:
    """Makes spans of finished requests; ``processor`` takes them."""

    def __init__(self, processor: SpanProcessor, clock: Clock, about: Attributes) -> None:
        self._clock = clock
        resource = {"service.name": "tidegate", "service.version": __version__, **about}
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource(resource))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tidegate", __version__)

    @classmethod
    def to_collector(cls, endpoint: str, clock: Clock, about: Attributes) -> Tracer:
        """Return one that sends spans to an OTLP collector over HTTP, from a thread of its own."""
        return cls(BatchSpanProcessor(OtlpExporter(endpoint, _EXPORT_TIMEOUT)), clock, about)

    def begin(self, exchange: Exchange, began: float) -> Trace | None:
        """Return the trace of a request that came at ``began``, if it is sampled."""
        parent = sampled_parent(exchange.headers.get(b"traceparent"))
        if parent is None:
            return None
        path = exchange.path
        attributes: dict[str, str | int] = {}
        if exchange.grpc:
            service, _, method = path.lstrip("/").rpartition("/")
            attributes |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
            name = path.lstrip("/")
        else:
            verb = exchange.method.decode("latin-1")
            attributes |= {"http.request.method": verb, "url.path": path}
            name = f"{verb} {path}"
        if exchange.request_id is not None:
            attributes["tidegate.request_id"] = text_of(exchange.request_id)
        return Trace(parent, name, attributes, began)

    def succeeded(
        self,
        found: Trace,
        ran: Ran,
        delivering: float,
        ended: float,
        times: HookTimes | None = None,
    ) -> None:
        """Emit the span of a request that was answered, with the others of its batch.

        ``times`` are those of its hooks, where the model has any.
        """
        if times is not None:
            found.attributes["tidegate.hooks.preprocess_us"] = round(times.before * 1e6)
            found.attributes["tidegate.hooks.postprocess_us"] = round(times.after * 1e6)
        events = [("dequeued", ran.began)]
        # Of a batch that was run again in parts it is not known which run was this one's.
        if len(ran.runs) == 1:
            (run,) = ran.runs
            began = ran.began + run.joining
            events += [("run", began), ("ran", began + run.seconds)]
            found.attributes["tidegate.batch.rows"] = run.rows
            found.attributes["tidegate.batch.requests"] = run.requests
        events += [("encode", delivering)]
        self._emit(found, events, ended)

    def failed(self, found: Trace | None, error: BaseException) -> None:
        """Emit the span of a request that was not answered."""
        if found is None:
            return
        found.attributes["error.type"] = type(error).__name__
        found.attributes["tidegate.code"] = status_of(error).grpc.name
        self._emit(found, [], self._clock.now(), Status(StatusCode.ERROR, str(error)))

    def close(self) -> None:
        """Send what is left; blocks for some seconds at most."""
        self._provider.shutdown()

    def _emit(
        self,
        found: Trace,
        events: Sequence[tuple[str, float]],
        ended: float,
        status: Status | None = None,
    ) -> None:
        epoch = time.time() - self._clock.now()
        span = self._tracer.start_span(
            found.name,
            trace.set_span_in_context(trace.NonRecordingSpan(found.parent)),
            SpanKind.SERVER,
            found.attributes,
            start_time=_ns(epoch + found.began),
        )
        if found.queued is not None:
            events = [("queued", found.queued), *events]
        for name, at in events:
            span.add_event(name, timestamp=_ns(epoch + at))
        if status is not None:
            span.set_status(status)
        span.end(_ns(epoch + ended))


def sampled_parent(traceparent: bytes | None) -> SpanContext | None:
    """Return the caller's span, if the header is valid and says that it is sampled."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or not int(flags, 16) & _SAMPLED:
        return None
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(_SAMPLED)
    )
    return context if context.is_valid else None


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
