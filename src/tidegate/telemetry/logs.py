"""One format of logs for controller and replicas: text for people, or JSON for programs.

A record's ``extra`` may name what it is about: ``model``, ``version``, ``replica``,
``request_id``.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
_ABOUT = ("model", "version", "replica", "request_id")


class LogSettings(BaseModel):
    """How a process logs, and how much of it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: LogFormat = "text"
    level: LogLevel = "info"
    size: int = 10 * 2**20
    """Bytes from which on a file is rotated."""
    files: int = 3
    """Older files that are kept."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line; ``about`` is said in each."""

    def __init__(self, about: Mapping[str, object]) -> None:
        super().__init__()
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._about,
        }
        for name in _ABOUT:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, what it is about, message."""

    def __init__(self, about: Mapping[str, object]) -> None:
        place = "{model}:{version}#{replica} ".format(**about) if about else ""
        # What a model's name holds must not be taken for a format.
        super().__init__(f"%(asctime)s %(levelname)s {place}%(request)s%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, with the request in brackets where it is known."""
        request_id = getattr(record, "request_id", None)
        record.request = "" if request_id is None else f"[request {request_id}] "
        return super().formatMessage(record)


def formatter(format: LogFormat, about: Mapping[str, object] | None = None) -> logging.Formatter:  # noqa: A002
    """Return the formatter; ``about`` holds model, version and replica, or nothing."""
    kind = JsonFormatter if format == "json" else TextFormatter
    return kind(about or {})


def configure(
    handler: logging.Handler, settings: LogSettings, about: Mapping[str, object] | None = None
) -> None:
    """Have this process log to ``handler``: Tidegate from its level on, others warnings."""
    handler.setFormatter(formatter(settings.format, about))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("tidegate").setLevel(settings.level.upper())
    logging.captureWarnings(True)
