"""Tasks: slow work that an admin has asked for, with progress and an outcome."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from contentapp.core.errors import ContentAppError


class TooManyTasks(ContentAppError):
    """So many wait that one more helps nobody."""


class TaskState(StrEnum):
    """Pulp's states of a task."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Task:
    """One piece of work. `error` is a plain sentence, "" without one; `result` is JSON.

    message: what is being done, for people. code: the same for programs. done, total: how far it has come, in the unit
    of the message; total 0 while it is not known.
    """

    name: str
    message: str
    code: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: TaskState = TaskState.WAITING
    created_at: datetime = field(default_factory=_now)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    done: int = 0
    total: int = 0
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def progress(self, done: int, total: int) -> None:
        """Note how far it has come."""
        self.done, self.total = done, total


class AdminTasks(Protocol):
    """The tasks that can be asked for, and those that have been."""

    def all(self) -> Sequence[Task]:
        """Those that are remembered, the newest first."""
        ...

    def find(self, task_id: str) -> Task | None: ...

    def repair(self) -> Task:
        """Read every stored artifact again. TooManyTasks."""
        ...

    def clean_up(self, *, is_forced: bool) -> Task:
        """Tidy up; is_forced: also evict down to the low watermark. TooManyTasks."""
        ...
