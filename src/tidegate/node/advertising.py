"""How gateways reach this node, and what it says of itself to them; no I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from tidegate import __version__
from tidegate.config.addresses import place, split_address
from tidegate.config.node import NodeConfig
from tidegate.errors import ConfigurationError
from tidegate.node.fleet import Fleet, Replica
from tidegate.protocols.registration import AnnouncedModel, Announcement

_PORT = re.compile(r":[0-9]+$")
_MARK = re.compile("[:@]")


def advertised(config: NodeConfig) -> tuple[str, int]:
    """Return the host, an address or a name, and the port by which gateways reach this node.

    Loopback will do where all gateways are on this machine.

    Raises:
        ConfigurationError: it cannot be told, or others cannot reach what is given.
    """
    local = all_local(config.join or ())
    if config.advertise is not None:
        host, port = _read(config.advertise, config.port)
        if is_local(host) and not local:
            raise ConfigurationError(
                f"advertise: {config.advertise!r} is this machine to whoever asks, and a gateway "
                "is on another one; give an address or a name by which that one reaches this"
            )
        return host, port
    address = ipaddress.ip_address(config.host)
    if address.is_unspecified and local:
        return ("::1" if address.version == 6 else "127.0.0.1"), config.port
    if address.is_unspecified or (address.is_loopback and not local):
        fault = (
            "stands for all addresses of this machine"
            if address.is_unspecified
            else "cannot be reached from other machines"
        )
        listen = "" if address.is_unspecified else " --host 0.0.0.0"
        raise ConfigurationError(
            f"join: the gateway must be told where this node is, and its host {config.host} "
            f"{fault}; start it with{listen} --advertise HOST:{config.port}, where HOST is how "
            "the gateway reaches this machine"
        )
    return config.host, config.port


def is_local(host: str) -> bool:
    """Say whether a host is this machine, whoever asks."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def all_local(urls: Iterable[str]) -> bool:
    """Say whether all these servers are on this machine."""
    return all(is_local(urlsplit(url).hostname or "") for url in urls)


def _read(text: str, port: int) -> tuple[str, int]:
    # A host alone means that the port is the same.
    whole = text if _PORT.search(text) and not text.endswith("]") else f"{text}:{port}"
    try:
        return split_address(place(whole))
    except ValueError as error:
        raise ConfigurationError(
            f"advertise: {error}; give what gateways reach this node by, as 10.0.0.7:8000"
        ) from error


def announcement(
    fleet: Fleet,
    address: str,
    *,
    weight: int,
    cores: float,
    instance: str,
    secure: bool = False,
) -> Announcement:
    """Return what a node says of itself: what its edge answers for at this moment."""
    by_model: dict[str, dict[str, list[Replica]]] = {name: {} for name in fleet.models}
    for key, replicas in fleet.clusters().items():
        name = _MARK.split(key)[0]
        by_model[name][key[len(name) :]] = replicas
    return Announcement(
        address=address,
        models=tuple(_model(fleet, name, by_model[name]) for name in sorted(by_model)),
        weight=weight,
        cores=cores,
        replicas={name: _count(by_model[name]) for name in sorted(by_model)},
        version=__version__,
        instance=instance,
        secure=secure,
    )


def withdrawn(told: Announcement, said: Announcement) -> Announcement:
    """Return ``told`` without what is no longer in ``said``, and nothing that is new there.

    Of a model that only changes its version the old one stays: a model without any is no model.
    """
    now = {model.name: model for model in said.models}
    return replace(told, models=tuple(_left(model, now.get(model.name)) for model in told.models))


def _left(told: AnnouncedModel, said: AnnouncedModel | None) -> AnnouncedModel:
    if said is None or not said.ready:
        return replace(told, ready=False)
    versions = tuple(version for version in told.versions if version in said.versions)
    if not versions:
        return told
    return replace(
        told,
        versions=versions,
        default_version=told.default_version if told.default_version in versions else None,
        labels={label: v for label, v in told.labels.items() if said.labels.get(label) == v},
    )


def _model(fleet: Fleet, name: str, asked: Mapping[str, list[Replica]]) -> AnnouncedModel:
    """Return a model; ``asked`` are the replicas behind ``""``, ``:VERSION`` and ``@LABEL``."""
    versions = tuple(sorted(int(k[1:]) for k, found in asked.items() if k[:1] == ":" and found))
    labels = {
        key[1:]: version
        for key, found in asked.items()
        if key[:1] == "@" and (version := _version(found)) in versions
    }
    default = _version(asked[""])
    return AnnouncedModel(
        name=name,
        versions=versions,
        default_version=default if default in versions else None,
        labels=labels,
        tasks=tuple(map(str, fleet.models[name].config.task_ids)),
        ready=bool(asked[""]),
    )


def _version(replicas: list[Replica]) -> int | None:
    return next((replica.spec.version for replica in replicas if replica.spec), None)


def _count(asked: Mapping[str, list[Replica]]) -> int:
    return sum(len(replicas) for key, replicas in asked.items() if key[:1] == ":")
