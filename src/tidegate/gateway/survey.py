"""What a gateway would find if it started now: its sources, and every endpoint of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.config.gateway import GatewayConfig
from tidegate.config.nodefile import parse_nodefile
from tidegate.edge.certificates import read_small
from tidegate.edge.trust_files import TrustFiles
from tidegate.errors import ConfigurationError
from tidegate.gateway.endpoints import Endpoint
from tidegate.gateway.entries import entries_of, nodefile_tasks, source_of
from tidegate.gateway.inquiry import Answer, Asked, inquire
from tidegate.gateway.models import ModelMembers, Task, members_of
from tidegate.gateway.sources import Sources

FIND_TIMEOUT, INQUIRY_TIMEOUT = 5.0, 30.0
"""Seconds for sources to tell of endpoints, and for all endpoints to be asked."""
_LARGEST_NODEFILE = 2**26
"""Bytes."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The endpoints that share the calls of a model, or of a part of them, and their answers."""

    name: str
    endpoints: tuple[Endpoint, ...]
    answers: tuple[Answer, ...]


@dataclass(slots=True)
class Survey:
    """What was found.

    Attributes:
        problems: what is wrong with sources of endpoints, each with how people call it.
        pools: those of all models.
        unasked: why no endpoint was asked, if none was.
    """

    problems: list[tuple[str, str]] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    unasked: str | None = None


async def survey(
    config: GatewayConfig, find: float = FIND_TIMEOUT, ask: float = INQUIRY_TIMEOUT
) -> Survey:
    """Look at everything that ``config`` names outside this machine.

    Args:
        config: the settings.
        find: seconds in which sources must have told of endpoints.
        ask: seconds in which all endpoints are asked.
    """
    found = Survey()
    tasks = _tasks(config, found)
    sources = Sources(source_of, lambda: None, lambda line: None)
    sources.want(entries_of(config, tasks))
    try:
        await sources.first_told(find)
        for state in sources.states():
            if state["problem"] or not state["endpoints"]:
                words = state["problem"] or f"no endpoint after {find:g} s"
                found.problems.append((str(state["source"]), str(words)))
        members = members_of(config, sources.found, {}, tasks)
    finally:
        await sources.close()
    await _ask(config, members, found, ask)
    return found


async def _ask(
    config: GatewayConfig, members: Mapping[str, ModelMembers], found: Survey, timeout: float
) -> None:
    pools = [
        (pool, model.name if model.traffic.known else None, model.traffic.health_path)
        for model in members.values()
        for pool in model.pools
        if pool.endpoints or pool is model.pool
    ]
    asked = [
        Asked(model, endpoint, health_path)
        for pool, model, health_path in pools
        for endpoint in pool.endpoints
    ]
    try:
        tls = TrustFiles(None, config.endpoint_tls, None).read().upstream_tls
    except ConfigurationError as error:
        found.unasked = str(error)
        return
    answers = iter(await inquire(asked, tls, config.endpoint_tls, timeout))
    for pool, _, _ in pools:
        given = tuple(next(answers) for _ in pool.endpoints)
        found.pools.append(Pool(pool.name, pool.endpoints, given))


def _tasks(config: GatewayConfig, found: Survey) -> dict[str, Task]:
    if config.nodefile is None:
        return {}
    path: Path = config.nodefile.path
    try:
        content, _ = read_small(path, _LARGEST_NODEFILE)
        return nodefile_tasks(parse_nodefile(content, str(path)), config.nodefile.protocol)
    except ConfigurationError as error:
        found.problems.append((f"nodefile {path}", str(error)))
        return {}
