"""What a gateway's controller leaves for the next one."""

from __future__ import annotations

from pathlib import Path

from tidegate.config.gateway import Endpoints
from tidegate.gateway.memory import Memory
from tidegate.gateway.registry import Registry
from tidegate.gateway.sources import Made, Sources
from tidegate.protocols.registration import AnnouncedModel, Announcement


def no_source(entry: Endpoints) -> Made:
    return ()


def sources() -> Sources:
    return Sources(no_source, lambda: None, lambda _: None)


async def test_a_file_that_cannot_be_written_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    memory, registry = Memory(folder / "endpoints.json"), Registry()
    registry.register(
        "n:8000", Announcement("10.0.0.7:8000", (AnnouncedModel("m", (1,), ready=True),)), 0.0
    )
    memory.keep(sources(), registry)
    assert "cannot be written: No such file" in str(memory.state()["problem"])
    folder.mkdir()
    memory.keep(sources(), registry)
    assert memory.problem is None
    other = Registry()
    Memory(folder / "endpoints.json").recall(sources(), other, 0.0)
    (endpoint,) = other.models(0.0)["m"]
    assert endpoint.address == "10.0.0.7:8000"
