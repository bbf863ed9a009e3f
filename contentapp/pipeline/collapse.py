"""Collapse: the same small piece of work, asked for many times at once, is done once, over all processes (P4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from contentapp.coordination.base import Coordination, Following
from contentapp.core.errors import LeaderLost

Result = TypeVar("Result")


class Collapse(Generic[Result]):
    """Work by key. Within the process the result is shared; another process's turn is waited for, then one looks
    again.
    """

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination
        self._tasks: dict[str, asyncio.Task[Result]] = {}

    async def do(
        self, key: str, find: Callable[[], Awaitable[Result | None]], work: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, bool]:
        """The result, and whether somebody else had asked for it already.

        find: looks for a result that is there by now; asked again after every wait, before `work`. The work goes on
        when
        the caller is cancelled: others may want it.
        """
        task = self._tasks.get(key)
        is_joined = task is not None
        if task is None:
            task = asyncio.create_task(self._lead(key, find, work), name=f"collapse {key}")
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task), is_joined

    def _done(self, key: str, task: asyncio.Task[Result]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()  # seen, even if all who asked have left

    async def _lead(
        self, key: str, find: Callable[[], Awaitable[Result | None]], work: Callable[[], Awaitable[Result]]
    ) -> Result:
        while True:
            held = await self._coordination.lease(key)
            if isinstance(held, Following):
                await _wait(held)
                if (result := await find()) is not None:
                    return result
                continue
            try:
                # Between our look before the lease and the lease itself another process may have finished.
                result = await find()
                return await work() if result is None else result
            finally:
                await asyncio.shield(held.release())

    async def close(self) -> None:
        """End all work."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait(following: Following) -> None:
    try:
        async for _ in following.updates():
            pass
    except LeaderLost:
        pass  # its work is ours now
    finally:
        await following.close()
