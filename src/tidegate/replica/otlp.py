"""Spans to an OpenTelemetry collector: OTLP over HTTP, in JSON.

Source: https://opentelemetry.io/docs/specs/otlp/ (OTLP/HTTP, JSON Protobuf Encoding).
OpenTelemetry's own exporter brings messages that xds-protos, which the edge needs, has under the
same names in another version: whichever is installed last would break the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger(__name__)


class OtlpExporter(SpanExporter):
    """Posts spans to ``endpoint``; what cannot be sent within ``timeout`` seconds is dropped."""

    def __init__(self, endpoint: str, timeout: float) -> None:
        self._url = endpoint.rstrip("/") + "/v1/traces"
        # Collectors are found by their address alone, as everything else of a node.
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans of one resource; a failure is logged and not raised."""
        try:
            response = self._client.post(
                self._url, content=encode(spans), headers={"content-type": "application/json"}
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            log.warning("%d traces could not be sent to %s: %s", len(spans), self._url, error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the connection."""
        self._client.close()


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """Return spans, all of one resource and scope, as an ``ExportTraceServiceRequest``."""
    first = spans[0]
    scope = first.instrumentation_scope
    named = {} if scope is None else {"name": scope.name, "version": scope.version or ""}
    group = {
        "resource": {"attributes": _attributes(first.resource.attributes)},
        "scopeSpans": [{"scope": named, "spans": [_span(span) for span in spans]}],
    }
    return orjson.dumps({"resourceSpans": [group]})


def _span(span: ReadableSpan) -> dict[str, Any]:
    assert span.context is not None
    return {
        "traceId": f"{span.context.trace_id:032x}",
        "spanId": f"{span.context.span_id:016x}",
        "parentSpanId": f"{span.parent.span_id:016x}" if span.parent is not None else "",
        "name": span.name,
        # The SDK counts kinds from 0, the protocol from 1.
        "kind": span.kind.value + 1,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes),
        "events": [
            {"name": event.name, "timeUnixNano": str(event.timestamp)} for event in span.events
        ],
        "status": {
            "code": span.status.status_code.value,
            "message": span.status.description or "",
        },
    }


def _attributes(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [
        # 64-bit integers are strings in protobuf's JSON.
        {
            "key": key,
            "value": {"intValue": str(value)}
            if isinstance(value, int)
            else {"stringValue": str(value)},
        }
        for key, value in (attributes or {}).items()
    ]
