"""Listing and watching EndpointSlices at a Kubernetes API server.

Source: "Kubernetes API Concepts": lists in pages (``limit``, ``continue``), watches from a
resource version, bookmarks, and 410 Gone for a version that is too old.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import orjson

from tidegate.config.addresses import is_numeric
from tidegate.errors import (
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    InvalidAnswer,
    PermissionDenied,
    ServerUnreachable,
    Unauthenticated,
)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the cluster's CA and its namespace."""

_PAGE = 100
"""Slices in a page of a list; a slice has at most 1,000 endpoints, 100 as a rule."""
_LARGEST_PAGE = 64 * 2**20
_LARGEST_EVENT = 4 * 2**20
_LARGEST_ERROR = 64 * 2**10
_LARGEST_TOKEN = 64 * 2**10
_PATIENCE = 10.0
"""Seconds until an answer must have begun, and for which it may be silent."""
_LONGEST_PAGE = 60.0
"""Seconds for all of a page."""
_GRACE = 15.0
"""Seconds by which a watch may outlast what was asked for until it counts as hanging."""


class Gone(Exception):
    """The server no longer knows the version that was asked for: list anew."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where an API server is, and what it is shown."""

    server: str
    """``https://10.96.0.1:443``."""
    namespace: str = "default"
    token_file: Path | None = None
    """Read for every request: tokens of service accounts are renewed every hour."""
    ca_file: Path | None = None
    """``None``: the usual authorities."""

    @classmethod
    def own(
        cls,
        environ: Mapping[str, str],
        namespace: str | None = None,
        folder: Path = SERVICE_ACCOUNT,
    ) -> Cluster:
        """Return the cluster in which this process runs.

        Raises:
            ConfigurationError: it runs in none, or without a service account's token.
        """
        host = environ.get("KUBERNETES_SERVICE_HOST")
        port = environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (folder / "token").exists():
            raise ConfigurationError(
                "there is no Kubernetes API here: run the gateway in a pod with a service account "
                "(automountServiceAccountToken), or say api_server, token_file and ca_file"
            )
        if namespace is None:
            try:
                namespace = (folder / "namespace").read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                namespace = "default"
        shown = f"[{host}]" if ":" in host else host
        return cls(f"https://{shown}:{port}", namespace, folder / "token", folder / "ca.crt")

    def token(self) -> str | None:
        """Read the token.

        Raises:
            ConfigurationError: it cannot be read, or the server would get it in the clear.
        """
        if self.token_file is None:
            return None
        parts = urlsplit(self.server)
        if parts.scheme != "https" and not _loopback(parts.hostname or ""):
            raise ConfigurationError(
                f"{self.server} would get the token unencrypted: write https://, or leave "
                "token_file out"
            )
        try:
            with self.token_file.open("rb") as file:
                token = file.read(_LARGEST_TOKEN).decode("ascii").strip()
        except OSError as error:
            raise ConfigurationError(f"{self.token_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable() or " " in token:
            raise ConfigurationError(
                f"{self.token_file} holds no token: write one line of printable ASCII into it"
            )
        return token


@dataclass(slots=True)
class SliceApi:
    """The EndpointSlices that a label selector selects; ``async with`` opens connections.

    Raises:
        ServerUnreachable, ConnectionLost, InvalidAnswer: (every method) no whole answer came.
        Unauthenticated, PermissionDenied: (every method) the server refuses the token.
        ConfigurationError: (every method) token or CA cannot be read.
        Gone: (every method) list anew.
    """

    cluster: Cluster
    selector: str
    watch_seconds: float = 60.0
    """After so long the server ends a watch, and it is begun anew: one that hangs is found out."""
    _client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> SliceApi:
        self._client = httpx.AsyncClient(
            verify=_authorities(self.cluster),
            # The API of a cluster is beside it; proxies of the environment are for the world.
            trust_env=False,
            # A request a minute: one that was kept is more often dead than not.
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=_PATIENCE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.aclose()

    async def page(self, following: str) -> Mapping[str, Any]:
        """Return a page of the list, from ``""`` or where the page before says."""
        params = {"limit": str(_PAGE)} | ({"continue": following} if following else {})
        async with self._get(params, _PATIENCE, whole=_LONGEST_PAGE) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LARGEST_PAGE:
                    raise InvalidAnswer(
                        f"a page of {_PAGE} EndpointSlices of more than {_LARGEST_PAGE} bytes: "
                        "select fewer with a selector"
                    )
        return _object(bytes(body))

    @contextlib.asynccontextmanager
    async def watch(self, version: str) -> AsyncIterator[AsyncIterator[list[Mapping[str, Any]]]]:
        """Open a watch from a version on; what it gives are the events that came together.

        The events end when the server ends the watch, or is silent for too long.
        """
        params = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(self.watch_seconds))),
        }
        async with (
            self._get(params, self.watch_seconds + _GRACE) as response,
            contextlib.aclosing(_events(response)) as events,
        ):
            yield events

    @contextlib.asynccontextmanager
    async def _get(
        self, params: Mapping[str, str], patience: float, whole: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        assert self._client is not None
        server, space = self.cluster.server.rstrip("/"), quote(self.cluster.namespace, safe="")
        url = f"{server}/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"
        # Nothing compressed: its size would be known too late.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        if (token := self.cluster.token()) is not None:
            headers["authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(_PATIENCE, read=patience)
        query = {"labelSelector": self.selector, **params}
        try:
            async with (
                # Of silence in between httpx takes care, of a slow start and a slow whole this.
                asyncio.timeout(_PATIENCE) as limit,
                self._client.stream(
                    "GET", url, params=query, headers=headers, timeout=timeout
                ) as response,
            ):
                limit.reschedule(None if whole is None else _after(whole))
                if response.status_code != httpx.codes.OK:
                    raise await _refusal(response, self.cluster)
                yield response
        except TimeoutError:
            raise ConnectionLost(f"{server} did not answer in time") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerUnreachable(f"{server} cannot be reached: {_reason(error)}") from None
        except httpx.TransportError as error:
            raise ConnectionLost(f"{server} broke off: {_reason(error)}") from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(f"{server} is no URL of an API server: {error}") from None


def _after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def _events(response: httpx.Response) -> AsyncGenerator[list[Mapping[str, Any]], None]:
    rest = b""
    try:
        async for chunk in response.aiter_raw():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LARGEST_EVENT:
                raise InvalidAnswer(f"an event of a watch of more than {_LARGEST_EVENT} bytes")
            if events := [_event(line) for line in lines if line.strip()]:
                yield events
    except httpx.ReadTimeout:
        return


def _event(line: bytes) -> Mapping[str, Any]:
    event = _object(line)
    value = event.get("object")
    if not isinstance(event.get("type"), str) or not isinstance(value, dict):
        raise InvalidAnswer("an event of a watch without type or object")
    if event["type"] == "ERROR":
        words = f"the watch ended: {_printable(value.get('message'))}"
        raise Gone(words) if value.get("code") == httpx.codes.GONE else InvalidAnswer(words)
    return event


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidAnswer(f"the API server's answer is not JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise InvalidAnswer("the API server's answer is no object of JSON")
    return found


async def _refusal(
    response: httpx.Response, cluster: Cluster
) -> Gone | ConnectionFailed | Unauthenticated | PermissionDenied:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _LARGEST_ERROR:
            break
    try:
        words = _printable(_object(body[:_LARGEST_ERROR]).get("message"))
    except InvalidAnswer:
        words = "without a reason"
    status = response.status_code
    if status == httpx.codes.GONE:
        return Gone(words)
    if status == httpx.codes.UNAUTHORIZED:
        shown = cluster.token_file or "no token, which it was shown"
        return Unauthenticated(f"{cluster.server} does not accept {shown} (401): {words}")
    if status == httpx.codes.FORBIDDEN:
        return PermissionDenied(
            f"{cluster.server} does not let the gateway list and watch endpointslices of "
            f"discovery.k8s.io in {cluster.namespace} (403): {words}; give its service account a "
            "Role"
        )
    return InvalidAnswer(f"{cluster.server} answered {status}: {words}")


def _authorities(cluster: Cluster) -> ssl.SSLContext | bool:
    secure = cluster.server.startswith("https:")
    if cluster.ca_file is None or not secure:
        return secure
    try:
        return ssl.create_default_context(cafile=cluster.ca_file)
    except OSError as error:  # an ssl.SSLError is one
        reason = error.strerror or error
        raise ConfigurationError(f"{cluster.ca_file} holds no certificates: {reason}") from None


def _loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or (is_numeric(host) and host.startswith("127."))


def _printable(value: object) -> str:
    text = value if isinstance(value, str) else "without a reason"
    return "".join(c if c.isprintable() else " " for c in text[:200])


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
