"""Which replicas should run, and which of them should get traffic: the pure part of a node.

A *generation* is one content of one version of a model; its replicas are interchangeable.
A generation is *live* once it gets traffic. The rules:

- The versions that ``model.yaml`` selects are desired. A desired generation starts all its
  replicas; it becomes live when they are all ready, or with its first ready replica when
  no other generation of the model is live.
- The default version is the highest desired one that is live; while none is, the highest
  live one that used to be desired.
- A live generation that is no longer desired stays as long as one that should replace it
  is not live: a broken new version leaves the old one serving.
- While none of a model's versions can be read, or none of those that ``model.yaml`` names is
  there (a slip, say), what was live stays, as long as its files are there.
- What was unloaded by hand is not desired and not kept, until it is loaded by hand.
- A model that is known, but has no ready replica, is answered by the controller, which
  knows the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.config.model import ModelConfig
from tidegate.replica.spec import Ready, ReplicaSpec
from tidegate.repository.entries import ModelEntry, Repository, VersionEntry


class ReplicaState(enum.Enum):
    """Where a replica stands."""

    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    DRAINING = "draining"
    FAILED = "failed"
    """It is not started again until the files change."""


@dataclass(slots=True)
class Replica:
    """One place for a process of a generation; the process in it changes when it crashes."""

    index: int
    state: ReplicaState = ReplicaState.STARTING
    spec: ReplicaSpec | None = None
    ready: Ready | None = None
    pid: int | None = None
    restarts: int = 0


@dataclass(slots=True, eq=False)
class Generation:
    """One content of one version of a model."""

    model: str
    entry: VersionEntry
    config: ModelConfig
    replicas: dict[int, Replica] = field(default_factory=dict)
    live: bool = False
    desired: bool = True
    failure: str | None = None
    """Why it cannot be loaded, or why it keeps crashing."""
    final: bool = False
    """Whether the failure stays until the files change."""

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.entry.version

    @property
    def count(self) -> int:
        """How many replicas it should have."""
        return self.config.replicas

    @property
    def labels(self) -> list[str]:
        """What it is called beside its number, by the settings that it was started with."""
        labels = self.config.versions.labels
        return [label for label, version in labels.items() if version == self.version]

    @property
    def ready(self) -> list[Replica]:
        """The replicas that can take traffic."""
        return [r for r in self.replicas.values() if r.state is ReplicaState.READY]

    @property
    def full(self) -> bool:
        """Whether all its replicas are ready."""
        return len(self.ready) >= self.count

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be expected of its first start."""
        return self.live or self.failure is not None


