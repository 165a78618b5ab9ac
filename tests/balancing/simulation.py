"""A cluster in virtual time: callers, an edge that picks as Envoy does, backends with faults.

The edge reports outcomes every 250 ms and takes new weights a moment later, so that what the
balancer does is seen with the delays that it has in truth. Nothing here reads a clock.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from tidegate.balancing.balancer import Balancer
from tidegate.balancing.outcome import Outcome
from tidegate.balancing.policy import BalancingPolicy
from tidegate.balancing.turns import Turns
from tidegate.balancing.verdict import Verdict

REPORT = 0.25
DELIVERY = 0.03
"""Seconds until the edge knows new weights."""


@dataclass(eq=False)
class Call:
    started: float
    attempts: list[str] = field(default_factory=list)
    caller: int | None = None


class Backend:
    """Answers each call after ``service`` seconds, ``slots`` at a time, the rest in a queue.

    ``mode`` is ``ok``, ``refuse`` (the process is dead), ``hang`` (the machine is cut off: calls
    are reset after ``patience`` seconds) or ``freeze`` (the process stands still, and goes on).
    """

    def __init__(
        self, name: str, service: float, slots: int = 64, spread: float = 0.0, weight: int = 100
    ) -> None:
        self.name = name
        self.service = service
        self.slots = slots
        self.spread = spread
        self.weight = weight
        self.slowness = 1.0
        self.failing = 0.0
        self.mode = "ok"
        self.patience = 1.0
        self.broken = 0  # calls in a row that broke off
        self.away_until = 0.0
        self.in_flight = 0
        self.running: set[Call] = set()
        self.queue: deque[Call] = deque()
        self.hung: set[Call] = set()
        self.succeeded = self.failed = self.issued = self.cancelled = 0


class Simulation:
    """Runs calls against backends until a time, and remembers what became of each."""

    def __init__(
        self,
        *backends: Backend,
        rate: float = 0.0,
        callers: int = 0,
        policy: BalancingPolicy | None = None,
        balanced: bool = True,
        seed: int = 1,
        retries: int = 1,
        utilization: bool = False,
        deadline: float = math.inf,
        hopeless: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.chance = random.Random(seed)
        self.backends: dict[str, Backend] = {}
        self.policy = policy or BalancingPolicy()
        self.balancer = Balancer(self.policy)
        self.balanced = balanced
        self.rate = rate
        self.retries = retries
        self.utilization = utilization
        self.deadline = deadline
        self.hopeless = hopeless  # the part of the calls whose deadline nobody can hold
        self.weights: dict[str, float] = {}
        self.turns = Turns()
        self.heap: list[tuple[float, int, str]] = []
        self.edge_time = 0.0
        self.updates = 0
        self.noticed = 0
        self.sent: list[tuple[float, str]] = []  # when each attempt was made, and where
        self.ended: list[tuple[float, float, bool]] = []  # began, took, success
        self.history: list[tuple[float, dict[str, Verdict]]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.set_backends(*backends)
        self.after(REPORT, self._report)
        if rate:
            self.after(self.chance.expovariate(rate), self._arrive)
        for caller in range(callers):
            self.after(0.001 * caller, lambda caller=caller: self._call(caller))  # type: ignore[misc]

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.after(time - self.now, event)

    def run(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, event = heapq.heappop(events)
            event()
        self.now = until

    # the controller

    def set_backends(self, *backends: Backend) -> None:
        self.backends = {backend.name: backend for backend in backends}
        self.balancer.update({b.name: b.weight for b in backends}, self.now)
        self._tell()

    def _report(self) -> None:
        outcomes: dict[str, Outcome] = {}
        for name, b in self.backends.items():
            if b.succeeded or b.failed or b.issued or b.in_flight or b.cancelled:
                load = min(1.0, len(b.running) / b.slots) if self.utilization else None
                outcomes[name] = Outcome(
                    b.succeeded, b.failed, b.issued, b.in_flight, load, b.cancelled
                )
                b.succeeded = b.failed = b.issued = b.cancelled = 0
        if self.balanced:
            self.balancer.observe(outcomes, REPORT, self.now)
            self.history.append((self.now, dict(self.balancer.verdicts(self.now))))
            if self.balancer.version != self.noticed:
                self.noticed = self.balancer.version
                self.after(DELIVERY, self._tell)
        self.after(REPORT, self._report)

    def _tell(self) -> None:
        verdicts = self.balancer.verdicts(self.now)
        self.weights = {name: float(verdict.weight) for name, verdict in verdicts.items()}
        self.updates += 1
        self.turns.set(self.weights)
        self.heap = [
            (self.edge_time + self.chance.random() / self._pull(name), next(self._order), name)
            for name, weight in self.weights.items()
            if weight
        ]
        heapq.heapify(self.heap)

    # the edge

    def _pull(self, name: str) -> float:
        bias = self.policy.active_request_bias
        return self.weights[name] / float((self.backends[name].in_flight + 1) ** bias)

    def _pick(self, excluding: list[str]) -> str | None:
        """Earliest deadline first, deadlines one over :meth:`_pull` apart."""
        if not self.policy.active_request_bias:
            return self.turns.pick(excluding)
        name: str | None = None
        for _ in range(1000 if self.heap else 0):
            self.edge_time, _, name = self.heap[0]
            entry = (self.edge_time + 1.0 / self._pull(name), next(self._order), name)
            heapq.heapreplace(self.heap, entry)
            if name not in excluding and self.now >= self.backends[name].away_until:
                return name
        return name

    def _arrive(self) -> None:
        self._call(None)
        self.after(self.chance.expovariate(self.rate), self._arrive)

    def _call(self, caller: int | None) -> None:
        self._attempt(Call(self.now, caller=caller))

    def _attempt(self, call: Call) -> None:
        name = self._pick(call.attempts)
        if name is None:
            self._finish(call, success=False)
            return
        backend = self.backends[name]
        call.attempts.append(name)
        self.sent.append((self.now, name))
        backend.issued += 1
        backend.in_flight += 1
        hopeless = self.hopeless and self.chance.random() < self.hopeless
        deadline = 0.001 if hopeless else self.deadline
        if deadline < math.inf:
            self.after(deadline, lambda: self._cancel(backend, call))
        if backend.mode == "refuse":
            self.after(0.0005, lambda: self._end(backend, call, success=False))
        elif backend.mode == "hang":
            self._hang(backend, call)
        else:
            backend.queue.append(call)
            self._start(backend)

    def _hang(self, backend: Backend, call: Call) -> None:
        backend.hung.add(call)
        self.after(backend.patience, lambda: self._give_up(backend, call))

    def _give_up(self, backend: Backend, call: Call) -> None:
        if call in backend.hung:
            backend.hung.remove(call)
            self._end(backend, call, success=False)

    def _cancel(self, backend: Backend, call: Call) -> None:
        """The caller waits no longer."""
        for waiting in (backend.running, backend.queue, backend.hung):
            if call in waiting:
                waiting.remove(call)
                backend.in_flight -= 1
                backend.cancelled += 1
                self._finish(call, success=False)
                self._start(backend)

    def _start(self, backend: Backend) -> None:
        while backend.mode == "ok" and backend.queue and len(backend.running) < backend.slots:
            call = backend.queue.popleft()
            backend.running.add(call)
            seconds = backend.service * backend.slowness
            if backend.spread:
                seconds *= math.exp(self.chance.gauss(0.0, backend.spread))
            self.after(seconds, lambda call=call: self._served(backend, call))  # type: ignore[misc]

    def _served(self, backend: Backend, call: Call) -> None:
        if call not in backend.running:
            return  # it was reset meanwhile
        if backend.mode == "freeze":
            self.after(0.05, lambda: self._served(backend, call))
            return
        backend.running.remove(call)
        self._end(backend, call, success=self.chance.random() >= backend.failing)
        self._start(backend)

    def _end(self, backend: Backend, call: Call, *, success: bool) -> None:
        backend.in_flight -= 1
        self._aid(backend, broken=not success and backend.mode != "ok")
        if success:
            backend.succeeded += 1
            self._finish(call, success=True)
            return
        backend.failed += 1
        if len(call.attempts) <= self.retries:
            self._attempt(call)
        else:
            self._finish(call, success=False)

    def _aid(self, backend: Backend, *, broken: bool) -> None:
        """Envoy's first aid: who breaks off twice in a row is left alone for a moment."""
        backend.broken = backend.broken + 1 if broken else 0
        if backend.broken >= 2 and self.now >= backend.away_until:
            backend.away_until = self.now + min(1.0, 0.25 * backend.broken)

    def _finish(self, call: Call, *, success: bool) -> None:
        self.ended.append((call.started, self.now - call.started, success))
        if call.caller is not None:
            caller = call.caller
            self.after(0.0001, lambda: self._call(caller))

    # faults

    def kill(self, name: str) -> None:
        self._lose(self.backends[name], "refuse")

    def cut_off(self, name: str) -> None:
        self._lose(self.backends[name], "hang")

    def _lose(self, backend: Backend, mode: str) -> None:
        backend.mode = mode
        lost = [*backend.running, *backend.queue]
        backend.running.clear()
        backend.queue.clear()
        for call in lost:
            if mode == "refuse":
                self._end(backend, call, success=False)
            else:
                self._hang(backend, call)

    def heal(self, name: str) -> None:
        backend = self.backends[name]
        backend.mode = "ok"
        backend.slowness = 1.0
        backend.failing = 0.0
        self._start(backend)

    # what is judged

    def shares(self, begin: float, end: float) -> dict[str, float]:
        counts = Counter(name for time, name in self.sent if begin <= time < end)
        total = sum(counts.values()) or 1
        return {name: counts[name] / total for name in self.backends}

    def throughput(self, begin: float, end: float) -> float:
        done = sum(1 for at, took, ok in self.ended if ok and begin <= at + took < end)
        return done / (end - begin)

    def failures(self, begin: float = 0.0, end: float = math.inf) -> int:
        return sum(1 for at, _, ok in self.ended if not ok and begin <= at < end)

    def percentile(self, part: float, begin: float, end: float) -> float:
        took = sorted(t for at, t, _ in self.ended if begin <= at < end)
        return took[min(len(took) - 1, int(part * len(took)))] if took else math.nan

    def _windows(self, name: str, begin: float, end: float) -> list[tuple[float, float]]:
        """The end of each half second, a tenth apart, and a backend's share in it."""
        all_times = [time for time, _ in self.sent]
        its_times = [time for time, who in self.sent if who == name]
        windows = []
        for step in range(int((end - begin - 0.5) * 10 + 1e-6) + 1):
            first, last = begin + step / 10, begin + step / 10 + 0.5
            total = bisect_left(all_times, last) - bisect_left(all_times, first)
            its = bisect_left(its_times, last) - bisect_left(its_times, first)
            windows.append((last, its / total if total else 0.0))
        return windows

    def left(self, name: str, fault: float, until: float, most: float = 0.01) -> float:
        """Seconds after a fault to when a share stays below ``most``."""
        above = [end for end, share in self._windows(name, fault, until) if share >= most]
        return above[-1] - fault if above else 0.0

    def returned(self, name: str, healed: float, until: float) -> float:
        """Seconds after healing to when nine tenths of a fair share are there."""
        fair = 1.0 / len(self.backends)
        windows = self._windows(name, healed, until)
        return next((end for end, share in windows if share >= 0.9 * fair), math.inf) - healed

    def normal(self, fault: float, until: float, most: float) -> float:
        """Seconds after a fault to when the p99 of half a second stays at ``most`` or below."""
        ends = [fault + 0.5 + step / 10 for step in range(int((until - fault - 0.5) * 10))]
        above = [end for end in ends if self.percentile(0.99, end - 0.5, end) > most]
        return above[-1] - fault if above else 0.0

    def swings(self, name: str, begin: float, end: float) -> int:
        """How often a share rose from next to nothing to half of a fair one."""
        fair, swings, low = 1.0 / len(self.backends), 0, False
        for _, share in self._windows(name, begin, end):
            if share < 0.05 * fair:
                low = True
            elif low and share > 0.5 * fair:
                swings, low = swings + 1, False
        return swings
