"""From what a gateway is told to what its models are: which servers each has. Pure.

Three tell of endpoints: ``gateway.yaml`` (each entry a source of its own), nodes that have joined,
and a ``nodefile.txt``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tidegate.config.endpoints import Endpoints
from tidegate.config.gateway import GatewayConfig, GatewayModel, Traffic
from tidegate.edge.pools import TrafficPolicy
from tidegate.gateway.endpoints import Endpoint

Found = Callable[[Endpoints], Iterable[Endpoint]]
"""What an entry of ``endpoints`` leads to at this moment."""


@dataclass(frozen=True, slots=True)
class Task:
    """A line of a nodefile: the model of a task, and the entries for its addresses."""

    timeout: float
    endpoints: tuple[Endpoints, ...]


@dataclass(frozen=True, slots=True)
class PoolMembers:
    """A pool and its endpoints, before anything is decided about them."""

    name: str
    endpoints: tuple[Endpoint, ...]

    def part_of(self, model: str) -> str:
        """Return which pool of a model's this is: ``canary``, or nothing for the usual one."""
        return self.name[len(model) + 1 :]


@dataclass(frozen=True, slots=True)
class ModelMembers:
    """A model, how its calls travel, and the endpoints of each of its pools."""

    name: str
    traffic: TrafficPolicy
    slow_start: float
    pool: PoolMembers
    canary: tuple[float, PoolMembers] | None = None
    mirror: tuple[float, PoolMembers] | None = None
    headers: tuple[tuple[str, str | None, PoolMembers], ...] = ()

    @property
    def pools(self) -> tuple[PoolMembers, ...]:
        """All of its pools."""
        parts = (self.canary, self.mirror)
        others = (*(p[1] for p in parts if p is not None), *(h[2] for h in self.headers))
        return (self.pool, *others)

    def with_pools(self, change: Callable[[PoolMembers], PoolMembers]) -> ModelMembers:
        """Return the same model with each of its pools changed."""
        canary, mirror = self.canary, self.mirror
        return replace(
            self,
            pool=change(self.pool),
            canary=None if canary is None else (canary[0], change(canary[1])),
            mirror=None if mirror is None else (mirror[0], change(mirror[1])),
            headers=tuple((name, value, change(pool)) for name, value, pool in self.headers),
        )


def members_of(
    config: GatewayConfig,
    found: Found,
    joined: Mapping[str, Iterable[Endpoint]],
    tasks: Mapping[str, Task],
) -> dict[str, ModelMembers]:
    """Return every model that there is, by name.

    Args:
        config: what ``gateway.yaml`` says.
        found: what each entry of ``endpoints`` leads to.
        joined: the endpoints of models that nodes have announced.
        tasks: the tasks of the nodefile; each is a model of the name :func:`task_model`, unless
            ``gateway.yaml`` gives the task to a model: then that one has the endpoints, too.
    """
    secure = config.endpoint_tls is not None

    def gather(sections: Iterable[Endpoints]) -> list[Endpoint]:
        return [
            _described(endpoint, section, secure)
            for section in sections
            for endpoint in found(section)
        ]

    by_task = {task: name for name, model in config.models.items() for task in model.tasks}
    extra: dict[str, list[Endpoint]] = {name: list(each) for name, each in joined.items()}
    timeouts: dict[str, float] = {}
    for task, said in tasks.items():
        name = by_task.get(task) or task_model(task)
        extra.setdefault(name, []).extend(gather(said.endpoints))
        timeouts[name] = said.timeout
    members = {}
    for name in [*config.models, *(n for n in extra if n not in config.models)]:
        model = config.models.get(name, GatewayModel())
        traffic, slow_start = _traffic(model, config.defaults, timeouts.get(name))
        if name not in config.models and name not in joined:
            traffic = replace(traffic, known=False)
        pool = _pool(name, [*gather(model.endpoints), *extra.get(name, ())])
        members[name] = _with_parts(ModelMembers(name, traffic, slow_start, pool), model, gather)
    return members


def _with_parts(
    members: ModelMembers,
    model: GatewayModel,
    gather: Callable[[Iterable[Endpoints]], list[Endpoint]],
) -> ModelMembers:
    """Add the pools of those calls of a model that go elsewhere than the others."""
    name, canary, mirror = members.name, model.canary, model.mirror
    return replace(
        members,
        canary=None
        if canary is None
        else (canary.percent, _pool(f"{name}/canary", gather(canary.endpoints))),
        mirror=None
        if mirror is None
        else (mirror.percent, _pool(f"{name}/mirror", gather(mirror.endpoints))),
        headers=tuple(
            (header, value, _pool(f"{name}/{_part(header, value)}", gather(endpoints)))
            for (header, value), endpoints in _by_header(model).items()
        ),
    )


def tasks_of(
    config: GatewayConfig, joined: Mapping[str, str], tasks: Iterable[str]
) -> dict[str, str]:
    """Return the model of each task: what ``gateway.yaml`` says goes before all others."""
    said = {task: name for name, model in config.models.items() for task in model.tasks}
    return {**{task: task_model(task) for task in tasks}, **joined, **said}


def task_model(task: str) -> str:
    """Return the name of the model that a task of a nodefile is."""
    return f"task-{task}"


def _by_header(model: GatewayModel) -> dict[tuple[str, str | None], tuple[Endpoints, ...]]:
    """Return the endpoints of calls with each header and value; of two for the same the first."""
    found: dict[tuple[str, str | None], tuple[Endpoints, ...]] = {}
    for each in model.headers:
        found.setdefault((each.header, each.value), each.endpoints)
    return found


def _part(header: str, value: str | None) -> str:
    """Return how the pool of calls with a header is called.

    By what they carry, and not by a number: when the order changes, calls that are still led by
    the order before must not meet the endpoints of others.
    """
    if value is None:
        return f"header-{header}"
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
        return f"header-{header}={value}"
    return f"header-{header}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"


def _described(endpoint: Endpoint, section: Endpoints, secure: bool) -> Endpoint:
    """Add what the entry says of its endpoints, where the source itself does not."""
    versions = endpoint.versions
    if versions is None and section.versions is not None:
        versions = frozenset(section.versions)
    secure = endpoint.secure or (secure if section.tls is None else section.tls)
    if versions == endpoint.versions and secure == endpoint.secure:
        return endpoint
    return replace(endpoint, versions=versions, secure=secure)


def _pool(name: str, endpoints: Iterable[Endpoint]) -> PoolMembers:
    """Make a pool; of several endpoints at one address the first counts."""
    known: dict[str, Endpoint] = {}
    for endpoint in endpoints:
        known.setdefault(endpoint.address, endpoint)
    return PoolMembers(name, tuple(known.values()))


def _traffic(
    model: Traffic, defaults: Traffic, nodefile_timeout: float | None
) -> tuple[TrafficPolicy, float]:
    def value(key: str) -> object:
        return getattr(model if key in model.model_fields_set else defaults, key)

    said = {key: value(key) for key in Traffic.model_fields}
    slow_start = said.pop("slow_start")
    assert isinstance(slow_start, float)
    if said["timeout"] is None:
        said["timeout"] = nodefile_timeout
    return TrafficPolicy(**said), slow_start  # type: ignore[arg-type]
