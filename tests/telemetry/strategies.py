"""Hypothesis strategies for what replicas count."""

from __future__ import annotations

from hypothesis import strategies as st

from tidegate.telemetry.histogram import DURATION_BOUNDS, SIZE_BOUNDS
from tidegate.telemetry.statistics import BatchStats, Buckets, Duration, ModelStats

counts = st.integers(0, 10**12)
durations = st.builds(Duration, count=counts, ns=counts)
batches = st.builds(
    BatchStats,
    count=counts,
    compute_input_ns=counts,
    compute_infer_ns=counts,
    compute_output_ns=counts,
)


def buckets(bounds: tuple[float, ...]) -> st.SearchStrategy[Buckets]:
    size = len(bounds) + 1
    return st.builds(
        Buckets,
        bounds=st.just(bounds),
        counts=st.lists(counts, min_size=size, max_size=size).map(tuple),
        total=counts.map(float),
    )


codes = st.dictionaries(st.sampled_from(["OK", "200", "400", "INTERNAL"]), st.integers(1, 10**9))
model_stats = st.builds(
    ModelStats,
    requests=st.dictionaries(st.sampled_from(["grpc", "rest"]), codes),
    inference_count=counts,
    execution_count=counts,
    last_inference_ms=counts,
    success=durations,
    fail=durations,
    queue=durations,
    compute_input=durations,
    compute_infer=durations,
    compute_output=durations,
    batches=st.dictionaries(st.integers(1, 64), batches, max_size=4),
    request_duration=buckets(DURATION_BOUNDS),
    queue_duration=buckets(DURATION_BOUNDS),
    compute_duration=buckets(DURATION_BOUNDS),
    batch_size=buckets(SIZE_BOUNDS),
)
