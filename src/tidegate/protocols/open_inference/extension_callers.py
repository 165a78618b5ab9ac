"""The model repository and the statistics extensions, seen by who calls.

Sources: ``extension_model_repository.md`` and ``extension_statistics.md`` of Triton's protocol
documents. Both transports carry the same fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from tidegate.protocols.open_inference import messages
from tidegate.protocols.open_inference.answers import invalid_answer, read_message
from tidegate.protocols.open_inference.repository import IndexEntry, State
from tidegate.protocols.open_inference.statistics import Times, VersionStatistics
from tidegate.protocols.open_inference.tensors import shown

_REQUESTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_BATCHES = ("compute_input", "compute_infer", "compute_output")
_Get = Callable[[Any, str], Any]


def encode_index_body(ready: bool) -> bytes:
    """Return the body of ``POST /v2/repository/index``."""
    return orjson.dumps({"ready": True} if ready else {})


def encode_index(ready: bool) -> bytes:
    """Return a ``RepositoryIndexRequest``."""
    return bytes(messages.RepositoryIndexRequest(ready=ready).SerializeToString())


def decode_index_body(body: bytes) -> tuple[IndexEntry, ...]:
    """Return what a repository index says.

    Raises:
        InvalidAnswer: the body is malformed.
    """
    return _index(_loaded(body), _key)


def decode_index(message: bytes) -> tuple[IndexEntry, ...]:
    """Return what a ``RepositoryIndexResponse`` says.

    Raises:
        InvalidAnswer: the message is malformed.
    """
    return _index(read_message(messages.RepositoryIndexResponse, message).models, _field)


def encode_load(name: str) -> bytes:
    """Return a ``RepositoryModelLoadRequest``."""
    return bytes(messages.RepositoryModelLoadRequest(model_name=name).SerializeToString())


def encode_unload(name: str) -> bytes:
    """Return a ``RepositoryModelUnloadRequest``."""
    return bytes(messages.RepositoryModelUnloadRequest(model_name=name).SerializeToString())


def encode_statistics(name: str, version: str) -> bytes:
    """Return a ``ModelStatisticsRequest``; empty: of all."""
    return bytes(messages.ModelStatisticsRequest(name=name, version=version).SerializeToString())


def decode_statistics_body(body: bytes) -> tuple[VersionStatistics, ...]:
    """Return what the body of statistics says.

    Raises:
        InvalidAnswer: the body is malformed.
    """
    document = _loaded(body)
    if not isinstance(document, dict):
        raise invalid_answer(f"the statistics are {shown(document)}, not an object")
    return _statistics(document.get("model_stats"), _key)


def decode_statistics(message: bytes) -> tuple[VersionStatistics, ...]:
    """Return what a ``ModelStatisticsResponse`` says.

    Raises:
        InvalidAnswer: the message is malformed.
    """
    return _statistics(read_message(messages.ModelStatisticsResponse, message).model_stats, _field)


def _index(found: object, get: _Get) -> tuple[IndexEntry, ...]:
    return tuple(
        IndexEntry(
            _text(get(item, "name")),
            _text(get(item, "version")),
            _state(get(item, "state")),
            _text(get(item, "reason")),
        )
        for item in _items(found)
    )


def _state(found: object) -> State:
    """Return a state; Triton writes none for what was never loaded."""
    try:
        return State(found or State.UNAVAILABLE.value)
    except ValueError:
        raise invalid_answer(f"a model has the state {shown(found)}") from None


def _statistics(found: object, get: _Get) -> tuple[VersionStatistics, ...]:
    versions = []
    for item in _items(found):
        requests = get(item, "inference_stats")
        batches = {
            _number(get(batch, "batch_size")): _times(batch, _BATCHES, get)
            for batch in _items(get(item, "batch_stats") or [])
        }
        versions.append(
            VersionStatistics(
                _text(get(item, "name")),
                _text(get(item, "version")),
                _number(get(item, "last_inference")),
                _number(get(item, "inference_count")),
                _number(get(item, "execution_count")),
                _times(requests, _REQUESTS, get),
                batches,
            )
        )
    return tuple(versions)


def _times(found: Any, names: Sequence[str], get: _Get) -> Mapping[str, Times]:
    times = {}
    for name in names:
        item = None if found is None else get(found, name)
        times[name] = (
            Times(0, 0)
            if item is None
            else Times(_number(get(item, "count")), _number(get(item, "ns")))
        )
    return times


def _key(item: Any, name: str) -> Any:
    if not isinstance(item, dict):
        raise invalid_answer(f"it has {shown(item)} where an object should be")
    return item.get(name)


def _field(message: Any, name: str) -> Any:
    return getattr(message, name)


def _items(found: Any) -> Sequence[Any]:
    if isinstance(found, str | bytes | dict) or not hasattr(found, "__len__"):
        raise invalid_answer(f"it has {shown(found)} where a list should be")
    items: Sequence[Any] = found
    return items


def _text(found: object) -> str:
    if found is None:
        return ""
    if not isinstance(found, str | int):
        raise invalid_answer(f"it has {shown(found)} where text should be")
    return str(found)


def _number(found: object) -> int:
    if found is None:
        return 0
    if type(found) is not int:
        raise invalid_answer(f"it has {shown(found)} where a whole number should be")
    return found


def _loaded(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_answer(f"{shown(body[:80])} is not JSON ({error})") from error
