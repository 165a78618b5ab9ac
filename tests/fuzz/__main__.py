"""Fuzz every decoder for a while: ``scripts/fuzz [SECONDS] [--seed N] [--only NAME]``."""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz import seeds, watching
from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutations import drawn

_ROUND = 1000
"""Messages for one decoder before the next has its turn."""


def keep(decoder: Decoder, data: bytes, folder: Path) -> Path:
    """Save a message that is a fault to read."""
    folder.mkdir(parents=True, exist_ok=True)
    name = decoder.name.replace(" ", "-").replace("/", "-")
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def run(seconds: float, seed: int, decoders: list[Decoder], folder: Path) -> int:
    """Fuzz in turns until the time is over or something is found; the exit status."""
    source = random.Random(seed)
    until = time.monotonic() + seconds
    counts = dict.fromkeys((decoder.name for decoder in decoders), 0)
    goods = {decoder.name: decoder.good() for decoder in decoders}
    before = watching.peak()
    while time.monotonic() < until:
        for decoder in decoders:
            for _ in range(_ROUND):
                data = drawn(goods[decoder.name], source)
                watching.begin()
                try:
                    decoder.check(data)
                except Exception:
                    traceback.print_exc()
                    path = keep(decoder, data, folder)
                    print(f"{decoder.name}: seed {seed}, message {counts[decoder.name]}")
                    print(f"again: scripts/fuzz --only '{decoder.name}' --replay {path}")
                    return 1
                counts[decoder.name] += 1
            if watching.peak() - before > watching.ROOM * len(decoders):
                print(f"{decoder.name}: it took {watching.peak() >> 20} MiB, seed {seed}")
                return 1
    for name, count in counts.items():
        print(f"{name:24} {count:12,}")
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", help="the name of one decoder")
    parser.add_argument("--replay", type=Path, help="read this message with it and nothing else")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    given = parser.parse_args()
    decoders = [d for d in DECODERS if given.only in (None, d.name)]
    if not decoders:
        parser.error(f"there is {', '.join(d.name for d in DECODERS)}; not {given.only}")
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    try:
        with watching.hangs_end():
            if given.replay:
                decoders[0].check(given.replay.read_bytes())
                return 0
            return run(given.seconds, seed, decoders, given.save)
    finally:
        shutil.rmtree(seeds.FOLDER, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
