"""Where a node tells gateways that it is, and what it says of its models; nothing is started."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tidegate.config.node import NodeConfig
from tidegate.errors import ConfigurationError
from tidegate.node.advertising import advertised, withdrawn
from tidegate.node.lookup import Found, Lookup
from tidegate.protocols.registration import AnnouncedModel, Announcement

NEAR, FAR = "http://127.0.0.1:8002", "http://gateway:8002"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"join": NEAR}, ("127.0.0.1", 8000)),
        ({"join": "http://localhost:8002/", "host": "0.0.0.0"}, ("127.0.0.1", 8000)),
        ({"join": "http://[::1]:8002", "host": "::"}, ("::1", 8000)),
        ({"join": NEAR, "advertise": "127.0.0.1:9000"}, ("127.0.0.1", 9000)),
        ({"join": NEAR, "advertise": "localhost"}, ("localhost", 8000)),
        ({"join": FAR, "host": "10.0.0.7", "port": 81}, ("10.0.0.7", 81)),
        ({"join": FAR, "advertise": "10.0.0.7:9000"}, ("10.0.0.7", 9000)),
        ({"join": FAR, "advertise": "GPU-7.lab"}, ("gpu-7.lab", 8000)),
        ({"join": FAR, "advertise": "[FD00:0::1]:9000"}, ("fd00::1", 9000)),
        ({"join": FAR, "advertise": "[fd00::1]"}, ("fd00::1", 8000)),
        ({"join": f"{NEAR} {FAR}", "advertise": "10.0.0.7"}, ("10.0.0.7", 8000)),
    ],
)
def test_where_a_node_is(settings: dict[str, Any], found: tuple[str, int]) -> None:
    assert advertised(NodeConfig.model_validate(settings)) == found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"join": FAR}, "127.0.0.1 cannot be reached from other machines; start it with --host"),
        ({"join": FAR, "host": "0.0.0.0"}, "all addresses of this machine; start it with --adv"),
        ({"join": f"{NEAR},{FAR}"}, "cannot be reached from other machines"),
        ({"join": FAR, "advertise": "127.0.0.1:8000"}, "is this machine to whoever asks"),
        ({"join": FAR, "advertise": "localhost"}, "is this machine to whoever asks"),
        ({"join": NEAR, "advertise": "0.0.0.0:8000"}, "of no machine"),
        ({"join": NEAR, "advertise": "fd00::1"}, "advertise: "),
        ({"join": NEAR, "advertise": "10.0.0.7:99999"}, "from 1 to 65535"),
        ({"join": NEAR, "advertise": "10.0.0.256"}, "10.0.0.256"),
        ({"join": NEAR, "advertise": "a b"}, "advertise: "),
        ({"join": NEAR, "advertise": ""}, "advertise: "),
    ],
)
def test_what_gateways_could_not_reach_is_an_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        advertised(NodeConfig.model_validate(settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "url", ["gateway:8002", "http://", "http://gateway:8002/nodes", "http://a@b", "ftp://gateway"]
)
def test_what_is_no_gateway_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="join"):
        NodeConfig.model_validate({"join": url})


def model(name: str, *versions: int, **labels: int) -> AnnouncedModel:
    default = versions[-1] if versions else None
    return AnnouncedModel(name, versions, default, labels, ready=bool(versions))


@pytest.mark.parametrize(
    ("told", "said", "left"),
    [
        ([model("m", 1)], [model("m", 1), model("n", 1)], [model("m", 1)]),
        ([model("m", 1)], [model("m", 1, 2)], [model("m", 1)]),
        ([model("m", 1, 2)], [model("m", 2)], [model("m", 2)]),
        ([model("m", 1, 2, s=1)], [model("m", 1, 2, s=2)], [model("m", 1, 2)]),
        # One that only changes its version is never without any.
        ([model("m", 1)], [model("m", 2)], [model("m", 1)]),
        ([model("m", 1)], [model("m")], [replace(model("m", 1), ready=False)]),
        ([model("m", 1)], [], [replace(model("m", 1), ready=False)]),
        # Which is the default, the node says when it has made up its mind.
        ([model("m", 1, 2)], [model("m", 1)], [replace(model("m", 1), default_version=None)]),
    ],
)
def test_what_goes_is_told_before_what_comes(
    told: list[AnnouncedModel], said: list[AnnouncedModel], left: list[AnnouncedModel]
) -> None:
    found = withdrawn(Announcement("a", tuple(told)), Announcement("a", tuple(said)))
    assert found.models == tuple(left)


async def test_a_name_is_looked_up_again_and_one_thread_waits_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answers = [], [["127.0.1.1", "10.0.0.7"], ["10.0.0.8"]]

    def answer(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, 1, 6, "", (a, port)) for a in answers[len(asked) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr("tidegate.node.lookup._GOOD_FOR", 0.0)
    lookup = Lookup("gpu-7", 8000, None, loopback=False)
    found = await asyncio.gather(lookup.look(), lookup.look())
    assert set(found) == {Found("10.0.0.7:8000", None)}
    assert len(asked) == 1
    assert (await lookup.look()).address == "10.0.0.8:8000"


async def test_a_name_that_leads_nowhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", ("127.0.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", here)
    with pytest.raises(ConfigurationError, match=r"is 127.0.1.1 here"):
        await Lookup("gpu-7", 8000, None, loopback=False).look()
    assert (await Lookup("gpu-7", 8000, None, loopback=True).look()).address == "127.0.1.1:8000"

    def nowhere(host: str, port: int, **_: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(ConfigurationError, match="cannot be resolved here"):
        await Lookup("gpu-7", 8000, None, loopback=False).look()


async def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    lookup = Lookup("10.0.0.7", 8000, file, loopback=False)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        lookup.check()
    for bad in (b"", b" \n", b"a b", b"a\nb", b"\xc3\xa9", b"x" * 5000):
        file.write_bytes(bad)
        with pytest.raises(ConfigurationError, match="must hold one token"):
            lookup.check()
    file.write_bytes(b"sesame\n")
    assert await lookup.look() == Found("10.0.0.7:8000", "sesame")
