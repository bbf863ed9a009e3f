"""Several processes count together: their files are summed, folded when they have ended, and never sparse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from contentapp.metrics_folder import FILE_SIZE, _reserved_dict


def run_in(folder: Path, program: str) -> list[str]:
    """What a Python program prints that gets the folder as its argument; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


MANY_PROCESSES = """
import os, sys
from pathlib import Path
from contentapp.metrics import metrics, prepare_metrics, reap_worker, render, Gauges

run = Path(sys.argv[1])
(run / "metrics").mkdir()
(run / "metrics" / "counter_1.db").write_bytes(b"left over")
prepare_metrics(run)
assert "prometheus_client" not in sys.modules
metrics.start()

def count(times):
    for _ in range(times):
        metrics.request("container", "on_demand", "hit", 200, seconds=0.02, size=10, first_byte_seconds=0.002)

def lines():
    return sorted(render(Gauges(transfers=1)).decode().splitlines())

pids = []
for number in range(3):
    if (pid := os.fork()) == 0:
        count(100 * (number + 1))
        os._exit(0)
    os.waitpid(pid, 0)
    pids.append(pid)
count(5)
(run / "metrics" / "counter_999999.db").touch()  # a worker that is just starting
before = lines()
for pid in pids:
    reap_worker(pid)
    assert lines() == before
    reap_worker(pid)
assert lines() == before
reap_worker(999999)
own = os.getpid()
names = sorted(os.listdir(run / "metrics"))
kept = [f"{kind}_{who}.db" for kind in ("counter", "histogram") for who in (own, "folded")]
assert names == sorted([*kept, "lock"]), names
if (pid := os.fork()) == 0:
    count(1)
    os._exit(0)
os.waitpid(pid, 0)
print("\\n".join(lines()))
"""


def test_many_processes_are_summed_and_the_ended_ones_folded(tmp_path: Path) -> None:
    lines = run_in(tmp_path, MANY_PROCESSES)
    labels = 'outcome="hit",policy="on_demand",status="2xx",type="container"'
    assert f"contentapp_requests_total{{{labels}}} 606.0" in lines
    assert 'contentapp_request_duration_seconds_count{outcome="hit",type="container"} 606.0' in lines
    assert 'contentapp_request_duration_seconds_bucket{le="0.025",outcome="hit",type="container"} 606.0' in lines
    assert 'contentapp_request_duration_seconds_bucket{le="0.01",outcome="hit",type="container"} 0.0' in lines
    assert 'contentapp_first_byte_seconds_bucket{le="0.0025",outcome="hit"} 606.0' in lines
    assert "# HELP contentapp_evictions_total Artifacts evicted." in lines
    assert "contentapp_evictions_total 0.0" in lines
    assert "contentapp_transfers 1.0" in lines


ONE_WORKER = """
import os, sys, threading
from pathlib import Path
from contentapp import metrics_folder
from contentapp.metrics import metrics, prepare_metrics, reap_worker, render

prepare_metrics(Path(sys.argv[1]))
metrics.start()
if (pid := os.fork()) == 0:
    metrics.failover("q")
    os._exit(0)
os.waitpid(pid, 0)

def failovers():
    return [line for line in render().decode().splitlines() if line.startswith("contentapp_failovers_total{")]

"""
IMPORTED_BEFORE = f"""
import prometheus_client
{ONE_WORKER}
assert failovers() == ['contentapp_failovers_total{{remote="q"}} 1.0'], failovers()
"""


def test_processes_count_together_though_the_library_was_imported_before(tmp_path: Path) -> None:
    run_in(tmp_path, IMPORTED_BEFORE)


FOLD_RACE = f"""
{ONE_WORKER}
seen = []
scraper = threading.Thread(target=lambda: seen.extend(failovers()))
fold = metrics_folder._fold

def fold_and_be_scraped(file, into):
    fold(file, into)  # counted in both files now
    if not scraper.ident:
        scraper.start()
    scraper.join(0.5)  # it must wait; without the lock it would be through by now

metrics_folder._fold = fold_and_be_scraped
reap_worker(pid)
scraper.join()
assert seen == ['contentapp_failovers_total{{remote="q"}} 1.0'], seen
"""


