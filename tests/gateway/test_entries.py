from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tidegate.config.endpoints import Endpoints, Kubernetes
from tidegate.config.gateway import GatewayConfig
from tidegate.config.nodefile import parse_nodefile
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.endpoint_list import parse_endpoints
from tidegate.gateway.discovery.files import EndpointFile
from tidegate.gateway.discovery.kubernetes import EndpointSlices
from tidegate.gateway.discovery.kubernetes_api import Cluster
from tidegate.gateway.discovery.names import HostAddresses, ServiceEndpoints
from tidegate.gateway.endpoints import Endpoint, Traits
from tidegate.gateway.entries import cluster_of, entries_of, fixed_endpoint, source_of
from tidegate.gateway.models import Task


def entry(**said: Any) -> Endpoints:
    return Endpoints.model_validate(said)


def test_each_kind_of_entry_has_its_source() -> None:
    made = source_of(entry(address="gpu.test:8000", protocol="seldon", rest=9000, priority=1))
    assert isinstance(made, HostAddresses)
    assert (made.address, made.traits.protocol) == ("gpu.test:8000", "seldon")
    assert (made.traits.rest_port, made.traits.priority) == (9000, 1)
    assert isinstance(source_of(entry(srv="_grpc._tcp.test")), ServiceEndpoints)
    assert isinstance(source_of(entry(file="endpoints.yaml")), EndpointFile)


def test_an_address_is_an_endpoint() -> None:
    one = fixed_endpoint(entry(address="[fd00::1]:8000"))
    assert one == Endpoint("[fd00::1]:8000", "tidegate", name="fd00::1")
    assert fixed_endpoint(entry(address="[fd00::1]:8000", weight=100)) is one
    other = fixed_endpoint(
        entry(
            address="10.0.0.7:8500",
            protocol="tensorflow-serving",
            rest=8501,
            weight=3,
            priority=1,
            versions=[2],
            tls=True,
        )
    )
    assert other == Endpoint(
        "10.0.0.7:8500",
        "tensorflow-serving",
        "10.0.0.7:8501",
        3,
        1,
        frozenset({2}),
        name="10.0.0.7",
        secure=True,
    )
    assert fixed_endpoint(entry(address="gpu.test:8000")) is None
    assert fixed_endpoint(entry(file="endpoints.yaml")) is None


def test_only_what_may_change_is_followed() -> None:
    told = [{"address": "10.0.0.7:8000"}, {"address": "gpu.test:8000"}]
    others = {"percent": 5, "endpoints": [{"file": "e.yaml"}, {"address": "10.0.0.8:8000"}]}
    config = GatewayConfig.model_validate({"models": {"m": {"endpoints": told, "canary": others}}})
    task = Task(1.5, (entry(srv="_grpc._tcp.test"), entry(address="10.0.0.9:8000")))
    assert entries_of(config, {"69": task}) == {
        entry(address="gpu.test:8000"),
        entry(file="e.yaml"),
        entry(srv="_grpc._tcp.test"),
    }


@pytest.mark.parametrize(
    ("said", "selector"),
    [
        ({"service": "resnet"}, "kubernetes.io/service-name=resnet"),
        ({"selector": "app=resnet,tier!=test"}, "app=resnet,tier!=test"),
    ],
)
def test_slices_by_service_or_selector(said: dict[str, str], selector: str) -> None:
    made = source_of(entry(kubernetes={**said, "port": 8500}))
    assert isinstance(made, EndpointSlices)
    assert (made.selector, made.port) == (selector, "8500")


@pytest.mark.parametrize(
    "said",
    [
        {"srv": "a b"},
        {"srv": ""},
        {"srv": "a", "nameservers": ["ns.test"]},
        {"srv": "a", "nameservers": ["127.0.0.1:0"]},
        {"file": "a", "nameservers": ["127.0.0.1"]},
        {"address": "10.0.0.256:8000"},
        {"address": "gpu.test"},
        {"kubernetes": {}},
        {"kubernetes": {"service": "a", "selector": "b=c"}},
        {"kubernetes": {"service": "../secrets"}},
        {"kubernetes": {"service": "a,b=c"}},
        {"kubernetes": {"service": "a", "namespace": "../../x"}},
        {"kubernetes": {"selector": ""}},
        {"kubernetes": {"service": "a", "api_server": "file:///etc"}},
    ],
)
def test_what_cannot_be_is_found_when_the_file_is_read(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        entry(**said)


def test_the_own_token_is_shown_to_the_own_cluster_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    with pytest.raises(ConfigurationError, match="no Kubernetes API here"):
        cluster_of(Kubernetes(service="a"), {})
    (tmp_path / "token").write_text("t")
    here = partial(Cluster.own, folder=tmp_path)
    monkeypatch.setattr(Cluster, "own", here)
    own = cluster_of(Kubernetes(service="a"), environ)
    assert (own.server, own.token_file) == ("https://10.96.0.1:443", tmp_path / "token")
    other = cluster_of(Kubernetes(service="a", api_server="https://k8s.test:6443"), environ)
    assert (other.namespace, other.token_file, other.ca_file) == ("default", None, None)
    other = cluster_of(Kubernetes(service="a", ca_file=Path("ca"), namespace="ml"), environ)
    assert (other.namespace, other.ca_file) == ("ml", Path("ca"))


PAGE = Path(__file__).parents[2] / "docs" / "guides" / "discovery.md"


def test_the_examples_of_the_guide_are_valid() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:yaml|text)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    files = 0
    for block in blocks:
        if block.startswith("models:") or "gateway.yaml" in block or "nodefile:" in block:
            assert GatewayConfig.model_validate(yaml.safe_load(block))
        elif block.startswith("# resnet."):
            path = block[2:].partition("\n")[0]
            files += len(parse_endpoints(block.encode(), path, Traits()))
        elif block.startswith("# task="):
            assert len(parse_nodefile(block.encode(), "nodefile.txt")) == 2
    assert files == 4
