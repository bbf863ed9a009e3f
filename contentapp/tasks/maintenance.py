"""The tasks that an admin can ask for: read everything again, and tidy up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from contentapp.tasks.base import Task
from contentapp.tasks.evict import Eviction
from contentapp.tasks.runner import TaskRunner
from contentapp.tasks.upkeep import Upkeep
from contentapp.tasks.verify import Verifier


class MaintenanceTasks:
    """An AdminTasks."""

    def __init__(self, runner: TaskRunner, verifier: Verifier, eviction: Eviction, upkeep: Upkeep) -> None:
        self._runner = runner
        self._verifier = verifier
        self._eviction = eviction
        self._upkeep = upkeep

    def all(self) -> Sequence[Task]:
        """See tasks.base.AdminTasks."""
        return self._runner.all()

    def find(self, task_id: str) -> Task | None:
        """See tasks.base.AdminTasks."""
        return self._runner.find(task_id)

    def repair(self) -> Task:
        """See tasks.base.AdminTasks. Its result: verified, damaged, missing, adopted, size."""
        return self._runner.submit(Task("repair", "Reading artifacts again", "repair.artifacts"), self._repair)

    def clean_up(self, *, is_forced: bool) -> Task:
        """See tasks.base.AdminTasks. Its result: evicted_size, partials, adopted, damaged, swept."""

        async def work(task: Task) -> dict[str, Any]:
            return await self._clean_up(task, is_forced=is_forced)

        return self._runner.submit(Task("orphan_cleanup", "Cleaning up", "clean_up.steps"), work)

    async def _repair(self, task: Task) -> dict[str, Any]:
        return asdict(await self._verifier.run(task.progress))

    async def _clean_up(self, task: Task, *, is_forced: bool) -> dict[str, Any]:
        """Adoption comes first: what is not recorded can't be evicted, and is not counted."""
        result: dict[str, Any] = {}
        task.progress(0, 4)
        found = await self._upkeep.adopt()
        result |= {"adopted": found.adopted, "damaged": found.damaged}
        task.progress(1, 4)
        result["partials"] = await self._upkeep.remove_partials()
        task.progress(2, 4)
        result["swept"] = await self._upkeep.sweep()
        task.progress(3, 4)
        await self._upkeep.recount()
        result["evicted_size"] = await self._eviction.run(is_forced=is_forced)
        task.progress(4, 4)
        return result
