"""What a replica has counted, as it tells its controller; sums of these are of the same kind.

The fields are those of the statistics extension of the Open Inference Protocol
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md),
and histograms beside them. Times are nanoseconds where the field says so, else seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator

from tidegate.telemetry.histogram import DURATION_BOUNDS, SIZE_BOUNDS, Histogram

GRPC, REST = "grpc", "rest"
"""The protocols that requests are counted by."""


class _Counted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Duration(_Counted):
    """So many things took so many nanoseconds together."""

    count: int = 0
    ns: int = 0

    def __add__(self, other: Duration) -> Duration:
        return Duration(count=self.count + other.count, ns=self.ns + other.ns)


class BatchStats(_Counted):
    """The runs of one batch size: how many there were, and nanoseconds of all together."""

    count: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0

    def __add__(self, other: BatchStats) -> BatchStats:
        return BatchStats(
            count=self.count + other.count,
            compute_input_ns=self.compute_input_ns + other.compute_input_ns,
            compute_infer_ns=self.compute_infer_ns + other.compute_infer_ns,
            compute_output_ns=self.compute_output_ns + other.compute_output_ns,
        )


class Buckets(_Counted):
    """A histogram: how many values lie below each bound and above the one before it."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    """One more than bounds: the last is for values beyond them."""
    total: float = 0.0
    """The sum of all values."""

    @model_validator(mode="after")
    def _fits(self) -> Buckets:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError(f"{len(self.counts)} counts for {len(self.bounds)} bounds")
        return self

    @classmethod
    def of(cls, histogram: Histogram) -> Buckets:
        """Return what ``histogram`` holds now."""
        return cls(
            bounds=tuple(histogram.bounds),
            counts=tuple(histogram.counts),
            total=histogram.total,
        )

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Buckets:
        """Return one without values."""
        return cls(bounds=bounds, counts=(0,) * (len(bounds) + 1))

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound with the count of values up to it, infinity last."""
        found, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts):
            below += count
            found.append((bound, below))
        return found

    def __add__(self, other: Buckets) -> Buckets:
        """Sum two of the same bounds; those of another release with other bounds are left out."""
        if self.bounds != other.bounds:
            return self
        return Buckets(
            bounds=self.bounds,
            counts=tuple(a + b for a, b in zip(self.counts, other.counts)),
            total=self.total + other.total,
        )


class ModelStats(_Counted):
    """What replicas of one version of a model have counted since they started."""

    requests: Mapping[str, Mapping[str, int]] = {}
    """Answers by protocol (:data:`GRPC`, :data:`REST`, ``seldon-grpc``), then by code: the name
    of a gRPC code (``OK``), or an HTTP status (``200``). Inference alone is counted."""
    inference_count: int = 0
    """Rows that the model has run, batched or not."""
    execution_count: int = 0
    """Runs of the model that succeeded."""
    last_inference_ms: int = 0
    """The time of the last run, in milliseconds since the epoch; 0: there was none."""
    success: Duration = Duration()
    """Requests that were answered, from their arrival in the replica to their answer."""
    fail: Duration = Duration()
    """Requests that were not."""
    queue: Duration = Duration()
    """Answered requests, the time that they waited."""
    compute_input: Duration = Duration()
    """Answered requests, the time in which their batches were joined. This and the next two
    are times of whole batches, which count for each request in them."""
    compute_infer: Duration = Duration()
    """Answered requests, the time in which the model ran."""
    compute_output: Duration = Duration()
    """Answered requests, the time in which outputs were split and encoded."""
    batches: Mapping[int, BatchStats] = {}
    """By rows in the batch."""
    request_duration: Buckets = Buckets.empty(DURATION_BOUNDS)
    """Seconds of :attr:`success`."""
    queue_duration: Buckets = Buckets.empty(DURATION_BOUNDS)
    """Seconds of :attr:`queue`."""
    compute_duration: Buckets = Buckets.empty(DURATION_BOUNDS)
    """Seconds of each run of the model."""
    batch_size: Buckets = Buckets.empty(SIZE_BOUNDS)
    """Rows of each run of the model."""

    def __add__(self, other: ModelStats) -> ModelStats:
        return ModelStats(
            requests=_sum_requests(self.requests, other.requests),
            inference_count=self.inference_count + other.inference_count,
            execution_count=self.execution_count + other.execution_count,
            last_inference_ms=max(self.last_inference_ms, other.last_inference_ms),
            success=self.success + other.success,
            fail=self.fail + other.fail,
            queue=self.queue + other.queue,
            compute_input=self.compute_input + other.compute_input,
            compute_infer=self.compute_infer + other.compute_infer,
            compute_output=self.compute_output + other.compute_output,
            batches=_sum_batches(self.batches, other.batches),
            request_duration=self.request_duration + other.request_duration,
            queue_duration=self.queue_duration + other.queue_duration,
            compute_duration=self.compute_duration + other.compute_duration,
            batch_size=self.batch_size + other.batch_size,
        )


class ReplicaStats(_Counted):
    """What one replica says."""

    counted: ModelStats
    queue_depth: int
    """Requests that wait now."""


def _sum_requests(
    one: Mapping[str, Mapping[str, int]], other: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for counts in (one, other):
        for protocol, by_code in counts.items():
            sums = total.setdefault(protocol, {})
            for code, count in by_code.items():
                sums[code] = sums.get(code, 0) + count
    return total


def _sum_batches(
    one: Mapping[int, BatchStats], other: Mapping[int, BatchStats]
) -> dict[int, BatchStats]:
    nothing = BatchStats()
    return {
        rows: one.get(rows, nothing) + other.get(rows, nothing) for rows in sorted({*one, *other})
    }
