"""Direct mode: a client that asks a gateway where a model is, and then calls it there.

The steps that it returns are taken by a client. The gateway is asked anew beside the calls;
while it is away, what it said last counts.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from tidegate.balancing.policy import BalancingPolicy
from tidegate.client.address import Address
from tidegate.client.calls import Call, Outgoing, T
from tidegate.client.connection import Connection
from tidegate.client.endpoint_connections import EndpointConnections
from tidegate.client.known_model import KnownModel
from tidegate.client.pool import EndpointState
from tidegate.client.rest_dialect import ask_endpoints
from tidegate.client.steps import Ask, Beside, Retire, Steps, asked
from tidegate.clock import Clock
from tidegate.errors import (
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    InferenceFailed,
    InvalidAnswer,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    RequestError,
    ServerUnreachable,
    TidegateError,
)
from tidegate.protocols.open_inference.endpoints import LARGEST_BODY, ModelEndpoint

_log = logging.getLogger(__name__)

_ASK_TIMEOUT = 5.0
_CHECK_TIMEOUT = 0.75
_MOST_MODELS = 1024
_EARLY = 0.25
"""The part of the usual time by which some clients ask the gateway earlier than others."""
_ELSEWHERE = (ConnectionLost, InvalidAnswer, ModelNotReady)
"""After these, another endpoint is tried, once."""
_BAD = (ConnectionLost, InvalidAnswer, ModelNotReady, DeadlineExceeded, InferenceFailed)
"""What counts against an endpoint. One that takes no connection is left alone for a while."""


class Direct:
    """Takes calls about models to their endpoints; may be used from several threads.

    Args:
        gateway: the client's own connection.
        clock: for everything that goes by time.
        headers: sent to endpoints; those of ``gateway`` are not.
        seed: puts endpoints into an order of this client's own, so that many clients that start
            together do not all begin with the first, nor use the same of very many.
    """

    def __init__(
        self,
        gateway: Connection,
        clock: Clock,
        headers: Mapping[str, str],
        seed: int | None = None,
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._headers = headers
        self._seed = seed
        # Turns are taken by weights alone. A client knows how long its calls took; what a gateway
        # sees now and then of calls in flight says less.
        self._policy = BalancingPolicy(active_request_bias=0, latency_evidence=0.1)
        self._rest = _rest_of(gateway)
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process must."""
        self._lock = threading.Lock()
        self._order = secrets.randbits(32) if self._seed is None else self._seed
        self._models: dict[str, KnownModel] = {}
        self._connections = EndpointConnections(self._gateway, self._headers)

    def ask(self, model: str, version: str, call: Call[T], timeout: float) -> Steps[T]:
        """Send a call to an endpoint of ``model``; after a fault, to another.

        A call that no endpoint could be sent goes by way of the gateway.

        Raises:
            ConnectionFailed: neither the gateway nor an endpoint can be reached.
            DeadlineExceeded: the time is over.
        """
        end = self._clock.now() + timeout
        known = yield from self._informed(model, timeout)
        tried: dict[str, TidegateError] = {}
        gateway: ServerUnreachable | None = None
        again = True
        while True:
            picked = self._pick(known, version, tried, desperate=gateway is not None)
            if picked is None:
                if gateway is not None:
                    raise _nobody(model, tried, gateway)
                try:
                    return (yield from asked(call, self._left(end, timeout), self._clock))
                except ServerUnreachable as error:
                    if not known.pool.has(version):
                        raise
                    gateway = error
                    continue
            endpoint, connection = picked
            address = endpoint.address
            try:
                return (yield from self._call(known, endpoint, connection, call, end))
            except ServerUnreachable as error:
                tried[address] = error
            except _ELSEWHERE as error:
                if not again or self._clock.now() >= end or not self._elsewhere(known, address):
                    raise
                again, tried[address] = False, error
            self._left(end, timeout)

    def endpoints(self, model: str) -> tuple[EndpointState, ...]:
        """Return what is known of the endpoints of ``model``, without asking anybody."""
        with self._lock:
            known = self._models.get(model)
            return () if known is None else known.pool.states(self._clock.now())

    def _informed(self, model: str, timeout: float) -> Steps[KnownModel]:
        """Return what is known of a model; have the gateway asked if it is time to."""
        with self._lock:
            known = self._known(model)
            wait = known.waiting_for(timeout, self._clock.now())
        if wait is not None:
            yield Beside(f"model {model}", partial(self._learn, known), wait)
        if not known.learned:
            problem = known.problem or self._rest.late(timeout)
            raise type(problem)(str(problem)) from problem
        return known

    def _known(self, model: str) -> KnownModel:
        known = self._models.pop(model, None)
        if known is None:
            now = self._clock.now()
            early = 1.0 - _EARLY * (hash((self._order, model)) % 1000) / 1000
            known = KnownModel(model, self._connections, self._policy, now, early)
            if len(self._models) >= _MOST_MODELS:
                self._models.pop(next(iter(self._models))).leave(now)
        self._models[model] = known  # the last one that was used
        return known

    def _learn(self, known: KnownModel) -> Steps[None]:
        known.asking(self._clock.now())
        try:
            call = ask_endpoints(known.name)
            found = yield from asked(call, _ASK_TIMEOUT, self._clock, self._rest)
        except TidegateError as error:
            with self._lock:
                known.not_told(error, self._clock.now())
                gone = self._connections.take_gone()
        else:
            order = sorted(found.endpoints, key=lambda e: hash((self._order, e.address)))
            with self._lock:
                known.told(found, order, self._clock.now())
                if self._models.get(known.name) is not known:
                    known.leave(self._clock.now())  # so many others were called meanwhile
                gone = self._connections.take_gone()
        if gone:
            yield Retire(gone)

    def _pick(
        self,
        known: KnownModel,
        version: str,
        tried: Mapping[str, TidegateError],
        *,
        desperate: bool,
    ) -> tuple[ModelEndpoint, Connection] | None:
        """Choose an endpoint and count the call in; its connection is needed until it ends."""
        now = self._clock.now()
        with self._lock:
            address = known.pool.pick(version, tried, now)
            if address is None and (desperate or isinstance(known.problem, ConnectionFailed)):
                address = known.pool.pick(version, tried, now, desperate=True)
            if address is None:
                return None
            connection = known.reached[address]
            known.pool.begun(address, now)
            self._connections.hold_again(connection)
            return known.pool.endpoint(address), connection

    def _call(
        self,
        known: KnownModel,
        endpoint: ModelEndpoint,
        connection: Connection,
        call: Call[T],
        end: float,
    ) -> Steps[T]:
        address = endpoint.address
        error: TidegateError | None = None
        good = False
        try:
            left = end - self._clock.now()
            worry = Beside(
                f"check {connection.address.url}",
                partial(self._check, known, endpoint, connection),
            )
            incoming = yield Ask(call.outgoing, left, connection, worry)
            assert incoming is not None
            answer = call.read(incoming)
            good = True
        except TidegateError as fault:
            error = fault
            raise
        finally:
            now = self._clock.now()
            with self._lock:
                known.pool.ended(address, True if good else _good(error), now)
                if isinstance(error, ServerUnreachable):
                    known.pool.refused(address, now)
                elif isinstance(error, ModelNotFound):
                    known.doubted(now)
                self._connections.release(connection)
        return answer

    def _check(
        self, known: KnownModel, endpoint: ModelEndpoint, connection: Connection
    ) -> Steps[None]:
        """See whether a machine that keeps calls waiting lives; if not, cut them.

        They are sent to another, then. Calls that wait for a model on a machine that lives go on.
        """
        checking = self._connections.checking(endpoint)
        if checking is None:
            return
        gone = [checking]
        try:
            yield Ask(Outgoing("/v2/health/live", method="GET"), _CHECK_TIMEOUT, checking)
        except (ConnectionFailed, DeadlineExceeded) as error:
            if self._elsewhere(known, endpoint.address):
                _log.warning("calls that wait for %s go elsewhere: %s", endpoint.address, error)
                gone.append(connection)
        yield Retire(tuple(gone))

    def _elsewhere(self, known: KnownModel, address: str) -> bool:
        """Whether it makes sense to send a call again: not when nobody else is well."""
        with self._lock:
            return known.pool.anybody_well(but=address)

    def _left(self, end: float, timeout: float) -> float:
        left = end - self._clock.now()
        if left <= 0:
            raise self._gateway.late(timeout)
        return left


def _good(error: TidegateError | None) -> bool | None:
    """Whether an endpoint that answered so did well; ``None``: it says nothing of it."""
    if isinstance(error, _BAD):
        return False
    return True if isinstance(error, RequestError) and not isinstance(error, QueueFull) else None


def _nobody(
    model: str, tried: Mapping[str, TidegateError], gateway: ServerUnreachable
) -> ServerUnreachable:
    if not tried:
        return gateway
    address, last = list(tried.items())[-1]
    return ServerUnreachable(
        f"none of the endpoints of model {model!r} answers, {len(tried)} were tried "
        f"(the last, {address}: {last}); and neither does the gateway: {gateway}"
    )


def _rest_of(gateway: Connection) -> Connection:
    """Return how the gateway is asked: over HTTP, also where calls go over gRPC."""
    own = gateway.address
    url = f"http{'s' * own.secure}://{own.target}{own.path}"
    return replace(gateway, address=Address.parse(url), max_answer_size=LARGEST_BODY)
