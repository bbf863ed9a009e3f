"""Real programs that tests use: found or skipped, run to their end, or started, waited for and stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
RUN_SECONDS = 60.0
START_SECONDS = 20.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.02


def find_program(name: str) -> str | None:
    """The program's path, also outside a user's PATH, or None."""
    return shutil.which(name, path=SEARCH_PATH)


def require_program(name: str) -> str:
    """The program's path; without it the test is skipped (a failure where skips are forbidden, see conftest.py)."""
    path = find_program(name)
    if path is None:
        pytest.skip(f"{name} is not installed: a test with the real program can't run")
    return path


def environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """This process's environment with changes; None removes a variable."""
    merged: dict[str, str | None] = {**os.environ, **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Completed:
    """A program that ran to its end. `output` is stdout, `messages` stderr."""

    argv: tuple[str, ...]
    status: int
    output: bytes
    messages: str

    def check(self) -> Self:
        """This, if it succeeded; else AssertionError with all it said."""
        if self.status != 0:
            said = f"{self.messages}\n{self.output.decode(errors='replace')}".strip()
            raise AssertionError(f"{' '.join(self.argv)} ended with {self.status}:\n{said}")
        return self


async def run(
    *argv: str | Path,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    timeout: float = RUN_SECONDS,
) -> Completed:
    """Run to the end, whatever its exit status; killed with its children after `timeout` seconds (TimeoutError)."""
    words = tuple(str(word) for word in argv)
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            output, messages = await process.communicate()
    except BaseException:
        signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    assert process.returncode is not None
    return Completed(words, process.returncode, output, messages.decode(errors="replace"))


class Service:
    """A program that runs until it is stopped, in a process group of its own; its output goes to a file.

    Used as ``async with Service([...], log=...) as service`` followed by `ready`; leaving stops it.
    """

    def __init__(self, argv: list[str | Path], *, log: Path, env: Mapping[str, str | None] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        self.env = environment(env)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process; it must have been started."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    def output(self) -> str:
        """All it has written so far, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start(self) -> None:
        """Start it (again), without waiting until it is ready."""
        assert not self.is_running, "already running"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=self.env,
                start_new_session=True,
            )

    async def ready(self, probe: Callable[[], Awaitable[bool]], *, timeout: float = START_SECONDS) -> None:
        """Return when `probe` says so; AssertionError with its output if it ends first or takes too long."""
        try:
            async with asyncio.timeout(timeout):
                while not await probe():
                    if not self.is_running:
                        raise AssertionError(f"{self.argv[0]} ended with {self.process.returncode}:\n{self.output()}")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"{self.argv[0]} is not ready after {timeout} s:\n{self.output()}") from None

    async def stop(self, *, timeout: float = STOP_SECONDS) -> int:
        """SIGTERM, and wait; its exit status. AssertionError (after SIGKILL) if it does not end in time."""
        if self.is_running:
            self.process.terminate()
        try:
            async with asyncio.timeout(timeout):
                status = await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"{self.argv[0]} did not end on SIGTERM:\n{self.output()}") from None
        signal_group(self.process.pid, signal.SIGKILL)
        return status

    async def kill(self) -> None:
        """SIGKILL to it and its children at once, and wait."""
        signal_group(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def signal_group(leader: int, number: signal.Signals) -> None:
    """Signal every process of a group that may be gone already."""
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


async def accepts_connections(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
