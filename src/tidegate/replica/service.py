"""The request path of a replica: decode, bind, admit; then, when the engine is done, encode."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tidegate.clock import Clock
from tidegate.errors import (
    InferenceFailed,
    InvalidInput,
    MethodNotAllowed,
    MethodNotFound,
    ModelNotFound,
    TidegateError,
)
from tidegate.protocols import open_inference
from tidegate.protocols.compression import decompress
from tidegate.protocols.dialect import Dialect, ModelView, Reply
from tidegate.protocols.grpc_frames import parse_timeout, unframe
from tidegate.protocols.open_inference import grpc as v2_grpc
from tidegate.protocols.open_inference import metadata as metadata_codec
from tidegate.protocols.open_inference import rest as v2_rest
from tidegate.protocols.open_inference.model_config import (
    ModelConfiguration,
    encode_model_config,
    encode_model_config_body,
)
from tidegate.protocols.open_inference.schedule_policy import DEFAULT_PRIORITY, schedule
from tidegate.protocols.registry import DIALECTS
from tidegate.protocols.routing import MODEL_HEADER, check_model
from tidegate.replica.batch import Ran
from tidegate.replica.binding import Binding
from tidegate.replica.dialects import Dialects, Spoken, send
from tidegate.replica.engine import Answer, Engine, RequestSlot
from tidegate.replica.exchange import Exchange
from tidegate.replica.flight import short
from tidegate.replica.inference import InferenceSlot, about
from tidegate.replica.quarantine import Quarantine
from tidegate.replica.regions import Regions
from tidegate.replica.spec import Ready
from tidegate.scheduling.slot import NO_DEADLINE
from tidegate.telemetry.statistics import GRPC, REST, ReplicaStats
from tidegate.types import (
    DEFAULT_SIGNATURE,
    NO_PARAMETERS,
    DType,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
)

if TYPE_CHECKING:  # it needs an extra
    from tidegate.replica.tracing import Tracer

_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/([a-z]+))?")
_INFER_PATH = re.compile(r"/v2/models/.*/infer")
log = logging.getLogger(__name__)

STATUS_PATH = "/replica"
"""Where a replica says what it is. Its socket answers it; the edge routes nobody there."""
STATS_PATH = "/replica/stats"
"""Where it says what it has counted."""
_MODEL_HEADER = MODEL_HEADER.encode()
_UNSAID = (DEFAULT_PRIORITY, None)
"""The schedule of a request that says nothing of it."""
_INFER = open_inference.MODEL_INFER.encode()
_HEADER_LENGTH = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Served:
    """What this replica serves."""

    configuration: ModelConfiguration
    version: str
    binder: Binding
    max_message_size: int
    tasks: frozenset[int] = frozenset()
    """The ids of tasks by which the model is known as well."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The versions of the model by label."""
    regions: Regions | None = None
    """Shared memory in which tensors may lie, where that is allowed."""
    fingerprint: str = ""
    """Tells the files of this version from those that it had before."""

    @property
    def metadata(self) -> ModelMetadata:
        """What a client may know of the model."""
        return self.configuration.metadata


