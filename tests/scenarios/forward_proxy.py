"""An HTTP proxy as companies have one: it forwards, tunnels (CONNECT), and remembers what it was asked for.

It also stands in for the name service: to the program under test a remote behind it is a host of the internet, of which
only the name is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from tests.ports import Port

HOP_HEADERS = (b"proxy-", b"connection:")


@dataclass(frozen=True)
class Asked:
    """One request that reached the proxy: its method, its target as it was sent, and its head."""

    method: str
    target: str
    head: bytes = field(repr=False)


class ForwardProxy:
    """Forwards to `hosts`: from ``name`` or ``name:port`` as it stands in a URL to ``127.0.0.1:port``; else 502."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self.hosts = dict(hosts)
        self.asked: list[Asked] = []
        self._port = Port()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._port.number}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, sock=self._port.open())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def targets(self) -> list[str]:
        """What it was asked for, in that order."""
        return [asked.target for asked in self.asked]

    def heads(self) -> bytes:
        """Every head that came in."""
        return b"".join(asked.head for asked in self.asked)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # one of the two sides left
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        self.asked.append(Asked(method, target, head))
        host = target if method == "CONNECT" else urlsplit(target).netloc
        address = self.hosts.get(host)
        if address is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        there, out = await asyncio.open_connection(*address.split(":"))
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                out.write(forwarded(head))
            await asyncio.gather(pump(reader, out), pump(there, writer))
        finally:
            out.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side ends."""
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


def forwarded(head: bytes) -> bytes:
    """The head for the origin: its own path as the target, one request a connection, nothing that is for the proxy."""
    first, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, version = first.split(b" ")
    parts = urlsplit(target.decode("latin-1"))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [line for line in fields if not line.lower().startswith(HOP_HEADERS)]
    return b"\r\n".join([b" ".join([method, path.encode("latin-1"), version]), *kept, b"Connection: close", b"", b""])
