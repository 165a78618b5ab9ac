"""How a node tells a gateway what it serves: ``PUT /nodes/NAME`` on the gateway's admin port.

An interface of Tidegate's own. The node sends an :class:`Announcement` and gets a :class:`Grant`,
which says until when it is known and when it should renew that, by the same call. ``DELETE
/nodes/NAME`` takes it back. ``NAME`` is what the node advertises, ``HOST:PORT`` as it was
written: no two nodes have the same, and one that was started again takes its own place, even
where the name now leads to another address.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote

import orjson

from tidegate.errors import InvalidAnswer, InvalidInput
from tidegate.protocols.open_inference.endpoints import (
    LARGEST_WEIGHT,
    MOST_VERSIONS,
    check_address,
)
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.routing import LABEL_PATTERN, NAME_PATTERN, TASK_PATTERN

PATH = "/nodes"
"""Where a gateway's admin port takes announcements: a name follows, after a slash."""
LARGEST_BODY = 2**20
"""Bytes of an announcement."""
MOST_MODELS = 4096
"""Of one node."""
MOST_LABELS = MOST_TASKS = 256
"""Of one model."""
_LARGEST_VERSION = 2**63 - 1
_LARGEST_ANSWER = 2**16
_LONGEST_MS = 24 * 3600 * 1000
_NODE = re.compile(r"[A-Za-z0-9._-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:.]{2,45}\]:[0-9]{1,5}")
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{0,64}")
_VERSION_TEXT = re.compile(r"[ -~]{0,64}")
_MODEL, _LABEL, _TASK = map(re.compile, (NAME_PATTERN, LABEL_PATTERN, TASK_PATTERN))

_Sized = TypeVar("_Sized", list[Any], dict[str, Any])


@dataclass(frozen=True, slots=True)
class AnnouncedModel:
    """One model of a node."""

    name: str
    versions: tuple[int, ...] = ()
    """Those that can be called now, in ascending order."""
    default_version: int | None = None
    """Which of them answers when none is asked for."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """What some of them are called beside their numbers."""
    tasks: tuple[str, ...] = ()
    """The ids by which clients of dl_inference know it."""
    ready: bool = False
    """Whether it can be called at all."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself.

    ``address`` is numeric, in its one way to be written: ``10.0.0.7:8000``, ``[fd00::1]:8000``.
    """

    address: str
    models: tuple[AnnouncedModel, ...] = ()
    """By name, each once."""
    secure: bool = False
    """Whether it is spoken to over TLS."""
    weight: int = 100
    """Its share of the calls, against other nodes'."""
    cores: float = 0.0
    """Of its machine, as far as it may use them; 0: not said."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """How many processes of each model can be called."""
    version: str = ""
    """Of Tidegate."""
    instance: str = ""
    """Tells a node from the one that was there before it: what that one sent late is not taken."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a gateway answers, in seconds."""

    lease: float
    """How long the node is known without a sign of life."""
    renew: float
    """After how long it should announce itself again."""


def node_path(name: str, instance: str = "") -> str:
    """Return the path of a node; with ``instance`` the one that takes back what that announced."""
    path = f"{PATH}/{quote(name, safe=':')}"
    return f"{path}?instance={instance}" if instance else path


def read_name(text: str) -> str:
    """Return the name of a node as it came in a path, unescaped and in lower case.

    Raises:
        InvalidInput: it is not ``HOST:PORT``.
    """
    # Bounded before it is unescaped: three characters may stand for one.
    name = unquote(text[:1024])
    if not _NODE.fullmatch(name):
        raise InvalidInput(
            f"{shown(name)} cannot be the name of a node: it is what the node advertises, as "
            "10.0.0.7:8000"
        )
    return name.lower()


def read_instance(text: str) -> str:
    """Return what tells a node from the one before it, as it came.

    Raises:
        InvalidInput: it is too long, or not of letters, digits, '-' and '_'.
    """
    if not _INSTANCE.fullmatch(text):
        raise InvalidInput(
            f"'instance' is {shown(text)}; send at most 64 letters, digits, '-' and '_'"
        )
    return text


