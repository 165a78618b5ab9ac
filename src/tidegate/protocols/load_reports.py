"""How a replica tells a gateway how busy it is: a header of its answers.

The header and its text are those of the Open Request Cost Aggregation, which Envoy reads from
responses (``xds.data.orca.v3.OrcaLoadReport``, in the format ``TEXT``). It is sent only to who
asks for it by :data:`ASK_HEADER`, which the edge of a gateway does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

ASK_HEADER = "x-tidegate-load"
"""On a request: with the value :data:`ASK_VALUE`, the answer is to say how busy the server is.

:data:`~tidegate.protocols.routing.ONLY_HEADER` asks for that, too."""
ASK_VALUE = "1"
REPORT_HEADER = "endpoint-load-metrics"
"""On a response: the report."""
UTILIZATION = "application_utilization"
"""The metric: 0 is idle, 1 fully busy, and more says that work waits."""
CALLERS = "named_metrics.callers"
"""The metric: 1 where the caller asked for what is not offered, so the server has not failed."""
LARGEST = 1000.0
"""No report says more."""

_NOT_IMPLEMENTED = 501
_UNIMPLEMENTED = (b"grpc-status", b"12")


def encode_report(utilization: float) -> bytes:
    """Return the value of :data:`REPORT_HEADER`, for whatever number: Envoy takes none below 0."""
    if math.isnan(utilization):
        utilization = 0.0
    return b"TEXT %s=%.3f" % (UTILIZATION.encode(), min(max(utilization, 0.0), LARGEST))


def callers_own(report: bytes, status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return ``report`` for an answer, with word of it if an error is the caller's own.

    HTTP counts 501, and gRPC's UNIMPLEMENTED becomes that, among the errors of servers: an edge
    would take them for failures.
    """
    if status == _NOT_IMPLEMENTED or _UNIMPLEMENTED in fields:
        return b"%s,%s=1" % (report, CALLERS.encode())
    return report
