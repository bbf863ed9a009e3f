"""Limits of request rate and bandwidth per remote, as a decorator of Upstream; shared by all who share `reserve`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from contentapp.core.records import Remote
from contentapp.core.settings import KIB
from contentapp.upstream.base import RemoteBusy, Upstream, UpstreamRequest, UpstreamResponse

Reserve = Callable[[str, float, float, float], Awaitable[float]]
"""name, amount, rate, burst → the seconds to wait first, as Coordination.reserve."""
Sleep = Callable[[float], Awaitable[None]]

MIN_BATCH = 16 * KIB
MAX_BATCH = 256 * KIB
BATCHES_A_SECOND = 4


class LimitUpstream:
    """Lets requests and bytes through at the remote's `rate_limit` and `bandwidth_limit`."""

    def __init__(self, inner: Upstream, reserve: Reserve, *, sleep: Sleep = asyncio.sleep) -> None:
        self._inner = inner
        self._reserve = reserve
        self._sleep = sleep

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """As Upstream.open; RemoteBusy when the rate leaves no room before the request's deadline."""
        await self._wait_for_turn(request)
        async with self._inner.open(request) as response:
            remote = request.source.remote
            if remote.settings.bandwidth_limit is None:
                yield response
                return
            toll = Toll(remote, remote.settings.bandwidth_limit, self._reserve, self._sleep)
            try:
                yield LimitedResponse(response, toll)
            finally:
                await toll.settle()

    async def _wait_for_turn(self, request: UpstreamRequest) -> None:
        remote = request.source.remote
        rate = remote.settings.rate_limit
        if rate is None:
            return
        wait = await self._reserve(f"requests:{remote.id}", 1.0, rate, max(1.0, rate))
        if request.deadline is not None and asyncio.get_running_loop().time() + wait >= request.deadline:
            raise RemoteBusy(f"rate_limit of remote {remote.name} is used up", retry_after_seconds=wait)
        if wait > 0:
            await self._sleep(wait)

    async def close(self) -> None:
        """Close the inner one."""
        await self._inner.close()


class Toll:
    """What one body owes of its remote's bandwidth; paid in batches, since a reservation costs more than a chunk."""

    def __init__(self, remote: Remote, rate: float, reserve: Reserve, sleep: Sleep) -> None:
        self.batch = int(min(max(rate / BATCHES_A_SECOND, MIN_BATCH), MAX_BATCH))
        self._name = f"bytes:{remote.id}"
        self._rate = rate
        self._burst = max(rate, float(self.batch))
        self._reserve = reserve
        self._sleep = sleep
        self._owed = 0

    async def pass_on(self, size: int) -> None:
        """Owe `size` ≤ batch more bytes; wait for the reservation of each full batch."""
        self._owed += size
        while self._owed >= self.batch:
            self._owed -= self.batch
            if (wait := await self._reserve(self._name, self.batch, self._rate, self._burst)) > 0:
                await self._sleep(wait)

    async def settle(self) -> None:
        """Reserve the rest, for those who come after; nobody waits for it here."""
        owed, self._owed = self._owed, 0
        if owed:
            await self._reserve(self._name, owed, self._rate, self._burst)


class LimitedResponse:
    """An answer whose bytes pay toll."""

    def __init__(self, inner: UpstreamResponse, toll: Toll) -> None:
        self.status: int = inner.status
        self.offset: int = inner.offset
        self.size: int | None = inner.size
        self.length: int | None = inner.length
        self.etag: str = inner.etag
        self.last_modified: str = inner.last_modified
        self.headers: Mapping[str, str] = inner.headers
        self.host: str = inner.host
        self.url: str = inner.url
        self._inner = inner
        self._toll = toll

    async def chunks(self) -> AsyncIterator[bytes]:
        """The same bytes, in pieces of at most one batch, each paid for before it is passed on."""
        batch = self._toll.batch
        async for chunk in self._inner.chunks():
            for start in range(0, len(chunk), batch):
                piece = chunk[start : start + batch]  # the chunk itself, when it is no longer than a batch
                await self._toll.pass_on(len(piece))
                yield piece

    async def read(self, max_size: int) -> bytes:
        """The whole body, which is paid for when it is there."""
        body = await self._inner.read(max_size)
        for start in range(0, len(body), self._toll.batch):
            await self._toll.pass_on(min(self._toll.batch, len(body) - start))
        return body