def encode_announcement(said: Announcement) -> bytes:
    """Return the JSON of an announcement."""
    return orjson.dumps(written(said))


def written(said: Announcement) -> dict[str, Any]:
    """Return an announcement as a document."""
    return {
        "address": said.address,
        "secure": said.secure,
        "models": [
            {
                "name": model.name,
                "versions": list(model.versions),
                "default_version": model.default_version,
                "labels": dict(model.labels),
                "tasks": list(model.tasks),
                "ready": model.ready,
            }
            for model in said.models
        ],
        "capacity": {"cores": said.cores, "replicas": dict(said.replicas)},
        "weight": said.weight,
        "version": said.version,
        "instance": said.instance,
    }


def decode_announcement(body: bytes) -> Announcement:
    """Return what a node says.

    Members that are not known are left out: a newer node may say more.

    Raises:
        InvalidInput: it is malformed or beyond the limits of this module; the message says where.
    """
    if len(body) > LARGEST_BODY:
        raise InvalidInput(f"the body has {len(body)} bytes; send at most {LARGEST_BODY}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}; send a JSON object") from error
    return read_announcement(document)


def read_announcement(document: object) -> Announcement:
    """Return what a document says; as :func:`decode_announcement`."""
    if not isinstance(document, dict):
        _refuse("the announcement", document, "an object")
    address = _text(document, "address")
    try:
        address = check_address(address)
    except ValueError as error:
        raise InvalidInput(
            f"'address' is {shown(address)}: {error}; send an IP address and a port, as "
            "10.0.0.7:8000"
        ) from None
    capacity = _object(document, "capacity")
    items = _list(document, "models")
    if len(items) > MOST_MODELS:
        raise InvalidInput(f"'models' has {len(items)} entries; send at most {MOST_MODELS}")
    models = tuple(sorted(map(_model, items), key=lambda model: model.name))
    for one, next_one in itertools.pairwise(models):
        if one.name == next_one.name:
            raise InvalidInput(f"the model {one.name!r} comes twice; send each once")
    return Announcement(
        address=address,
        models=models,
        secure=_flag(document, "secure"),
        weight=_number(document, "weight", 100, 1, LARGEST_WEIGHT),
        cores=_cores(capacity),
        replicas=_replicas(capacity),
        version=_matching(document, "version", _VERSION_TEXT, "short text"),
        instance=_matching(document, "instance", _INSTANCE, "at most 64 letters and digits"),
    )


def encode_grant(grant: Grant) -> bytes:
    """Return the JSON of what a gateway answers."""
    return orjson.dumps(
        {"lease_ms": round(grant.lease * 1e3), "renew_ms": max(1, round(grant.renew * 1e3))}
    )


def decode_grant(body: bytes) -> Grant:
    """Return what a gateway answers.

    Raises:
        InvalidAnswer: it is malformed, or asks for what cannot be: is it a gateway at all?
    """
    try:
        if len(body) > _LARGEST_ANSWER:
            raise InvalidInput(f"it has {len(body)} bytes")
        document = orjson.loads(body)
        if not isinstance(document, dict):
            _refuse("it", document, "an object")
        lease = _number(document, "lease_ms", None, 1, _LONGEST_MS)
        renew = _number(document, "renew_ms", None, 1, lease)
    except (InvalidInput, orjson.JSONDecodeError) as error:
        raise InvalidAnswer(
            f"the answer cannot be read: {error}; is this the admin port of a gateway?"
        ) from error
    return Grant(lease / 1e3, renew / 1e3)


def _model(item: object) -> AnnouncedModel:
    if not isinstance(item, dict):
        _refuse("a model", item, "an object")
    name = _matching(item, "name", _MODEL, "a model's name", required=True)
    versions = _versions(item)
    return AnnouncedModel(
        name=name,
        versions=versions,
        default_version=_default(item, versions),
        labels=_labels(item, versions),
        tasks=_tasks(item),
        ready=_flag(item, "ready"),
    )


