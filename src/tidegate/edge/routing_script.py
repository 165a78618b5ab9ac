"""The scripts in Lua: their files with tables that are generated from protocols and settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

from tidegate import errors
from tidegate.edge import names
from tidegate.edge.settings import SMALL_MESSAGE_SIZE
from tidegate.protocols.routing import (
    MODEL_HEADER,
    ONLY_HEADER,
    VERSION_HEADER,
    RoutedMethod,
    RoutedPrefix,
    Routing,
)
from tidegate.protocols.statuses import status_of

_TEMPLATE = Path(__file__).with_name("routing.lua")
_ORIGINS_TEMPLATE = Path(__file__).with_name("origins.lua")
_MARK = "--@tables\n"

# The patterns of tidegate.protocols.routing in Lua, which has no counts: lengths are apart.
# A test holds the two against each other.
_LUA_NAME, _NAME_LENGTH = "^[A-Za-z0-9][A-Za-z0-9._-]*$", 128
_LUA_VERSION, _VERSION_LENGTH = "^[1-9][0-9]*$", 18
_TASK_LENGTH = 18

_Tree: TypeAlias = "dict[int | str, str | _Tree | dict[str, bool]]"
_Lua: TypeAlias = "str | int | bool | Mapping[str, _Lua] | Mapping[int, _Lua] | list[_Lua]"


def origins_script(origins: Iterable[str]) -> str:
    """Return the Lua program that lets pages of ``origins`` call as programs do."""
    tables = {"ORIGINS": dict.fromkeys(origins, True), "METADATA": names.METADATA}
    return _filled(_ORIGINS_TEMPLATE, tables)


def routing_script(
    routings: Iterable[Routing],
    max_message_size: int,
    read_at_once: int | None = None,
    kept_at_once: int | None = None,
) -> str:
    """Return the Lua program that routes the calls of ``routings``.

    Args:
        routings: what each protocol says of its methods and paths.
        max_message_size: the largest message.
        read_at_once: how many messages a thread may hold until it knows where they go; ``None``:
            what bounds them is elsewhere.
        kept_at_once: how many of those that are not small it may hold until they are answered;
            ``None``: it does not say which.
    """
    routings = tuple(routings)
    server_paths = [path for r in routings for path in r.server_paths]
    tables: dict[str, object] = {
        "METHODS": {m.path: _method(m) for r in routings for m in r.methods},
        "SERVER_METHODS": {path: True for r in routings for path in r.server_methods},
        "SERVER_PATHS": {path: True for path in server_paths if not path.endswith("/")},
        "SERVER_PREFIXES": [path for path in server_paths if path.endswith("/")],
        "PATHS": {p.path: p.header for r in routings for p in r.paths},
        "PREFIXES": [_prefix(p) for r in routings for p in r.prefixes],
        "LIMIT": max_message_size,
        "PLACES": False if read_at_once is None else read_at_once,
        "KEPT": False if kept_at_once is None else kept_at_once,
        "SMALL": SMALL_MESSAGE_SIZE,
        "NAME": _LUA_NAME,
        "NAME_LENGTH": _NAME_LENGTH,
        "VERSION": _LUA_VERSION,
        "VERSION_LENGTH": _VERSION_LENGTH,
        "MODEL_HEADER": MODEL_HEADER,
        "VERSION_HEADER": VERSION_HEADER,
        "ONLY_HEADER": ONLY_HEADER,
        "CLUSTER_HEADER": names.CLUSTER_HEADER,
        "AWAITED": names.AWAITED,
        "CROWDED": names.CROWDED,
        "KEPT_HEADER": names.KEPT_HEADER,
        "REFUSED_HEADER": names.REFUSED_HEADER,
        "MODEL_PREFIX": names.MODEL_PREFIX,
        "SOLE": names.SOLE,
        "TASK_PREFIX": names.TASK_PREFIX,
        "TASK_LENGTH": _TASK_LENGTH,
        "CONTROLLER_CLUSTER": names.CONTROLLER_CLUSTER,
        "STATUS": {
            "invalid": _status(errors.InvalidInput()),
            "not_found": _status(errors.ModelNotFound()),
            "too_large": _status(errors.MessageTooLarge()),
            "unsupported": _status(errors.Unsupported()),
        },
    }
    return _filled(_TEMPLATE, tables)


def _filled(template: Path, tables: Mapping[str, object]) -> str:
    lines = "".join(f"local {name} = {_lua(value)}\n" for name, value in tables.items())
    return template.read_text().replace(_MARK, lines)


def _method(method: RoutedMethod) -> dict[str, object]:
    found: dict[str, object] = {"header": method.header, "task_in_name": method.task_in_name}
    if method.server:
        found["server"] = True
    tree = _tree(method)
    if tree:
        found["tree"] = tree
    return found


def _prefix(prefix: RoutedPrefix) -> dict[str, object]:
    return {
        "prefix": prefix.prefix,
        "skipped": prefix.skipped,
        "segment": "[^/:]*" if prefix.colon else "[^/]*",
        "labels": prefix.labels,
        "verbs": dict.fromkeys(prefix.server_verbs, True),
    }


def _tree(method: RoutedMethod) -> _Tree:
    """Join the paths of field numbers into one tree, so that one walk finds all values."""
    tree: _Tree = {}
    for leaf in ("model", "version", "number", "label"):
        path = getattr(method, leaf)
        if path:
            _below(tree, path[:-1], method.path)[path[-1]] = leaf
    if method.tags:
        # The entries of a map are messages of a key and a value; a Value is a message of one
        # number or string (struct.proto).
        entry = _below(tree, method.tags, method.path)
        entry["keys"] = dict.fromkeys(method.task_keys, True)
        value: _Tree = {2: "double", 3: "text"}
        entry[1], entry[2] = "key", value
    return tree


def _below(tree: _Tree, path: tuple[int, ...], method: str) -> _Tree:
    for number in path:
        below = tree.setdefault(number, {})
        if isinstance(below, str):
            raise ValueError(f"{method}: field {number} is a value and a message")
        tree = cast("_Tree", below)
    return tree


def _status(error: errors.RequestError) -> list[str]:
    status = status_of(error)
    return [str(status.http), str(int(status.grpc))]


def _lua(value: object) -> str:
    """Write a value as Lua: text without control characters, numbers, lists and tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"{value!r} cannot be written into the routing script")
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "{" + ", ".join(_lua(item) for item in value) + "}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"[{_lua(k)}] = {_lua(v)}" for k, v in value.items()) + "}"
    raise TypeError(f"{type(value).__name__} has no form in the routing script")
