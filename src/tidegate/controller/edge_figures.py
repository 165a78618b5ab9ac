"""The edge's own figures, under stable names: what Envoy counts is renamed and summed by model.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/upstream/cluster_manager/cluster_stats
and https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/stats
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tidegate.edge.names import MODEL_PREFIX, POOL_PREFIX, SERVER_CERTIFICATE
from tidegate.telemetry import names
from tidegate.telemetry.exposition import Page
from tidegate.telemetry.ledger import Ledger
from tidegate.telemetry.names import Metric

_CLIENTS = "http.clients."
_CLUSTER = "cluster."
_OWN: dict[str, tuple[Metric, tuple[str, ...]]] = {
    f"{_CLIENTS}downstream_cx_active": (names.EDGE_CONNECTIONS, ()),
    f"{_CLIENTS}downstream_cx_total": (names.EDGE_CONNECTIONS_TOTAL, ()),
    f"{_CLIENTS}downstream_rq_active": (names.EDGE_ACTIVE, ()),
    f"{_CLIENTS}downstream_rq_rx_reset": (names.EDGE_ABANDONED, ()),
    f"{_CLIENTS}no_cluster": (names.EDGE_UNKNOWN, ()),
    f"{_CLIENTS}downstream_cx_rx_bytes_total": (names.EDGE_RECEIVED, ()),
    f"{_CLIENTS}downstream_cx_tx_bytes_total": (names.EDGE_SENT, ()),
    "server.memory_allocated": (names.EDGE_HEAP, ()),
    f"{_CLIENTS}api_key_auth.unauthorized": (names.EDGE_REFUSED, ("key",)),
    "limit_key.http_local_rate_limit.enforced": (names.EDGE_REFUSED, ("key_limit",)),
    "limit_model.http_local_rate_limit.enforced": (names.EDGE_REFUSED, ("model_limit",)),
    **{f"{_CLIENTS}downstream_rq_{n}xx": (names.EDGE_REQUESTS, (f"{n}xx",)) for n in range(1, 6)},
}
_OF_CLUSTER: dict[str, tuple[Metric, tuple[str, ...]]] = {
    "upstream_rq_retry": (names.EDGE_RETRIES, ()),
    "upstream_cx_connect_fail": (names.EDGE_FAILURES, ("connect",)),
    "upstream_rq_rx_reset": (names.EDGE_FAILURES, ("reset",)),
    "upstream_rq_timeout": (names.EDGE_FAILURES, ("timeout",)),
    "upstream_rq_pending_overflow": (names.EDGE_FAILURES, ("overflow",)),
    "outlier_detection.ejections_enforced_total": (names.EDGE_EJECTIONS, ()),
    "outlier_detection.ejections_active": (names.EDGE_EJECTED, ()),
}
_CERTIFICATE = f".ssl.certificate.{SERVER_CERTIFICATE}.expiration_unix_time_seconds"
"""After the name of the listener."""
PATTERN = (
    r"^(http\.clients\.(no_cluster$|downstream_(rq|cx)_|api_key_auth\.unauthorized$)"
    r"|server\.memory_allocated$"
    r"|limit_(key|model)\.http_local_rate_limit\.enforced$"
    rf"|listener\..*{_CERTIFICATE.replace('.', '[.]')}$"
    rf"|cluster\.({MODEL_PREFIX}|{POOL_PREFIX}).*\.("
    + "|".join(suffix.replace(".", r"\.") for suffix in _OF_CLUSTER)
    + ")$)"
)
"""A regular expression for the names that are asked for."""

_Key = tuple[Metric, tuple[str, ...]]


class EdgeFigures:
    """Sums what Envoy tells. Its counters begin anew with its process and with each cluster."""

    def __init__(self) -> None:
        self._ledger: Ledger[str, _Key, int] = Ledger()
        self._last: dict[str, int] = {}
        self._gauges: dict[_Key, int] = {}

    def note(self, stats: Mapping[str, int], clusters: Mapping[str, str], now: float) -> None:
        """Take what Envoy told; ``clusters`` names the model of each cluster."""
        models = _models(clusters)
        self._gauges.clear()
        seen: dict[str, int] = {}
        for name, value in stats.items():
            key = _key(name, models)
            if key is None:
                continue
            if key[0].kind == "gauge":
                self._gauges[key] = self._gauges.get(key, 0) + value
                continue
            seen[name] = value
            if value < self._last.get(name, 0):
                self._ledger.end(name, now)
            self._ledger.note(name, key, value)
        for name in self._last.keys() - seen.keys():
            self._ledger.end(name, now)
        self._last = seen

    def write(self, page: Page, models: Iterable[str], now: float) -> None:
        """Add the figures; those of models that are gone are left out after a while."""
        living = {(metric, labels) for metric, labels in _OWN.values()}
        for metric, rest in _OF_CLUSTER.values():
            living |= {(metric, (model, *rest)) for model in models}
        for (metric, labels), value in (
            *self._ledger.sums(living, now).items(),
            *self._gauges.items(),
        ):
            page.add(metric, value, *labels)


def _models(clusters: Mapping[str, str]) -> dict[str, str]:
    """Return models by what Envoy calls their clusters: it writes ``_`` for ``:``."""
    keys = sorted(clusters, key=lambda key: ":" not in key)
    return {key.replace(":", "_"): clusters[key] for key in keys}


def _key(name: str, models: Mapping[str, str]) -> _Key | None:
    own = _OWN.get(name)
    if own is not None:
        return own
    if name.endswith(_CERTIFICATE):
        return names.EDGE_CERTIFICATE, ()
    for suffix, (metric, labels) in _OF_CLUSTER.items():
        if name.startswith(_CLUSTER) and name.endswith("." + suffix):
            model = models.get(name[len(_CLUSTER) : -len(suffix) - 1])
            return None if model is None else (metric, (model, *labels))
    return None
