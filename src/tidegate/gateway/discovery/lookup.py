"""Asking for the addresses of a name: the hosts file first, then the name servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.resolver

from tidegate.config.addresses import is_numeric, split_address
from tidegate.gateway.discovery.service_records import ServiceRecord

T_co = TypeVar("T_co", covariant=True)

_HOSTS_AGAIN = 10.0
"""Seconds until the hosts file is read again."""
_LARGEST_HOSTS = 16 * 2**20
_LONGEST_NEGATIVE = 10.0
"""Seconds: a name that comes up is not waited for as long as its zone would have it."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T_co]):
    """What a look-up gave."""

    values: tuple[T_co, ...] | None
    """``None``: nobody could be asked; empty: there are none."""
    seconds: float = 0.0
    """How long the answer holds: its time to live."""
    words: str = ""
    """Why there are no values."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """Asks the name servers of this machine, or those that are given.

    ``/etc/resolv.conf`` is read anew for every question: machines change their networks.
    """

    nameservers: Sequence[str] = ()
    """``10.0.0.53`` or ``10.0.0.53:53``; none: those of ``/etc/resolv.conf``."""
    hosts_file: Path = field(default=Path("/etc/hosts"))
    patience: float = 5.0
    """Seconds until a question counts as unanswered."""

    async def addresses(self, name: str) -> Answer[str]:
        """Look up the IP addresses of a host; a dot at its end says that the name is whole.

        IPv6 addresses are asked for when there is no IPv4 one: a name that has both is, as a
        rule, the same machine twice.
        """
        found = await asyncio.to_thread(self._in_hosts_file, name)
        if found:
            return Answer(found, _HOSTS_AGAIN)
        four = await self._ask(name, "A")
        if four.values is None or four.values:
            return _texts(four)
        six = await self._ask(name, "AAAA")
        return _texts(six if six.values is None or six.values else four)

    async def services(self, name: str) -> Answer[ServiceRecord]:
        """Look up the SRV records of a name (RFC 2782)."""
        answer = await self._ask(name, "SRV")
        if answer.values is None:
            return Answer(None, 0.0, answer.words)
        records = tuple(
            ServiceRecord(r.priority, r.weight, r.port, r.target.to_text().removesuffix("."))
            for r in answer.values
        )
        return Answer(records, answer.seconds, answer.words)

    async def _ask(self, name: str, kind: str) -> Answer[Any]:
        try:
            answer = await self._resolver().resolve(name, kind, search=not name.endswith("."))
        except dns.resolver.NXDOMAIN as error:
            heard = [r for q in error.qnames() if (r := error.response(q)) is not None]
            return _none(heard, "there is no such name (NXDOMAIN)")
        except dns.resolver.NoAnswer as error:
            return _none([error.response()], f"the name has no {kind} records")
        except dns.resolver.NoResolverConfiguration:
            return Answer(None, words="this machine has no name server in /etc/resolv.conf")
        except dns.resolver.LifetimeTimeout:
            return Answer(None, words=f"no name server answered within {self.patience:g} s")
        except dns.resolver.NoNameservers as error:
            return Answer(None, words=f"no name server knew an answer: {_reasons(error)}")
        except (dns.exception.DNSException, OSError, ValueError, AssertionError) as error:
            # The last two: what the library may make of an answer that nobody thought of.
            reason = str(error) or type(error).__name__
            return Answer(None, words=f"could not be looked up: {reason}")
        return Answer(tuple(answer), float(answer.chaining_result.minimum_ttl))

    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self.nameservers)
        if self.nameservers:
            resolver.nameservers = [_nameserver(text) for text in self.nameservers]
        resolver.timeout = min(2.0, self.patience)
        resolver.lifetime = self.patience
        return resolver

    def _in_hosts_file(self, name: str) -> tuple[str, ...]:
        try:
            with self.hosts_file.open("rb") as file:
                text = file.read(_LARGEST_HOSTS).decode("utf-8", "replace")
        except OSError:
            text = ""
        name = name.removesuffix(".")
        found = in_hosts(text, name)
        if not found and (name == "localhost" or name.endswith(".localhost")):
            return ("127.0.0.1",)  # RFC 6761, section 6.3: no name server is asked.
        return found


def in_hosts(text: str, name: str) -> tuple[str, ...]:
    """Return the addresses of ``name`` in a hosts file; IPv6 ones if there are no others."""
    found = dict.fromkeys(_hosts_lines(text, name))
    four = tuple(host for host in found if ":" not in host)
    return four or tuple(found)


def _hosts_lines(text: str, name: str) -> Iterator[str]:
    name = name.lower()
    for line in text.splitlines():
        # Most lines are about others, and there may be a hundred thousand of them.
        if name in line.lower():
            host, *names = line.partition("#")[0].split() or [""]
            if name in (n.lower().removesuffix(".") for n in names) and is_numeric(host):
                yield host


def _nameserver(text: str) -> dns.nameserver.Nameserver:
    if is_numeric(text):
        return dns.nameserver.Do53Nameserver(text)
    return dns.nameserver.Do53Nameserver(*split_address(text))


def _texts(answer: Answer[Any]) -> Answer[str]:
    if answer.values is None:
        return answer
    return Answer(tuple(r.address for r in answer.values), answer.seconds, answer.words)


def _none(heard: Sequence[dns.message.QueryMessage], words: str) -> Answer[Any]:
    """Return that there is nothing, for as long as the zone says (RFC 2308, section 5)."""
    seconds = [_LONGEST_NEGATIVE]
    seconds += [response.resolve_chaining().minimum_ttl for response in heard]
    return Answer((), min(seconds), words)


def _reasons(error: dns.resolver.NoNameservers) -> str:
    heard = error.kwargs.get("errors", [])
    reasons = dict.fromkeys(f"{e[0].partition(':')[2]}: {e[3]}" for e in heard)
    return "; ".join(list(reasons)[:3]) or "there is none"
