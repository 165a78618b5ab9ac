"""Every error that Tidegate raises on purpose, in one tree.

::

    TidegateError
    ├── ConfigurationError          a file, variable or option says something that cannot be
    ├── ModelError                  a model in the repository cannot be served
    │   ├── InvalidModel            its files or its name are wrong
    │   ├── RuntimeMissing          its format needs an extra that is not installed
    │   └── InsufficientMemory      it does not fit
    ├── NodeError                   a node cannot start, be reached or be stopped
    │   ├── AddressInUse            somebody else holds the port
    │   ├── EdgeFailed              Envoy is missing, died, or refused its configuration
    │   └── NodeNotFound            no node of this user runs there
    ├── ConnectionFailed            a server could not be asked, or its answer not be had
    │   ├── ServerUnreachable       nobody answers at the address; the request was not sent
    │   ├── ConnectionLost          it broke off before the answer was whole
    │   └── InvalidAnswer           what came back is not what the protocol says
    └── RequestError                one request is answered with an error
        ├── InvalidInput            the caller must change the request
        │   └── SignatureNotFound   the model has no signature of that name
        ├── Unauthenticated         the server wants to know who asks
        ├── ModelNotFound           no such model or version here
        ├── MethodNotFound          no such method of the protocol
        │   └── MethodNotAllowed    the path exists, but takes another HTTP method
        ├── Unsupported             the protocol knows it, Tidegate does not do it
        │   ├── UnsupportedEncoding the message is compressed in an unknown way
        │   └── UnsupportedContent  the body is of a kind that is not read here
        ├── MessageTooLarge         beyond the message limit
        ├── QueueFull               too much work is waiting; try again later
        ├── ModelNotReady           loading, draining or crashed
        ├── DeadlineExceeded        no answer in the time that the caller gave
        ├── Cancelled               the caller went away
        ├── RegionNotFound          no shared memory of this name is registered
        ├── RegionExists            shared memory of this name is registered already
        ├── PermissionDenied        not from here, or not with this configuration
        ├── LoadFailed              the model that was to be loaded cannot be
        ├── Quarantined             this very request killed two replicas
        └── InferenceFailed         the model raised while it ran

The tree knows no transport: :mod:`tidegate.protocols.statuses` maps each kind to an HTTP
status, a gRPC code and an exit code. A message says what was wrong, with the offending
value, and what to do about it.
"""

from __future__ import annotations


class TidegateError(Exception):
    """The root of the tree; ``str(error)`` is a message for the person who caused it."""


class ConfigurationError(TidegateError):
    """A file, variable or option says something that cannot be."""


class ModelError(TidegateError):
    """A model in the repository cannot be served; the other models are not affected."""


class InvalidModel(ModelError):
    """The model's files, its layout or its name are wrong."""


class RuntimeMissing(ModelError):
    """The model's format needs an extra that is not installed."""


class InsufficientMemory(ModelError):
    """The model does not fit into the memory that it may use."""


class NodeError(TidegateError):
    """A node cannot be started, reached or stopped."""


class AddressInUse(NodeError):
    """Another process, or another live controller, holds the address."""


class EdgeFailed(NodeError):
    """Envoy is missing, died, or refused the configuration that it was sent."""


class NodeNotFound(NodeError):
    """No node of this user runs at that place."""


class ConnectionFailed(TidegateError):
    """A server could not be asked, or its answer could not be had."""


class ServerUnreachable(ConnectionFailed):
    """Nobody answers at the address: the request was not sent."""


class ConnectionLost(ConnectionFailed):
    """The server broke off before its answer was whole; it may have done what was asked."""


class InvalidAnswer(ConnectionFailed):
    """What the server answered is not what the protocol says."""


class RequestError(TidegateError):
    """One request is answered with an error; its neighbours are not affected."""


class InvalidInput(RequestError):
    """The request itself is wrong: the caller must change it."""


class SignatureNotFound(InvalidInput):
    """The model has no signature of that name: what TensorFlow Serving's Predict tells apart."""


class Unauthenticated(RequestError):
    """The server wants to know who asks."""


class ModelNotFound(RequestError):
    """No such model, or no such version of it, is served here."""


class MethodNotFound(RequestError):
    """The protocol has no such method or path."""


class MethodNotAllowed(MethodNotFound):
    """The path exists, but takes another HTTP method: one of ``allowed``."""

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class Unsupported(RequestError):
    """The protocol knows this, Tidegate does not do it."""


class UnsupportedEncoding(Unsupported):
    """The message is compressed in a way that Tidegate does not know."""


class UnsupportedContent(Unsupported):
    """The body is of a kind that is not read here."""


class MessageTooLarge(RequestError):
    """The message is larger than the limit."""


class QueueFull(RequestError):
    """Too much work is waiting; ``retry_after`` is a hint in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotReady(RequestError):
    """The model is known but cannot answer now: it loads, drains or has crashed."""


class DeadlineExceeded(RequestError):
    """The time that the caller gave has passed."""


class Cancelled(RequestError):
    """The caller went away before there was an answer."""


class RegionNotFound(RequestError):
    """No shared memory region of this name is registered."""


class RegionExists(RequestError):
    """A shared memory region of this name is registered already."""


class PermissionDenied(RequestError):
    """The server does not do this for callers of this port."""


class LoadFailed(RequestError):
    """The model that was to be loaded cannot be, or was unloaded meanwhile."""


class Quarantined(RequestError):
    """This very request was being run when two replicas died; it is not run a third time."""


class InferenceFailed(RequestError):
    """The model raised an exception while it ran this request."""
