"""One thread for work that may block, its jobs in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker:
    """Jobs of one loop, run one after the other in a thread of their own."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result. A job goes on when its caller is cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self._executor.submit(job, *args, **kwargs)))

    async def run_or_undo(self, undo: Callable[[T], None], job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Its result, or, when the caller is cancelled and never sees it, `undo` of it."""
        future = self._executor.submit(job, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            # The thread runs jobs in order, so this one finds the first finished; if it has been closed, all have.
            try:
                self._executor.submit(_undo, undo, future)
            except RuntimeError:
                _undo(undo, future)
            raise

    async def close(self) -> None:
        """Return when all jobs have run."""
        last = self._executor.submit(lambda: None)
        self._executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(last))


def _undo(undo: Callable[[T], None], future: Future[T]) -> None:
    if future.exception() is None:
        undo(future.result())
