"""A remote below HTTP: whatever is asked, the same bytes come back. For answers that no HTTP server would make."""

from __future__ import annotations

import asyncio
from typing import Self

from tests.ports import Port


class RawRemote:
    """Reads a request's head, sends `answer` as it is, and closes; with `reads=False` it does so at once on accept."""

    def __init__(self, answer: bytes = b"", *, reads: bool = True) -> None:
        self.answer_bytes, self.reads, self.connections = answer, reads, 0
        self._port = Port()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """``127.0.0.1:port``."""
        return f"127.0.0.1:{self._port.number}"

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{self.address}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, sock=self._port.open())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            if self.reads:
                await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer_bytes)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client gave up first
        finally:
            writer.close()
            self._writers.discard(writer)
