"""Several calls at the same time, whose answers come in the order of the calls."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END_TIMEOUT = 2.0


class Ordered(Generic[T, R]):
    """Calls ``function`` on each of ``items`` in ``width`` threads; a future for each, in order.

    An item is taken when there is room for it, and its future is there at once: whoever waits
    for requests from a pipe gets each answer as soon as it can be had.
    """

    def __init__(self, function: Callable[[T], R], items: Iterable[T], width: int) -> None:
        self._function = function
        self._items = items
        self._ordered: queue.Queue[tuple[T, Future[R]] | BaseException | None] = queue.Queue(width)
        self._work: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()
        # Daemons: one of them may wait for a pipe that says nothing when this ends.
        self._workers = [threading.Thread(target=self._call, daemon=True) for _ in range(width)]
        self._reader = threading.Thread(target=self._take, daemon=True)

    def __iter__(self) -> Iterator[tuple[T, Future[R]]]:
        while (found := self._ordered.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def start(self) -> None:
        """Begin to take items."""
        for thread in (*self._workers, self._reader):
            thread.start()

    def end(self) -> None:
        """Let the workers end what they do, and wait for that a little."""
        for _ in self._workers:
            self._work.put(None)
        for worker in self._workers:
            worker.join(_END_TIMEOUT)

    def _take(self) -> None:
        try:
            for item in self._items:
                future: Future[R] = Future()
                self._ordered.put((item, future))
                self._work.put((item, future))
        except BaseException as error:
            self._ordered.put(error)
        else:
            self._ordered.put(None)

    def _call(self) -> None:
        while (found := self._work.get()) is not None:
            item, future = found
            try:
                future.set_result(self._function(item))
            except BaseException as error:
                future.set_exception(error)


@contextmanager
def in_order(
    function: Callable[[T], R], items: Iterable[T], width: int, cut: Callable[[], None]
) -> Iterator[Iterable[tuple[T, Callable[[], R]]]]:
    """Give each of ``items`` with how to have its result; one at a time when ``width`` is 1.

    Args:
        function: Is called on each item.
        items: Are taken one after another.
        width: How many calls there may be at the same time.
        cut: Ends the calls that run, when nobody wants their results any more.
    """
    if width == 1:
        yield ((item, lambda item=item: function(item)) for item in items)  # type: ignore[misc]
        return
    calls = Ordered(function, items, width)
    calls.start()
    try:
        yield ((item, future.result) for item, future in calls)
    finally:
        cut()
        calls.end()