class Service:
    """Answers the calls of one model version."""

    def __init__(
        self,
        served: Served,
        engine: Engine,
        clock: Clock,
        ready: Ready,
        casualties: Container[bytes] = (),
        tracer: Tracer | None = None,
        dialects: Sequence[Dialect] = DIALECTS,
    ) -> None:
        self._served = served
        self._ready = ready
        self._metadata = served.metadata
        self._name = served.metadata.name
        self._version = served.version
        self._binder = served.binder
        self._limit = served.max_message_size
        self._timeout = served.configuration.timeout
        self.regions = served.regions
        self._engine = engine
        self.counters = engine.counters
        self._clock = clock
        self.tracer = tracer
        self._began = 0.0
        """When the request that is being decoded came, where there is a tracer."""
        if tracer is not None:
            engine.observe = self._trace_answers
        self._view = ModelView(
            self._metadata, self._version, served.tasks, served.labels, served.max_message_size
        )
        self._dialects = Dialects(dialects, self._message, self._body)
        self._dtypes = _output_types(served.metadata)
        self.quarantine = Quarantine(
            f"{self._name}\0{served.version}\0{served.fingerprint}",
            casualties,
            shared_memory=served.regions is not None,
        )
        self._grpc: Mapping[bytes, Callable[[Exchange], None]] = {
            _INFER: self._infer_grpc,
            open_inference.MODEL_READY.encode(): self._ready_grpc,
            open_inference.MODEL_METADATA.encode(): self._metadata_grpc,
            open_inference.MODEL_CONFIG.encode(): self._config_grpc,
        }

    def notice(self, versions: Sequence[int], quarantined: frozenset[bytes]) -> None:
        """Name these versions in the metadata, and refuse requests of these digests."""
        self._metadata = replace(self._metadata, versions=tuple(map(str, versions)))
        self._view = replace(self._view, metadata=self._metadata)
        self.quarantine.refused = quarantined

    def handle_traced(self, exchange: Exchange) -> None:
        """Do what :meth:`handle` does, and note when the request came."""
        self._began = self._clock.now()
        self.handle(exchange)

    def handle(self, exchange: Exchange) -> None:
        """Answer ``exchange``, now or when the model has run; any error becomes its answer."""
        try:
            head = exchange.head
            if head.grpc:
                method = self._grpc.get(head.target)
                if method is not None:
                    method(exchange)
                elif not self._speak(exchange):
                    raise MethodNotFound(f"this model has no method {exchange.path}")
            else:
                self._rest(exchange)
        except TidegateError as error:
            self.refuse(exchange, error)
        except Exception as error:
            log.exception("a request failed by a fault of the server", extra=about(exchange))
            failed = InferenceFailed(f"internal error: {type(error).__name__}: {error}")
            failed.__cause__ = error
            self.refuse(exchange, failed)

    def refuse(self, exchange: Exchange, error: BaseException) -> None:
        """Answer a call that does not reach the queue with an error."""
        head = exchange.head
        protocol: str | None
        if head.grpc and head.target == _INFER:
            protocol = GRPC
        elif not head.grpc and _INFER_PATH.fullmatch(exchange.path):
            protocol = REST
        else:
            protocol = self._dialects.protocol(exchange)
        if protocol is not None:
            self.counters.failed(error, protocol, grpc=head.grpc)
            if self.tracer is not None:
                self.tracer.failed(self.tracer.begin(exchange, self._began), error)
        exchange.fail(error)

    def stats(self) -> ReplicaStats:
        """Return what was counted, and how things stand now."""
        return ReplicaStats(counted=self.counters.snapshot(), queue_depth=self._engine.depth)

    def _rest(self, exchange: Exchange) -> None:
        path = exchange.path
        if path == STATUS_PATH:
            exchange.reply([self._ready.model_dump_json().encode()])
            return
        if path == STATS_PATH:
            exchange.reply([self.stats().model_dump_json().encode()])
            return
        match = _MODEL_PATH.fullmatch(path)
        if match is None:
            if self._speak(exchange):
                return
            raise MethodNotFound(f"there is no path {path}: see /v2/models/{self._name}")
        model, version, verb = match.groups(default="")
        self._check_model(exchange, model, version)
        if verb == "infer":
            self._expect(exchange, b"POST")
            self._infer_rest(exchange, model, version)
        elif verb == "ready":
            self._expect(exchange, b"GET")
            exchange.reply([metadata_codec.encode_ready_body(model, True)])
        elif verb == "":
            self._expect(exchange, b"GET")
            exchange.reply([metadata_codec.encode_metadata_body(self._metadata)])
        elif verb == "config":
            self._expect(exchange, b"GET")
            exchange.reply([encode_model_config_body(self._served.configuration)])
        else:
            raise MethodNotFound(
                f"a model has no {verb!r}: it has infer, ready, config, stats and its metadata"
            )

    def _speak(self, exchange: Exchange) -> bool:
        """Answer a call in a dialect; say whether it is in any."""
        said = self._dialects.read(exchange, self._view)
        if said is None:
            return False
        meant, protocol = said
        if isinstance(meant, Reply):
            if meant.model or meant.version:
                self._check_model(exchange, meant.model or self._name, meant.version)
            send(exchange, meant)
            return True
        request = meant.request
        request.model = request.model or self._name
        self._check_model(exchange, request.model, request.version)
        self._run(exchange, request, Spoken(meant.encode, protocol))
        return True

    def _expect(self, exchange: Exchange, method: bytes) -> None:
        # Probes ask by HEAD; what would be the body is left out when it is sent.
        if exchange.method != method and (method, exchange.method) != (b"GET", b"HEAD"):
            wanted, sent = method.decode(), exchange.method.decode("latin-1")
            raise MethodNotAllowed(f"{exchange.path} takes {wanted}, not {sent}", (wanted,))

    def _check_model(self, exchange: Exchange, model: str, version: str) -> None:
        if model == self._name and version in ("", self._version):
            return
        check_model(model, version)
        asked = f"version {version} of {model!r}" if version else repr(model)
        served = f"version {self._version} of {self._name!r}"
        if _MODEL_HEADER in exchange.headers:
            raise InvalidInput(
                f"the message is for {asked}, but its header {MODEL_HEADER} led to {served}: "
                "name the same model in both"
            )
        raise ModelNotFound(f"{asked} is not served here: {served} is")

    def _message(self, exchange: Exchange) -> bytes | memoryview:
        return unframe(exchange.body, self._limit, exchange.head.encoding)

    def _body(self, exchange: Exchange) -> bytes:
        encoding = exchange.headers.get(b"content-encoding", b"").decode("latin-1").lower()
        if encoding in ("", "identity"):
            return exchange.body
        return decompress(exchange.body, encoding, limit=self._served.max_message_size)

    def _ready_grpc(self, exchange: Exchange) -> None:
        self._check_model(exchange, *metadata_codec.decode_model(self._message(exchange)))
        exchange.reply_grpc((metadata_codec.encode_model_ready(True),))

    def _metadata_grpc(self, exchange: Exchange) -> None:
        self._check_model(exchange, *metadata_codec.decode_model(self._message(exchange)))
        exchange.reply_grpc((metadata_codec.encode_model_metadata(self._metadata),))

    def _config_grpc(self, exchange: Exchange) -> None:
        self._check_model(exchange, *metadata_codec.decode_model(self._message(exchange)))
        exchange.reply_grpc((encode_model_config(self._served.configuration),))

    def _infer_grpc(self, exchange: Exchange) -> None:
        message = unframe(exchange.body, self._limit, exchange.head.encoding)
        regions = self.regions
        request = v2_grpc.decode_infer(message, None if regions is None else regions.reader())
        if request.version or request.model != self._name:
            self._check_model(exchange, request.model, request.version)
        self._run(exchange, request)

    def _infer_rest(self, exchange: Exchange, model: str, version: str) -> None:
        regions = self.regions
        length = exchange.headers.get(_HEADER_LENGTH)
        request = v2_rest.decode_infer(
            model,
            version,
            self._body(exchange),
            None if length is None else v2_rest.parse_header_length(length),
            signature=self._served.metadata.signature,
            reader=None if regions is None else regions.reader(),
        )
        self._run(exchange, request)

    def _run(
        self, exchange: Exchange, request: InferRequest, spoken: Spoken | None = None
    ) -> None:
        bound = self._binder.bind(request)
        if self.regions is not None and request.outputs:
            self.regions.check_all(request.outputs)
        priority, timeout = _UNSAID if not request.parameters else schedule(request.parameters)
        now = self._clock.now()
        head = exchange.head
        retried = head.retried
        if retried or self.quarantine.refused or exchange.request_id is None:
            entry = self.quarantine.entry(exchange, request, retried)
        else:
            entry = short(exchange.request_id)
        # By position: this is made for every request, and keywords take twice as long.
        slot = InferenceSlot(
            bound,
            InferenceSlot.answer,
            now,
            bound.rows,
            # An array of BYTES does not say how long they are.
            max(bound.size, len(exchange.body)),
            # Should it kill this one as well, nothing that runs beside it must be suspected.
            object() if retried and self.quarantine.deadly(exchange) else bound.group,
            priority,
            self._deadline(head.timeout, timeout, now),
            entry,
        )
        slot.exchange = exchange
        slot.request = request
        slot.service = self
        slot.spoken = spoken
        if self.tracer is not None:
            slot.trace = self.tracer.begin(exchange, self._began)
            if slot.trace is not None:
                slot.trace.queued = now
        self._engine.submit(slot)
        exchange.on_gone = slot.abandon

    def _trace_answers(
        self, slots: Sequence[RequestSlot], ran: Ran, delivering: float, ended: float
    ) -> None:
        for slot in slots:
            if (
                self.tracer is not None
                and isinstance(slot, InferenceSlot)
                and slot.trace is not None
            ):
                self.tracer.succeeded(slot.trace, ran, delivering, ended)
                slot.trace = None

    def discard(self, slot: RequestSlot) -> None:
        """Forget a slot that was cancelled."""
        self._engine.discard(slot)

    def _deadline(self, sent: bytes | None, timeout: float | None, now: float) -> float:
        limit = self._timeout
        if timeout is not None and (limit is None or timeout < limit):
            limit = timeout
        deadline = NO_DEADLINE if limit is None else now + limit
        return deadline if sent is None else min(deadline, now + parse_timeout(sent))

    def response(self, request: InferRequest, result: Answer) -> InferResponse:
        """Return what came out of the model as the response to ``request``."""
        outputs = []
        dtypes = self._dtypes[request.signature]
        for name, array in result.items():
            outputs.append(Tensor(name, dtypes[name], array))
        return InferResponse(
            self._name,
            self._version,
            request.id,
            outputs,
            NO_PARAMETERS,
            None,
            NO_PARAMETERS,
        )


def _output_types(metadata: ModelMetadata) -> dict[str, dict[str, DType]]:
    """Return the types of the outputs, by the signature that a request may name."""
    named = {"": metadata.signature, DEFAULT_SIGNATURE: metadata.signature, **metadata.signatures}
    return {
        name: {spec.name: spec.dtype for spec in signature.outputs}
        for name, signature in named.items()
    }
