"""Why a call of a model is not served by a node."""

from __future__ import annotations

import re
from collections import Counter

from tidegate.controller.api import why_nobody
from tidegate.edge.names import MODEL_PREFIX
from tidegate.errors import InvalidInput, ModelNotFound, ModelNotReady
from tidegate.node.fleet import Fleet
from tidegate.telemetry.statistics import GRPC, REST


class Unserved:
    """Explains, and counts the calls of models without replicas in ``counts``."""

    def __init__(self, fleet: Fleet, counts: Counter[tuple[str, str]]) -> None:
        self._fleet = fleet
        self._counts = counts

    def why(self, cluster: str, grpc: bool) -> Exception:
        """Return why nobody answers a call for ``cluster``, as the edge names it."""
        if not cluster.startswith(MODEL_PREFIX):
            advice = "put task_ids: [{task}] into its model.yaml"
            return why_nobody(cluster, self._fleet.models, advice)
        key = cluster.removeprefix(MODEL_PREFIX)
        model = re.split("[:@]", key)[0]
        if model in self._fleet.models:
            self._counts[model, GRPC if grpc else REST] += 1
        return self._why_model(key)

    def _why_model(self, key: str) -> Exception:
        model, _, label = key.partition("@")
        if label:
            return self._why_label(model, label)
        model, _, version = key.partition(":")
        named = f"version {version} of model {model!r}" if version else f"model {model!r}"
        reason = self._fleet.reason(model, version)
        if reason is None:
            return ModelNotFound(
                f"{named} is not served here: see 'tidegate status' on the server"
            )
        return ModelNotReady(f"{named} is not ready: {reason}")

    def _why_label(self, model: str, label: str) -> Exception:
        entry = self._fleet.models.get(model)
        labels = {} if entry is None else entry.config.versions.labels
        version = labels.get(label)
        if entry is None:
            return ModelNotFound(f"model {model!r} is not served here")
        if version not in entry.versions:
            known = sorted(n for n, v in labels.items() if v in entry.versions)
            return InvalidInput(
                f"no version of {model!r} has the label {label!r}: there is "
                f"{', '.join(map(repr, known)) or 'none'}; see versions.labels in its model.yaml"
            )
        return self._why_model(f"{model}:{version}")
