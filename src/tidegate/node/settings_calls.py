"""The trace and logging extensions of a node.

The level of the logs is real, in the controller and in the replicas. Traces in Triton's files
are not written: the settings are kept and told, ``trace_mode`` says that nothing comes of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection

from tidegate.controller.server_calls import Call, Endpoint, Extension
from tidegate.errors import InvalidInput, ModelNotFound, Unsupported
from tidegate.protocols import open_inference
from tidegate.protocols.open_inference import settings as codec
from tidegate.protocols.open_inference.settings import LogSettings, TraceSettings
from tidegate.protocols.routing import check_model

_TRACE_DEFAULTS: TraceSettings = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("none",),
}
_TRACE_ALLOWED = {
    "trace_level": "OFF|TIMESTAMPS|TENSORS",
    "trace_rate": "[1-9][0-9]{0,9}",
    "trace_count": "-1|[0-9]{1,10}",
    "log_frequency": "[0-9]{1,10}",
}
_TRACE_SCHEMA = {
    "type": "object",
    "properties": {
        key: {"type": "array", "items": {"type": "string"}}
        if key in codec.SEVERAL
        else {"type": "string"}
        for key in _TRACE_DEFAULTS
    },
}
_LOG_SCHEMA = {
    "type": "object",
    "properties": {
        "log_file": {"type": "string"},
        "log_info": {"type": "boolean"},
        "log_warning": {"type": "boolean"},
        "log_error": {"type": "boolean"},
        "log_verbose_level": {"type": "integer", "minimum": 0},
        "log_format": {"type": "string"},
    },
}
_MOST_VALUES = 3


class TraceCalls:
    """Keeps the settings; ``models`` returns the names that there are."""

    def __init__(self, models: Callable[[], Collection[str]]) -> None:
        self._models = models
        self._settings: dict[str, dict[str, tuple[str, ...]]] = {}
        """Those that were set, of all models under an empty name."""

    def extension(self) -> Extension:
        """Return the calls."""
        endpoints = []
        for path, whose in (
            ("/v2/trace/setting", "of all models"),
            ("/v2/models/{model}/trace/setting", "of a model"),
        ):
            endpoints += [
                Endpoint("GET", path, self._get, f"The trace settings {whose}", _TRACE_SCHEMA),
                Endpoint(
                    "POST", path, self._set_rest, f"Change trace settings {whose}",
                    _TRACE_SCHEMA, _TRACE_SCHEMA,
                ),
            ]  # fmt: skip
        return Extension(("trace",), endpoints, {open_inference.TRACE_SETTING: self._set_grpc})

    def settings(self, model: str) -> TraceSettings:
        """Return what holds for ``model``; an empty name: for those without their own."""
        return {**_TRACE_DEFAULTS, **self._settings.get("", {}), **self._settings.get(model, {})}

    def change(self, model: str, settings: TraceSettings) -> TraceSettings:
        """Change some of them; one without a value is taken back. Return what holds.

        Raises:
            InvalidInput: a setting is not known, or a value is not possible.
            ModelNotFound: there is no such model.
        """
        if model:
            check_model(model)
            if model not in self._models():
                raise ModelNotFound(f"there is no model {model!r} in the repository")
        for key, values in settings.items():
            _check_trace(key, values)
        if settings:
            own = self._settings.setdefault(model, {})
            for key, values in settings.items():
                if values:
                    own[key] = values
                else:
                    own.pop(key, None)
        return self.settings(model)

    async def _get(self, call: Call) -> bytes:
        return codec.encode_trace_body(self.change(call.parameters.get("model", ""), {}))

    async def _set_rest(self, call: Call) -> bytes:
        model = call.parameters.get("model", "")
        return codec.encode_trace_body(self.change(model, codec.decode_trace_body(call.body)))

    async def _set_grpc(self, call: Call) -> bytes:
        return codec.encode_trace(self.change(*codec.decode_trace(call.body)))


def _check_trace(key: str, values: tuple[str, ...]) -> None:
    allowed = _TRACE_ALLOWED.get(key)
    if allowed is None:
        if key in _TRACE_DEFAULTS:
            raise Unsupported(
                f"the trace setting {key!r} cannot be changed: Tidegate writes no trace files"
            )
        raise InvalidInput(
            f"there is no trace setting {key[:64]!r}; there are {', '.join(_TRACE_DEFAULTS)}"
        )
    most = _MOST_VALUES if key in codec.SEVERAL else 1
    if len(values) > most or not all(re.fullmatch(allowed, value) for value in values):
        raise InvalidInput(
            f"the trace setting {key!r} cannot be {', '.join(values)[:64]!r}; it takes {allowed}"
        )


class LogCalls:
    """Changes the level of the logs; ``tell`` passes it on to the replicas."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def extension(self) -> Extension:
        """Return the calls."""
        path = "/v2/logging"
        return Extension(
            ("logging",),
            (
                Endpoint("GET", path, self._get, "The log settings", _LOG_SCHEMA),
                Endpoint("POST", path, self._set_rest, "Change log settings",
                         _LOG_SCHEMA, _LOG_SCHEMA),
            ),
            {open_inference.LOG_SETTINGS: self._set_grpc},
        )  # fmt: skip

    def settings(self) -> LogSettings:
        """Return what holds now."""
        level = logging.getLogger("tidegate").getEffectiveLevel()
        return {
            "log_file": "",
            "log_info": level <= logging.INFO,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": int(level <= logging.DEBUG),
            "log_format": "default",
        }

    def change(self, settings: LogSettings) -> LogSettings:
        """Change some of them; return what holds then.

        Raises:
            InvalidInput: a setting is not known, or a value is not possible.
            Unsupported: what is asked for cannot be changed, as that errors are logged.
        """
        now = self.settings()
        for key, value in settings.items():
            if key not in now:
                raise InvalidInput(
                    f"there is no log setting {key[:64]!r}; there are {', '.join(now)}"
                )
            if type(value) is not type(now[key]) or (type(value) is int and value < 0):
                raise InvalidInput(
                    f"the log setting {key!r} cannot be {str(value)[:64]!r}; "
                    f"it is {now[key]!r} now"
                )
            if key not in ("log_info", "log_verbose_level") and value != now[key]:
                raise Unsupported(
                    f"the log setting {key!r} cannot be changed by a call: it stays {now[key]!r}"
                )
        wanted = {**now, **settings}
        level = logging.INFO if wanted["log_info"] else logging.WARNING
        if wanted["log_verbose_level"]:
            level = logging.DEBUG
        if settings:
            logging.getLogger("tidegate").setLevel(level)
            self._tell(level)
        return self.settings()

    async def _get(self, call: Call) -> bytes:
        return codec.encode_log_body(self.settings())

    async def _set_rest(self, call: Call) -> bytes:
        return codec.encode_log_body(self.change(codec.decode_log_body(call.body)))

    async def _set_grpc(self, call: Call) -> bytes:
        return codec.encode_log(self.change(codec.decode_log(call.body)))
