"""What SRV records say of endpoints; pure.

Source: RFC 2782.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tidegate.errors import ConfigurationError
from tidegate.gateway.endpoints import LARGEST_PRIORITY, Endpoint, Traits


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One SRV record."""

    priority: int
    """The lowest is asked first; 0 to 65535."""
    weight: int
    """The share among those of one priority; 0 to 65535."""
    port: int
    target: str
    """A host's name, without a dot at the end; empty: the service is decidedly not there."""


def services(records: Iterable[ServiceRecord]) -> tuple[ServiceRecord, ...]:
    """Return the records that name a host, those that are asked first in front."""
    named = {record for record in records if record.target}
    return tuple(sorted(named, key=lambda r: (r.priority, -r.weight, r.target, r.port)))


def service_endpoints(
    records: Iterable[ServiceRecord], addresses: Mapping[str, Iterable[str]], traits: Traits
) -> tuple[list[Endpoint], list[str]]:
    """Turn records into endpoints, given the addresses of their targets.

    Their priorities are counted from that of the source on: 10, 20, 30 are 0, 1, 2. A weight of
    0 among others that are larger is 1, the least there is; where all are 0, nobody has a
    preference and each has the weight of the source. Each address of a target has its weight.

    Returns:
        The endpoints, those of the lowest priority first; and what was left out, in words.
    """
    known = services(records)
    ranks = {p: n for n, p in enumerate(sorted({r.priority for r in known}))}
    weighted = {r.priority for r in known if r.weight}
    endpoints, left_out = [], []
    for record in known:
        weight = max(1, record.weight) if record.priority in weighted else traits.weight
        priority = min(LARGEST_PRIORITY, traits.priority + ranks[record.priority])
        pool = replace(traits, weight=weight, priority=priority)
        for found in at_hosts(addresses.get(record.target, ()), record.port, record.target, pool):
            if isinstance(found, Endpoint):
                endpoints.append(found)
            else:
                left_out.append(found)
    return endpoints, left_out


def at_hosts(
    hosts: Iterable[str], port: int, name: str, traits: Traits
) -> Iterator[Endpoint | str]:
    """Yield an endpoint for each address of a host, or why there is none."""
    for host in hosts:
        try:
            yield traits.at(host, port, name=name)
        except ConfigurationError as error:
            yield str(error)
