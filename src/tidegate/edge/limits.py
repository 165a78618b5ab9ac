"""Rate limits: buckets of tokens in Envoy, for each API key and for each model.

A filter counts by one thing (keys or models) and has one ``Retry-After``, so limits that differ in
that are in filters of their own. Buckets belong to the process, not to a thread or connection.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/local_rate_limit_filter
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.common.ratelimit.v3 import ratelimit_pb2
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit
from envoy.type.v3 import token_bucket_pb2

from tidegate.edge.messages import seconds
from tidegate.edge.names import KEY_HEADER, LIMIT_HEADER, METADATA
from tidegate.edge.trust import RateLimit, RateLimits

_MODEL = "model"
_KEY = "key"
_MOST = 2**32 - 1
_MOST_DYNAMIC = 65536
"""Buckets of keys or models that have no limit of their own; the least used goes first."""
_LONGEST_RETRY = 3600
"""Seconds that ``Retry-After`` says at most."""
_LONGEST_INTERVAL = 10**9
"""Seconds: thirty years."""


def mark_model(route: route_components_pb2.Route, model: str) -> None:
    """Say whose calls ``route`` takes; limits of models count by this."""
    route.metadata.filter_metadata[METADATA][_MODEL] = model


def key_limiters(limits: RateLimits) -> list[LocalRateLimit]:
    """Return the filters for API keys; they go behind the one that knows the keys."""
    action = route_components_pb2.RateLimit.Action()
    action.request_headers.header_name = KEY_HEADER
    action.request_headers.descriptor_key = _KEY
    action.request_headers.skip_if_absent = True
    return _limiters(_KEY, action, limits.per_key, limits.keys)


def model_limiters(limits: RateLimits) -> list[LocalRateLimit]:
    """Return the filters for models; they go behind the routing script."""
    action = route_components_pb2.RateLimit.Action()
    action.metadata.source = route_components_pb2.RateLimit.Action.MetaData.ROUTE_ENTRY
    action.metadata.descriptor_key = _MODEL
    action.metadata.metadata_key.key = METADATA
    action.metadata.metadata_key.path.add(key=_MODEL)
    action.metadata.skip_if_absent = True
    return _limiters(_MODEL, action, limits.per_model, limits.models)


def retry_after(limit: RateLimit) -> int:
    """Return the seconds after which a refused caller finds a token, if nobody else comes."""
    return min(math.ceil(1 / limit.requests_per_second), _LONGEST_RETRY)


def _limiters(
    kind: str,
    action: route_components_pb2.RateLimit.Action,
    default: RateLimit | None,
    named: Mapping[str, RateLimit],
) -> list[LocalRateLimit]:
    limits = [*named.values(), *([] if default is None else [default])]
    found = []
    for wait in sorted({retry_after(limit) for limit in limits}):
        limiter = _limiter(kind, wait)
        limiter.rate_limits.add().actions.append(action)
        has_default = default is not None and retry_after(default) == wait
        for name, limit in named.items():
            if retry_after(limit) == wait:
                _add(limiter, kind, name, _bucket(limit))
            elif has_default:
                # Another filter counts it; here it would fall under the default.
                _add(limiter, kind, name, _unlimited())
        if default is not None and has_default:
            _add(limiter, kind, "", _bucket(default))
        found.append(limiter)
    return found


def _limiter(kind: str, wait: int) -> LocalRateLimit:
    limiter = LocalRateLimit(
        stat_prefix=f"limit_{kind}",
        token_bucket=_unlimited(),
        rate_limited_as_resource_exhausted=True,
    )
    limiter.max_dynamic_descriptors.value = _MOST_DYNAMIC
    limiter.always_consume_default_token_bucket.value = False
    for share in (limiter.filter_enabled, limiter.filter_enforced):
        share.default_value.numerator = 100
    for name, value in (("retry-after", str(wait)), (LIMIT_HEADER, kind)):
        limiter.response_headers_to_add.add(
            header=base_pb2.HeaderValue(key=name, value=value),
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    return limiter


def _add(
    limiter: LocalRateLimit, kind: str, value: str, bucket: token_bucket_pb2.TokenBucket
) -> None:
    """Add a bucket; without a value it stands for one of each value that has none."""
    descriptor = limiter.descriptors.add(token_bucket=bucket)
    descriptor.entries.append(ratelimit_pb2.RateLimitDescriptor.Entry(key=kind, value=value))


def _bucket(limit: RateLimit) -> token_bucket_pb2.TokenBucket:
    """Return a bucket whose tokens come at the limit's rate, at intervals that Envoy takes."""
    tokens = max(1, math.ceil(limit.requests_per_second))
    bucket = token_bucket_pb2.TokenBucket(max_tokens=min(limit.burst, _MOST))
    bucket.tokens_per_fill.value = tokens
    interval = min(tokens / limit.requests_per_second, _LONGEST_INTERVAL)
    bucket.fill_interval.CopyFrom(seconds(interval))
    return bucket


def _unlimited() -> token_bucket_pb2.TokenBucket:
    bucket = token_bucket_pb2.TokenBucket(max_tokens=_MOST)
    bucket.tokens_per_fill.value = _MOST
    bucket.fill_interval.CopyFrom(seconds(1))
    return bucket
