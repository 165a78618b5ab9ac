"""A replica as its node starts it: ``python -m tidegate.replica``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tests.replica.waiting import WAIT
from tidegate.config.model import ModelConfig
from tidegate.node.launcher import environment_of
from tidegate.replica import lifeline
from tidegate.replica.notices import Notices
from tidegate.replica.spec import Failed, Ready, ReplicaSpec

EVENT: TypeAdapter[Ready | Failed] = TypeAdapter(Ready | Failed)


class ReplicaProcess:
    """The process, and the things around it that a node would have."""

    def __init__(
        self, folder: Path, model: Path, config: dict[str, Any], runtime: str, threads: int
    ) -> None:
        self.folder = folder
        self.log = folder / "log"
        self._lifeline: int | None = lifeline.hold(folder / "lifeline")
        self.spec = ReplicaSpec(
            id=1, index=0, fingerprint="f", model="m", version=2, path=model,
            folder=model.parent, runtime=runtime, threads=threads,
            config=ModelConfig.model_validate(config), socket=folder / "s",
            lifeline=folder / "lifeline", max_message_size=2**20, drain_timeout=WAIT,
            notices=folder / "notices",
        )  # fmt: skip

    def notice(self, **notices: Any) -> None:
        self.spec.notices.write_text(Notices(**notices).model_dump_json())

    async def start(self) -> None:
        spec_file = self.folder / "spec"
        spec_file.write_text(self.spec.model_dump_json())
        self._status, writing = os.pipe()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tidegate.replica", "m", "2",
                "--spec", str(spec_file), "--status-fd", str(writing),
                pass_fds=[writing], stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment_of(self.spec),
                start_new_session=True,
            )  # fmt: skip
        os.close(writing)

    async def event(self) -> Ready | Failed:
        """Wait for what it reports."""
        with os.fdopen(self._status, "rb") as status:
            line = await asyncio.wait_for(asyncio.to_thread(status.readline), 3 * WAIT)
            assert line, self.log.read_text()
            return EVENT.validate_json(line)

    async def ready(self) -> Ready:
        event = await self.event()
        assert isinstance(event, Ready), event
        return event

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 2 * WAIT)

    def release_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def clean_up(self) -> None:
        self.release_lifeline()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


@contextlib.asynccontextmanager
async def replica_process(
    folder: Path, model: Path, *, runtime: str = "onnx", threads: int = 1, **config: Any
) -> AsyncIterator[ReplicaProcess]:
    """Start one; what is left of it at the end is killed."""
    replica = ReplicaProcess(folder, model, config, runtime, threads)
    await replica.start()
    try:
        yield replica
    finally:
        replica.clean_up()
        await replica.process.wait()
