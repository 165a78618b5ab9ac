"""Keeps a node announced to its gateways: ``tidegate serve --join``.

Each gateway is told by itself: at once when something changes, and again and again as it asks,
since it forgets a node that falls silent. Nothing here holds up serving: a gateway that is away,
hangs or refuses is told later, and said to be so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.config.addresses import join_address
from tidegate.config.node import NodeConfig
from tidegate.controller.machine import usable_cores
from tidegate.errors import ConfigurationError, TidegateError
from tidegate.node.advertising import advertised, all_local, announcement, is_local, withdrawn
from tidegate.node.fleet import Fleet
from tidegate.node.lookup import Lookup
from tidegate.protocols.open_inference.rest_caller import decode_error
from tidegate.protocols.registration import (
    Announcement,
    Grant,
    decode_grant,
    encode_announcement,
    node_path,
)

if TYPE_CHECKING:  # it takes a tenth of a second to import, and most nodes join nobody
    import httpx

log = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Seconds in which a gateway must answer; less than a lease."""
_LEAVING = 4.0
"""Seconds for which the end of a node waits for its gateways."""
_WITHDRAWING = 1.5
"""Seconds for which a model that is unloaded waits for gateways that are slow."""
_FIRST_RETRY, _LAST_RETRY = 0.5, 5.0
_KEPT = 2.5
_LARGEST_ANSWER = 2**16
_MOST_WORDS = 5
"""Problems that are told before a gateway is known again."""


class _Refused(TidegateError):
    """A gateway does not take what it is told; the message says why."""


@dataclass(slots=True)
class _Around:
    """What all memberships of a node share."""

    name: str
    lookup: Lookup
    said: Callable[[], Announcement]
    """What is to be told, but for the address."""
    announce: Callable[[str], None]


