"""The statistics extension of a node: what the replicas of a version have counted together."""

from __future__ import annotations

from typing import Any

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.errors import ModelNotFound
from tidegate.node.fleet import Fleet
from tidegate.node.statistics import Statistics
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import statistics as codec
from tidegate.protocols.open_inference.statistics import Times, VersionStatistics
from tidegate.telemetry.statistics import BatchStats, Duration, ModelStats

_REQUESTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_COUNT = {"type": "integer", "minimum": 0}
_TIMES = {"type": "object", "properties": {"count": _COUNT, "ns": _COUNT}}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model_stats": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "last_inference": _COUNT,
                    "inference_count": _COUNT,
                    "execution_count": _COUNT,
                    "inference_stats": {
                        "type": "object",
                        "properties": dict.fromkeys(_REQUESTS, _TIMES),
                    },
                    "batch_stats": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "batch_size": _COUNT,
                                **dict.fromkeys(_REQUESTS[3:], _TIMES),
                            },
                        },
                    },
                },
            },
        }
    },
}


class StatisticsCalls:
    """Answers from what the replicas say when they are asked."""

    def __init__(self, fleet: Fleet, statistics: Statistics) -> None:
        self._fleet = fleet
        self._statistics = statistics

    def extension(self) -> Extension:
        """Return the calls."""
        paths = (
            ("/v2/models/stats", "of all models"),
            ("/v2/models/{model}/stats", "of all versions of a model"),
            ("/v2/models/{model}/versions/{version}/stats", "of one version"),
        )
        return Extension(
            ("statistics",),
            [
                Endpoint("GET", path, self._rest, f"The statistics {whose}", _SCHEMA)
                for path, whose in paths
            ],
            {open_inference.MODEL_STATISTICS: self._grpc},
        )

    async def collect(self, model: str = "", version: str = "") -> list[VersionStatistics]:
        """Return the statistics of what is served; an empty name or version means all.

        Raises:
            ModelNotFound: there is no such model, or no such version of it is served.
        """
        if model and model not in self._fleet.models:
            raise ModelNotFound(f"there is no model {model!r} in the repository")
        served = {str(g.version) for g in self._fleet.generations(model)}
        if model and version and version not in served:
            raise ModelNotFound(f"version {version} of {model!r} is not served here")
        found = await self._statistics.collect()
        return [
            _of(name, number, stats)
            for (name, number), stats in sorted(found.items(), key=lambda item: item[0])
            if model in ("", name) and version in ("", str(number))
        ]

    async def _rest(self, call: Call) -> bytes:
        model, version = call.parameters.get("model", ""), call.parameters.get("version", "")
        return codec.encode_statistics_body(await self.collect(model, version))

    async def _grpc(self, call: Call) -> bytes:
        return codec.encode_statistics(await self.collect(*codec.decode_statistics(call.body)))


def _of(model: str, version: int, stats: ModelStats) -> VersionStatistics:
    def times(duration: Duration) -> Times:
        return Times(duration.count, duration.ns)

    return VersionStatistics(
        name=model,
        version=str(version),
        last_inference_ms=stats.last_inference_ms,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        requests={key: times(getattr(stats, key)) for key in _REQUESTS},
        batches={rows: _batch(batch) for rows, batch in stats.batches.items()},
    )


def _batch(batch: BatchStats) -> dict[str, Times]:
    return {
        "compute_input": Times(batch.count, batch.compute_input_ns),
        "compute_infer": Times(batch.count, batch.compute_infer_ns),
        "compute_output": Times(batch.count, batch.compute_output_ns),
    }
