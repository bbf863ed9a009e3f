"""The harness itself: programs are found, run, waited for and stopped; skips and leaks fail where they should."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.ports import Port, free_port
from tests.programs import Completed, Service, accepts_connections, find_program, run
from tests.proxy import Metrics

PYTHON = sys.executable
SERVER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
time.sleep(60)
"""
SKIPPING = """
import pytest
from tests.programs import require_program

def test_program(): require_program("no-such-program")

@pytest.mark.xfail
def test_expected(): assert False
"""
SKIPPED_MODULE = 'import pytest\npytest.skip("the whole of it", allow_module_level=True)\n'
LEAKING = """
import asyncio, subprocess

def test_fine(): pass

def test_child(): test_child.process = subprocess.Popen(["sleep", "3"])

async def test_task(): test_task.task = asyncio.create_task(asyncio.sleep(20))
"""


async def test_run_gives_output_and_status() -> None:
    done = await run(PYTHON, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.status, done.output, done.messages) == (3, b"out\n", "err\n")
    with pytest.raises(AssertionError, match=r"(?s)ended with 3.*err"):
        done.check()


async def test_run_kills_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError):
        await run(PYTHON, "-c", "import time; time.sleep(60)", timeout=0.2)


async def test_service_lives_between_start_and_stop(tmp_path: Path) -> None:
    port = free_port()
    async with Service([PYTHON, "-c", SERVER, str(port)], log=tmp_path / "log") as service:
        await service.ready(lambda: accepts_connections(port))
        assert service.output() == "up\n"
    assert not service.is_running
    assert not await accepts_connections(port)


async def test_service_that_ends_early_shows_its_output(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    async with Service([PYTHON, "-c", "raise SystemExit('broken')"], log=tmp_path / "log") as service:
        with pytest.raises(AssertionError, match=r"(?s)ended with 1.*broken"):
            await service.ready(never)


def test_reserved_port_refuses(closed_port: int) -> None:
    other = Port()
    assert other.number != closed_port
    other.close()


def test_program_outside_the_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_program("no-such-program") is None
    assert find_program("python3") is not None


def test_metrics_are_summed_over_labels() -> None:
    metrics = Metrics('# TYPE x counter\nx_total{a="b",c="d"} 3\nx_total{a="e",c="d"} 4\n')
    totals = (metrics.total("x_total"), metrics.total("x_total", a="b", c="d"), metrics.total("y_total"))
    assert totals == (7, 3, 0)


async def run_suite(folder: Path, text: str, **environment: str | None) -> Completed:
    """A pytest run of its own, over one module, with this folder's conftest."""
    (folder / "test_suite.py").write_text(text)
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode=auto\nasyncio_default_fixture_loop_scope=function\n")
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    return await run(PYTHON, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", cwd=folder, env=env)


@pytest.mark.parametrize(("forbidden", "outcome"), [(None, "SKIPPED"), ("1", "FAILED test_suite.py::test_program")])
async def test_skips(tmp_path: Path, forbidden: str | None, outcome: str) -> None:
    said = (await run_suite(tmp_path, SKIPPING, FORBID_SKIPS=forbidden)).output.decode()
    assert re.search(f"(?m)^{outcome}", said) and "no-such-program is not installed" in said
    assert "XFAIL test_suite.py::test_expected" in said


@pytest.mark.parametrize(("forbidden", "outcome"), [(None, "SKIPPED"), ("1", "ERROR")])
async def test_skipped_modules(tmp_path: Path, forbidden: str | None, outcome: str) -> None:
    done = await run_suite(tmp_path, SKIPPED_MODULE, FORBID_SKIPS=forbidden)
    assert re.search(f"(?m)^{outcome} ", done.output.decode()), done.output
    assert (done.status == 2) == bool(forbidden)


async def test_leaks(tmp_path: Path) -> None:
    said = (await run_suite(tmp_path, LEAKING)).output.decode()
    assert "ERROR test_suite.py::test_child - AssertionError: child processes left behind" in said
    assert "ERROR test_suite.py::test_task - AssertionError: tasks left behind" in said
    assert "3 passed, 2 errors" in said
