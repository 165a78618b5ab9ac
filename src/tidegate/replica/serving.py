"""What serves in a replica: its parts, put together, begun and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.model import Batching
from tidegate.protocols.grpc_frames import PREFIX_SIZE
from tidegate.protocols.open_inference.model_config import ModelConfiguration
from tidegate.replica.binding import Binding, Bound, binding
from tidegate.replica.engine import Answer, Engine
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.flight import Casualties, FlightRecorder, SharedRecorder
from tidegate.replica.header_blocks import TRACE_FIELDS
from tidegate.replica.hook_threads import HookThreads
from tidegate.replica.hooked import Around, HookedService
from tidegate.replica.http import Server
from tidegate.replica.inference import about_slot
from tidegate.replica.load_meter import LoadMeter
from tidegate.replica.loading import Loaded
from tidegate.replica.notices import Notices
from tidegate.replica.regions import Regions
from tidegate.replica.service import Served, Service
from tidegate.replica.spec import Ready, ReplicaSpec
from tidegate.runtimes.interface import Model
from tidegate.scheduling.batcher import Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.types import DEFAULT_SIGNATURE, ModelMetadata

if TYPE_CHECKING:  # it needs an extra
    from tidegate.replica.tracing import Tracer

log = logging.getLogger("tidegate.replica")

_QUEUED_MESSAGES = 16
_HOOK_THREADS = 4
_SWITCH_INTERVAL = 0.5e-3


@dataclass(frozen=True, slots=True)
class _Parts:
    """What takes a request from the socket to the model and back."""

    engine: Engine
    service: Service
    connections: OpenConnections
    tracer: Tracer | None
    hook_threads: HookThreads | None
    """Those that call hooks, where there are any."""


async def serve(
    spec: ReplicaSpec,
    loaded: Loaded,
    batched: Mapping[str, bool],
    started: float,
    tell: Callable[[Ready], None],
) -> None:
    """Serve a model until SIGTERM, drain, and write down what was counted.

    Args:
        spec: what the node said.
        loaded: the model, warmed up.
        batched: whether requests are joined, by signature.
        started: when the process started, in seconds of :func:`time.monotonic`.
        tell: is told once that requests are taken from now on.
    """
    model, clock = loaded.model, MonotonicClock()
    limits = _limits(spec, model, batched)
    by_default = batched[next(iter(model.signatures))]
    configuration = _configuration(spec, loaded, limits if by_default else None)
    served = _served(spec, configuration, binding(model.signatures, batched))
    ready = Ready(
        pid=os.getpid(),
        platform=model.platform,
        device=model.device,
        batching=by_default,
        max_batch_size=limits.max_batch_size,
        python=platform.python_version(),
        seconds=clock.now() - started,
    )
    parts = _assemble(spec, loaded, served, limits, ready, clock)
    service, tracer = parts.service, parts.tracer
    stop = _until_told(service, spec)
    http = Server(
        spec.socket,
        service.handle if tracer is None else service.handle_traced,
        spec.max_message_size,
        room=PREFIX_SIZE,
        idle_timeout=spec.idle_timeout,
        connections=parts.connections,
    )
    async with parts.engine, http as server:
        if parts.hook_threads is not None:
            # Python's 5 ms is what the loop would wait at each step of each request for hooks
            # that compute in Python.
            sys.setswitchinterval(_SWITCH_INTERVAL)
            parts.hook_threads.start()
        log.info("ready: batches of up to %d rows on %s", limits.max_batch_size, model.device)
        tell(ready)
        await stop.wait()
        log.info("draining")
        await server.drain(spec.drain_timeout)
    with contextlib.suppress(OSError):
        spec.last_words.write_text(service.stats().model_dump_json())
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    if parts.engine.busy:
        log.warning("a run has not come to its end: the model is not told of the end")
    else:
        model.close()
    log.info("ended")


def _assemble(
    spec: ReplicaSpec,
    loaded: Loaded,
    served: Served,
    limits: BatcherLimits,
    ready: Ready,
    clock: Clock,
) -> _Parts:
    threads = HookThreads(hook_threads(spec)) if loaded.hooked else None
    connections, latency = OpenConnections(), LatencyModel()
    recorder = FlightRecorder(spec.flight)
    shared = SharedRecorder(recorder)
    batcher: Batcher[Bound, Answer] = Batcher(
        limits if threads is None else threads.behind(limits), latency
    )
    engine = Engine(
        loaded.runner(clock.now),
        batcher,
        latency,
        clock,
        recorder if threads is None else shared,
        delivered=connections.flush,
        about=about_slot,
        always_hand_over=spec.config.limits.timeout is not None,
    )
    tracer = _tracer(spec, clock)
    about = (clock, ready, Casualties(spec.flight), tracer)
    hooks = loaded.hooks(served.binder)
    service: Service
    if hooks is None or threads is None:
        service = Service(served, engine, *about)
    else:
        around = Around(hooks, threads, shared, limits.max_queue_size, limits.max_queue_bytes)
        service = HookedService(served, engine, around, *about)
    connections.refuse = service.refuse
    hooked = 0 if threads is None else threads.count
    connections.load = LoadMeter(engine.counters, clock, limits.max_batch_size, hooked).report
    if tracer is None and threads is None:
        connections.unread = TRACE_FIELDS
    return _Parts(engine, service, connections, tracer, threads)


def _served(spec: ReplicaSpec, configuration: ModelConfiguration, binder: Binding) -> Served:
    return Served(
        configuration=configuration,
        version=str(spec.version),
        binder=binder,
        max_message_size=spec.max_message_size,
        tasks=frozenset(spec.config.task_ids),
        labels={label: str(v) for label, v in spec.config.versions.labels.items()},
        regions=None if spec.regions is None else Regions(spec.regions, spec.max_message_size),
        fingerprint=spec.fingerprint,
    )


def _limits(spec: ReplicaSpec, model: Model, batched: Mapping[str, bool]) -> BatcherLimits:
    batching = spec.config.batching
    return BatcherLimits(
        max_batch_size=_most_rows(model, batching, batched),
        max_queue_size=batching.max_queue_size,
        max_queue_bytes=_QUEUED_MESSAGES * spec.max_message_size,
        max_queue_delay=batching.max_queue_delay if any(batched.values()) else 0.0,
    )


def _until_told(service: Service, spec: ReplicaSpec) -> asyncio.Event:
    """Listen to the node's signals; return what is set when it wants an end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _read_notices, service, spec)
    _read_notices(service, spec)
    return stop


