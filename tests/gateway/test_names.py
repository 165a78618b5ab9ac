"""DNS as a source of endpoints, with a real name server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway.dns_server import DnsServer, Manners
from tests.gateway.following import Following
from tests.gateway.waiting import Waits
from tidegate.errors import ConfigurationError
from tidegate.gateway.discovery.lookup import Answer, Resolver, in_hosts
from tidegate.gateway.discovery.names import HostAddresses, ServiceEndpoints
from tidegate.gateway.discovery.service_records import ServiceRecord, service_endpoints
from tidegate.gateway.discovery.source import RetryDelays
from tidegate.gateway.endpoints import Endpoint, Traits


@pytest_asyncio.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def resolver(server: DnsServer, tmp_path: Path) -> Resolver:
    return Resolver([server.address], tmp_path / "hosts", patience=10)


@pytest.fixture
def host(resolver: Resolver, waits: Waits) -> HostAddresses:
    return HostAddresses("gpu.test:8000", Traits(), resolver, waits)


@pytest.fixture
def service(resolver: Resolver, waits: Waits) -> ServiceEndpoints:
    return ServiceEndpoints("_grpc._tcp.test", Traits(), resolver, waits)


async def test_the_addresses_of_a_name(server: DnsServer, host: HostAddresses) -> None:
    server.set("gpu.test", "A", "10.0.0.8", "10.0.0.7")
    server.set("gpu.test", "AAAA", "fd00::7")
    traits = Traits("tensorflow-serving", 8501, 30, 2)
    async with Following(replace(host, traits=traits)) as seen:
        await seen.until_known("10.0.0.7:8000", "10.0.0.8:8000")
        assert seen.known is not None
        assert seen.known[0] == Endpoint(
            "10.0.0.7:8000", "tensorflow-serving", "10.0.0.7:8501", 30, 2, name="gpu.test"
        )
    assert seen.problems == []


async def test_a_name_with_ipv6_alone(server: DnsServer, host: HostAddresses) -> None:
    server.set("gpu.test", "AAAA", "fd00::7")
    async with Following(host) as seen:
        await seen.until_known("[fd00::7]:8000")


async def test_another_name_for_it(server: DnsServer, host: HostAddresses, waits: Waits) -> None:
    server.set("gpu.test", "CNAME", "box.test.", ttl=5)
    server.set("box.test", "A", "10.0.0.7", ttl=50)
    async with Following(host) as seen:
        await seen.until_known("10.0.0.7:8000")
        assert await waits.reached() == 5


@pytest.mark.parametrize(("ttl", "seconds"), [(0, 1), (1, 1), (20, 20), (86400, 60)])
async def test_it_is_looked_up_again_by_its_time_to_live(
    server: DnsServer, host: HostAddresses, waits: Waits, ttl: int, seconds: float
) -> None:
    server.set("gpu.test", "A", "10.0.0.7", ttl=ttl)
    async with Following(host) as seen:
        await seen.until_known("10.0.0.7:8000")
        assert await waits.reached() == seconds
        await waits.go()
        assert len(seen.sets) == 1
        server.set("gpu.test", "A", "10.0.0.8", "10.0.0.7")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000", "10.0.0.8:8000"]
        server.set("gpu.test", "A", "10.0.0.8")
        await waits.go()
        assert seen.addresses == ["10.0.0.8:8000"]


async def test_a_name_that_goes_keeps_its_endpoints_and_says_so(
    server: DnsServer, host: HostAddresses, waits: Waits
) -> None:
    server.set("gpu.test", "A", "10.0.0.7")
    async with Following(host) as seen:
        await seen.until_known("10.0.0.7:8000")
        server.drop("gpu.test")
        await waits.go()
        assert "gpu.test:8000: there is no such name (NXDOMAIN); the last" in str(seen.problem)
        assert await waits.reached() == 7  # what its zone says
        server.set("gpu.test", "A")
        await waits.go()
        assert "gpu.test:8000: the name has no A records" in str(seen.problem)
        assert await waits.reached() == 10
        assert len(seen.sets) == 1
        server.set("gpu.test", "A", "10.0.0.9")
        await waits.go()
        assert seen.addresses == ["10.0.0.9:8000"]
        assert seen.problem is None


async def test_a_name_that_never_was(host: HostAddresses) -> None:
    async with Following(host) as seen:
        await seen.until_problem("NXDOMAIN")
        assert seen.sets == [()]


@pytest.mark.parametrize(
    ("manners", "says"),
    [
        ("silent", "no name server answered within 1 s"),
        ("garbage", "no name server"),
        ("servfail", "no name server knew an answer"),
        ("refused", "no name server knew an answer"),
        ("other", "the name has no"),
        ("loop", "no name server knew an answer"),
        ("update", "no name server"),
    ],
)
async def test_a_name_server_that_fails(
    server: DnsServer, host: HostAddresses, waits: Waits, manners: Manners, says: str
) -> None:
    server.set("gpu.test", "A", "10.0.0.7")
    hasty = replace(host, resolver=replace(host.resolver, patience=1))
    async with Following(hasty) as seen:
        await seen.until_known("10.0.0.7:8000")
        server.manners = manners
        await waits.go()
        assert says in str(seen.problem)
        server.manners = "answers"
        await waits.go()
        assert seen.problem is None
        assert len(seen.sets) == 1


async def test_it_is_asked_less_and_less_while_nobody_answers(
    server: DnsServer, host: HostAddresses, waits: Waits
) -> None:
    server.manners = "refused"
    async with Following(host) as seen:
        for _ in range(9):
            await waits.go()
        assert seen.sets == [()]
        assert all(1 <= seconds <= 30 for seconds in waits.asked)
        assert waits.asked[-1] >= 15
        server.manners = "answers"
        server.set("gpu.test", "A", "10.0.0.7", ttl=3)
        await waits.go()
        assert waits.asked[-1] == 3


async def test_a_name_server_that_dies_and_comes_back(tmp_path: Path, waits: Waits) -> None:
    async with DnsServer() as server:
        server.set("gpu.test", "A", "10.0.0.7")
        resolver = Resolver([server.address], tmp_path / "hosts", patience=1)
        source = HostAddresses("gpu.test:8000", Traits(), resolver, waits)
        async with Following(source) as seen:
            await seen.until_known("10.0.0.7:8000")
            server.udp.close()
            await waits.go()
            assert "no name server" in str(seen.problem)
            assert len(seen.sets) == 1


async def test_the_next_name_server_is_asked(
    server: DnsServer, tmp_path: Path, waits: Waits
) -> None:
    server.set("gpu.test", "A", "10.0.0.7")
    async with DnsServer() as broken:
        broken.manners = "servfail"
        resolver = Resolver([broken.address, server.address], tmp_path / "hosts")
        async with Following(HostAddresses("gpu.test:1", Traits(), resolver, waits)) as seen:
            await seen.until_known("10.0.0.7:1")
        assert broken.asked


async def test_a_long_answer_comes_over_tcp(server: DnsServer, host: HostAddresses) -> None:
    machines = [f"10.0.{n >> 8}.{n & 255}" for n in range(1, 1001)]
    server.set("gpu.test", "A", *machines)
    server.manners = "truncates"
    async with Following(host) as seen:
        await seen.until_known(*(f"{machine}:8000" for machine in machines))
    assert server.over_tcp == 1


async def test_addresses_of_no_machine_are_left_out(
    server: DnsServer, host: HostAddresses, waits: Waits
) -> None:
    server.set("gpu.test", "A", "0.0.0.0", "10.0.0.7")
    async with Following(host) as seen:
        await seen.until_known("10.0.0.7:8000")
        assert "0.0.0.0:8000' is the address of no machine" in str(seen.problem)
        server.set("gpu.test", "A", "0.0.0.0")
        await waits.go()
        assert "the last known endpoints stay" in str(seen.problem)
        assert seen.addresses == ["10.0.0.7:8000"]


async def test_the_hosts_file_comes_first(
    server: DnsServer, resolver: Resolver, host: HostAddresses, waits: Waits
) -> None:
    server.set("gpu.test", "A", "10.0.0.7")
    resolver.hosts_file.write_text("# here\n10.0.0.1 box GPU.test # mine\n10.0.0.2 gpu.test.\n")
    async with Following(host) as seen:
        await seen.until_known("10.0.0.1:8000", "10.0.0.2:8000")
        assert not server.asked
        resolver.hosts_file.write_text("10.0.0.1 box\n")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000"]


async def test_localhost_is_this_machine(server: DnsServer, resolver: Resolver) -> None:
    async with Following(HostAddresses("LOCALHOST:8000", Traits(), resolver)) as seen:
        await seen.until_known("127.0.0.1:8000")
    async with Following(HostAddresses("localhost:8000")) as seen:
        await seen.until_known("127.0.0.1:8000")
    assert not server.asked


def test_a_hosts_file() -> None:
    text = (
        "127.0.0.1 localhost\n::1 localhost\nfd00::1\tsix\n10.0.0.1 four4\n# 1.2.3.4 four\nx six"
    )
    assert in_hosts(text, "localhost") == ("127.0.0.1",)
    assert in_hosts(text, "six") == ("fd00::1",)
    assert in_hosts(text, "four") == ()


@pytest.mark.parametrize("address", ["10.0.0.7:8000", "[fd00::7]:8000"])
async def test_an_address_needs_no_name_server(server: DnsServer, address: str) -> None:
    async with Following(HostAddresses(address)) as seen:
        await seen.until_known(address)


@pytest.mark.parametrize("address", ["gpu", "gpu:0", "a b:1", "10.0.0.256:1", ":1", "-:1"])
async def test_what_cannot_be_a_name(address: str) -> None:
    with pytest.raises(ConfigurationError):
        await HostAddresses(address).follow(lambda _: None, lambda _: None)


async def test_a_machine_without_name_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dns.resolver

    def unconfigured(self: object, *_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", unconfigured)
    answer = await Resolver(hosts_file=tmp_path / "hosts").addresses("gpu.test")
    assert answer.values is None
    assert "no name server in /etc/resolv.conf" in answer.words


async def test_priorities_and_weights_of_a_service(
    server: DnsServer, service: ServiceEndpoints, waits: Waits
) -> None:
    server.set("_grpc._tcp.test", "SRV", "20 5 8001 b.test.", "10 60 8000 a.test.", ttl=30)
    server.set("a.test", "A", "10.0.0.7", ttl=20)
    server.set("b.test", "A", "10.0.0.8")
    async with Following(service) as seen:
        await seen.until_known("10.0.0.7:8000", "10.0.0.8:8001")
        assert await waits.reached() == 20
        assert seen.known == (
            Endpoint("10.0.0.7:8000", "tidegate", weight=60, name="a.test"),
            Endpoint("10.0.0.8:8001", "tidegate", weight=5, priority=1, name="b.test"),
        )
        server.set("_grpc._tcp.test", "SRV", "10 60 8000 a.test.")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000"]
    assert seen.problems == []


async def test_a_target_that_cannot_be_looked_up_keeps_its_addresses(
    server: DnsServer, service: ServiceEndpoints, waits: Waits
) -> None:
    server.set("_grpc._tcp.test", "SRV", "1 1 8000 a.test.", "1 1 8000 b.test.")
    server.set("a.test", "A", "10.0.0.7")
    async with Following(service) as seen:
        await seen.until_known("10.0.0.7:8000")
        assert "b.test: there is no such name" in str(seen.problem)
        server.set("b.test", "A", "10.0.0.8")
        server.drop("a.test")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000", "10.0.0.8:8000"]
        assert "a.test: there is no such name" in str(seen.problem)
        server.drop("b.test")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000", "10.0.0.8:8000"]


async def test_one_target_that_nobody_answers_for_is_not_asked_for_all_the_time(
    resolver: Resolver, server: DnsServer, service: ServiceEndpoints
) -> None:
    """Nor all of the others, of which there may be a thousand, with it."""

    @dataclass(frozen=True, slots=True)
    class PartlySilent(Resolver):
        async def addresses(self, name: str) -> Answer[str]:
            if name == "b.test.":
                return Answer(None, words="no name server answered")
            return await super(PartlySilent, self).addresses(name)

    waited: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        await waited.put(seconds)
        await asyncio.Event().wait()

    server.set("_grpc._tcp.test", "SRV", "1 1 8000 a.test.", "1 1 8000 b.test.")
    server.set("a.test", "A", "10.0.0.7")
    partly = PartlySilent(resolver.nameservers, resolver.hosts_file, resolver.patience)
    async with Following(replace(service, resolver=partly, sleep=sleep)) as seen:
        assert await waited.get() == 5.0
        assert seen.addresses == ["10.0.0.7:8000"]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "the name has no SRV records"),
        (["0 0 0 ."], "no such service"),
        (["0 0 8000 nowhere.test."], "nowhere.test: there is no such name"),
        (["0 0 0 a.test."], "from 1 to 65535"),
    ],
)
async def test_a_service_that_is_not_there(
    server: DnsServer, service: ServiceEndpoints, waits: Waits, records: list[str], says: str
) -> None:
    server.set("_grpc._tcp.test", "SRV", *records)
    server.set("a.test", "A", "10.0.0.7")
    async with Following(service) as seen:
        await seen.until_problem(says)
        assert seen.sets == [()]
        server.set("_grpc._tcp.test", "SRV", "0 0 8000 a.test.")
        await waits.go()
        assert seen.addresses == ["10.0.0.7:8000"]
        assert seen.problem is None
        server.manners = "servfail"
        await waits.go()
        assert "no name server knew an answer" in str(seen.problem)
        assert seen.addresses == ["10.0.0.7:8000"]


async def test_a_thousand_targets(server: DnsServer, service: ServiceEndpoints) -> None:
    server.set("_grpc._tcp.test", "SRV", *(f"0 1 8000 m{n}.test." for n in range(1000)))
    for n in range(1000):
        server.set(f"m{n}.test", "A", f"10.0.{n >> 8}.{n & 255}")
    async with Following(service) as seen:
        await seen.until(lambda: len(seen.known or ()) == 1000, seconds=60)
    assert seen.problems == []


def test_weights_of_zero() -> None:
    """RFC 2782: hardly ever among others, and without a meaning when all are so."""
    records = [
        ServiceRecord(0, 0, 1, "a"),
        ServiceRecord(0, 10, 1, "b"),
        ServiceRecord(7, 0, 1, "c"),
        ServiceRecord(9, 65535, 1, "d"),
    ]
    addresses = {name: [f"10.0.0.{n}"] for n, name in enumerate("abcd", start=1)}
    endpoints, left_out = service_endpoints(records, addresses, Traits(weight=50, priority=3))
    assert {e.name: (e.priority, e.weight) for e in endpoints} == {
        "a": (3, 1), "b": (3, 10), "c": (4, 50), "d": (5, 65535)
    }  # fmt: skip
    assert left_out == []


def test_more_priorities_than_there_can_be() -> None:
    records = [ServiceRecord(n, 1, 1, "a") for n in range(1000)]
    endpoints, _ = service_endpoints(records, {"a": ["10.0.0.1"]}, Traits())
    assert max(e.priority for e in endpoints) == 127


def test_delays_grow_and_start_again() -> None:
    delays = RetryDelays(chance=lambda: 0.0)
    assert [delays.failed() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    delays.succeeded()
    assert delays.failed() == 0.5
    assert RetryDelays(chance=lambda: 1.0).failed() == 0.25
