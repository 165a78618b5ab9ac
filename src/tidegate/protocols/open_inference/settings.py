"""The trace and logging extensions: settings by name, in JSON and in messages.

Source: ``extension_trace.md`` and ``extension_logging.md`` of Triton's protocol documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import orjson

from tidegate.errors import InvalidInput
from tidegate.protocols.descriptors import parsed
from tidegate.protocols.grpc_frames import Buffer
from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.documents import read_object
from tidegate.protocols.open_inference.tensors import shown

TraceSettings: TypeAlias = Mapping[str, tuple[str, ...]]
"""The values of each trace setting; none: the setting is to be taken back."""
LogSettings: TypeAlias = Mapping[str, bool | int | str]

SEVERAL = ("trace_level",)
"""Trace settings with a list of values; the others have one."""


def decode_trace_body(body: bytes) -> TraceSettings:
    """Return the settings in the body of ``POST …/trace/setting``.

    Raises:
        InvalidInput: a value is no string, list of strings, number or null.
    """
    return {key: _values(key, value) for key, value in read_object(body).items()}


def decode_trace(message: Buffer) -> tuple[str, TraceSettings]:
    """Return the model, empty for all, and the settings in a ``TraceSettingRequest``.

    Raises:
        InvalidInput: the message is malformed.
    """
    request = parsed(messages.TraceSettingRequest, message)
    settings = {key: tuple(value.value) for key, value in request.settings.items()}
    return request.model_name, settings


def encode_trace_body(settings: TraceSettings) -> bytes:
    """Return the settings as JSON: a list where there may be several values."""
    return orjson.dumps(
        {k: list(v) if k in SEVERAL else "".join(v[:1]) for k, v in settings.items()}
    )


def encode_trace(settings: TraceSettings) -> bytes:
    """Return a ``TraceSettingResponse``."""
    message = messages.TraceSettingResponse()
    for key, values in settings.items():
        message.settings[key].value.extend(values)
    return bytes(message.SerializeToString())


def decode_log_body(body: bytes) -> LogSettings:
    """Return the settings in the body of ``POST /v2/logging``.

    Raises:
        InvalidInput: a value is no boolean, number or string.
    """
    settings = read_object(body)
    for key, value in settings.items():
        if not isinstance(value, bool | int | str):
            raise InvalidInput(
                f"the log setting {shown(key)} is {shown(value)}; send true, false, a whole "
                "number or a string"
            )
    return settings


def decode_log(message: Buffer) -> LogSettings:
    """Return the settings in a ``LogSettingsRequest``.

    Raises:
        InvalidInput: the message is malformed, or a setting has no value.
    """
    request = parsed(messages.LogSettingsRequest, message)
    settings: dict[str, bool | int | str] = {}
    for key, value in request.settings.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"the log setting {shown(key)} has no value; send one")
        settings[key] = getattr(value, choice)
    return settings


def encode_log_body(settings: LogSettings) -> bytes:
    """Return the settings as JSON."""
    return orjson.dumps(dict(settings))


def encode_log(settings: LogSettings) -> bytes:
    """Return a ``LogSettingsResponse``."""
    message = messages.LogSettingsResponse()
    for key, value in settings.items():
        entry = message.settings[key]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int):
            entry.uint32_param = value
        else:
            entry.string_param = value
    return bytes(message.SerializeToString())


def _values(key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int):
            raise InvalidInput(
                f"the trace setting {shown(key)} is {shown(value)}; send a string, or a list of "
                "strings"
            )
    return tuple(map(str, items))