def _tracer(spec: ReplicaSpec, clock: Clock) -> Tracer | None:
    """Return what traces requests, where there is a collector."""
    if spec.otlp_endpoint is None:
        return None
    try:
        from tidegate.replica.tracing import Tracer
    except ImportError as error:
        # The models of a node may run in other environments than its controller.
        log.warning("requests are not traced: %s; install tidegate[otel] here", error)
        return None
    about: dict[str, str | int] = {
        "tidegate.model": spec.model,
        "tidegate.version": spec.version,
        "tidegate.replica": spec.index,
    }
    return Tracer.to_collector(spec.otlp_endpoint, clock, about)


def _configuration(
    spec: ReplicaSpec, loaded: Loaded, batching: BatcherLimits | None
) -> ModelConfiguration:
    """Return what a client may know of the model and of how it is served."""
    model, public = loaded.model, loaded.public
    if public != model.signature:
        # Rows of a batch are no concern of those who send one image.
        batching = None
    versions = spec.config.versions
    return ModelConfiguration(
        metadata=ModelMetadata(
            spec.model,
            (str(spec.version),),
            model.platform,
            public,
            model.signatures if public == model.signature else {DEFAULT_SIGNATURE: public},
        ),
        backend=spec.runtime,
        device=model.device,
        replicas=spec.config.replicas,
        max_batch_size=0 if batching is None else batching.max_batch_size,
        max_queue_delay=0.0 if batching is None else batching.max_queue_delay,
        max_queue_size=spec.config.batching.max_queue_size,
        timeout=spec.config.limits.timeout,
        versions=None if versions.all else versions.only or versions.latest or 1,
    )


def hook_threads(spec: ReplicaSpec) -> int:
    """Return how many threads call the hooks of a model that has some."""
    return spec.config.hooks.threads or max(_HOOK_THREADS, 2 * spec.threads)


def _most_rows(model: Model, batching: Batching, batched: Mapping[str, bool]) -> int:
    joined = [model.under(name).most_rows for name, joins in batched.items() if joins]
    return min([batching.max_batch_size, *filter(None, joined)]) if joined else 1


def _read_notices(service: Service, spec: ReplicaSpec) -> None:
    notices = Notices.read(spec.notices)
    if notices is None:
        return  # what it was told before still counts
    if notices.log_level is not None:
        logging.getLogger("tidegate").setLevel(notices.log_level)
    log.debug("told: versions %s", notices.versions.get(spec.model))
    service.notice(
        notices.versions.get(spec.model, (spec.version,)),
        frozenset(map(bytes.fromhex, notices.quarantined)),
    )
