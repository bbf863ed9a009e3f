"""A place where instances meet, instances in this process and in children, and a teardown that forgives nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contentapp.coordination.base import Coordination
from tests.conformance.coordination.implementations import IMPLEMENTATIONS, Implementation


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """What a test needs to open instances of one implementation that meet."""

    name: str
    implementation: Implementation
    where: str
    clock: Clock
    has_killed: bool = False


class Child:
    """A real process with an instance of its own."""

    def __init__(self, process: asyncio.subprocess.Process, place: Place) -> None:
        self._process = process
        self._place = place

    async def do(self, operation: str, **arguments: Any) -> Any:
        """The result of an operation of child.Program."""
        await self.ask(operation, **arguments)
        return await self.answer()

    async def ask(self, operation: str, **arguments: Any) -> None:
        """Begin an operation, to be answered later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": operation, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> Any:
        """The result of what was begun first."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the child died"
        return json.loads(line)["result"]

    async def kill(self) -> None:
        """Let it die without a chance to tidy up."""
        self._place.has_killed = True
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    def stop(self) -> None:
        """Let it hang."""
        self._process.send_signal(signal.SIGSTOP)

    async def end(self) -> None:
        """Let it close what it has and exit, if it lives."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            await self.do("close")
            assert self._process.stdin is not None
            self._process.stdin.close()
            assert await self._process.wait() == 0


Open = Callable[[], Awaitable[Coordination]]
Spawn = Callable[[], Awaitable[Child]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
async def place(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Place]:
    """After the test, and after all instances were closed, nothing is left of them.

    What killed processes leave is for the next start to remove.
    """
    implementation = IMPLEMENTATIONS[request.param]
    where = implementation.place(tmp_path)
    tasks, descriptors = asyncio.all_tasks(), open_descriptors()
    place = Place(request.param, implementation, where, clock)
    yield place
    if place.has_killed:
        last = implementation.open(where, clock)
        await last.start()
        await last.close()
    assert not asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert open_descriptors() == descriptors
    assert implementation.leftovers(where) == []


@pytest.fixture
async def open_one(place: Place) -> AsyncIterator[Open]:
    """Opens instances in this process."""
    opened: list[Coordination] = []

    async def open_it() -> Coordination:
        coordination = place.implementation.open(place.where, place.clock)
        await coordination.start()
        opened.append(coordination)
        return coordination

    yield open_it
    for coordination in opened:
        await coordination.close()


@pytest.fixture
async def spawn(place: Place) -> AsyncIterator[Spawn]:
    """Starts child processes with an instance each."""
    children: list[Child] = []

    async def start() -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.conformance.coordination.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        child = Child(process, place)
        children.append(child)
        await child.do("open", implementation=place.name, place=place.where, now=place.clock.now)
        return child

    yield start
    for child in children:
        await child.end()


def open_descriptors() -> dict[str, str]:
    """The descriptors of this process, and what they are."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue  # the listing's own
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds; the test's timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.002)
