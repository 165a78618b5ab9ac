"""The replies that Envoy makes itself: their codes and their words.

Envoy's own mapping gives a gRPC client UNKNOWN or UNIMPLEMENTED for most of them, and a REST
client plain text. The rows below are the one place that says otherwise; the codes are those of
:mod:`tidegate.protocols.statuses`.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/local_reply
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import struct_pb2

from tidegate import errors
from tidegate.edge.access import AUTHORIZATION
from tidegate.edge.messages import PAGE_HEADERS, TARGET
from tidegate.edge.names import LIMIT_HEADER, REFUSED_HEADER
from tidegate.edge.settings import SMALL_MESSAGE_SIZE, EdgeSettings
from tidegate.edge.trust import ApiKeys
from tidegate.protocols.statuses import GrpcCode, status_of

_BODY = "%LOCAL_REPLY_BODY%"
_NAMED = "%ROUTE_NAME%"
"""On a gateway. Its routes are named after their models; its clusters say nothing to callers."""
_NO_MEMORY = "the edge is short of memory; try again"
_MALFORMED = (
    "the request's head is malformed (%RESPONSE_CODE_DETAILS%): send a host, and a path without "
    "escaped slashes and control characters"
)
"""What Envoy refuses without a word."""
_LIMITED = (
    f"too many requests: the limit of this %RESP({LIMIT_HEADER})% is used up; "
    "try again in %RESP(RETRY-AFTER)% s"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """Replies with one of the flags, with the HTTP status, or both, get the code and the text.

    Flags: https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage
    """

    grpc: GrpcCode
    text: str = _BODY
    flags: tuple[str, ...] = ()
    status: int = 0
    http: int = 0
    """The HTTP status to answer with instead of Envoy's."""


def _row(error: errors.RequestError, *flags: str, replace_status: bool = False) -> _Row:
    status = status_of(error)
    return _Row(
        status.grpc, str(error), flags, 0 if flags else status.http, status.http * replace_status
    )


def _rows(settings: EdgeSettings, *, aside: bool) -> Iterator[_Row]:
    # What happened, as Envoy flags it. The first row that fits wins.
    target, one = (_NAMED, "endpoint") if settings.gateway else (TARGET, "replica")
    nobody = errors.ModelNotReady(f"no {one} of {target} can answer now; try again")
    # The cluster of a model that nobody serves now is not there either.
    yield _Row(status_of(nobody).grpc, str(nobody), ("NC",), status_of(nobody).http)
    yield _row(errors.ModelNotFound(f"{TARGET} is not served here"), "NC")
    yield _row(nobody, "UH")
    if settings.gateway:
        late = errors.DeadlineExceeded(
            f"no answer of {target} in the time that its caller, or the gateway, gave"
        )
        # Before the row below, because the last of two tries that were too late has its flag, too.
        yield _row(late, "UT")
    else:
        late = errors.DeadlineExceeded(
            f"no answer of {target} in the time that the caller gave "
            "(grpc-timeout: %REQ(grpc-timeout)%)"
        )
    yield _row(
        errors.ModelNotReady(f"{target} broke off before it answered; try again"),
        *("UC", "UR", "LR"),
    )
    yield _row(errors.ModelNotReady(f"{target} cannot be reached now; try again"), "UF", "URX")
    # Last, because what could not be tried again for want of a budget has this flag, too.
    busy = errors.QueueFull(
        f"the endpoints of {target} have all the calls that they may have; try again"
    )
    yield _row(busy, "UO", replace_status=True)
    yield _row(
        errors.ModelNotReady(f"{target} answered what is not HTTP"), "UPE", replace_status=True
    )
    yield _row(errors.ModelNotReady(_NO_MEMORY), "OM")
    # What the status says, when nothing is flagged.
    if aside:
        crowded = errors.QueueFull(
            f"the message is larger than {SMALL_MESSAGE_SIZE} bytes, and the "
            f"{'gateway' if settings.gateway else 'node'} is reading as many of those as it has "
            "memory for; try again"
        )
        status = status_of(errors.MessageTooLarge()).http
        yield _Row(status_of(crowded).grpc, str(crowded), status=status)
    yield _row(
        errors.MessageTooLarge(
            f"the message is larger than the limit of {settings.max_message_size} bytes"
        )
    )
    yield _Row(GrpcCode.UNAUTHENTICATED, _unauthenticated(settings.api_keys), status=401)
    yield _Row(GrpcCode.PERMISSION_DENIED, status=403)
    yield _Row(status_of(errors.MethodNotFound()).grpc, status=404)
    yield _Row(
        GrpcCode.DEADLINE_EXCEEDED, "the rest of the request did not come in time", status=408
    )
    yield _Row(status_of(errors.QueueFull("")).grpc, _LIMITED, status=429)
    yield _Row(GrpcCode.RESOURCE_EXHAUSTED, "the headers of the request are too large", status=431)
    yield _row(late)
    unsupported = status_of(errors.Unsupported())
    yield _Row(unsupported.grpc, status=unsupported.http)
    # Requests that are refused for want of memory have no flag.
    yield _row(errors.ModelNotReady(_NO_MEMORY))
    yield _Row(GrpcCode.UNAVAILABLE, status=502)


