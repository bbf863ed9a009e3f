"""One flight for all who want the same: joined, left, stopped, failed; over two processes' coordinations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from contentapp.coordination.base import FlightState
from contentapp.coordination.local import LocalCoordination
from contentapp.core.errors import ContentAppError, ContentDenied, ContentNotFound, ContentUnavailable
from contentapp.pipeline.flight import Flight, Flights, Plan
from contentapp.pipeline.intake import Intake
from contentapp.pipeline.progress import Attempt


class ScriptedIntake:
    """Begins an attempt, and ends it as it is told: "verified", or with an error."""

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.outcome: Exception | None = None
        self.go_on, self.may_clean_up = asyncio.Event(), asyncio.Event()
        self.begun, self.cancelled = 0, 0
        self.may_clean_up.set()

    async def run(self, flight: Flight) -> None:
        self.begun += 1
        attempt = Attempt(state=FlightState.RUNNING, keep=self.keep, size=10)
        flight.begin(attempt)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.shield(self.may_clean_up.wait())
            raise
        if self.outcome is not None:
            raise self.outcome
        attempt.state = FlightState.VERIFIED
        flight.changed()


class Process:
    """One process's flights."""

    def __init__(self, coordination: LocalCoordination) -> None:
        self.intake = ScriptedIntake()
        self.flights = Flights(coordination, cast(Intake, self.intake))
        self.is_stored = False

    def plan(self, key: str = "key") -> Plan:
        async def is_stored() -> bool:
            return self.is_stored

        async def nothing(*_: object) -> None:
            return None

        async def no() -> bool:
            return False

        return Plan(
            key=key,
            path="/path",
            sources=(),
            digest=None,
            size=None,
            is_stored=is_stored,
            delivered=nothing,
            record=nothing,
            revalidate=no,
            find_modified=nothing,
        )


@pytest_asyncio.fixture
async def processes(tmp_path: Path) -> AsyncIterator[list[Process]]:
    coordinations = [LocalCoordination(tmp_path) for _ in range(2)]
    for coordination in coordinations:
        await coordination.start()
    started = [Process(coordination) for coordination in coordinations]
    yield started
    for process in started:
        process.intake.may_clean_up.set()
        await process.flights.close()
    for coordination in coordinations:
        await coordination.close()


async def until(flight: Flight, *states: FlightState) -> None:
    """Return when the flight is in one of these states, or over."""
    async with asyncio.timeout(10):
        while flight.attempt.state not in states and flight.error is None and not flight.is_stored:
            await flight.signal.wait()


async def begun(intake: ScriptedIntake, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while intake.begun < count:
            await asyncio.sleep(0.001)


async def gone(process: Process) -> None:
    """Return when the process has no flight any more."""
    async with asyncio.timeout(10):
        while process.flights.progress() or process.flights._tasks:
            await asyncio.sleep(0.001)


async def test_all_who_ask_share_one(processes: list[Process]) -> None:
    process, _ = processes
    joined = [process.flights.join(process.plan()) for _ in range(5)]
    assert [existed for _, existed in joined] == [False, True, True, True, True]
    assert len({id(flight) for flight, _ in joined}) == 1
    other, existed = process.flights.join(process.plan("other"))
    assert not existed
    process.intake.go_on.set()
    await until(other, FlightState.VERIFIED)
    await gone(process)
    assert process.intake.begun == 2


async def test_one_that_is_kept_goes_on_without_followers(processes: list[Process]) -> None:
    process, _ = processes
    flight, _ = process.flights.join(process.plan())
    await begun(process.intake)
    process.flights.leave(flight)
    await asyncio.sleep(0.01)
    assert process.intake.cancelled == 0
    process.intake.go_on.set()
    await until(flight, FlightState.VERIFIED)
    assert flight.attempt.state is FlightState.VERIFIED


async def test_streamed_one_stops_with_its_last_follower(processes: list[Process]) -> None:
    process, _ = processes
    process.intake.keep = False
    flight, _ = process.flights.join(process.plan())
    process.flights.join(process.plan())
    await begun(process.intake)
    process.flights.leave(flight)
    await asyncio.sleep(0.01)
    assert process.intake.cancelled == 0
    process.flights.leave(flight)
    await gone(process)
    assert process.intake.cancelled == 1
    assert isinstance(flight.error, ContentUnavailable)


async def test_whoever_comes_while_a_deserted_one_ends_begins_anew(processes: list[Process]) -> None:
    process, _ = processes
    process.intake.keep = False
    process.intake.may_clean_up.clear()
    first, _ = process.flights.join(process.plan())
    await begun(process.intake)
    process.flights.leave(first)
    second, existed = process.flights.join(process.plan())
    assert not existed
    assert second is not first
    process.intake.may_clean_up.set()
    await begun(process.intake, 2)
    process.intake.go_on.set()
    await until(second, FlightState.VERIFIED)
    assert (second.attempt.state, second.error) == (FlightState.VERIFIED, None)


@pytest.mark.parametrize(
    "error", [ContentNotFound("x"), ContentDenied("x"), ContentUnavailable("x", "i/o timeout", 9.0)]
)
async def test_error_reaches_followers_in_both_processes(processes: list[Process], error: ContentAppError) -> None:
    one, two = processes
    one.intake.outcome = error
    leading, _ = one.flights.join(one.plan())
    await begun(one.intake)
    following, _ = two.flights.join(two.plan())
    while not leading.count_others():
        await asyncio.sleep(0.001)
    one.intake.go_on.set()
    for flight in (leading, following):
        await until(flight)
        assert type(flight.error) is type(error)
    assert str(following.error) == str(error)
    assert two.intake.begun == 0


async def test_error_is_forgotten_with_its_flight(processes: list[Process]) -> None:
    process, _ = processes
    process.intake.outcome = ContentNotFound("x")
    process.intake.go_on.set()
    flight, _ = process.flights.join(process.plan())
    await until(flight)
    await gone(process)
    process.intake.outcome = None
    again, existed = process.flights.join(process.plan())
    await until(again, FlightState.VERIFIED)
    assert (existed, again.error) == (False, None)


async def test_fault_of_our_own_leaves_nobody_waiting(processes: list[Process]) -> None:
    process, _ = processes
    process.intake.outcome = ZeroDivisionError("bug")
    process.intake.go_on.set()
    flight, _ = process.flights.join(process.plan())
    await until(flight)
    assert isinstance(flight.error, ContentUnavailable)
    assert "bug" not in str(flight.error)


async def test_what_is_stored_by_now_is_not_fetched(processes: list[Process]) -> None:
    process, _ = processes
    process.is_stored = True
    flight, _ = process.flights.join(process.plan())
    await until(flight)
    assert (flight.is_stored, process.intake.begun) == (True, 0)


async def test_close_ends_all_and_tells_followers(processes: list[Process]) -> None:
    process, _ = processes
    flight, _ = process.flights.join(process.plan())
    await begun(process.intake)
    await process.flights.close()
    assert isinstance(flight.error, ContentUnavailable)
    assert process.flights.progress() == []


async def test_close_waits_for_kept_ones_within_the_grace_period(processes: list[Process]) -> None:
    process, _ = processes
    flight, _ = process.flights.join(process.plan())
    await begun(process.intake)
    closing = asyncio.create_task(process.flights.close(10))
    await asyncio.sleep(0)
    process.intake.go_on.set()
    await closing
    assert (flight.attempt.state, process.intake.cancelled) == (FlightState.VERIFIED, 0)
