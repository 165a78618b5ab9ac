"""The batcher against a model of it that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidegate.errors import DeadlineExceeded, QueueFull, TidegateError
from tidegate.scheduling.batcher import PATIENCE, Batcher, BatcherLimits
from tidegate.scheduling.latency import LatencyModel
from tidegate.scheduling.slot import NO_DEADLINE, Slot, State

WAITING, TAKEN, FINISHED = "waiting", "taken", "finished"


@dataclass(eq=False)
class Entry:
    slot: Slot[int, int]
    number: int
    turn: float
    state: str = WAITING
    outcomes: int = 0
    served: int = 0
    order: tuple[int, float, int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = (self.slot.priority, self.turn, self.number)


class BatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.entries: dict[Slot[int, int], Entry] = {}
        self.latency = LatencyModel()

    @initialize(
        largest=st.integers(1, 6),
        most=st.integers(1, 12),
        most_bytes=st.sampled_from([10, 40, 10_000]),
        delay=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def make(self, largest: int, most: int, most_bytes: int, delay: float) -> None:
        self.limits = BatcherLimits(largest, most, most_bytes, delay)
        self.largest = largest
        self.batcher: Batcher[int, int] = Batcher(self.limits, self.latency)

    def having(self, *states: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state in states]

    def groups(self) -> dict[object, list[Entry]]:
        """Those that wait, by group, most urgent first."""
        groups: dict[object, list[Entry]] = {}
        for entry in sorted(self.having(WAITING), key=lambda e: e.order):
            groups.setdefault(entry.slot.group, []).append(entry)
        return groups

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(rows=st.integers(1, 8), seconds=st.sampled_from([0.01, 0.3, 2.0]))
    def learn(self, rows: int, seconds: float) -> None:
        self.latency.observe(rows, seconds)

    @rule(
        rows=st.integers(1, 8),
        size=st.integers(0, 12),
        group=st.sampled_from(["a", "b", "c"]),
        priority=st.integers(0, 1),
        left=st.sampled_from([None, None, -1.0, 0.2, 1.0, 5.0, 50.0]),
    )
    def add(self, rows: int, size: int, group: str, priority: int, left: float | None) -> None:
        deadline = NO_DEADLINE if left is None else self.now + left
        slot: Slot[int, int] = Slot(
            len(self.entries), self.done, arrived=self.now, rows=rows, size=size, group=group,
            priority=priority, deadline=deadline,
        )  # fmt: skip
        turn = self.now + PATIENCE if left is None else deadline
        entry = Entry(slot, len(self.entries), turn)
        refusal = self.expected_refusal(slot, left)
        if refusal is None:
            self.batcher.add(slot, self.now)
            self.entries[slot] = entry
        else:
            with pytest.raises(refusal):
                self.batcher.add(slot, self.now)
            assert slot.pending

    def expected_refusal(
        self, slot: Slot[int, int], left: float | None
    ) -> type[TidegateError] | None:
        waiting = self.having(WAITING)
        if len(waiting) >= self.limits.max_queue_size:
            return QueueFull
        size = sum(entry.slot.size for entry in waiting)
        if waiting and size + slot.size > self.limits.max_queue_bytes:
            return QueueFull
        if left is not None and slot.deadline - self.now < max(
            self.latency.estimate(slot.rows), 1e-300
        ):
            return DeadlineExceeded
        return None

    def done(self, slot: Slot[int, int]) -> None:
        self.entries[slot].outcomes += 1
        self.entries[slot].state = FINISHED

    @rule()
    def take(self) -> None:
        groups = self.groups()
        due = self.batcher.next_due()
        batch = self.batcher.take(self.now)
        if not batch:
            self.check_nothing_is_due(groups, due)
            return
        chosen = groups[batch[0].group]
        assert batch == [entry.slot for entry in chosen[: len(batch)]], "out of order or mixed"
        rows = sum(slot.rows for slot in batch)
        assert len(batch) == 1 or rows <= self.largest
        if len(chosen) > len(batch):
            assert rows + chosen[len(batch)].slot.rows > self.largest, "room was left"
        if not self.limits.max_queue_delay:
            heads = [entries[0] for entries in groups.values()]
            assert chosen[0].order[:2] == min(head.order[:2] for head in heads)
        for slot in batch:
            self.entries[slot].state = TAKEN
            self.entries[slot].served += 1

    def check_nothing_is_due(self, groups: dict[object, list[Entry]], due: float | None) -> None:
        if not groups:
            assert due is None
            return
        delay = self.limits.max_queue_delay
        assert delay > 0, "idle though something waits"
        assert due is not None
        assert due > self.now
        for entries in groups.values():
            assert sum(entry.slot.rows for entry in entries) < self.largest
            oldest = min(entry.slot.arrived for entry in entries)
            assert self.now < oldest + delay, "waited longer than max_queue_delay"
            assert due <= oldest + delay

    @precondition(lambda self: self.having(WAITING))
    @rule()
    def wait_until_due(self) -> None:
        due = self.batcher.next_due()
        assert due is not None
        self.now = max(self.now, due)
        before = len(self.having(WAITING))
        self.take()
        assert len(self.having(WAITING)) < before

    @precondition(lambda self: self.having(WAITING, TAKEN))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.having(WAITING, TAKEN)))
        assert entry.slot.cancel()
        self.batcher.discard(entry.slot)

    @precondition(lambda self: self.having(TAKEN))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.having(TAKEN)))
        assert entry.slot.resolve(1)

    @rule()
    def expire(self) -> None:
        late = [e for e in self.having(WAITING, TAKEN) if e.slot.deadline <= self.now]
        expired = self.batcher.expired(self.now)
        assert sorted(map(id, expired)) == sorted(id(entry.slot) for entry in late)
        for slot in expired:
            assert slot.fail(DeadlineExceeded("too late"))

    @rule(rows=st.integers(0, 8))
    def clamp(self, rows: int) -> None:
        self.batcher.clamp(rows)
        self.largest = max(1, min(self.largest, rows))

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert self.batcher.depth == len(self.having(WAITING))
        assert self.batcher.depth <= self.limits.max_queue_size
        assert self.batcher.max_batch_size == self.largest
        deadlines = [e.slot.deadline for e in self.having(WAITING, TAKEN)]
        earliest = min(deadlines, default=NO_DEADLINE)
        assert self.batcher.next_deadline() == (None if earliest == NO_DEADLINE else earliest)

    def teardown(self) -> None:
        """Serve everybody: none is lost, none is served twice."""
        if not hasattr(self, "batcher"):
            return
        while self.having(WAITING):
            self.wait_until_due()
        assert self.batcher.take(self.now + 1e9) == []
        for entry in self.having(TAKEN):
            entry.slot.resolve(1)
        for entry in self.entries.values():
            assert entry.outcomes == 1
            assert entry.served <= 1
            assert entry.served == 1 or entry.slot.state is not State.RESOLVED
        assert self.batcher.depth == 0


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
