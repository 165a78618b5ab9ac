"""Looks after the calls of threads, which cannot look themselves while they wait."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")

_log = logging.getLogger(__name__)

_LOOKS = 4
"""How often it is looked in the time that one is patient for."""
_IDLE = 5.0
"""Seconds without a call after which the thread ends."""


class Watch(Generic[K]):
    """Does ``act`` for each call as often as it has waited for ``patience`` seconds.

    One thread looks, while there are calls: waking it for each would cost more than the looking.
    """

    def __init__(self, patience: float, act: Callable[[K], None]) -> None:
        self._patience = patience
        self._act = act
        self._calls: dict[object, tuple[float, K]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def waiting(self, what: K) -> Iterator[None]:
        """A call waits within; ``what`` is given to ``act``."""
        token = object()
        with self._lock:
            self._calls[token] = (time.monotonic(), what)
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="tidegate-client-watch", daemon=True
                )
                with contextlib.suppress(RuntimeError):  # no more threads: nobody looks then
                    thread.start()
                    self._thread = thread
        try:
            yield
        finally:
            with self._lock:
                del self._calls[token]

    def _run(self) -> None:
        idle = time.monotonic()
        while True:
            time.sleep(self._patience / _LOOKS)
            now = time.monotonic()
            with self._lock:
                if self._calls:
                    idle = now
                elif now - idle > _IDLE:
                    self._thread = None
                    return
                late = [
                    (token, what)
                    for token, (since, what) in self._calls.items()
                    if now - since >= self._patience
                ]
                self._calls.update((token, (now, what)) for token, what in late)
            for _, what in late:
                try:
                    self._act(what)
                except Exception:
                    _log.exception("what was to be done for a call that waits")
