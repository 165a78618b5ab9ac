"""The routing script: ``routing.lua`` with tables that are generated from the protocols."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from tidegate import errors
from tidegate.edge import names
from tidegate.protocols.routing import MODEL_HEADER, VERSION_HEADER, RoutedMethod, Routing
from tidegate.protocols.statuses import status_of

_TEMPLATE = Path(__file__).with_name("routing.lua")
_MARK = "--@tables\n"

# The patterns of tidegate.protocols.routing in Lua, which has no counts: lengths are apart.
# A test holds the two against each other.
_LUA_NAME, _NAME_LENGTH = "^[A-Za-z0-9][A-Za-z0-9._-]*$", 128
_LUA_VERSION, _VERSION_LENGTH = "^[1-9][0-9]*$", 18

_Tree: TypeAlias = "dict[int, str | _Tree]"
_Lua: TypeAlias = "str | int | bool | Mapping[str, _Lua] | Mapping[int, _Lua] | list[_Lua]"


def routing_script(routings: Iterable[Routing], max_message_size: int) -> str:
    """Return the Lua program that routes the calls of ``routings``."""
    routings = tuple(routings)
    server_paths = [path for r in routings for path in r.server_paths]
    tables: dict[str, object] = {
        "METHODS": {m.path: _tree(m) for r in routings for m in r.methods},
        "SERVER_METHODS": {path: True for r in routings for path in r.server_methods},
        "SERVER_PATHS": {path: True for path in server_paths if not path.endswith("/")},
        "SERVER_PREFIXES": [path for path in server_paths if path.endswith("/")],
        "SERVER_VERBS": {verb: True for r in routings for verb in r.server_verbs},
        "PREFIXES": [p.prefix for r in routings for p in r.prefixes],
        "LIMIT": max_message_size,
        "NAME": _LUA_NAME,
        "NAME_LENGTH": _NAME_LENGTH,
        "VERSION": _LUA_VERSION,
        "VERSION_LENGTH": _VERSION_LENGTH,
        "MODEL_HEADER": MODEL_HEADER,
        "VERSION_HEADER": VERSION_HEADER,
        "CLUSTER_HEADER": names.CLUSTER_HEADER,
        "REFUSED_HEADER": names.REFUSED_HEADER,
        "MODEL_PREFIX": names.MODEL_PREFIX,
        "CONTROLLER_CLUSTER": names.CONTROLLER_CLUSTER,
        "STATUS": {
            "invalid": _status(errors.InvalidInput()),
            "not_found": _status(errors.ModelNotFound()),
            "too_large": _status(errors.MessageTooLarge()),
            "unsupported": _status(errors.Unsupported()),
        },
    }
    lines = "".join(f"local {name} = {_lua(value)}\n" for name, value in tables.items())
    return _TEMPLATE.read_text().replace(_MARK, lines)


def _tree(method: RoutedMethod) -> _Tree:
    """Join the paths of field numbers into one tree, so that one walk finds both strings."""
    tree: _Tree = {}
    for slot, path in (("model", method.model), ("version", method.version)):
        if not path:
            continue
        node = tree
        for number in path[:-1]:
            below = node.setdefault(number, {})
            if isinstance(below, str):
                raise ValueError(f"{method.path}: field {number} is a string and a message")
            node = below
        node[path[-1]] = slot
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
