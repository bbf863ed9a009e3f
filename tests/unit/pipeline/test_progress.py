"""Attempts and signals: what followers of a flight hold on to."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contentapp.core.errors import ArtifactDamaged
from contentapp.pipeline.progress import Attempt, Head, Signal, SpoolReader


async def test_signal_wakes_all_once() -> None:
    signal = Signal()
    woken: list[int] = []

    async def follow(number: int) -> None:
        await signal.wait()
        woken.append(number)

    tasks = [asyncio.create_task(follow(number)) for number in range(5)]
    await asyncio.sleep(0)
    signal.notify()
    await asyncio.gather(*tasks)
    assert sorted(woken) == [0, 1, 2, 3, 4]
    later = asyncio.create_task(follow(5))
    await asyncio.sleep(0)
    assert not later.done(), "a change of before is not a change"
    signal.notify()
    await later


async def test_one_that_leaves_takes_nobody_along() -> None:
    signal = Signal()
    gone, stays = asyncio.create_task(signal.wait()), asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    signal.notify()
    await stays


async def test_notify_without_anybody() -> None:
    Signal().notify()


def test_reader_is_closed_with_its_last_holder(tmp_path: Path) -> None:
    file = tmp_path / "spool"
    file.write_bytes(b"0123456789")
    reader = SpoolReader(os.open(file, os.O_RDONLY))
    attempt = Attempt(reader=reader)
    attempt.hold()
    attempt.let_go()
    assert reader.read(2, 3) == b"234"
    assert (reader.size, reader.fileno() >= 0) == (10, True)
    attempt.hold()
    attempt.let_go()
    attempt.let_go()
    assert attempt.reader is None
    assert reader.fileno() == -1
    with pytest.raises(ArtifactDamaged):
        reader.read(0, 1)
    reader.close()


def test_fastest_follower_of_a_window() -> None:
    moves: list[int] = []
    attempt = Attempt(on_moved=lambda: moves.append(attempt.fastest))
    assert attempt.fastest == 0
    slow, fast = object(), object()
    for follower, position in ((slow, 3), (fast, 9), (slow, 5)):
        attempt.move(follower, position)
    assert moves == [3, 9, 9]


def test_every_attempt_has_its_own_id() -> None:
    assert len({Attempt().id for _ in range(100)}) == 100


def test_date_of_a_head() -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    assert Head(modified_at=at.isoformat()).modified == at
    assert Head().modified is None
