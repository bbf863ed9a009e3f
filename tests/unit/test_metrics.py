"""Metrics: what is counted, what a scrape shows, and what labels may hold."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import prometheus_client
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
            (lambda own: own.resumed_transfer("q"), "resumed_transfers_total", {"remote": "q"}, 1),
            (lambda own: own.wrong_chunk("q"), "wrong_chunks_total", {"remote": "q"}, 1),
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


def test_threads_that_are_the_first_to_count_share_the_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    own, both_are_in = Metrics(), threading.Barrier(2)

    def meet() -> None:
        with suppress(threading.BrokenBarrierError):
            both_are_in.wait(0.3)

    monkeypatch.setattr(prometheus_client, "disable_created_metrics", meet)
    threads = [threading.Thread(target=own.failover, args=("q",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value("failovers_total", own, remote="q") == 2
