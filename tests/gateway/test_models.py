from __future__ import annotations

import pytest
from pydantic import ValidationError

from tidegate.config.endpoints import Endpoints
from tidegate.config.gateway import GatewayConfig
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import fixed_endpoint
from tidegate.gateway.models import Task, members_of, task_model, tasks_of


def config(**document: object) -> GatewayConfig:
    return GatewayConfig.model_validate(document)


def found(entry: Endpoints) -> tuple[Endpoint, ...]:
    endpoint = fixed_endpoint(entry)
    assert endpoint is not None
    return (endpoint,)


def addresses(said: GatewayConfig, model: str, joined: object = None) -> list[str]:
    members = members_of(said, found, joined or {}, {})  # type: ignore[arg-type]
    return [endpoint.address for endpoint in members[model].pool.endpoints]


def test_a_model_has_the_endpoints_of_its_entries_and_of_the_nodes_that_joined() -> None:
    said = config(models={"m": {"endpoints": ["10.0.0.1:8000", "10.0.0.2:8000"]}})
    joined = {
        "m": [Endpoint("10.0.0.3:8000", "tidegate")],
        "n": [Endpoint("10.0.0.4:1", "tidegate")],
    }
    assert addresses(said, "m", joined) == ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]
    assert addresses(said, "n", joined) == ["10.0.0.4:1"]


def test_what_is_written_down_goes_before_what_a_node_says_of_the_same_address() -> None:
    entry = {"address": "10.0.0.1:8000", "weight": 7}
    joined = {"m": [Endpoint("10.0.0.1:8000", "tidegate", weight=100)]}
    members = members_of(config(models={"m": {"endpoints": [entry]}}), found, joined, {})
    assert [e.weight for e in members["m"].pool.endpoints] == [7]


def test_an_entry_describes_its_endpoints() -> None:
    entry = {"address": "10.0.0.1:8500", "rest": 8501, "protocol": "tensorflow-serving",
             "weight": 30, "priority": 2, "versions": [1, 2]}  # fmt: skip
    (endpoint,) = members_of(config(models={"m": {"endpoints": [entry]}}), found, {}, {})[
        "m"
    ].pool.endpoints
    assert (endpoint.rest, endpoint.protocol) == ("10.0.0.1:8501", "tensorflow-serving")
    assert (endpoint.weight, endpoint.priority) == (30, 2)
    assert endpoint.versions == frozenset({1, 2})
    assert not endpoint.secure


def test_endpoints_are_spoken_to_over_tls_if_there_is_endpoint_tls() -> None:
    entries = ["10.0.0.1:1", {"address": "10.0.0.2:1", "tls": False}]
    models = {"m": {"endpoints": entries}}
    members = members_of(config(models=models, endpoint_tls={}), found, {}, {})
    assert [e.secure for e in members["m"].pool.endpoints] == [True, False]
    models = {"m": {"endpoints": [{"address": "10.0.0.2:1", "tls": True}]}}
    members = members_of(config(models=models), found, {}, {})
    assert [e.secure for e in members["m"].pool.endpoints] == [True]


def test_a_task_of_the_nodefile_is_a_model_of_its_own_or_that_which_has_the_task() -> None:
    said = config(models={"ocr": {"tasks": [69], "endpoints": ["10.0.0.1:1"]}})
    tasks = {task: Task(0.5, (Endpoints(address=f"10.0.1.{task}:1"),)) for task in ("69", "7")}
    members = members_of(said, found, {}, tasks)
    assert [e.address for e in members["ocr"].pool.endpoints] == ["10.0.0.1:1", "10.0.1.69:1"]
    assert [e.address for e in members[task_model("7")].pool.endpoints] == ["10.0.1.7:1"]
    assert members["ocr"].traffic.timeout == members[task_model("7")].traffic.timeout == 0.5
    assert tasks_of(said, {"7": "joined", "8": "other"}, tasks) == {
        "69": "ocr", "7": "joined", "8": "other"
    }  # fmt: skip


def test_a_model_says_less_than_the_defaults_where_it_says_nothing() -> None:
    said = config(
        defaults={"timeout": "2s", "retries": 0, "slow_start": "1s"},
        models={"m": {"timeout": "5s"}, "n": {}},
    )
    members = members_of(said, found, {}, {})
    assert (members["m"].traffic.timeout, members["m"].traffic.retries) == (5.0, 0)
    assert (members["n"].traffic.timeout, members["n"].slow_start) == (2.0, 1.0)


def test_a_task_is_of_one_model() -> None:
    with pytest.raises(ValidationError, match="the task 69 is given to m and to n"):
        config(models={"m": {"tasks": [7, 69]}, "n": {"tasks": ["069"]}})
    assert config(models={"m": {"tasks": [69, "69"]}}).models["m"].tasks == ("69", "69")


def test_pools_have_names_of_their_own() -> None:
    part = {"endpoints": ["10.0.0.9:1"]}
    model = {
        "endpoints": ["10.0.0.1:1"],
        "canary": {"percent": 5, **part},
        "mirror": part,
        "headers": [{"header": "x-team", "value": "blue", **part}, {"header": "x-team", **part}],
    }
    pools = members_of(config(models={"m": model}), found, {}, {})["m"].pools
    assert [pool.name for pool in pools] == [
        "m",
        "m/canary",
        "m/mirror",
        "m/header-x-team=blue",
        "m/header-x-team",
    ]


def test_pools_of_headers_are_the_same_in_any_order() -> None:
    """Else calls with one header would meet the endpoints of another while an edit comes in."""
    routes = [
        {"header": "x-team", "value": value, "endpoints": [f"10.0.0.{number}:1"]}
        for number, value in enumerate(["blue", "a b", "é" * 200, "a=b", None], start=1)
    ]
    first, second = (
        members_of(said, found, {}, {})["m"].headers
        for said in (
            config(models={"m": {"headers": routes}}),
            config(models={"m": {"headers": [*reversed(routes), *routes]}}),
        )
    )
    assert len({pool.name for _, _, pool in first}) == len(routes)
    assert second == tuple(reversed(first))
