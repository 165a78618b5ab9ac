"""An API server that speaks HTTP and knows EndpointSlices: lists, pages, watches, and bad days."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.ports import free_port

PATH = "/apis/discovery.k8s.io/v1/namespaces/"


def slice_of(
    name: str,
    pods: Iterable[str | Mapping[str, Any]],
    *,
    ports: Iterable[tuple[str, int]] = (("grpc", 8000),),
    family: str = "IPv4",
) -> dict[str, Any]:
    """Return an EndpointSlice; a pod is an address, or what an endpoint is made of."""
    return {
        "metadata": {"name": name},
        "addressType": family,
        "ports": [{"name": n, "port": p, "protocol": "TCP"} for n, p in ports],
        "endpoints": [
            {"addresses": [pod], "conditions": {"ready": True}} if isinstance(pod, str) else pod
            for pod in pods
        ],
    }


class ApiServer:
    """``async with ApiServer() as server:`` listens at ``server.url``."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.port = free_port()
        self.version = 100
        self.oldest = 0
        self.slices: dict[str, dict[str, Any]] = {}
        self.history: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.refusal: tuple[int, str] | None = None
        self.watch_refusal: tuple[int, str] | None = None
        self.raw: bytes | None = None
        """The body of every list, instead of the right one."""
        self.largest_page = 10**9
        self.gone_as_event = False
        self.silent = False
        self.watching: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self.news = asyncio.Condition()

    async def __aenter__(self) -> ApiServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Die: all connections break off."""
        self.server.close()
        for writer in self._connections:
            writer.transport.abort()
        self._connections.clear()
        self.watching.clear()

    def put(self, value: dict[str, Any]) -> None:
        name = value["metadata"]["name"]
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = value
        self.event(kind, value)

    def delete(self, name: str) -> None:
        self.event("DELETED", self.slices.pop(name))

    def event(self, kind: str, value: dict[str, Any]) -> None:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        line = json.dumps({"type": kind, "object": value}).encode() + b"\n"
        self.history.append((self.version, line))
        self.send(line)

    def bookmark(self) -> None:
        self.version += 7
        value = {"metadata": {"resourceVersion": str(self.version)}}
        self.send(json.dumps({"type": "BOOKMARK", "object": value}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        """Send bytes to whoever watches."""
        self.watching = {writer for writer in self.watching if not writer.is_closing()}
        for writer in self.watching:
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_watches(self) -> None:
        """End all watches in an orderly way."""
        for writer in self.watching:
            writer.write(b"0\r\n\r\n")
            writer.close()
        self.watching.clear()

    def compact(self) -> None:
        """Forget what was: watches from before now are gone."""
        self.oldest = self.version

    async def until_watched(self, number: int = 1) -> None:
        """Wait until there have been so many watches."""
        async with asyncio.timeout(60), self.news:
            await self.news.wait_for(
                lambda: (
                    sum("watch" in params for _, params, _ in self.requests) >= number
                    and bool(self.watching)
                )
            )

    async def until_asked(self, number: int) -> None:
        """Wait until there have been so many requests."""
        async with asyncio.timeout(60), self.news:
            await self.news.wait_for(lambda: len(self.requests) >= number)

    @property
    def lists(self) -> int:
        return sum("watch" not in params for _, params, _ in self.requests)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if writer not in self.watching:
                self._connections.discard(writer)
                writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        target = urlsplit(first.split()[1])
        params = dict(parse_qsl(target.query))
        watch = "watch" in params
        async with self.news:
            self.requests.append((target.path, params, headers))
            refusal = (self.watch_refusal if watch else None) or self.refusal
            if not watch and not self.silent and refusal is None:
                self._list(writer, params)
            elif refusal is not None:
                self._status(writer, *refusal)
            elif watch:
                watch = self._watch(writer, int(params["resourceVersion"]))
            self.news.notify_all()
        await writer.drain()
        return not watch

    def _list(self, writer: asyncio.StreamWriter, params: dict[str, str]) -> None:
        if "continue" in params and int(params["continue"].split("-")[0]) < self.oldest:
            return self._status(writer, 410, "The provided continue parameter is too old")
        begin = int(params.get("continue", "0-0").split("-")[1])
        size = min(int(params["limit"]), self.largest_page)
        items = [self.slices[name] for name in sorted(self.slices)]
        metadata: dict[str, str] = {"resourceVersion": str(self.version)}
        if begin + size < len(items):
            metadata["continue"] = f"{self.version}-{begin + size}"
        body = {"kind": "EndpointSliceList", "metadata": metadata}
        page = json.dumps(body | {"items": items[begin : begin + size]}).encode()
        return self._answer(writer, 200, page if self.raw is None else self.raw)

    def _watch(self, writer: asyncio.StreamWriter, version: int) -> bool:
        if version < self.oldest and not self.gone_as_event:
            self._status(writer, 410, "too old resource version")
            return False
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        self.watching.add(writer)
        missed = b"".join(line for at, line in self.history if at > version)
        if version < self.oldest:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            missed = json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
        if missed:
            writer.write(b"%x\r\n%s\r\n" % (len(missed), missed))
        return True

    def _status(self, writer: asyncio.StreamWriter, code: int, message: str) -> None:
        status = {"kind": "Status", "status": "Failure", "message": message, "code": code}
        self._answer(writer, code, json.dumps(status).encode())

    def _answer(self, writer: asyncio.StreamWriter, code: int, body: bytes) -> None:
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (code, len(body), body)
        )
