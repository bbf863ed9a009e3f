"""Limits that processes share."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.coordination.conftest import Clock, Open, Spawn


async def test_a_burst_then_the_rate(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    waits = [await coordination.reserve("requests:quay", 1, 2, 2) for coordination in (one, two, one, two)]
    assert waits == pytest.approx([0, 0, 0.5, 1.0], abs=1e-6)
    clock.now += 10
    assert await one.reserve("requests:quay", 1, 2, 2) == 0


async def test_names_are_apart(open_one: Open) -> None:
    one = await open_one()
    await one.reserve("a", 1000, 1, 0)
    assert await one.reserve("b", 1, 1, 1) == 0


async def test_processes_together_get_the_rate_once(open_one: Open, spawn: Spawn, clock: Clock) -> None:
    one = await open_one()
    children = await asyncio.gather(spawn(), spawn())
    for child in children:
        await child.ask("reserve", name="x", times=200, rate=100.0, now=clock.now)
    waits = await asyncio.gather(*(one.reserve("x", 1, 100, 0) for _ in range(200)))
    waits += [await child.answer() for child in children]
    assert max(waits) == pytest.approx(6.0, abs=1e-3)


async def test_a_clock_that_was_set_back_does_not_block(open_one: Open, clock: Clock) -> None:
    one = await open_one()
    await one.reserve("x", 1, 1, 1)
    clock.now -= 1e8
    assert await one.reserve("x", 1, 1, 1) == 0


async def test_what_is_no_limit_is_an_error(open_one: Open) -> None:
    one = await open_one()
    with pytest.raises(ValueError, match="no such limit"):
        await one.reserve("x", 1, 0, 1)


async def test_a_thousand_a_second(open_one: Open) -> None:
    one = await open_one()
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(one.reserve("x", 1, 1e6, 1) for _ in range(1000)))
    assert asyncio.get_running_loop().time() - started < 1
