"""A device that reads no faster than its test lets it, with next to nothing buffered between it and the proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.scenarios.device import WAIT_SECONDS

RECEIVE_BUFFER_SIZE = 4096
LIMIT = 64 * 1024


@dataclass
class SlowDevice:
    """One open answer with a Content-Length. `body` is what has been read of it."""

    reader: asyncio.StreamReader
    status: int
    headers: Mapping[str, str]
    body: bytearray = field(default_factory=bytearray)

    @property
    def length(self) -> int:
        """Bytes that were announced."""
        return int(self.headers["content-length"])

    async def read(self, size: int) -> None:
        """Read so many bytes more; asyncio.IncompleteReadError or ConnectionResetError when the answer breaks."""
        async with asyncio.timeout(WAIT_SECONDS):
            while size:
                data = await self.reader.readexactly(min(size, LIMIT))
                self.body += data
                size -= len(data)

    async def finish(self) -> bool:
        """Read the rest; whether all came that was announced."""
        try:
            await self.read(self.length - len(self.body))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return False
        return True


@asynccontextmanager
async def slow_device(url: str, *, headers: Mapping[str, str] | None = None) -> AsyncIterator[SlowDevice]:
    """A device that has the head of its answer, and leaves at the end of the block."""
    parts = urlsplit(url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=LIMIT)
    try:
        wanted = {"Host": parts.netloc, "Connection": "close", **(headers or {})}
        lines = [f"GET {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(WAIT_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        fields = (line.partition(": ") for line in head[1:] if line)
        yield SlowDevice(reader, int(head[0].split()[1]), {name.lower(): value for name, _, value in fields})
    finally:
        writer.transport.abort()
