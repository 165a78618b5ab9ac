"""What bad input gets, over REST and over gRPC: ``python -m tests.node.bad_input_table``.

Each row sends one thing that is wrong to a real node, once through each transport that knows it.
With ``--markdown`` the table of the documentation is printed instead, and nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc

from tests import models
from tests.node.bad_input_rows import (
    INFER,
    OPTIONS,
    ROWS,
    Send,
    World,
    document,
    http,
    message,
)
from tests.node.failures_table import Answer
from tests.node.harness import ServedNode
from tidegate.types import DType

# -- the node -------------------------------------------------------------------------------------


def fill(root: Path, outside: Path) -> None:
    """Write the models that the rows need, the good ones and the bad."""
    whole = models.identity(root / "m.onnx").read_bytes()
    models.identity(root / "neighbour.onnx")
    models.add_sub(root / "pair.onnx")
    models.identity(root / "text.onnx", DType.BYTES, ("batch", 1))
    (root / "short.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "noise.onnx").write_bytes(random.Random(2).randbytes(5000))
    (root / "empty.onnx").touch()
    (root / "prose.onnx").write_text("these are no weights\n")
    (root / "dangling.onnx").write_bytes(whole.replace(b"Identity", b"Ydentity"))
    os.mkfifo(root / "pipe.onnx")
    secret = models.identity(outside / "1" / "model.onnx")
    (root / "linked.onnx").symlink_to(secret)
    (root / "away").symlink_to(outside)
    for name, text in (("mistaken", "batching: [1, 2"), ("deep", "a: " + "[" * 100_000)):
        models.identity(root / name / "1" / "model.onnx")
        (root / name / "model.yaml").write_text(text)
    models.identity(root / "piped" / "1" / "model.onnx")
    os.mkfifo(root / "piped" / "model.yaml")


def fill_sole(root: Path, outside: Path) -> None:
    """Write a good model alone: the edge passes its gRPC calls on unread."""
    models.identity(root / "m.onnx")


@contextlib.asynccontextmanager
async def the_node(fill: Callable[[Path, Path], None] = fill) -> AsyncIterator[World]:
    """A node with all the models, or those of another ``fill``."""
    with tempfile.TemporaryDirectory() as folder:
        root, outside = Path(folder) / "models", Path(folder) / "outside"
        root.mkdir()
        fill(root, outside)
        async with (
            ServedNode(root, *OPTIONS) as node,
            grpc.aio.insecure_channel(node.target) as channel,
        ):
            yield World(node, channel)


async def timed(world: World, send: Send) -> tuple[Answer, float]:
    """Send it; the answer, and the seconds until it came."""
    began = time.perf_counter()
    answer = await send(world)
    return answer, time.perf_counter() - began


async def neighbours(world: World, other: str = "neighbour") -> list[str]:
    """Call the same model and another one, and return the codes."""
    body = document()
    answers = await asyncio.gather(
        world.message(message()),
        world.message(message(other)),
        world.rest(http(INFER, body)),
        world.rest(http(f"/v2/models/{other}/infer", body)),
    )
    return [answer.code for answer in answers]


SERVED = ["OK", "OK", "200", "200"]


async def print_table() -> None:
    """Send everything once and print what came."""
    async with the_node() as world:
        print(f"{'what is sent':44} {'REST':>5} {'ms':>5} {'gRPC':19} {'ms':>5}  message")
        for row in ROWS:
            cells, said = [], []
            for send, width in ((row.rest, 5), (row.grpc, 19)):
                if send is None:
                    cells.append(f"{'-':{width}} {'':5}")
                    continue
                answer, seconds = await timed(world, send)
                cells.append(f"{answer.code:{width}} {seconds * 1000:5.0f}")
                said.append(answer.message)
            lines = [
                part for text in dict.fromkeys(said) for part in textwrap.wrap(text[:300], 90)
            ]
            for index, line in enumerate(lines or [""]):
                print(f"{row.name:44} {' '.join(cells)}  {line}" if not index else " " * 84 + line)


def markdown() -> str:
    """The table of the documentation."""
    lines = ["| what is sent | REST | gRPC |", "| --- | --- | --- |"]
    for row in ROWS:
        rest, rpc = row.codes
        lines.append(f"| {row.name} | {rest or '—'} | {f'`{rpc}`' if rpc else '—'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--markdown" in sys.argv:
        print(markdown())
    else:
        asyncio.run(print_table())