class Joining:
    """The gateways of a node, if it has any: they know it from :meth:`start` to :meth:`leave`."""

    def __init__(self, config: NodeConfig, fleet: Fleet, announce: Callable[[str], None]) -> None:
        self._config = config
        self._fleet = fleet
        self._announce = announce
        self._instance = secrets.token_hex(8)
        self._members: list[_Membership] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._told = Announcement("")

    def check(self) -> None:
        """Make ready; nothing is sent yet.

        Raises:
            ConfigurationError: gateways cannot be told where the node is, or a file that is
                needed cannot be read.
        """
        config = self._config
        gateways = config.join or ()
        if not gateways:
            return
        host, port = advertised(config)
        local = all_local(gateways)
        lookup = Lookup(host, port, config.join_token_file, loopback=local)
        lookup.check()
        if is_local(config.host) and not is_local(host):
            self._announce(
                f"gateways are told {join_address(host, port)}, but this node listens on "
                f"{config.host} only: unless something passes calls on to it, add --host 0.0.0.0"
            )
        trust = _trust(config.join_ca)
        around = _Around(join_address(host, port), lookup, lambda: self._told, self._announce)
        self._members = [
            _Membership(url.rstrip("/"), around, trust) for url in dict.fromkeys(gateways)
        ]

    def start(self) -> None:
        """Announce the node, from now on until :meth:`leave`."""
        self._told = self._said()
        self._tasks = [
            asyncio.create_task(member.keep(), name=f"announce to {member.url}")
            for member in self._members
        ]

    def changed(self) -> None:
        """Tell the gateways what is served now, if that is something else than before."""
        if not self._tasks:
            return
        said = self._said()
        if said != self._told:
            self._told = said
            for member in self._members:
                member.wake.set()

    async def withdraw(self) -> None:
        """Tell the gateways what is about to be served no longer; wait until they know it.

        Only for those that are there, and not for long.
        """
        if not self._tasks:
            return
        left = withdrawn(self._told, self._said())
        if left != self._told:
            self._told = left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WITHDRAWING):
                    await asyncio.gather(*(member.tell(left) for member in self._members))

    async def leave(self, hurry: asyncio.Event) -> None:
        """Take the announcements back; return when the gateways send no more calls.

        Or when they do not say so in time, or ``hurry`` is set.
        """
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks:
            return
        leaving = asyncio.gather(*(member.leave(self._instance) for member in self._members))
        hurried = asyncio.create_task(hurry.wait())
        waiting: set[asyncio.Future[Any]] = {leaving, hurried}
        try:
            await asyncio.wait(waiting, timeout=_LEAVING, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            hurried.cancel()
            await asyncio.gather(leaving, hurried, return_exceptions=True)
            await asyncio.gather(*(member.close() for member in self._members))

    def describe(self) -> list[dict[str, Any]]:
        """Return how things stand with each gateway."""
        return [member.describe() for member in self._members]

    def _said(self) -> Announcement:
        return announcement(
            self._fleet,
            "",
            weight=self._config.join_weight,
            cores=usable_cores(),
            instance=self._instance,
            secure=self._config.tls_certificate is not None,
        )


class _Membership:
    """What one gateway knows of this node."""

    def __init__(self, url: str, around: _Around, trust: ssl.SSLContext | None) -> None:
        self.url = url
        self.wake = asyncio.Event()
        """Set when there is something new to tell."""
        self._around = around
        self._trust = trust
        self._client: httpx.AsyncClient | None = None
        self._retry = _FIRST_RETRY
        self._problem: str | None = "it has not been told yet"
        self._said: set[str] = set()
        """The problems that were told since it last knew this node."""
        self._known = False
        """Whether it has ever taken an announcement."""
        self._taken: Announcement | None = None
        """What it took last."""
        self._attempted = asyncio.Event()
        """Set after the next attempt."""

    def describe(self) -> dict[str, Any]:
        """Return how things stand."""
        return {
            "gateway": self.url,
            "advertised": self._around.name,
            "state": "joined" if self._problem is None else "away",
            "reason": self._problem,
        }

    async def keep(self) -> None:
        """Announce the node again and again, until cancelled."""
        while True:
            self.wake.clear()
            delay = await self._announce()
            attempted, self._attempted = self._attempted, asyncio.Event()
            attempted.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), delay)

    async def tell(self, said: Announcement) -> None:
        """Return when the gateway has taken ``said``, which is to be told, or is away."""
        self.wake.set()
        while self._problem is None and self._taken is not said:
            await self._attempted.wait()

    async def _announce(self) -> float:
        """Announce the node once; return after how many seconds to do it again."""
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await self._around.lookup.look()
                said = self._around.said()
                body = encode_announcement(replace(said, address=found.address))
                path = node_path(self._around.name)
                grant = decode_grant(await self._call("PUT", path, body, found.token))
            self._taken = said
        except TimeoutError:
            return self._failed(f"no answer within {_PATIENCE:g} s")
        except (TidegateError, OSError) as error:
            return self._failed(str(error))
        except Exception as error:
            # Not joining is bad; not trying again would be worse.
            log.exception("%s cannot be told of this node", self.url)
            return self._failed(f"{type(error).__name__}: {error}")
        return self._succeeded(grant)

    def _failed(self, problem: str) -> float:
        self._problem = problem
        if problem not in self._said and len(self._said) < _MOST_WORDS:
            self._said.add(problem)
            self._around.announce(
                f"the gateway {self.url} does not know this node: {problem}; it is told again "
                "until it does"
            )
        delay, self._retry = self._retry, min(_LAST_RETRY, 2 * self._retry)
        # Nodes that lost their gateway together do not come back together.
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _succeeded(self, grant: Grant) -> float:
        if self._problem is not None:
            again = "again" if self._known else f"as {self._around.name}"
            self._around.announce(f"the gateway {self.url} knows this node {again}")
        self._problem, self._known, self._retry = None, True, _FIRST_RETRY
        self._said.clear()
        return grant.renew * random.uniform(0.8, 1.0)  # noqa: S311 - no secret

    async def leave(self, instance: str) -> None:
        """Take the announcement back."""
        try:
            found = self._around.lookup.last
            token = None if found is None else found.token
            await self._call("DELETE", node_path(self._around.name, instance), b"", token)
        except Exception as error:
            # One that is away forgets this node by itself.
            if self._problem is None:
                self._around.announce(f"the gateway {self.url} was not told of the end: {error}")

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _call(self, method: str, path: str, body: bytes, token: str | None) -> bytes:
        """Return the answer of the gateway.

        Raises:
            _Refused: it cannot be had, or is an error.
        """
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=True if self._trust is None else self._trust,
                # Gateways are found by their address alone, as everything else of a node.
                trust_env=False,
                timeout=_PATIENCE,
                # A gateway closes connections that rest for 5 s, perhaps just as one is used.
                limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEPT),
            )
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        answer = b""
        try:
            async with self._client.stream(
                method, self.url + path, content=body, headers=headers
            ) as response:
                async for piece in response.aiter_raw():
                    answer += piece
                    if len(answer) > _LARGEST_ANSWER:
                        raise _Refused("its answer has no end; is it the admin port of a gateway?")
        except httpx.ConnectError as error:
            words = str(error) if "SSL" in str(error) else "nobody answers there"
            raise _Refused(words) from error
        except httpx.HTTPError as error:
            raise _Refused(str(error) or type(error).__name__) from error
        if response.status_code != 200:
            words = decode_error(answer) or response.reason_phrase
            raise _Refused(f"HTTP {response.status_code}: {words}")
        return answer


def _trust(authorities: Path | None) -> ssl.SSLContext | None:
    if authorities is None:
        return None
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:  # what the ssl module raises is one, too
        raise ConfigurationError(
            f"join_ca: {authorities} cannot be read as certificates in PEM: {error}"
        ) from error
