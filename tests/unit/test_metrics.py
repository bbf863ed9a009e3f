"""Metrics: what is counted, over several processes, and what labels may hold."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core import errors
from contentapp.metrics import (
    CLOSED,
    METRICS,
    DegradedReason,
    Gauges,
    Metrics,
    Outcome,
    StorageGauges,
    UpstreamResult,
    Verified,
    _exact,
    metrics,
    prepare_metrics,
    reap_worker,
    render,
    upstream_result,
)


def value(name: str, own: Metrics, **labels: str) -> float:
    return own.registry.get_sample_value(f"contentapp_{name}", labels) or 0.0


def request(own: Metrics, outcome: str = "hit", status: int = 200, **labels: str) -> None:
    own.request(
        labels.get("type", "container"),
        labels.get("policy", "on_demand"),
        outcome,
        status,
        seconds=0.3,
        size=1000,
        first_byte_seconds=0.02,
    )


class TestCounts:
    def test_a_request(self) -> None:
        own = Metrics()
        request(own)
        request(own)
        request(own, Outcome.MISS, 206)
        own.request("file", "streamed", "error", 503, seconds=1, size=0, first_byte_seconds=None)
        labels = {"type": "container", "policy": "on_demand"}
        assert value("requests_total", own, **labels, outcome="hit", status="2xx") == 2
        assert value("requests_total", own, **labels, outcome="miss", status="2xx") == 1
        assert value("requests_total", own, type="file", policy="streamed", outcome="error", status="5xx") == 1
        assert value("device_bytes_total", own, **labels, outcome="hit") == 2000
        assert value("request_duration_seconds_count", own, type="container", outcome="hit") == 2
        assert value("request_duration_seconds_sum", own, type="container", outcome="hit") == pytest.approx(
            0.6, abs=1e-5
        )
        assert value("first_byte_seconds_bucket", own, outcome="hit", le="0.025") == 2
        assert value("first_byte_seconds_bucket", own, outcome="hit", le="0.01") == 0
        assert value("first_byte_seconds_count", own, outcome="error") == 0

    @pytest.mark.parametrize(
        ("count", "name", "labels", "amount"),
        [
            (lambda own: own.body("file", Verified.NO), "bodies_total", {"type": "file", "verified": "no"}, 1),
            (lambda own: own.range_request("q"), "range_requests_total", {"remote": "q"}, 1),
            (
                lambda own: own.upstream_request("q", UpstreamResult.TIMEOUT),
                "upstream_requests_total",
                {"remote": "q", "result": "timeout"},
                1,
            ),
            (lambda own: own.upstream_bytes("q", 77), "upstream_bytes_total", {"remote": "q"}, 77),
            (lambda own: own.digest_failure("q"), "digest_failures_total", {"remote": "q"}, 1),
            (lambda own: own.cooldown_start("q", "host"), "cooldown_starts_total", {"remote": "q", "scope": "host"}, 1),
            (lambda own: own.failover("q"), "failovers_total", {"remote": "q"}, 1),
            (lambda own: own.eviction(55), "evictions_total", {}, 1),
            (lambda own: own.eviction(55), "evicted_bytes_total", {}, 55),
            (
                lambda own: own.degraded_flight(DegradedReason.NO_SPACE),
                "degraded_flights_total",
                {"reason": "no_space"},
                1,
            ),
            (lambda own: own.storage_write_error("commit"), "storage_errors_total", {"operation": "commit"}, 1),
            (lambda own: own.artifact_damaged(), "damaged_artifacts_total", {}, 1),
            (lambda own: own.coordination_fallback(), "coordination_fallbacks_total", {}, 1),
        ],
    )
    def test_the_others(
        self, count: Callable[[Metrics], None], name: str, labels: dict[str, str], amount: float
    ) -> None:
        own = Metrics()
        count(own)
        count(own)
        assert value(name, own, **labels) == 2 * amount

    def test_a_request_for_nothing(self) -> None:
        own = Metrics()
        own.request("none", "", "", 404, seconds=0.1, size=0, first_byte_seconds=None)
        assert value("requests_total", own, type="none", policy="none", outcome="none", status="4xx") == 1

    @given(st.lists(st.floats(0, 3600), min_size=1, max_size=50))
    def test_sums_of_seconds_do_not_depend_on_their_order(self, seconds: list[float]) -> None:
        rounded = [_exact(value) for value in seconds]
        assert sum(rounded) == sum(reversed(rounded)) == sum(sorted(rounded)) == math.fsum(rounded)
        assert all(0 <= exact - value < 4e-6 for exact, value in zip(seconds, rounded, strict=True))

    def test_labels_outside_their_set_are_other(self) -> None:
        own = Metrics()
        request(own, "sha256:abc", 999, type="/v2/x", policy="?")
        assert value("requests_total", own, type="other", policy="other", outcome="other", status="other") == 1


class TestRender:
    def test_one_process(self) -> None:
        metrics.digest_failure("render-test")
        gauges = Gauges(transfers=2, cooldowns={"q": 3}, storage=StorageGauges(used=4, reserved=1, limit=10, free=6))
        lines = render(gauges).decode().splitlines()
        assert 'contentapp_digest_failures_total{remote="render-test"} 1.0' in lines
        assert "contentapp_transfers 2.0" in lines
        assert 'contentapp_cooldowns{remote="q"} 3.0' in lines
        for name, size in (("used", 4), ("reserved", 1), ("limit", 10), ("free", 6)):
            assert f"contentapp_storage_{name}_bytes {size}.0" in lines
        assert any(re.fullmatch(r'contentapp_build_info\{python=".+",version=".+"\} 1\.0', line) for line in lines)
        assert not [line for line in lines if "_created" in line]
        assert {line.split()[2] for line in lines if line.startswith("# HELP")} == {spec.name for spec in METRICS}

    def test_state_by_a_callable(self) -> None:
        assert b"contentapp_transfers 7.0" in render(lambda: Gauges(transfers=7))

    def test_unknown_state_is_left_out(self) -> None:
        text = render().decode()
        assert "contentapp_transfers " not in text.replace("# HELP contentapp_transfers ", "").replace(
            "# TYPE contentapp_transfers ", ""
        )

    def test_it_is_too_late_to_prepare(self, tmp_path: Path) -> None:
        metrics.start()
        with pytest.raises(RuntimeError):
            prepare_metrics(tmp_path)

    def test_reaping_without_other_processes_does_nothing(self) -> None:
        reap_worker(1)


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
    done = subprocess.run(
        [sys.executable, "-c", MANY_PROCESSES, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    labels = 'outcome="hit",policy="on_demand",status="2xx",type="container"'
    assert f"contentapp_requests_total{{{labels}}} 606.0" in lines
    assert 'contentapp_request_duration_seconds_count{outcome="hit",type="container"} 606.0' in lines
    assert 'contentapp_request_duration_seconds_bucket{le="0.025",outcome="hit",type="container"} 606.0' in lines
    assert 'contentapp_request_duration_seconds_bucket{le="0.01",outcome="hit",type="container"} 0.0' in lines
    assert 'contentapp_first_byte_seconds_bucket{le="0.0025",outcome="hit"} 606.0' in lines
    assert "# HELP contentapp_evictions_total Artifacts evicted." in lines
    assert "contentapp_evictions_total 0.0" in lines
    assert "contentapp_transfers 1.0" in lines


FOLD_RACE = """
import os, sys, threading
from pathlib import Path
from contentapp import metrics as module
from contentapp.metrics import metrics, prepare_metrics, reap_worker, render

