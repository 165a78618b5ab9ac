"""The schema of an entry of ``endpoints``: where a model behind a gateway is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tidegate.config.addresses import host_name, name_server, place
from tidegate.config.node import Port
from tidegate.config.section import Section

Protocol: TypeAlias = Literal["tidegate", "tensorflow-serving", "open-inference", "seldon"]
"""What an endpoint speaks; ``tidegate`` speaks them all."""

Place = Annotated[str, AfterValidator(place)]
"""``HOST:PORT``."""
Weight = Annotated[int, Field(ge=1, le=1_000_000)]
Version = Annotated[int, Field(ge=1, le=2**63 - 1)]


class Kubernetes(Section):
    """Endpoints that a Kubernetes API server knows."""

    service: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")] | None = Field(
        None, description="the name of the service"
    )
    selector: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="or a label selector of EndpointSlices, as app=resnet,tier!=test"
    )
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] | None = (
        Field(None, description="its namespace (default: the gateway's own)")
    )
    port: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="the port's name or number (default: the only one)"
    )
    api_server: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = Field(
        None, description="default: that of the cluster in which the gateway runs"
    )
    token_file: Path | None = Field(
        None,
        description="a file with a token, read for every request (default: that of the pod's "
        "service account in its own cluster, none for another `api_server`)",
    )
    ca_file: Path | None = Field(
        None,
        description="who vouches for the API server, in PEM (default: as for `token_file`; for "
        "another server the usual ones)",
    )

    @model_validator(mode="after")
    def _one_name(self) -> Kubernetes:
        if (self.service is None) == (self.selector is None):
            raise ValueError("give service, or selector, and not both")
        return self


class Endpoints(Section):
    """Where a model is served: one address, or a place that tells of several.

    In a list of endpoints, the text ``HOST:PORT`` is short for ``{address: HOST:PORT}``.
    """

    address: Place | None = Field(
        None,
        description="HOST:PORT; a name is looked up again and again, each of its addresses is an "
        "endpoint",
    )
    srv: Annotated[str, AfterValidator(host_name)] | None = Field(
        None, description="a DNS name whose SRV records name the endpoints"
    )
    nameservers: tuple[Annotated[str, AfterValidator(name_server)], ...] = Field(
        (),
        description="who is asked for the name, as 127.0.0.1:8600 (default: the name servers of "
        "the machine)",
        max_length=16,
    )
    file: Path | None = Field(
        None, description="a file with a list of endpoints, followed as it changes"
    )
    kubernetes: Kubernetes | None = Field(
        None, description="the EndpointSlices of a Kubernetes service"
    )
    protocol: Protocol = Field(
        "tidegate", description="what they speak; `tidegate` is a node of ours, and speaks it all"
    )
    rest: Annotated[Port, Field(ge=1)] | None = Field(
        None,
        description="the port that answers REST, where that is another one (default: none for "
        "other servers than ours)",
    )
    weight: Weight = Field(100, description="their share of the calls, against the others'")
    priority: Annotated[int, Field(ge=0, le=16)] = Field(
        0, description="0 is asked first; higher ones are overflow pools"
    )
    versions: tuple[Version, ...] | None = Field(
        None, description="the versions that they serve (default: they are asked for any)"
    )
    tls: bool | None = Field(
        None, description="speak TLS to them (default: if there is endpoint_tls)"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> Endpoints:
        given = [
            n for n in ("address", "srv", "file", "kubernetes") if getattr(self, n) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "an endpoint has exactly one of address, srv, file and kubernetes"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if self.nameservers and given[0] not in ("address", "srv"):
            raise ValueError("nameservers are for a name: give address or srv, or leave them out")
        return self
