"""What goes on beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from contentapp.core.errors import StorageUnavailable
from contentapp.core.settings import EngineSettings
from contentapp.storage.base import StorageUse
from contentapp.tasks.base import TaskState
from contentapp.tasks.maintenance import MaintenanceTasks
from contentapp.tasks.runner import TaskRunner
from contentapp.tasks.scrub import Scrub
from contentapp.tasks.upkeep import Upkeep
from tests.unit.tasks.conftest import Installation


def upkeep_of(installation: Installation, *, high: float = 0.9) -> Upkeep:
    eviction = installation.eviction(high=high)
    verifier = installation.verifier(removing=eviction.removing, started_at=datetime.now(UTC) + timedelta(minutes=1))
    settings = EngineSettings(scrub_interval_days=0)
    scrub = Scrub(verifier, installation.upkeep, settings, installation.folder / "scrub-position")
    return Upkeep(installation.storage, installation.upkeep, eviction, verifier, scrub, recount_seconds=0.0)


@asynccontextmanager
async def running(upkeep: Upkeep) -> AsyncIterator[None]:
    task = asyncio.create_task(upkeep.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def stored(installation: Installation, size: int) -> None:
    """Return when exactly this much is stored."""
    async with asyncio.timeout(5):
        while (await installation.storage.use()).stored != size:
            await asyncio.sleep(0.005)


async def test_a_write_that_waits_is_given_room_at_once(installation: Installation) -> None:
    for number in range(8):
        await installation.add(bytes([number]) * 100)
    upkeep = upkeep_of(installation)
    async with running(upkeep):
        upkeep.space_wanted("300")
        upkeep.space_wanted("600")
        upkeep.space_wanted("100")
        await stored(installation, 400)


@pytest.mark.parametrize("message", ["", "-1", "x", "²", "1.5"])
async def test_a_message_that_is_no_number_is_no_harm(installation: Installation, message: str) -> None:
    await installation.add(b"x" * 800)
    upkeep = upkeep_of(installation)
    async with running(upkeep):
        upkeep.space_wanted(message)
        await asyncio.sleep(0.02)
        assert (await installation.storage.use()).stored == 800


async def test_at_the_start_the_unrecorded_is_adopted_and_partials_of_the_dead_go(installation: Installation) -> None:
    digest = await installation.store(b"unrecorded")
    left = installation.folder / "data" / "partials" / f"{'0' * 64}-1-{'0' * 16}.part"
    left.write_bytes(b"half a body")
    async with running(upkeep_of(installation)), asyncio.timeout(5):
        while await installation.catalog.find_artifact(digest) is None or left.exists():
            await asyncio.sleep(0.005)


async def test_a_wrong_count_is_corrected(installation: Installation) -> None:
    await installation.add(b"x" * 100)
    await installation.storage.set_stored(700)
    await upkeep_of(installation).recount()
    assert (await installation.storage.use()).stored == 100


async def test_a_difference_that_passes_is_no_wrong_count(installation: Installation) -> None:
    """A worker has stored bytes and records them while the count is looked at."""
    await installation.add(b"x" * 100)
    digest = await installation.store(b"y" * 50)
    upkeep = upkeep_of(installation)
    looks = iter([150 - 100, 0])

    async def difference() -> int:
        return next(looks)

    upkeep._difference = difference  # type: ignore[method-assign]
    await upkeep.recount()
    assert (await installation.storage.use()).stored == 150
    assert await installation.storage.find(digest) is not None


async def test_a_failing_part_is_told_once_and_tried_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = upkeep_of(installation)
    use, is_broken = installation.storage.use, True

    async def broken() -> StorageUse:
        if is_broken:
            raise StorageUnavailable("the disk is gone")
        return await use()

    monkeypatch.setattr(installation.storage, "use", broken)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await upkeep._try("eviction", broken)
        is_broken = False
        assert await upkeep._try("eviction", broken)
    assert [line["event"] for line in logs] == ["upkeep failed", "upkeep works again"]


async def test_one_part_that_fails_ends_no_other(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        await installation.add(bytes([number]) * 100)

    async def broken() -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(installation.upkeep, "sweep", broken)
    upkeep = upkeep_of(installation)
    async with running(upkeep):
        upkeep.space_wanted("600")
        await stored(installation, 400)


# -- the tasks an admin can ask for


async def test_repair_reads_everything(installation: Installation) -> None:
    digest = await installation.add(b"good")
    bad = await installation.add(b"bad")
    installation.path(bad).write_bytes(b"bax")
    tasks, runner = tasks_of(installation)
    task = tasks.repair()
    assert tasks.find(task.id) is task
    await done(runner, task.id)
    assert task.state is TaskState.COMPLETED
    assert task.result == {"verified": 1, "damaged": 1, "missing": 0, "adopted": 0, "size": 4}
    assert (task.done, task.total) == (2, 2)
    assert await installation.is_stored(digest)


@pytest.mark.parametrize(("is_forced", "evicted"), [(False, 0), (True, 100)])
async def test_clean_up_adopts_removes_sweeps_and_evicts(
    installation: Installation, is_forced: bool, evicted: int
) -> None:
    for number in range(5):
        await installation.add(bytes([number]) * 100)
    adopted = await installation.store(b"u" * 100)
    (installation.folder / "data" / "partials" / f"{'0' * 64}-1-{'0' * 16}.part").write_bytes(b"half")
    tasks, runner = tasks_of(installation)
    task = tasks.clean_up(is_forced=is_forced)
    await done(runner, task.id)
    assert task.error == ""
    assert task.result == {"adopted": 1, "damaged": 0, "partials": 1, "swept": 0, "evicted_size": evicted}
    assert await installation.is_stored(adopted)


def tasks_of(installation: Installation) -> tuple[MaintenanceTasks, TaskRunner]:
    runner, eviction = TaskRunner(), installation.eviction(low=0.5)
    return MaintenanceTasks(runner, installation.verifier(), eviction, upkeep_of(installation)), runner


async def done(runner: TaskRunner, task_id: str) -> None:
    running = asyncio.create_task(runner.run())
    task = runner.find(task_id)
    assert task is not None
    async with asyncio.timeout(5):
        while task.finished_at is None:
            await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