def _unauthenticated(keys: ApiKeys | None) -> str:
    if keys is None:
        return _BODY
    ways = [f"in the header {keys.header}"] if keys.header != AUTHORIZATION else []
    ways.append(f"as '{AUTHORIZATION}: Bearer KEY'")
    return f"no API key that is known here came with the call: send one {', or '.join(ways)}"


def local_reply_config(
    settings: EdgeSettings, own_paths: tuple[str, ...], *, aside: bool = False
) -> hcm_pb2.LocalReplyConfig:
    """Return the mappers for gRPC and REST; replies to ``own_paths`` stay as they are.

    ``aside`` is for calls that found no place: what is too large for them may come again.
    """
    config = hcm_pb2.LocalReplyConfig()
    for path in own_paths:
        config.mappers.add(filter=_header_filter(":path", exact=path))
    for row in _rows(settings, aside=aside):
        matches = [_flag_filter(row.flags)] if row.flags else []
        if row.status:
            matches.append(_status_filter(row.status))
        _add(config, row, matches[0] if len(matches) == 1 else _both(*matches))
    malformed = _Row(GrpcCode.INVALID_ARGUMENT, _MALFORMED)
    _add(config, malformed, _both(_NOT_OURS, _status_filter(400)))
    # Whatever is left: a fault of ours from 500, else the caller's.
    _add(config, _Row(GrpcCode.INTERNAL), _status_filter(500, at_least=True))
    _add(config, _Row(GrpcCode.INVALID_ARGUMENT), _status_filter(400, at_least=True))
    if settings.origins:
        for mapper in config.mappers:
            for name, value in PAGE_HEADERS:
                mapper.headers_to_add.add(
                    header=base_pb2.HeaderValue(key=name, value=value),
                    append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
                )
    return config


def _add(
    config: hcm_pb2.LocalReplyConfig, row: _Row, matches: accesslog_pb2.AccessLogFilter
) -> None:
    grpc = config.mappers.add(filter=_both(_IS_GRPC, matches))
    # A status that is there was set by the routing script, which knows better.
    grpc.headers_to_add.add(
        header=base_pb2.HeaderValue(key="grpc-status", value=str(int(row.grpc))),
        append_action=base_pb2.HeaderValueOption.ADD_IF_ABSENT,
    )
    grpc.body_format_override.CopyFrom(_text(row.text))
    rest = config.mappers.add(filter=matches)
    rest.body_format_override.CopyFrom(_json(row.text))
    if row.grpc == GrpcCode.UNAUTHENTICATED:
        # RFC 9110, section 11.6.1
        rest.headers_to_add.add(
            header=base_pb2.HeaderValue(key="www-authenticate", value="Bearer")
        )
    if row.http:
        rest.status_code.value = row.http


def _text(text: str) -> substitution_format_string_pb2.SubstitutionFormatString:
    return substitution_format_string_pb2.SubstitutionFormatString(
        text_format_source=base_pb2.DataSource(inline_string=text), content_type="application/grpc"
    )


def _json(text: str) -> substitution_format_string_pb2.SubstitutionFormatString:
    body = struct_pb2.Struct()
    body["error"] = text
    return substitution_format_string_pb2.SubstitutionFormatString(
        json_format=body, content_type="application/json"
    )


def _header_filter(
    name: str, exact: str | None = None, prefix: str | None = None
) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(
        header_filter=accesslog_pb2.HeaderFilter(
            header=route_components_pb2.HeaderMatcher(
                name=name, string_match=string_pb2.StringMatcher(exact=exact, prefix=prefix)
            )
        )
    )


_NOT_OURS = accesslog_pb2.AccessLogFilter(
    header_filter=accesslog_pb2.HeaderFilter(
        header=route_components_pb2.HeaderMatcher(
            name=REFUSED_HEADER, present_match=True, invert_match=True
        )
    )
)
"""The routing script did not answer, whose words are better."""
_IS_GRPC = _header_filter("content-type", prefix="application/grpc")


def _flag_filter(flags: tuple[str, ...]) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(
        response_flag_filter=accesslog_pb2.ResponseFlagFilter(flags=flags)
    )


def _status_filter(status: int, at_least: bool = False) -> accesslog_pb2.AccessLogFilter:
    comparison = accesslog_pb2.ComparisonFilter
    return accesslog_pb2.AccessLogFilter(
        status_code_filter=accesslog_pb2.StatusCodeFilter(
            comparison=comparison(
                op=comparison.GE if at_least else comparison.EQ,
                value=base_pb2.RuntimeUInt32(default_value=status, runtime_key="tidegate.unused"),
            )
        )
    )


def _both(
    one: accesslog_pb2.AccessLogFilter, other: accesslog_pb2.AccessLogFilter
) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(and_filter=accesslog_pb2.AndFilter(filters=[one, other]))
