"""The threads in which a storage does what blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from contentapp.core.errors import StorageUnavailable

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """A pool of threads whose jobs, once submitted, always run, even when their caller is cancelled."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="storage")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="storage-aside")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`; StorageUnavailable after close."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(work, *args, **kwargs)))

    async def make(self, work: Callable[[], T], dispose: Callable[[T], None]) -> T:
        """As `run`; when the caller is cancelled, what is made nevertheless is disposed of, in a thread."""
        future = self._submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: self._dispose(done, dispose))
            raise

    def soon(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have it done, nobody waiting; after close: here and now."""
        try:
            self._pool.submit(work, *args, **kwargs)
        except RuntimeError:
            work(*args, **kwargs)

    def aside(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Have something slow done that nobody needs, in a thread of its own; False after close: it won't be."""
        try:
            self._aside.submit(work, *args, **kwargs)
        except RuntimeError:
            return False
        return True

    async def close(self) -> None:
        """Wait for all jobs; no further ones are taken."""
        for pool in (self._pool, self._aside):
            await asyncio.to_thread(pool.shutdown)

    def _submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return self._pool.submit(work, *args, **kwargs)
        except RuntimeError:
            raise StorageUnavailable("the storage is closed") from None

    def _dispose(self, done: Future[T], dispose: Callable[[T], None]) -> None:
        if done.exception() is None:
            self.soon(dispose, done.result())
