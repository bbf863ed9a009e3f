"""Retries of an exchange's head, as a decorator of Upstream: exponential backoff with full jitter, and Retry-After."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from contentapp.core.errors import HostCooling, UpstreamError
from contentapp.upstream.base import Upstream, UpstreamRequest, UpstreamResponse

MAX_RETRY_AFTER_SECONDS = 60.0


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class RetryUpstream:
    """Tries again where waiting is worth it: on the last source, for errors that may pass, before the deadline.

    random_fraction: 0 ≤ x < 1. clock: what request.deadline is measured by. A Retry-After above
    max_retry_after_seconds is not waited for.
    """

    def __init__(
        self,
        inner: Upstream,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random_fraction: Callable[[], float] = random.random,
        clock: Callable[[], float] = _loop_time,
        max_retry_after_seconds: float = MAX_RETRY_AFTER_SECONDS,
    ) -> None:
        self._inner = inner
        self._sleep = sleep
        self._random = random_fraction
        self._clock = clock
        self._max_retry_after_seconds = max_retry_after_seconds

    @asynccontextmanager
    async def open(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """As Upstream.open; an error of the last try is raised as it is, and one of the body at once."""
        async with AsyncExitStack() as stack:
            yield await self._enter(stack, request)

    async def _enter(self, stack: AsyncExitStack, request: UpstreamRequest) -> UpstreamResponse:
        tried = 0
        while True:
            try:
                return await stack.enter_async_context(self._inner.open(request))
            except UpstreamError as error:
                wait = self._wait_seconds(request, error, tried)
                if wait is None:
                    raise
            tried += 1
            await self._sleep(wait)

    def _wait_seconds(self, request: UpstreamRequest, error: UpstreamError, tried: int) -> float | None:
        """How long to wait before the next try, None for no next try."""
        settings = request.source.remote.settings
        if error.is_permanent or isinstance(error, HostCooling) or not request.is_last or tried >= settings.max_retries:
            return None
        longest = min(settings.retry_backoff_max_seconds, settings.retry_backoff_seconds * 2.0**tried)
        wait = self._random() * longest
        if (after := getattr(error, "retry_after_seconds", None)) is not None:
            if after > self._max_retry_after_seconds:
                return None
            wait = max(wait, after)
        is_too_late = request.deadline is not None and self._clock() + wait >= request.deadline
        return None if is_too_late else wait

    async def close(self) -> None:
        """Close the inner one."""
        await self._inner.close()
