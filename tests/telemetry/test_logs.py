"""What a line of the log looks like."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys

from tidegate.telemetry.logs import formatter

ABOUT = {"model": "digits", "version": 2, "replica": 0}


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("tidegate.x", logging.ERROR, "f.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_text_is_for_people() -> None:
    line = formatter("text", ABOUT).format(record("it is %d", 7))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR digits:2#0 it is 7", line)
    line = formatter("text", ABOUT).format(record("no", request_id="r-1"))
    assert line.endswith(" ERROR digits:2#0 [request r-1] no")
    line = formatter("text").format(record("100 %"))
    assert line.endswith(" ERROR 100 %")


def test_json_is_for_programs() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record("two\nlines", request_id="r-1", version=3)
        made.exc_info = sys.exc_info()
    line = formatter("json", ABOUT).format(made)
    assert "\n" not in line
    said = json.loads(line)
    time = datetime.datetime.fromisoformat(said.pop("time"))
    assert abs(time.timestamp() - made.created) < 0.01
    assert "ValueError: why" in said.pop("exception")
    assert said == {
        "level": "error",
        "logger": "tidegate.x",
        "message": "two\nlines",
        "model": "digits",
        "version": 3,
        "replica": 0,
        "request_id": "r-1",
    }
