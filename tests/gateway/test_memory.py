"""What a gateway's controller leaves for the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tidegate.config.endpoints import Endpoints
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.memory import Memory
from tidegate.gateway.models import Task
from tidegate.gateway.registry import Registry
from tidegate.gateway.sources import Sources, key_of
from tidegate.protocols.registration import AnnouncedModel, Announcement


class Away:
    """A source that cannot look."""

    async def follow(self, tell: object, problem: object) -> None:
        await asyncio.Event().wait()


def away(entry: Endpoints) -> Away:
    return Away()


def sources() -> Sources:
    return Sources(away, lambda: None, lambda _: None)


async def test_a_file_that_cannot_be_written_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    memory, registry = Memory(folder / "endpoints.json"), Registry()
    registry.register(
        "n:8000", Announcement("10.0.0.7:8000", (AnnouncedModel("m", (1,), ready=True),)), 0.0
    )
    memory.keep(sources(), registry)
    assert "cannot be written: No such file" in str(memory.problem)
    folder.mkdir()
    memory.keep(sources(), registry)
    assert memory.problem is None
    other = Registry()
    Memory(folder / "endpoints.json").recall(sources(), other, 0.0)
    (endpoint,) = other.models(0.0)["m"]
    assert endpoint.address == "10.0.0.7:8000"


async def test_what_was_remembered_holds_for_entries_of_the_start() -> None:
    """One that an edit brings back, hours later, begins with what its source says."""
    entry = Endpoints(file=Path("/gone"))
    known = sources()
    known.remember({key_of(entry): (Endpoint("10.0.0.7:8000", "tidegate"),)})
    known.want([entry])
    assert known.found(entry)
    known.want([])
    known.want([entry])
    assert known.found(entry) == ()
    await known.close()


async def test_what_a_source_said_that_is_away_outlives_controllers(
    tmp_path: Path,
) -> None:
    entry = Endpoints(file=Path("/gone"))
    known = {key_of(entry): (Endpoint("10.0.0.7:8000", "tidegate"),)}
    task = Task(1.5, (Endpoints(address="10.0.0.8:8000"),))
    file = tmp_path / "endpoints.json"
    first = Sources(away, lambda: None, lambda _: None)
    first.remember(known)
    first.want([entry])
    Memory(file).keep(first, Registry(), {"69": task})
    for _ in range(3):
        memory, later = Memory(file), Sources(away, lambda: None, lambda _: None)
        tasks = memory.recall(later, Registry(), 0.0)
        assert tasks == {"69": task}
        later.want([entry])
        assert later.known() == known
        memory.keep(later, Registry(), tasks)
        await later.close()
        assert later.found(entry) == known[key_of(entry)]  # calls still run
    await first.close()