def test_a_scrape_never_sees_a_worker_twice_or_not_at_all(tmp_path: Path) -> None:
    run_in(tmp_path, FOLD_RACE)


NO_ROOM_TO_FOLD = """
import errno, os, sys
from pathlib import Path
from contentapp.metrics import metrics, prepare_metrics, reap_worker, render

def failovers():
    return sorted(line for line in render().splitlines() if line.startswith(b"contentapp_failovers_total{"))

def full(fileno, offset, size):
    if os.fstat(fileno).st_size < offset + size:
        raise OSError(errno.ENOSPC, "the disk is full")

def ended_worker(name):
    if (pid := os.fork()) == 0:
        for number in range(200):  # fits into the file as it is made; those of two workers don't
            metrics.failover(f"{name}-{number}")
        os._exit(0)
    os.waitpid(pid, 0)
    return pid

run = Path(sys.argv[1])
prepare_metrics(run)
metrics.start()
pids = [ended_worker("one"), ended_worker("two")]
before = failovers()
assert len(before) == 400
with_room = os.posix_fallocate
for pid in pids:
    file = run / "metrics" / f"counter_{pid}.db"
    assert file.stat().st_size == 1 << 16
    os.posix_fallocate = full
    for _ in range(2):
        reap_worker(pid)
        assert (failovers() == before, file.exists()) == (True, True)
    os.posix_fallocate = with_room
    reap_worker(pid)
    assert (failovers() == before, file.exists()) == (True, False)
assert (run / "metrics" / "counter_folded.db").stat().st_size == 1 << 17
"""


def test_a_worker_that_there_is_no_room_to_fold_goes_on_to_count(tmp_path: Path) -> None:
    run_in(tmp_path, NO_ROOM_TO_FOLD)


NO_ROOM_TO_COUNT = """
import errno, os, sys
from pathlib import Path
from contentapp.metrics import metrics, prepare_metrics, render

def full(*_):
    raise OSError(errno.ENOSPC, "the disk is full")

prepare_metrics(Path(sys.argv[1]))
os.posix_fallocate = full
metrics.failover("q")
metrics.failover("q")
assert metrics.registry.get_sample_value("contentapp_failovers_total", {"remote": "q"}) == 2
assert b"contentapp_failovers_total{" not in render(), "counted in a file that may have no room"
"""


def test_a_process_without_room_counts_in_memory(tmp_path: Path) -> None:
    run_in(tmp_path, NO_ROOM_TO_COUNT)


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "the disk is full")


def entry(number: int) -> str:
    """A key like prometheus-client's, of another length than its neighbours."""
    return f"{number:04}" + "x" * (number % 97)


class TestReservedDict:
    def open(self, path: Path) -> Any:
        return _reserved_dict()(str(path))

    def test_no_part_of_its_file_is_sparse(self, tmp_path: Path) -> None:
        path = tmp_path / "counter_1.db"
        counts = self.open(path)
        for number in range(2000):
            counts.write_value(entry(number), float(number), 0.0)
            found = path.stat()
            assert found.st_blocks * 512 >= found.st_size >= FILE_SIZE
        counts.close()
        assert path.stat().st_size > FILE_SIZE
        again = self.open(path)
        assert [again.read_value(entry(number))[0] for number in range(2000)] == list(range(2000))
        again.close()

    def test_it_goes_on_in_memory_when_there_is_no_more_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "counter_1.db"
        counts = self.open(path)
        counts.write_value("before", 5.0, 0.0)
        monkeypatch.setattr(os, "posix_fallocate", full)
        for number in range(5000):
            counts.write_value(entry(number), float(number), 0.0)
        assert counts.is_in_memory
        assert path.stat().st_size == FILE_SIZE
        assert counts.read_value("before")[0] == 5.0
        assert [counts.read_value(entry(number))[0] for number in range(5000)] == list(range(5000))
        counts.close()
