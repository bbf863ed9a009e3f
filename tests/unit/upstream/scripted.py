"""A server on loopback that answers with exactly the bytes a test gives it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus

MANY = 100_000


@dataclass(frozen=True)
class Asked:
    """One request. `connection` counts connections from 1; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Answer:
    """What to do with a request: write the bytes, then keep | close | abort | stall the connection."""

    data: bytes
    then: str = "keep"
    repeat: int = 1  # how often `data` is written
    tunnel: int | None = None  # then: join the connection with this port of loopback


Handler = Callable[[Asked], Answer | bytes]


def reply(status: int = 200, body: bytes = b"", *headers: tuple[str, str], length: int | None = None) -> bytes:
    """A well-formed answer; `length`: another Content-Length than the body's."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Odd"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Scripted:
    """A running server: where it is, and what it was asked."""

    port: int
    scheme: str = "http"
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    ended: asyncio.Queue[int] = field(default_factory=asyncio.Queue)  # numbers of connections that ended

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


@asynccontextmanager
async def scripted(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    """Run the server; its connections are gone when the context ends."""
    state = Scripted(0, "https" if context else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        number = state.connections
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
                await _serve(reader, writer, number, handler, state)
        finally:
            tasks.discard(task)
            writer.transport.abort()
            state.ended.put_nowait(number)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, handler: Handler, state: Scripted
) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        asked = Asked(method, target, headers, body, number)
        state.asked.append(asked)
        given = handler(asked)
        answer = given if isinstance(given, Answer) else Answer(given)
        for _ in range(answer.repeat):
            writer.write(answer.data)
            await writer.drain()
        if answer.tunnel is not None:
            await _tunnel(reader, writer, answer.tunnel)
        if answer.then == "stall":
            await reader.read()
        if answer.then != "keep":
            if answer.then == "close":
                writer.close()
                await writer.wait_closed()
            return


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    try:
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)
    finally:
        there_writer.transport.abort()
