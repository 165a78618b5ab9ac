"""Ten thousand damaged messages for every decoder; ``scripts/fuzz`` goes on as long as you like.

A decoder gives a result or raises one of its documented errors; it ends, and takes no more memory
than what came is worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds, watching
from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutations import MOST_STEPS, STEP, mutated

EXAMPLES, VARIATIONS = 1000, 10
"""What hypothesis draws for each decoder, and the messages that are made of one draw."""
ONCE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # who looks for more runs scripts/fuzz
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watching.hangs_end():
        yield
    shutil.rmtree(seeds.FOLDER, ignore_errors=True)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_good_messages_are_read(decoder: Decoder) -> None:
    """Else most of what follows would stop at the first byte."""
    read = 0
    for good in decoder.good():
        try:
            decoder.read(good)
            read += 1
        except decoder.documented:
            pass
    assert read


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_damaged_messages_are_read_or_refused(decoder: Decoder) -> None:
    good = decoder.good()
    before = watching.peak()

    @ONCE
    @given(st.binary(max_size=STEP * MOST_STEPS + 2))
    def run(drawn: bytes) -> None:
        watching.begin()
        decoder.check(drawn)
        which = int.from_bytes(drawn[:2], "big")
        for variation in range(1, VARIATIONS):
            # The same bytes read from another place on are another program.
            program = drawn[variation:] + drawn[:variation]
            decoder.check(mutated(good, which + variation, program))

    run()
    assert watching.peak() - before < watching.ROOM
