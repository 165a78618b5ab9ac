"""Which protocol a call is one of, by its path alone, and what other servers call it.

Servers of ours take every call as it comes. Others take their own protocol's; what dl_inference's
service has is theirs under other names, with the same bytes in the messages, so that a path is all
that has to be rewritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from envoy.config.route.v3 import route_components_pb2

from tidegate.edge.pools import Protocol
from tidegate.protocols import dl_inference, open_inference, seldon, tensorflow_serving
from tidegate.protocols.routing import Routing, passing_on
from tidegate.protocols.seldon import rest as seldon_rest


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls that travel alike.

    Attributes:
        protocol: what a server must speak to be asked; ``tidegate``: only ours can be.
        rest: whether they are REST, not gRPC.
        path: a regular expression (RE2) of their paths; empty: all.
        service: how their paths begin; empty: anyhow.
        written: the path that servers know the call by; empty: as it is.
        stripped: a regular expression of what servers do not expect before the path.
        changes: whether a call changes something, and must not run twice.
    """

    protocol: Protocol
    rest: bool
    path: str = ""
    service: str = ""
    written: str = ""
    stripped: str = ""
    changes: bool = False

    def fit(self, match: route_components_pb2.RouteMatch) -> None:
        """Let a route fit these calls alone."""
        if self.written:
            match.path = self.path
        elif self.path:
            match.safe_regex.regex = self.path
        else:
            match.prefix = self.service or "/"
            if not self.rest and not self.service:
                match.grpc.SetInParent()

    def rewrite(self, action: route_components_pb2.RouteAction) -> None:
        """Let a route call them what servers do."""
        if self.written:
            action.prefix_rewrite = self.written
        elif self.stripped:
            action.regex_rewrite.pattern.regex = self.stripped
            action.regex_rewrite.substitution = ""


def _either(patterns: Iterable[str]) -> str:
    return "|".join(patterns)


def _grpc(protocol: Protocol, routing: Routing) -> Calls:
    """Return the gRPC calls of a protocol."""
    services = dict.fromkeys(path.rpartition("/")[0] + "/" for path in _methods(routing))
    if len(services) == 1:
        return Calls(protocol, rest=False, service=next(iter(services)))
    return Calls(protocol, rest=False, path=_either(f"{re.escape(each)}.*" for each in services))


def _methods(routing: Routing) -> Iterable[str]:
    return (method.path for method in passing_on(routing).methods)


def _rest(protocol: Protocol, routing: Routing) -> Calls:
    """Return the REST calls of a protocol whose paths have one beginning."""
    (prefix,) = routing.prefixes
    return Calls(protocol, rest=True, service=prefix.prefix)


_SELDON = seldon.DIALECT.routing
_FEEDBACK_METHODS = [path for path in _methods(_SELDON) if path.endswith("/SendFeedback")]
_DEPLOYMENT = f"{seldon_rest.DEPLOYMENT}[^/]+/[^/]+"
"""The name space and the name, which an ingress takes off and servers do not know."""

FOREIGN: tuple[Calls, ...] = (
    _grpc("open-inference", open_inference.ROUTING),
    _grpc("tensorflow-serving", tensorflow_serving.ROUTING),
    Calls("seldon", rest=False, path=_either(map(re.escape, _FEEDBACK_METHODS)), changes=True),
    _grpc("seldon", _SELDON),
    _rest("open-inference", open_inference.ROUTING),
    _rest("tensorflow-serving", tensorflow_serving.ROUTING),
    Calls(
        "seldon",
        rest=True,
        path=f"(?:{_DEPLOYMENT})?(?:{_either(map(re.escape, seldon_rest.FEEDBACK))})",
        stripped=f"^{_DEPLOYMENT}",
        changes=True,
    ),
    Calls("seldon", rest=True, service=seldon_rest.DEPLOYMENT, stripped=f"^{_DEPLOYMENT}"),
    Calls("seldon", rest=True, path=_either(map(re.escape, seldon_rest.PREDICTIONS))),
)
"""What servers of other makes can be asked."""

REWRITTEN: tuple[Calls, ...] = (
    Calls(
        "tensorflow-serving",
        rest=False,
        path=dl_inference.PREDICT,
        written=tensorflow_serving.PREDICT,
    ),
    Calls("seldon", rest=False, path=dl_inference.PYTORCH_PREDICT, written=seldon.PREDICT),
    Calls("seldon", rest=False, path=dl_inference.CAFFE_PREDICT, written=seldon.PREDICT),
    Calls(
        "open-inference",
        rest=False,
        path=dl_inference.TIS_PREDICT,
        written=open_inference.MODEL_INFER,
    ),
)
"""dl_inference's service, for servers of other makes."""

UNWRITTEN = Calls("tidegate", rest=False, service=dl_inference.PREDICT.rpartition("/")[0] + "/")
"""dl_inference's service, for ours."""

OURS: tuple[Calls, ...] = (Calls("tidegate", rest=False), Calls("tidegate", rest=True))
"""Everything, for ours."""
