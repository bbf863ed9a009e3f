"""Tasks: one at a time, in order, each with an outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contentapp.core.errors import StorageUnavailable
from contentapp.tasks.base import Task, TaskState, TooManyTasks
from contentapp.tasks.runner import MAX_WAITING, REMEMBERED, TaskRunner


def task(name: str = "repair") -> Task:
    return Task(name, "Working", "code")


async def ended(runner: TaskRunner, count: int = 1) -> None:
    """Run until this many tasks have ended."""
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(5):
        while sum(task.finished_at is not None for task in runner.all()) < count:
            await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def nothing(_task: Task) -> dict[str, Any]:
    return {}


async def test_a_task_runs_with_its_progress_and_its_result() -> None:
    runner = TaskRunner()

    async def work(task: Task) -> dict[str, Any]:
        assert task.state is TaskState.RUNNING
        task.progress(3, 4)
        return {"verified": 3}

    submitted = runner.submit(task(), work)
    assert submitted.state is TaskState.WAITING
    await ended(runner)
    assert (submitted.state, submitted.result, submitted.error) == (TaskState.COMPLETED, {"verified": 3}, "")
    assert (submitted.done, submitted.total) == (3, 4)
    assert submitted.started_at is not None
    assert submitted.finished_at is not None
    assert submitted.created_at <= submitted.started_at <= submitted.finished_at


async def test_one_at_a_time_in_their_order() -> None:
    runner, seen = TaskRunner(), []

    def work(name: str) -> Any:
        async def run(_task: Task) -> dict[str, Any]:
            seen.append(f"{name} begins")
            await asyncio.sleep(0)
            seen.append(f"{name} ends")
            return {}

        return run

    for name in "ab":
        runner.submit(task(name), work(name))
    await ended(runner, 2)
    assert seen == ["a begins", "a ends", "b begins", "b ends"]
    assert [task.name for task in runner.all()] == ["b", "a"]


@pytest.mark.parametrize(
    ("error", "told"),
    [(StorageUnavailable("the disk is gone"), "the disk is gone"), (ValueError("secret"), "internal error")],
)
async def test_a_failure_is_told_and_ends_nothing_else(error: Exception, told: str) -> None:
    runner = TaskRunner()

    async def work(_task: Task) -> dict[str, Any]:
        raise error

    failed, after = runner.submit(task(), work), runner.submit(task(), nothing)
    await ended(runner, 2)
    assert failed.state is TaskState.FAILED
    assert told in failed.error
    assert "secret" not in failed.error
    assert after.state is TaskState.COMPLETED


async def test_stopped_the_running_and_the_waiting_are_canceled() -> None:
    runner = TaskRunner()
    begun = asyncio.Event()

    async def work(_task: Task) -> dict[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    running, waiting = runner.submit(task(), work), runner.submit(task(), nothing)
    loop = asyncio.create_task(runner.run())
    await begun.wait()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert [running.state, waiting.state] == [TaskState.CANCELED, TaskState.CANCELED]
    assert running.error == waiting.error == "the program was stopped"


async def test_only_so_many_wait() -> None:
    runner = TaskRunner()
    for _ in range(MAX_WAITING):
        runner.submit(task(), nothing)
    with pytest.raises(TooManyTasks):
        runner.submit(task(), nothing)


async def test_the_oldest_that_have_ended_are_forgotten() -> None:
    runner = TaskRunner()
    first = runner.submit(task("first"), nothing)
    await ended(runner)
    for number in range(REMEMBERED // MAX_WAITING):
        for _ in range(MAX_WAITING):
            runner.submit(task(), nothing)
        await ended(runner, min(REMEMBERED, (number + 1) * MAX_WAITING))
    assert len(runner.all()) == REMEMBERED
    assert runner.find(first.id) is None
    assert runner.find(runner.all()[0].id) is runner.all()[0]
