"""What a replica counts. A batch is counted at once, since every call passes here."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tidegate.clock import Clock
from tidegate.protocols.statuses import status_of
from tidegate.replica.batch import Run
from tidegate.telemetry.histogram import DURATION_BOUNDS, SIZE_BOUNDS, Histogram
from tidegate.telemetry.statistics import (
    GRPC,
    REST,
    BatchStats,
    Buckets,
    Duration,
    ModelStats,
)

_MOST_SIZES = 256
"""Batch sizes that are told apart: a request of many rows runs alone, whatever their number."""


class _Size:
    """The runs of one batch size, in seconds."""

    __slots__ = ("infer", "joining", "output", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self.joining = self.infer = self.output = 0.0


class Counters:
    """The counts of one replica: plain numbers, used in the event loop's thread alone.

    Requests that were answered are counted by batch; the others, and what
    came by another protocol than gRPC, one at a time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answered: dict[tuple[str, str], int] = {}
        """Requests that came by another protocol than gRPC of the Open Inference Protocol."""
        self._spoilt = 0
        self._failed: dict[tuple[str, str], int] = {}
        self._failed_seconds = 0.0
        self._last_run: float | None = None
        self._joining = self._infer = self._output = 0.0
        self.running = 0.0
        """Seconds in which the model ran, with what is done in its thread around each run."""
        self.hooking = 0.0
        """Seconds of hooks, added up over their threads."""
        self._sizes: dict[int, _Size] = {}
        self._durations = Histogram(DURATION_BOUNDS)
        self._queued = Histogram(DURATION_BOUNDS)
        self._computed = Histogram(DURATION_BOUNDS)
        self._batch_sizes = Histogram(SIZE_BOUNDS)

    def delivered(
        self,
        runs: Sequence[Run],
        arrivals: Sequence[float],
        began: float,
        ended: float,
        encoding: float,
    ) -> None:
        """Count a batch whose requests have their outcomes.

        Args:
            runs: The successful runs of the model; several, when one request failed.
            arrivals: When the answered requests came.
            began: When the batch left the queue.
            ended: When the last answer was encoded.
            encoding: Seconds that encoding took.
        """
        answered = len(arrivals)
        share = encoding / (len(runs) or 1)
        for run in runs:
            rows, requests, seconds, joining, splitting = run
            self.running += joining + seconds + splitting
            self._joining += requests * joining
            self._infer += requests * seconds
            self._output += requests * splitting
            self._computed.observe(seconds)
            self._batch_sizes.observe(rows)
            size = self._sizes.get(rows) or self._size(rows)
            size.runs += 1
            size.joining += joining
            size.infer += seconds
            size.output += splitting + share
        if answered:
            self._last_run = ended
            self._output += answered * encoding
            oldest, newest, total = min(arrivals), max(arrivals), sum(arrivals)
            self._durations.observe_since(arrivals, oldest, newest, total, ended)
            self._queued.observe_since(arrivals, oldest, newest, total, began)

    def hooked(self, total: float, waited: float, before: float, after: float) -> None:
        """Count an answer of a model with hooks, whose run :meth:`delivered` has counted.

        Args:
            total: Seconds from its arrival to its end.
            waited: Those in which it waited: for a thread, in the queue, for a thread again.
            before: Those of preprocessing, which count as preparing inputs.
            after: Those of postprocessing and encoding, which count as making outputs.
        """
        self._last_run = self._clock.now()
        self.hooking += before + after
        self._joining += before
        self._output += after
        self._durations.observe(total)
        self._queued.observe(waited)

    def _size(self, rows: int) -> _Size:
        if len(self._sizes) >= _MOST_SIZES:
            return self._sizes.get(rows, _Size())
        return self._sizes.setdefault(rows, _Size())

    def answered(self, protocol: str, code: str) -> None:
        """Note that one of the answered requests came by another protocol than :data:`GRPC`."""
        key = (protocol, code)
        self._answered[key] = self._answered.get(key, 0) + 1

    def failed(
        self,
        error: BaseException,
        protocol: str,
        *,
        grpc: bool,
        arrived: float | None = None,
    ) -> None:
        """Count a request that was not answered; ``arrived`` is known once it was queued."""
        status = status_of(error)
        key = (protocol, status.grpc.name if grpc else str(status.http))
        self._failed[key] = self._failed.get(key, 0) + 1
        if arrived is not None:
            self._failed_seconds += self._clock.now() - arrived

    def spoilt(self, error: BaseException, protocol: str, *, grpc: bool, arrived: float) -> None:
        """Count a request that failed after the model had run, and counts as answered."""
        self._spoilt += 1
        self.failed(error, protocol, grpc=grpc, arrived=arrived)

    @property
    def waiting(self) -> float:
        """Seconds that answered requests waited, added up."""
        return self._queued.total

    def snapshot(self) -> ModelStats:
        """Return what was counted."""
        answered = sum(self._durations.counts) - self._spoilt
        return ModelStats(
            requests=self._requests(answered),
            inference_count=round(self._batch_sizes.total),
            execution_count=sum(self._batch_sizes.counts),
            last_inference_ms=self._last_inference(),
            success=_duration(answered, self._durations.total),
            fail=_duration(sum(self._failed.values()), self._failed_seconds),
            queue=_duration(answered, self._queued.total),
            compute_input=_duration(answered, self._joining),
            compute_infer=_duration(answered, self._infer),
            compute_output=_duration(answered, self._output),
            batches={rows: _batch(size) for rows, size in sorted(self._sizes.items())},
            request_duration=Buckets.of(self._durations),
            queue_duration=Buckets.of(self._queued),
            compute_duration=Buckets.of(self._computed),
            batch_size=Buckets.of(self._batch_sizes),
        )

    def _requests(self, answered: int) -> dict[str, dict[str, int]]:
        elsewhere = sum(self._answered.values())
        counts: dict[str, dict[str, int]] = {
            GRPC: {"OK": answered - elsewhere},
            REST: {"200": 0},
        }
        for told in (self._answered, self._failed):
            for (protocol, code), count in sorted(told.items()):
                counts.setdefault(protocol, {})[code] = count
        return counts

    def _last_inference(self) -> int:
        if self._last_run is None:
            return 0
        return round((time.time() - (self._clock.now() - self._last_run)) * 1e3)


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count=count, ns=round(seconds * 1e9))


def _batch(size: _Size) -> BatchStats:
    return BatchStats(
        count=size.runs,
        compute_input_ns=round(size.joining * 1e9),
        compute_infer_ns=round(size.infer * 1e9),
        compute_output_ns=round(size.output * 1e9),
    )