class Fleet:
    """The generations of every model, and what follows from their states."""

    def __init__(self, exists: Callable[[Path], bool] = Path.exists) -> None:
        self._exists = exists
        self.models: dict[str, ModelEntry] = {}
        self.unloaded: set[str] = set()
        """The models that are not to be served, whatever the repository holds."""
        self._generations: dict[str, list[Generation]] = {}

    def generations(self, model: str | None = None) -> Iterator[Generation]:
        """Iterate over the generations of one model, or of all."""
        if model is not None:
            yield from self._generations.get(model, ())
            return
        for generations in self._generations.values():
            yield from generations

    def adopt(self, entry: VersionEntry, spec: ReplicaSpec, ready: Ready) -> Generation:
        """Take over a replica that was started by an earlier controller and is ready."""
        generation = self._find(spec.model, spec.version, spec.fingerprint)
        if generation is None:
            generation = Generation(spec.model, entry, spec.config, desired=False)
            self._generations.setdefault(spec.model, []).append(generation)
        generation.live = True
        generation.replicas[spec.index] = Replica(
            spec.index, ReplicaState.READY, spec, ready, pid=ready.pid
        )
        return generation

    def _find(self, model: str, version: int, fingerprint: str) -> Generation | None:
        for generation in self._generations.get(model, ()):
            if (generation.version, generation.entry.fingerprint) == (version, fingerprint):
                return generation
        return None

    def update(self, repository: Repository) -> list[Generation]:
        """Compare with what the repository now holds; return the generations to start."""
        self.models = dict(repository.models)
        for generation in self.generations():
            generation.desired = False
        started: list[Generation] = []
        for name, entry in self.models.items():
            if name in self.unloaded:
                continue
            selected = entry.config.versions.select(list(entry.versions))
            for version in reversed(selected):
                found = entry.versions[version]
                known = self._find(name, version, found.fingerprint)
                if known is None:
                    known = Generation(name, found, entry.config)
                    self._generations.setdefault(name, []).append(known)
                    started.append(known)
                known.desired = True
            if not selected and entry.config.versions.only != ():
                for old in self.generations(name):
                    old.desired = old.live and self._exists(old.entry.path)
        return started

    def make_live(self) -> None:
        """Give traffic to the generations that may have it."""
        for model in self._generations:
            others = any(g.live for g in self.generations(model))
            for generation in self.generations(model):
                if generation.desired and not generation.live and generation.ready:
                    generation.live = generation.full or not others

    def retired(self) -> list[Generation]:
        """Return the generations that nobody needs any more."""
        return [g for model in list(self._generations) for g in self._retired(model)]

    def _retired(self, model: str) -> list[Generation]:
        generations = list(self.generations(model))
        if model not in self.models or model in self.unloaded:
            return generations
        awaited = [g.version for g in generations if g.desired and not g.live]
        replaced = [g.version for g in generations if g.desired and g.live]
        old = [g for g in generations if not g.desired]
        # Another content of a version is replaced by that very version; but the default version
        # stays in any case, and while nothing desired is live, that is the highest.
        kept = sorted(
            (g for g in old if g.live and g.version not in replaced),
            key=lambda g: (bool(replaced) and g.version in awaited, g.version),
        )
        kept = kept[-len(awaited) :] if awaited else []
        labels = self.models[model].config.versions.labels
        # What a label leads to stays until that to which it moves is live.
        kept += [g for g in old if g.live and any(labels.get(n) in awaited for n in g.labels)]
        return [g for g in old if g not in kept]

    def forget(self, generation: Generation) -> None:
        """Drop a generation whose last replica has ended."""
        generations = self._generations[generation.model]
        generations.remove(generation)
        if not generations:
            del self._generations[generation.model]

    def default(self, model: str) -> Generation | None:
        """Return the generation that answers for ``model`` when no version is named."""
        live = [g for g in self.generations(model) if g.live]
        return max(live, key=lambda g: (g.desired, g.version), default=None)

    def health(self) -> dict[str, bool]:
        """Say of each model whether it can be called."""
        return {name: bool(replicas) for name, replicas in self.clusters().items()}

    def clusters(self) -> Mapping[str, list[Replica]]:
        """Return the replicas behind each name, ``MODEL`` and ``MODEL:VERSION``.

        An empty list stands for the controller, which says why there is none.
        """
        clusters: dict[str, list[Replica]] = {}
        for name in self.models:
            retired = self._retired(name)
            default = self.default(name)
            # What is retired gets no call any more, though nothing takes its place.
            clusters[name] = [] if default is None or default in retired else default.ready
            for generation in self.generations(name):
                if generation in retired:
                    continue
                key = f"{name}:{generation.version}"
                if generation.live or key not in clusters:
                    clusters[key] = generation.ready if generation.live else []
            clusters.update(self._labelled(name, retired))
        return clusters

    def _labelled(self, model: str, retired: Sequence[Generation]) -> dict[str, list[Replica]]:
        """Return the replicas behind each ``MODEL@LABEL``.

        A replica knows the labels that it was started with, and answers to no other: while they
        are changed, a label leads to the replicas that know it.
        """
        found: dict[str, list[Replica]] = {}
        for generation in sorted(self.generations(model), key=lambda g: (g.live, g.desired)):
            if generation in retired:
                continue
            for label in generation.labels:
                found[f"{model}@{label}"] = generation.ready if generation.live else []
        return found

    def tasks(self) -> Mapping[str, str]:
        """Return the model of each task's id; of several models the first by name."""
        found: dict[str, str] = {}
        for name in sorted(self.models):
            for task in self.models[name].config.task_ids:
                found.setdefault(str(task), name)
        return found

    @property
    def settled(self) -> bool:
        """Whether every model that can be loaded is ready."""
        return all(g.settled for g in self.generations() if g.desired)

    def state(self, model: str) -> str:
        """Return ``ready``, ``not ready`` or ``unloaded``."""
        if model in self.unloaded:
            return "unloaded"
        default = self.default(model)
        return "ready" if default is not None and default.ready else "not ready"

    def reason(self, model: str, version: str = "") -> str | None:
        """Say why ``model`` cannot answer; ``None`` when it can, or is not known."""
        entry = self.models.get(model)
        if entry is None:
            return None
        if model in self.unloaded:
            return "it was unloaded: load it to have it served again"
        generations = [
            g for g in self.generations(model) if not version or str(g.version) == version
        ]
        for generation in sorted(generations, key=lambda g: -g.version):
            if generation.failure is not None:
                return generation.failure
            if not generation.ready:
                return "it is being loaded"
        if not generations and entry.problems:
            return "; ".join(map(str, entry.problems))
        return "no version of it is selected" if not generations else "it is being loaded"
