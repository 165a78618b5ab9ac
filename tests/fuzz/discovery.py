"""What tells a gateway of endpoints: files, lists and watches."""

from __future__ import annotations

import orjson

from tests.gateway.kubernetes_server import slice_of
from tidegate.config.nodefile import parse_nodefile
from tidegate.errors import InvalidAnswer
from tidegate.gateway.discovery.endpoint_list import parse_endpoints
from tidegate.gateway.discovery.kubernetes_slices import SliceSet
from tidegate.gateway.endpoints import Traits

_PATHS = ("e.yaml", "e.json", "e.txt")
_ITEMS = [
    "10.0.0.7:8000",
    {"address": "[fd00::8]:8500", "protocol": "seldon", "rest": 9000, "weight": 3, "name": "x"},
]


def nodefiles() -> tuple[bytes, ...]:
    return (b"# t\n69=100,10.0.0.7:8500,[fd00::1]:1\r\n7=3000,gpu-1:8500\n",)


def read_nodefile(data: bytes) -> None:
    parse_nodefile(data, "nodefile.txt")


def lists() -> tuple[bytes, ...]:
    """The first byte says which format it is."""
    return (
        b"\0- 10.0.0.7:8000\n- {address: '10.0.0.8:1', weight: 3, versions: [1], labels: [a]}\n",
        b"\0endpoints: [10.0.0.7:8000]\n",
        b"\1" + orjson.dumps({"endpoints": _ITEMS}),
        b"\2# x\n10.0.0.7:8000 weight=3 versions=1,2\n[fd00::1]:1 protocol=seldon rest=9\n",
    )


def read_list(data: bytes) -> None:
    parse_endpoints(data[1:], _PATHS[(data or b"\0")[0] % 3], Traits())


def slices() -> tuple[bytes, ...]:
    value = slice_of("a", ["10.0.0.7", {"addresses": ["10.0.0.8"], "conditions": {}}])
    value["metadata"]["resourceVersion"] = "7"
    page = {"metadata": {"resourceVersion": "9", "continue": "x"}, "items": [value]}
    return orjson.dumps(page), orjson.dumps({"type": "MODIFIED", "object": value})


def read_slices(data: bytes) -> None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise InvalidAnswer("no JSON") from None
    if not isinstance(value, dict):
        raise InvalidAnswer("no object")
    found = SliceSet(None, Traits())
    kind, event = value.get("type"), value.get("object")
    if isinstance(kind, str) and isinstance(event, dict):
        found.apply(kind, event)
    else:
        found.add_page(value)
    found.endpoints()