prepare_metrics(Path(sys.argv[1]))
metrics.start()
if (pid := os.fork()) == 0:
    metrics.failover("q")
    os._exit(0)
os.waitpid(pid, 0)

seen = []
scraper = threading.Thread(target=lambda: seen.append(render().decode().splitlines()))
fold = module._fold

def fold_and_be_scraped(file, into):
    fold(file, into)  # counted in both files now
    if not scraper.ident:
        scraper.start()
    scraper.join(0.5)  # it must wait; without the lock it would be through by now

module._fold = fold_and_be_scraped
reap_worker(pid)
scraper.join()
counts = [line for line in seen[0] if line.startswith("contentapp_failovers_total{")]
assert counts == ['contentapp_failovers_total{remote="q"} 1.0'], counts
"""


def test_a_scrape_never_sees_a_worker_twice_or_not_at_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOLD_RACE, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (errors.UpstreamStatusError(401, ""), "denied"),
        (errors.UpstreamStatusError(403, ""), "denied"),
        (errors.UpstreamStatusError(404, ""), "absent"),
        (errors.UpstreamStatusError(410, ""), "absent"),
        (errors.UpstreamStatusError(429, ""), "throttled"),
        (errors.UpstreamStatusError(418, ""), "client_error"),
        (errors.UpstreamStatusError(500, ""), "server_error"),
        (errors.UpstreamStatusError(503, ""), "server_error"),
        (errors.ConnectError(""), "connect_error"),
        (errors.UpstreamTimeout(""), "timeout"),
        (errors.TransferInterrupted(""), "interrupted"),
        (errors.UpstreamProtocolError(""), "protocol_error"),
        (errors.HostCooling("", host="", retry_after_seconds=1), "cooling"),
        (errors.AddressRefused(""), "refused"),
        (errors.RedirectRefused(""), "refused"),
        (errors.ChallengeInvalid(""), "refused"),
    ],
)
def test_upstream_results(error: errors.UpstreamError, result: str) -> None:
    assert upstream_result(error) == result


def test_names_and_labels_keep_the_rules() -> None:
    assert len({spec.name for spec in METRICS}) == len(METRICS)
    for spec in METRICS:
        assert re.fullmatch(r"contentapp(_[a-z]+)+", spec.name)
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert bool(spec.buckets) == (spec.kind == "histogram")
        assert set(spec.labels) <= {*CLOSED, "remote", "version", "python"}


def test_threads_count_together() -> None:
    own = Metrics()

    def count() -> None:
        for _ in range(1000):
            own.failover("q")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value("failovers_total", own, remote="q") == 4000
