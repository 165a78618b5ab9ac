from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.kubernetes_server import slice_of
from tidegate.errors import ConfigurationError, InvalidAnswer
from tidegate.gateway.discovery.kubernetes_slices import SliceSet
from tidegate.gateway.endpoints import Endpoint, Traits


def pod(address: str, name: str = "", **conditions: bool | None) -> dict[str, Any]:
    target = {"kind": "Pod", "namespace": "ml", "name": name} if name else None
    return {"addresses": [address], "conditions": conditions, "targetRef": target}


def known(
    *slices: dict[str, Any], port: str | None = None, traits: Traits | None = None
) -> SliceSet:
    found = SliceSet(port, traits or Traits())
    for number, value in enumerate(slices):
        value["metadata"]["resourceVersion"] = str(number)
    found.add_page({"metadata": {"resourceVersion": "9"}, "items": list(slices)})
    return found


def addresses(slices: SliceSet) -> list[str]:
    return sorted({endpoint.address for endpoint in slices.endpoints()[0]})


def event(slices: SliceSet, kind: str, value: dict[str, Any], version: str = "10") -> bool:
    value["metadata"]["resourceVersion"] = version
    return slices.apply(kind, value)


def test_an_endpoint_has_the_name_of_its_pod_and_the_traits_of_the_source() -> None:
    value = slice_of("a", [pod("10.0.0.7", "resnet-0", ready=True)], ports=[("grpc", 8500)])
    traits = Traits("tensorflow-serving", 8501, 7, 1)
    assert known(value, traits=traits).endpoints() == (
        [Endpoint("10.0.0.7:8500", "tensorflow-serving", "10.0.0.7:8501", 7, 1, name="resnet-0")],
        None,
    )


def test_several_slices_are_one_set() -> None:
    slices = known(
        slice_of("a", ["10.0.0.7", "10.0.0.8"]),
        slice_of("b", ["10.0.0.8", "10.0.0.9"]),
        slice_of("c", ["fd00::1"], family="IPv6"),
        slice_of("d", []),
    )
    assert addresses(slices) == [
        "10.0.0.7:8000", "10.0.0.8:8000", "10.0.0.9:8000", "[fd00::1]:8000"
    ]  # fmt: skip
    assert event(slices, "DELETED", slice_of("a", []))
    assert addresses(slices) == ["10.0.0.8:8000", "10.0.0.9:8000", "[fd00::1]:8000"]
    assert event(slices, "MODIFIED", slice_of("b", ["10.0.0.9"]))
    assert addresses(slices) == ["10.0.0.9:8000", "[fd00::1]:8000"]
    assert event(slices, "ADDED", slice_of("e", ["10.0.0.1"]), "11")
    assert addresses(slices) == ["10.0.0.1:8000", "10.0.0.9:8000", "[fd00::1]:8000"]
    assert slices.version == "11"
    assert not event(slices, "BOOKMARK", {"metadata": {}}, "50")
    assert slices.version == "50"
    assert event(slices, "DELETED", slice_of("unknown", []))


