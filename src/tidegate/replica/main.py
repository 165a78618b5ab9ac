"""The process of one replica: load, warm up, listen, serve, drain."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import uvloop
from pydantic import BaseModel

from tidegate.clock import Clock, MonotonicClock
from tidegate.config.model import Batching
from tidegate.errors import InsufficientMemory, TidegateError
from tidegate.protocols.grpc_frames import PREFIX_SIZE
from tidegate.protocols.open_inference.model_config import ModelConfiguration
from tidegate.replica import lifeline
from tidegate.replica.binding import Bound, binding
from tidegate.replica.engine import Answer, Engine
from tidegate.replica.exchange import OpenConnections
from tidegate.replica.flight import Casualties, FlightRecorder, SharedRecorder
from tidegate.replica.header_blocks import TRACE_FIELDS
from tidegate.replica.hook_threads import HookThreads
from tidegate.replica.hooked import Around, HookedService
from tidegate.replica.http import Server
from tidegate.replica.inference import about_slot
from tidegate.replica.load_meter import LoadMeter
from tidegate.replica.loading import Loaded, load
from tidegate.replica.notices import Notices
from tidegate.replica.regions import Regions
from tidegate.replica.service import Served, Service
from tidegate.replica.spec import THREAD_STACK, Failed, Ready, ReplicaSpec
from tidegate.replica.warmup import batched_signatures, warm_up
from tidegate.runtimes import registry
from tidegate.runtimes.interface import Model, RuntimeOptions
from tidegate.runtimes.samples import samples_of
from tidegate.scheduling.batcher import Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.telemetry import logs
from tidegate.telemetry.rotation import OwnOutput
from tidegate.types import DEFAULT_SIGNATURE, ModelMetadata

if TYPE_CHECKING:  # it needs an extra
    from tidegate.replica.tracing import Tracer

log = logging.getLogger("tidegate.replica")

_QUEUED_MESSAGES = 16
_HOOK_THREADS = 4
_SWITCH_INTERVAL = 0.5e-3
_COLLECT_AFTER = 20_000
_ORPHANS_GRACE = 10.0
_HEADROOM = 16 * 2**20
"""Bytes for threads and messages, beside what is there when the model is loaded."""


def main(arguments: Sequence[str]) -> int:
    """Run a replica until it is told to end; return its exit status."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="tidegate.replica", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("version")
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--status-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    spec = ReplicaSpec.model_validate_json(options.spec.read_bytes())
    about = {"model": spec.model, "version": spec.version, "replica": spec.index}
    logs.configure(logging.StreamHandler(sys.stderr), spec.log_settings, about)
    if spec.log is not None:
        OwnOutput(spec.log, spec.log_settings.size, spec.log_settings.files).watch()
    # The terminal's Ctrl-C is for the controller, which then ends its replicas in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline.watch(spec.lifeline, _orphaned)
    try:
        loaded = _load(spec)
        batched = batched_signatures(
            loaded.model, spec.config.batching, samples_of(_options(spec))
        )
        hooks = _hook_threads(spec) if loaded.hooked else 0
        _check_room(spec, "Python, the runtime and the model", loaded=True, hooks=hooks)
    except (TidegateError, MemoryError) as error:
        _limit_memory(None)
        failure = _explain(error, spec)
        log.error("%s", failure)
        kind = type(failure).__name__
        _report(options.status_fd, Failed(kind=kind, reason=str(failure)))
        return 1
    # What is here now stays; what a request makes is freed by its count of references.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    uvloop.run(_serve(spec, loaded, batched, options.status_fd, started))
    # Threads of the framework must not hold up an end that has been drained.
    logging.shutdown()
    os._exit(0)


def _load(spec: ReplicaSpec) -> Loaded:
    log.info("loading %s version %d from %s", spec.model, spec.version, spec.path)
    options = _options(spec)
    # A framework that runs out of memory while it is imported aborts, or seems to be broken:
    # the limit comes after that.
    registry.devices(spec.runtime)
    _check_room(spec, "Python and the runtime alone", loaded=False)
    _limit_memory(spec.config.resources.memory)
    loaded = load(spec.runtime, spec.path, options, enter=True)
    if spec.config.warmup.enabled:
        warm_up(loaded.model, samples_of(options))
    return loaded


def _options(spec: ReplicaSpec) -> RuntimeOptions:
    return RuntimeOptions(spec.config.device, spec.threads, spec.folder, spec.config)


