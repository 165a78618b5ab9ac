from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.config.addresses import host_name, join_address, numeric_address, split_address
from tidegate.errors import ConfigurationError
from tidegate.gateway.endpoints import Endpoint


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("10.0.0.7:8000", "10.0.0.7:8000"),
        ("127.0.0.1:08500", "127.0.0.1:8500"),
        ("[FD00:0:0::1]:1", "[fd00::1]:1"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_a_place_has_one_spelling(written: str, canonical: str) -> None:
    assert Endpoint(written, "tidegate").address == canonical
    assert Endpoint("1.2.3.4:5", "open-inference", rest=written).rest == canonical


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "has no port"),
        ("10.0.0.7", "has no port"),
        (":8000", "has no port"),
        ("10.0.0.7:", "from 1 to 65535"),
        ("10.0.0.7:0", "from 1 to 65535"),
        ("10.0.0.7:99999", "from 1 to 65535"),
        ("10.0.0.7:-1", "from 1 to 65535"),
        ("10.0.0.7:٣", "from 1 to 65535"),
        ("10.0.0.7:8 000", "from 1 to 65535"),
        ("10.0.0.256:8000", "no IP address"),
        ("010.0.0.1:8000", "no IP address"),
        ("gpu-1:8000", "no IP address"),
        ("fd00::1:8000", "brackets"),
        ("[fe80::1%eth0]:8000", "zone"),
        ("0.0.0.0:8000", "no machine"),
        ("[::]:8000", "no machine"),
        ("224.0.0.1:8000", "no machine"),
        ("255.255.255.255:8000", "no machine"),
        ("x" * 10_000, "has no port"),
        ("10.0.0.7\n:8000", "no IP address"),
    ],
)
def test_what_is_no_address_is_refused(address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Endpoint(address, "tidegate")
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weight": 0}, "weight must be a whole number from 1 to 1048576, not 0"),
        ({"weight": 2**20 + 1}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": 1.5}, "weight"),
        ({"priority": -1}, "priority must be a whole number from 0 to 127, not -1"),
        ({"priority": 128}, "priority"),
        ({"protocol": "triton"}, "tidegate, tensorflow-serving, open-inference, seldon"),
        ({"rest": "x:1"}, "no IP address"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a" * 254}, "printable"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Endpoint(**{"address": "10.0.0.7:8000", "protocol": "tidegate", **wrong})


def test_the_defaults() -> None:
    endpoint = Endpoint("10.0.0.7:8000", "tidegate")
    assert (endpoint.weight, endpoint.priority, endpoint.versions) == (100, 0, None)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_what_is_joined_comes_apart_again(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    host = ip.compressed
    assert split_address(join_address(host, port)) == (host, port)


def test_an_ipv4_address_in_ipv6_is_one_place() -> None:
    """Envoy writes it as ``::ffff:10.0.0.7`` in its reports, and others in another way."""
    for text in ("[::ffff:10.0.0.7]:80", "[::FFFF:a00:7]:80"):
        assert numeric_address(text) == "10.0.0.7:80"
        assert Endpoint(text, "tidegate").address == "10.0.0.7:80"
    with pytest.raises(ValueError, match="no machine"):
        numeric_address("[::ffff:0.0.0.0]:80")


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_short_error(text: str) -> None:
    try:
        assert numeric_address(numeric_address(text)) == numeric_address(text)
    except ValueError as error:
        assert len(str(error)) < 400  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("name", ["localhost", "gpu-1.example.com", "a_b.svc", "x" * 63, "GPU."])
def test_names_of_hosts(name: str) -> None:
    assert host_name(name) == name.lower().removesuffix(".")


@pytest.mark.parametrize("name", ["", ".", "a..b", "-a", "a-", "x" * 64, "a b", "ä", "a." * 130])
def test_what_is_no_name_of_a_host(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a host"):
        host_name(name)