@pytest.mark.parametrize(
    ("conditions", "gets_calls"),
    [
        ({"ready": True}, True),
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": None}, True),
        ({}, True),
        ({"ready": False}, False),
        ({"ready": False, "serving": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        # A service with publishNotReadyAddresses calls everything ready.
        ({"ready": True, "serving": True, "terminating": True}, False),
    ],
)
def test_an_endpoint_gets_calls_when_it_is_ready(
    conditions: dict[str, bool | None], gets_calls: bool
) -> None:
    slices = known(slice_of("a", ["10.0.0.1", pod("10.0.0.7", "", **conditions)]))
    assert ("10.0.0.7:8000" in addresses(slices)) == gets_calls


def test_when_none_is_ready_those_that_still_answer_do() -> None:
    ending = pod("10.0.0.7", ready=False, serving=True, terminating=True)
    ended = pod("10.0.0.8", ready=False, serving=False, terminating=True)
    assert addresses(known(slice_of("a", [ending, ended]))) == ["10.0.0.7:8000"]
    endpoints, words = known(slice_of("a", [ended, pod("10.0.0.9", ready=False)])).endpoints()
    assert (endpoints, words) == ([], "none of 2 endpoints is ready")


def test_a_pod_with_addresses_of_both_families_is_one_endpoint() -> None:
    slices = known(
        slice_of("six", [pod("fd00::7", "a"), pod("fd00::8", "b")], family="IPv6"),
        slice_of("four", [pod("10.0.0.7", "a"), pod("10.0.0.8", "b", ready=False)]),
    )
    assert addresses(slices) == ["10.0.0.7:8000", "[fd00::8]:8000"]


@pytest.mark.parametrize(
    ("ports", "wanted", "found"),
    [
        ([("", 8000)], None, 8000),
        ([("grpc", 8000)], None, 8000),
        ([("rest", 8001), ("grpc", 8000)], "grpc", 8000),
        ([("rest", 8001), ("grpc", 8000)], "8001", 8001),
        ([], "8000", 8000),
        ([("rest", 8001), ("grpc", 8000)], None, "the ports rest (8001), grpc (8000): say which"),
        ([("grpc", 8000)], "80", "the ports grpc (8000), not 80: give the port of the pods"),
        ([("grpc", 8000)], "http", "the ports grpc (8000), not http"),
        ([], None, "no port: say which"),
        ([], "grpc", "no port, not grpc"),
        ([("grpc", 0)], None, "from 1 to 65535"),
        ([("grpc", 99999)], None, "from 1 to 65535"),
    ],
)
def test_the_port_by_name_or_number(
    ports: list[tuple[str, int]], wanted: str | None, found: int | str
) -> None:
    slices = known(slice_of("a", ["10.0.0.7"], ports=ports), port=wanted)
    endpoints, words = slices.endpoints()
    if isinstance(found, int):
        assert ([e.address for e in endpoints], words) == ([f"10.0.0.7:{found}"], None)
    else:
        assert not endpoints
        assert found in str(words)


def test_udp_is_no_port_for_calls() -> None:
    value = slice_of("a", ["10.0.0.7"], ports=[("grpc", 8000)])
    value["ports"].append({"name": "dns", "port": 53, "protocol": "UDP"})
    assert addresses(known(value)) == ["10.0.0.7:8000"]


def test_what_is_left_out_is_told() -> None:
    names = slice_of("n", ["gpu.example.com"], family="FQDN")
    slices = known(names, slice_of("a", ["0.0.0.0", "10.0.0.7", "nonsense"]))
    endpoints, words = slices.endpoints()
    assert [e.address for e in endpoints] == ["10.0.0.7:8000"]
    assert "n has addresses of the type FQDN" in str(words)
    assert "0.0.0.0" in str(words)
    assert "nonsense" in str(words)


def test_nothing_at_all() -> None:
    assert known().endpoints() == ([], "there are no such EndpointSlices")
    assert known(slice_of("a", [])).endpoints() == ([], "its EndpointSlices are empty")


def test_too_many_endpoints() -> None:
    pods = [f"10.0.{n >> 8}.{n & 255}" for n in range(1, 1001)]
    slices = known(*(slice_of(f"s{n}", pods) for n in range(10)))
    for _ in range(3):
        event(slices, "MODIFIED", slice_of("s0", pods))
    with pytest.raises(ConfigurationError, match="more than 10000 endpoints"):
        event(slices, "ADDED", slice_of("s10", ["10.1.0.1"]))
    with pytest.raises(ConfigurationError, match="more than 10000 endpoints"):
        known(slice_of("a", [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000)]))
    with pytest.raises(ConfigurationError, match="more than 10000 endpoints"):
        known(*(slice_of(f"s{n}", []) for n in range(10_001)))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"metadata": None},
        {"metadata": {"resourceVersion": 7, "name": "a"}},
        {"metadata": {"resourceVersion": "7"}},
        {"metadata": {"resourceVersion": "7", "name": "x" * 10_000}},
        slice_of("a", [1]),  # type: ignore[list-item]
        slice_of("a", [{"addresses": []}]),
        slice_of("a", [{"addresses": [7]}]),
        slice_of("a", [{"addresses": ["10.0.0.7"], "conditions": []}, 3]),  # type: ignore[list-item]
        slice_of("a", ["10.0.0.7"]) | {"ports": [3]},
        slice_of("a", ["10.0.0.7"]) | {"endpoints": {"a": 1}},
    ],
)
def test_what_is_no_slice_is_refused(value: dict[str, Any]) -> None:
    if isinstance(value.get("metadata"), dict):
        value["metadata"].setdefault("resourceVersion", "7")
    with pytest.raises(InvalidAnswer):
        SliceSet(None, Traits()).apply("ADDED", value)


def test_events_of_an_unknown_type_are_refused() -> None:
    with pytest.raises(InvalidAnswer, match="unknown type 'EXPLODED'"):
        event(known(), "EXPLODED", slice_of("a", []))


@pytest.mark.parametrize(
    "page", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": "1"}, "items": {"a": 1}}]
)
def test_what_is_no_list_is_refused(page: dict[str, Any]) -> None:
    with pytest.raises(InvalidAnswer):
        SliceSet(None, Traits()).add_page(page)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.data())
def test_any_json_is_a_slice_or_an_error(data: st.DataObject) -> None:
    value: dict[str, Any] = slice_of("a", ["10.0.0.7", pod("10.0.0.8", "p", ready=True)])
    value["metadata"]["resourceVersion"] = "7"
    places: list[Any] = [value, value["metadata"], value["ports"][0], *value["endpoints"]]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    slices = SliceSet(data.draw(st.sampled_from([None, "grpc", "8000"])), Traits())
    try:
        slices.apply("ADDED", value)
    except InvalidAnswer:
        return
    assert len(slices.endpoints()[0]) <= 2