def _limit_memory(limit: int | None) -> None:
    """Bound the process's data memory in bytes; ``None``: no longer."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if limit is None or (hard != resource.RLIM_INFINITY and hard < limit):
        limit = hard
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _check_room(spec: ReplicaSpec, what: str, *, loaded: bool, hooks: int = 0) -> None:
    """Make sure that there is room to answer requests, and for threads that are yet to start.

    ``hooks`` are the threads that call hooks.
    """
    limit = spec.config.resources.memory
    if limit is None:
        return
    # Only Linux tells, and only Linux minds the limit.
    used = getattr(psutil.Process().memory_info(), "data", 0)
    stacks = registry.RUNTIMES[spec.runtime].stacks
    # A model that is loaded has started all but those of the thread that is to run it.
    needed = _HEADROOM + (min(1, stacks) if loaded else stacks) * (
        (spec.threads - 1) * THREAD_STACK
    )
    needed += hooks * THREAD_STACK
    if used + needed > limit:
        raise InsufficientMemory(
            f"{what} take {used} bytes, and {needed} more are needed to answer requests"
        )


def _explain(error: TidegateError | MemoryError, spec: ReplicaSpec) -> TidegateError:
    limit = spec.config.resources.memory
    if isinstance(error, MemoryError):
        error = InsufficientMemory(str(error) or "Python could not allocate memory")
    if isinstance(error, InsufficientMemory):
        room = "memory" if limit is None else f"the {limit} bytes of resources.memory"
        return InsufficientMemory(
            f"{spec.model} version {spec.version} does not fit in {room}: {error}"
        )
    return error


def _orphaned() -> None:
    log.warning("the node is gone, no controller and no edge is left: ending")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHANS_GRACE)
    os._exit(1)


def _report(descriptor: int | None, event: BaseModel) -> None:
    """Tell who started this process; it may be gone, which is no fault."""
    if descriptor is None:
        return
    try:
        os.write(descriptor, event.model_dump_json().encode() + b"\n")
        os.close(descriptor)
    except OSError as error:
        log.info("nobody hears the status: %s", error)


async def _serve(
    spec: ReplicaSpec,
    loaded: Loaded,
    batched: Mapping[str, bool],
    status_fd: int | None,
    started: float,
) -> None:
    model = loaded.model
    clock = MonotonicClock()
    latency = LatencyModel()
    by_default = batched[next(iter(model.signatures))]
    batching = spec.config.batching
    limits = BatcherLimits(
        max_batch_size=_most_rows(model, batching, batched),
        max_queue_size=batching.max_queue_size,
        max_queue_bytes=_QUEUED_MESSAGES * spec.max_message_size,
        max_queue_delay=batching.max_queue_delay if any(batched.values()) else 0.0,
    )
    threads = HookThreads(_hook_threads(spec))
    behind = limits if not loaded.hooked else threads.behind(limits)
    batcher: Batcher[Bound, Answer] = Batcher(behind, latency)
    connections = OpenConnections()
    recorder = FlightRecorder(spec.flight)
    shared = SharedRecorder(recorder)
    engine = Engine(
        loaded.runner(clock.now),
        batcher,
        latency,
        clock,
        recorder if not loaded.hooked else shared,
        delivered=connections.flush,
        about=about_slot,
        always_hand_over=spec.config.limits.timeout is not None,
    )
    served = Served(
        configuration=_configuration(spec, loaded, limits if by_default else None),
        version=str(spec.version),
        binder=binding(model.signatures, batched),
        max_message_size=spec.max_message_size,
        tasks=frozenset(spec.config.task_ids),
        labels={label: str(v) for label, v in spec.config.versions.labels.items()},
        regions=None if spec.regions is None else Regions(spec.regions, spec.max_message_size),
        fingerprint=spec.fingerprint,
    )
    ready = Ready(
        pid=os.getpid(),
        platform=model.platform,
        device=model.device,
        batching=by_default,
        max_batch_size=limits.max_batch_size,
        python=platform.python_version(),
        seconds=clock.now() - started,
    )
    tracer = _tracer(spec, clock)
    hooks = loaded.hooks(served.binder)
    about = (clock, ready, Casualties(spec.flight), tracer)
    if hooks is None:
        service = Service(served, engine, *about)
    else:
        around = Around(hooks, threads, shared, limits.max_queue_size, limits.max_queue_bytes)
        service = HookedService(served, engine, around, *about)
    connections.refuse = service.refuse
    hooked = threads.count if loaded.hooked else 0
    connections.load = LoadMeter(engine.counters, clock, limits.max_batch_size, hooked).report
    if tracer is None and hooks is None:
        connections.unread = TRACE_FIELDS
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _read_notices, service, spec)
    _read_notices(service, spec)
    http = Server(
        spec.socket,
        service.handle if tracer is None else service.handle_traced,
        spec.max_message_size,
        room=PREFIX_SIZE,
        idle_timeout=spec.idle_timeout,
        connections=connections,
    )
    async with engine, http as server:
        if hooks is not None:
            # Python's 5 ms is what the loop would wait at each step of each request for hooks
            # that compute in Python.
            sys.setswitchinterval(_SWITCH_INTERVAL)
            threads.start()
        log.info("ready: batches of up to %d rows on %s", limits.max_batch_size, model.device)
        _report(status_fd, ready)
        await stop.wait()
        log.info("draining")
        await server.drain(spec.drain_timeout)
    with contextlib.suppress(OSError):
        spec.last_words.write_text(service.stats().model_dump_json())
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    if engine.busy:
        log.warning("a run has not come to its end: the model is not told of the end")
    else:
        model.close()
    log.info("ended")


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


def _hook_threads(spec: ReplicaSpec) -> int:
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
