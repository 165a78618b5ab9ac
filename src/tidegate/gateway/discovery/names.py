"""Endpoints by DNS: the addresses of a host, and the SRV records of a service.

A name is looked up again when the answer's time to live is over, but not more often than every
second nor less often than every minute. When nobody answers, or the name is gone or has no
addresses any more, the last known endpoints stay and the problem is told: a name that is gone is
more often a mistake in the zone than the end of all its machines, and machines that are really
gone are found out by health checks. A machine that leaves while others remain leaves at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from tidegate.config.addresses import host_name, is_numeric, join_address, split_address
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.lookup import Answer, Resolver
from tidegate.gateway.discovery.service_records import (
    ServiceRecord,
    at_hosts,
    service_endpoints,
    services,
)
from tidegate.gateway.discovery.source import (
    LARGEST_SET,
    STAY,
    EndpointReport,
    Problem,
    RetryDelays,
    Sleep,
    Tell,
    too_many,
)
from tidegate.gateway.endpoints import Endpoint, Traits

_SHORTEST, _LONGEST = 1.0, 60.0
"""Seconds between two look-ups, whatever the time to live."""
_AT_A_TIME = 16
"""Targets of a service that are looked up."""
_UNANSWERED = 5.0
"""Seconds until the targets of a service are looked up again, of which one could not be."""


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """A :class:`~tidegate.gateway.discovery.source.Source`: each address of ``host:port``.

    Raises:
        ConfigurationError: when followed: the name cannot be one.
    """

    address: str
    """``gpu.example.com:8000``; one that is numeric already is told as it is."""
    traits: Traits = field(default_factory=Traits)
    resolver: Resolver = field(default_factory=Resolver)
    sleep: Sleep = asyncio.sleep

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """Look it up; see :class:`~tidegate.gateway.discovery.source.Source`."""
        try:
            host, port = split_address(self.address)
            name = host if is_numeric(host) else host_name(host)
            whole = name + "." * host.endswith(".")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        report, delays = EndpointReport(tell, problem), RetryDelays()
        if is_numeric(host):
            self._tell(report, (host,), port, host)
            await asyncio.Event().wait()
        while True:
            answer = await self.resolver.addresses(whole)
            if answer.values:
                delays.succeeded()
                self._tell(report, answer.values, port, name)
            else:
                report.failed(f"{join_address(name, port)}: {answer.words}; {STAY}")
            await self.sleep(_wait(answer, delays))

    def _tell(self, report: EndpointReport, hosts: Iterable[str], port: int, name: str) -> None:
        found = list(at_hosts(hosts, port, name, self.traits))
        endpoints = [f for f in found if isinstance(f, Endpoint)]
        wrong = [f for f in found if not isinstance(f, Endpoint)]
        if endpoints:
            report.found(endpoints, _left_out(join_address(name, port), wrong))
        else:
            report.failed(f"{join_address(name, port)}: {'; '.join(wrong)}; {STAY}")


@dataclass(slots=True)
class ServiceEndpoints:
    """A :class:`~tidegate.gateway.discovery.source.Source`: the SRV records of a name.

    Their priorities and weights are taken over as
    :func:`~tidegate.gateway.discovery.service_records.service_endpoints` says.

    Raises:
        ConfigurationError: when followed: the name cannot be one.
    """

    name: str
    """``_grpc._tcp.models.example.com``."""
    traits: Traits = field(default_factory=Traits)
    resolver: Resolver = field(default_factory=Resolver)
    sleep: Sleep = asyncio.sleep
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets and their addresses, as they were known last."""

    async def follow(self, tell: Tell, problem: Problem) -> None:
        """Look it up; see :class:`~tidegate.gateway.discovery.source.Source`."""
        try:
            name = host_name(self.name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        report, delays = EndpointReport(tell, problem), RetryDelays()
        while True:
            answer = await self.resolver.services(name)
            records = services(answer.values or ())
            if len(records) > LARGEST_SET:
                report.failed(f"{name} {too_many()}")
            elif records:
                delays.succeeded()
                answer = Answer((), min(answer.seconds, await self._told(report, name, records)))
            else:
                words = answer.words or "its SRV records say that there is no such service"
                report.failed(f"{name}: {words}; {STAY}")
            await self.sleep(_wait(answer, delays))

    async def _told(
        self, report: EndpointReport, name: str, records: tuple[ServiceRecord, ...]
    ) -> float:
        """Look up all targets and tell their endpoints; return how long this holds."""
        targets = list(dict.fromkeys(record.target for record in records))
        turns = asyncio.Semaphore(_AT_A_TIME)

        async def addresses(target: str) -> Answer[str]:
            async with turns:
                return await self.resolver.addresses(target + ".")

        answers = dict(zip(targets, await asyncio.gather(*map(addresses, targets))))
        words = [f"{target}: {a.words}" for target, a in answers.items() if not a.values]
        self._known = {t: a.values or self._known.get(t, ()) for t, a in answers.items()}
        endpoints, wrong = service_endpoints(records, self._known, self.traits)
        if endpoints:
            report.found(endpoints, _left_out(name, words + wrong))
        else:
            report.failed(f"{name}: {'; '.join(words + wrong)}; {STAY}")
        return min(_UNANSWERED if a.values is None else a.seconds for a in answers.values())


def _wait(answer: Answer[object], delays: RetryDelays) -> float:
    if answer.values is None:
        return max(_SHORTEST, delays.failed())
    return min(_LONGEST, max(_SHORTEST, answer.seconds))


def _left_out(name: str, words: list[str]) -> str | None:
    return f"{name}: left out or as known last: {'; '.join(words[:5])}" if words else None