def _versions(item: dict[str, Any]) -> tuple[int, ...]:
    found = _list(item, "versions")
    if len(found) > MOST_VERSIONS:
        raise InvalidInput(f"'versions' has {len(found)} entries; send at most {MOST_VERSIONS}")
    return tuple(sorted({_version(version, "a version") for version in found}))


def _version(value: object, what: str) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST_VERSION:
        _refuse(what, value, "a positive whole number")
    return value


def _default(item: dict[str, Any], versions: tuple[int, ...]) -> int | None:
    found = item.get("default_version")
    if found is not None and _version(found, "'default_version'") not in versions:
        _refuse("'default_version'", found, "one of 'versions', or null")
    return found


def _labels(item: dict[str, Any], versions: tuple[int, ...]) -> dict[str, int]:
    found = _few(_object(item, "labels"), "labels", MOST_LABELS)
    for label, version in found.items():
        if not _LABEL.fullmatch(label):
            _refuse("a label", label, "letters, digits, '.', '_' and '-'")
        if _version(version, f"the version of the label {label!r}") not in versions:
            _refuse(f"the version of the label {label!r}", version, "one of 'versions'")
    return found


def _tasks(item: dict[str, Any]) -> tuple[str, ...]:
    found = _few(_list(item, "tasks"), "tasks", MOST_TASKS)
    for task in found:
        if not isinstance(task, str) or not _TASK.fullmatch(task):
            _refuse("a task's id", task, "a whole number, as text")
    return tuple(dict.fromkeys(str(int(task)) for task in found))


def _cores(capacity: dict[str, Any]) -> float:
    found = capacity.get("cores", 0.0)
    if type(found) not in (int, float) or not 0 <= found <= 2**20:
        _refuse("'capacity.cores'", found, "a number of cores")
    return float(found)


def _replicas(capacity: dict[str, Any]) -> dict[str, int]:
    found = _object(capacity, "replicas")
    for name, count in _few(found, "capacity.replicas", MOST_MODELS).items():
        if not _MODEL.fullmatch(name):
            _refuse("a key of 'capacity.replicas'", name, "a model's name")
        if type(count) is not int or not 0 <= count <= 2**20:
            _refuse(f"'capacity.replicas' of {name!r}", count, "a whole number")
    return found


def _few(found: _Sized, name: str, most: int) -> _Sized:
    if len(found) > most:
        raise InvalidInput(f"{name!r} has {len(found)} entries; send at most {most}")
    return found


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        _refuse(f"{name!r}", found, "an object")
    return found


def _list(document: dict[str, Any], name: str) -> list[Any]:
    found = document.get(name, [])
    if not isinstance(found, list):
        _refuse(f"{name!r}", found, "a list")
    return found


def _flag(document: dict[str, Any], name: str) -> bool:
    found = document.get(name, False)
    if not isinstance(found, bool):
        _refuse(f"{name!r}", found, "true or false")
    return found


def _text(document: dict[str, Any], name: str) -> str:
    found = document.get(name)
    if not isinstance(found, str) or len(found) > 128:
        _refuse(f"{name!r}", found, "text of at most 128 characters")
    return found


def _matching(
    document: dict[str, Any],
    name: str,
    pattern: re.Pattern[str],
    wanted: str,
    *,
    required: bool = False,
) -> str:
    found = document.get(name) if required else document.get(name, "")
    if not isinstance(found, str) or not pattern.fullmatch(found):
        _refuse(f"{name!r}", found, wanted)
    return found


def _number(
    document: dict[str, Any], name: str, default: int | None, least: int, most: int
) -> int:
    found = document.get(name, default)
    if type(found) is not int or not least <= found <= most:
        _refuse(f"{name!r}", found, f"a whole number from {least} to {most}")
    return found


def _refuse(what: str, value: object, wanted: str) -> NoReturn:
    raise InvalidInput(f"{what} is {shown(value)}; send {wanted}")
