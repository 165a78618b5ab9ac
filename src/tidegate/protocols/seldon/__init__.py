"""Seldon Core's prediction protocol, version 1, as its engine and its Python wrapper speak it.

A call names the model in the header (over gRPC: the metadata) ``seldon``, in its path
``/seldon/NAMESPACE/MODEL/…``, or not at all where there is only one. See :mod:`.content` for the
rest.
"""

from __future__ import annotations

from tidegate.protocols.dialect import Dialect
from tidegate.protocols.routing import RoutedMethod, RoutedPath, RoutedPrefix, Routing
from tidegate.protocols.seldon import grpc, messages, rest

HEADER = "seldon"
_SERVICES = ("/seldon.protos.Model/", "/seldon.protos.Seldon/")
_PREDICT = tuple(f"{service}Predict" for service in _SERVICES)
PREDICT = _PREDICT[0]
"""What every server of the protocol has; the other service is that of graphs of them."""
_FEEDBACK = tuple(f"{service}SendFeedback" for service in _SERVICES)

DIALECT = Dialect(
    name="seldon",
    routing=Routing(
        methods=tuple(RoutedMethod(path, header=HEADER) for path in (*_PREDICT, *_FEEDBACK)),
        prefixes=(RoutedPrefix(rest.DEPLOYMENT, skipped=1),),
        paths=tuple(RoutedPath(path, HEADER) for path in (*rest.PREDICTIONS, *rest.FEEDBACK)),
    ),
    inferences=dict.fromkeys(_PREDICT, grpc.read_predict),
    questions=dict.fromkeys(_FEEDBACK, grpc.read_feedback),
    paths=(rest.DEPLOYMENT, *rest.PREDICTIONS, *rest.FEEDBACK),
    read=rest.read_call,
    encode_error=rest.encode_error,
    files=messages.FILES,
)
