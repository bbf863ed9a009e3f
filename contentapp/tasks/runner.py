"""Runs tasks, one at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from contentapp.core.errors import ContentAppError
from contentapp.tasks.base import Task, TaskState, TooManyTasks

log = structlog.get_logger("contentapp.tasks")

REMEMBERED = 200
MAX_WAITING = 50

Work = Callable[[Task], Awaitable[dict[str, Any]]]
"""What a task does; it returns the task's result."""


class TaskRunner:
    """Runs tasks in the order in which they came; remembers the newest ones, and those that have not ended."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._waiting: deque[tuple[Task, Work]] = deque()
        self._some = asyncio.Event()

    def submit(self, task: Task, work: Work) -> Task:
        """Queue work; its task. TooManyTasks."""
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyTasks(f"{MAX_WAITING} tasks are waiting already")
        self._tasks[task.id] = task
        self._waiting.append((task, work))
        self._some.set()
        self._forget_old()
        return task

    def find(self, task_id: str) -> Task | None:
        """A remembered task."""
        return self._tasks.get(task_id)

    def all(self) -> list[Task]:
        """The newest first."""
        return list(reversed(self._tasks.values()))

    async def run(self) -> None:
        """Work on the queue until cancelled; what is left then is canceled."""
        try:
            while True:
                await self._some.wait()
                while self._waiting:
                    await self._run_one(*self._waiting.popleft())
                self._some.clear()
        finally:
            while self._waiting:
                _finish(self._waiting.popleft()[0], TaskState.CANCELED, "the program was stopped")

    def _forget_old(self) -> None:
        ended = [task.id for task in self._tasks.values() if task.finished_at is not None]
        for task_id in ended[: max(0, len(self._tasks) - REMEMBERED)]:
            del self._tasks[task_id]

    async def _run_one(self, task: Task, work: Work) -> None:
        task.state, task.started_at = TaskState.RUNNING, datetime.now(UTC)
        log.info("task started", task=task.name, id=task.id)
        try:
            task.result = await work(task)
        except asyncio.CancelledError:
            _finish(task, TaskState.CANCELED, "the program was stopped")
            raise
        except ContentAppError as error:
            log.warning("task failed", task=task.name, id=task.id, error=str(error))
            _finish(task, TaskState.FAILED, str(error))
        except Exception:
            log.exception("task failed", task=task.name, id=task.id)
            _finish(task, TaskState.FAILED, "internal error; the log tells more")
        else:
            log.info("task completed", task=task.name, id=task.id)
            _finish(task, TaskState.COMPLETED)


def _finish(task: Task, state: TaskState, error: str = "") -> None:
    task.state, task.error, task.finished_at = state, error, datetime.now(UTC)
