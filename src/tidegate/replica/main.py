"""The process of one replica: load, warm up, serve, end."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import uvloop
from pydantic import BaseModel

from tidegate.errors import InsufficientMemory, TidegateError
from tidegate.replica import lifeline
from tidegate.replica.loading import Loaded, load
from tidegate.replica.serving import hook_threads, serve
from tidegate.replica.spec import THREAD_STACK, Failed, ReplicaSpec
from tidegate.replica.warmup import batched_signatures, warm_up
from tidegate.runtimes import registry
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.samples import samples_of
from tidegate.telemetry import logs
from tidegate.telemetry.rotation import OwnOutput

log = logging.getLogger("tidegate.replica")

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
        hooks = hook_threads(spec) if loaded.hooked else 0
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
    tell = partial(_report, options.status_fd)
    uvloop.run(serve(spec, loaded, batched, started, tell))
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
