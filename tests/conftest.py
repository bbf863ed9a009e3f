"""What holds for every test: skips where they are forbidden, leaks, hypothesis, and the fixtures most tests share."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import hypothesis
import pytest

from tests.ports import Port
from tests.remotes.authority import Authority

FORBID_SKIPS = "FORBID_SKIPS"
END_SECONDS = 1.0
LOG_SIZE = 8000

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# -- skips


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where everything that tests need is meant to be there."""
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(FORBID_SKIPS) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{FORBID_SKIPS}=1, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    forbid_skip(report)
    if report.failed:
        report.sections.extend(service_logs(item))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    forbid_skip(report)
    return report


def service_logs(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """The ends of the logs that programs under test wrote into the test's folder, for its report."""
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    for log in sorted(folder.rglob("*.log")) if folder is not None else ():
        yield f"{log.relative_to(folder)}", log.read_text(errors="replace")[-LOG_SIZE:]


# -- leaks


def children() -> set[int]:
    """The process ids of this process's children, dead ones that nobody waited for included.

    Without multiprocessing's resource tracker, which starts with the first spawned process and lives as long as we do.
    """
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found.update(int(pid) for pid in listing.read_text().split())
    return found - {getattr(resource_tracker._resource_tracker, "_pid", None)}


@pytest.fixture(autouse=True)
def no_leaked_children() -> Iterator[None]:
    """Fail when a test leaves a child process behind that was not there before."""
    before = children()
    yield
    deadline = time.monotonic() + END_SECONDS
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"child processes left behind: {sorted(left)}"


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """Fail when a coroutine test leaves a task behind that does not end by itself at once."""
    function = getattr(request, "function", None)
    if function is not None and inspect.iscoroutinefunction(function):
        request.getfixturevalue("task_watch")


@pytest.fixture
async def task_watch() -> AsyncIterator[None]:
    """Compares the loop's tasks before and after; see `no_leaked_tasks`."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, pending = await asyncio.wait(left, timeout=END_SECONDS)
        assert not pending, f"tasks left behind: {pending}"


# -- fixtures


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections."""
    port = Port()
    yield port.number
    port.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for the whole run."""
    return Authority(tmp_path_factory.mktemp("authority"))
