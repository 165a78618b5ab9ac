"""A real name server on loopback, whose records and manners a test changes as it likes."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.ports import free_port

Manners = Literal[
    "answers", "silent", "garbage", "servfail", "refused", "truncates", "other", "loop", "update"
]


class DnsServer:
    """``async with DnsServer() as server:`` answers over UDP and TCP at ``server.address``."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.manners: Manners = "answers"
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0
        self.question = asyncio.Event()

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        port = free_port()
        self.tcp = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.udp, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), local_addr=("127.0.0.1", port)
        )
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.udp.close()
        self.tcp.close()
        await self.tcp.wait_closed()

    def set(self, name: str, kind: str, *values: str, ttl: int = 300) -> None:
        """Let there be these records, and no other ones, of a name and a type."""
        self.records[name, kind] = (ttl, list(values))

    def drop(self, name: str) -> None:
        """Let there be nothing of this name."""
        for key in [key for key in self.records if key[0] == name]:
            del self.records[key]

    def reply(self, wire: bytes, *, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        self.over_tcp += tcp
        self.question.set()
        if self.manners == "silent":
            return None
        if self.manners == "garbage":
            return wire[:2] + b"\x81\x80" + b"\xff" * 40
        response = dns.message.make_response(query)
        if self.manners in ("servfail", "refused"):
            response.set_rcode(dns.rcode.from_text(self.manners.upper()))
        elif self.manners == "truncates" and not tcp:
            response.flags |= dns.flags.TC
        elif self.manners == "other":
            response.answer.append(dns.rrset.from_text("other.test.", 1, "IN", "A", "10.9.9.9"))
        elif self.manners == "loop":
            response.answer.append(dns.rrset.from_text(f"{name}.", 1, "IN", "CNAME", f"{name}."))
        elif self.manners == "update":
            response.flags |= 5 << 11
        else:
            self._answer(response, question.name, name, kind)
        return response.to_wire(max_size=65535)

    def _answer(
        self, response: dns.message.Message, owner: dns.name.Name, name: str, kind: str
    ) -> None:
        if (name, "CNAME") in self.records:
            ttl, (target,) = self.records[name, "CNAME"]
            response.answer.append(dns.rrset.from_text(owner, ttl, "IN", "CNAME", target))
            owner, name = dns.name.from_text(target), target.removesuffix(".")
        if (name, kind) in self.records:
            ttl, values = self.records[name, kind]
            if values:
                response.answer.append(dns.rrset.from_text_list(owner, ttl, "IN", kind, values))
            return
        soa = dns.rrset.from_text("test.", 7, "IN", "SOA", "ns.test. hm.test. 1 2 3 4 7")
        response.authority.append(soa)
        if not any(key[0] == name for key in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = int.from_bytes(await reader.readexactly(2), "big")
            reply = self.reply(await reader.readexactly(size), tcp=True)
            if reply is not None:
                writer.write(len(reply).to_bytes(2, "big") + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self.server.reply(data, tcp=False)
        if reply is not None:
            self.transport.sendto(reply, addr)
