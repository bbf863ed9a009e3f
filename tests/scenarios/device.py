"""A device, as far as scenarios need one: it asks, keeps what comes, and says whether the answer ended properly."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tests.proxy import Proxy

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """What came. is_complete: False when the connection broke before the body's proper end."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes
    is_complete: bool = True
    first_byte_seconds: float = 0.0

    @property
    def sha256(self) -> str:
        """The body's digest as OCI writes it."""
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"

    @property
    def cache(self) -> str:
        """The Cache-Status without our name."""
        return self.headers.get("Cache-Status", "").removeprefix("contentapp; ")


@asynccontextmanager
async def asking(
    url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """An open answer, for tests that look at it while it arrives. The path is sent as it is."""
    connector = aiohttp.TCPConnector(ssl=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
        session.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=["Accept-Encoding"],
        ) as response,
    ):
        yield response


async def ask(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """One whole exchange. A connection that breaks after the head is an incomplete answer, not an exception."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asking(url, method=method, headers=headers) as response:
        first = loop.time() - started
        body, is_complete = bytearray(), True
        try:
            async for chunk in response.content.iter_any():
                if not body:
                    first = loop.time() - started
                body += chunk
        except (aiohttp.ClientError, ConnectionError):
            is_complete = False
        return Answer(
            response.status,
            response.reason or "",
            CIMultiDictProxy(CIMultiDict(response.headers)),
            bytes(body),
            is_complete,
            first,
        )


async def until_stored(proxy: Proxy) -> None:
    """Return when what was pulled is committed and recorded: it is a moment later than its last byte."""
    async with asyncio.timeout(WAIT_SECONDS):
        while any(each["state"] != "suspended" for each in (await proxy.admin("/pulp/api/v3/transfers/"))["results"]):
            await asyncio.sleep(0.01)


async def ask_many(url: str, count: int, *, headers: Mapping[str, str] | None = None) -> list[Answer]:
    """So many devices at once."""
    return await asyncio.gather(*(ask(url, headers=headers) for _ in range(count)))


async def ask_raw(url: str, request: bytes, *, context: ssl.SSLContext | None = None) -> bytes:
    """Send bytes as they are; all that comes until the connection ends, ConnectionResetError if it is reset."""
    parts = urlsplit(url)
    async with asyncio.timeout(WAIT_SECONDS):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


@dataclass
class Puller:
    """A device that resumes as containers/image does: after a break GET with Range from where it is."""

    url: str
    body: bytearray = field(default_factory=bytearray)
    breaks: int = 0

    async def pull(self, *, attempts: int = 5) -> bytes:
        """The body once an answer has ended properly."""
        for _ in range(attempts):
            headers = {"Range": f"bytes={len(self.body)}-"} if self.body else {}
            answer = await ask(self.url, headers=headers)
            assert answer.status == (206 if self.body else 200), (answer.status, answer.body[:200])
            self.body += answer.body
            if answer.is_complete:
                return bytes(self.body)
            self.breaks += 1
        raise AssertionError(f"no complete answer in {attempts} attempts")
