"""The statistics extension: what models have done since their replicas started.

Source: ``extension_statistics.md`` of Triton's protocol documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.protocols.routing import check_model


@dataclass(frozen=True, slots=True)
class Times:
    """So many things took so many nanoseconds together."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """The numbers of one version of a model.

    ``requests`` has the times of requests by ``success``, ``fail``, ``queue``, ``compute_input``,
    ``compute_infer`` and ``compute_output``; ``batches`` has the last three by rows in a batch.
    """

    name: str
    version: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    requests: Mapping[str, Times]
    batches: Mapping[int, Mapping[str, Times]]


def decode_statistics(message: Buffer) -> tuple[str, str]:
    """Return name and version in a ``ModelStatisticsRequest``; empty: all.

    Raises:
        InvalidInput: the message is malformed, or a name or version is none.
    """
    request = parsed(messages.ModelStatisticsRequest, message)
    if request.name or request.version:
        check_model(request.name, request.version)
    return request.name, request.version


def encode_statistics_body(versions: Iterable[VersionStatistics]) -> bytes:
    """Return the JSON of the statistics."""
    stats = [{**_written(v), "response_stats": {}, "memory_usage": []} for v in versions]
    return orjson.dumps({"model_stats": stats})


def encode_statistics(versions: Iterable[VersionStatistics]) -> bytes:
    """Return a ``ModelStatisticsResponse``."""
    message = messages.ModelStatisticsResponse(model_stats=[_written(v) for v in versions])
    return bytes(message.SerializeToString())


def _written(version: VersionStatistics) -> dict[str, Any]:
    nothing = Times(0, 0)
    # There is no cache of answers.
    requests = {**version.requests, "cache_hit": nothing, "cache_miss": nothing}
    return {
        "name": version.name,
        "version": version.version,
        "last_inference": version.last_inference_ms,
        "inference_count": version.inference_count,
        "execution_count": version.execution_count,
        "inference_stats": {key: asdict(times) for key, times in requests.items()},
        "batch_stats": [
            {"batch_size": rows, **{key: asdict(times) for key, times in batch.items()}}
            for rows, batch in sorted(version.batches.items())
        ],
    }
