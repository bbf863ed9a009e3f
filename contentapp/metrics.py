"""What Prometheus sees. prometheus_client is imported at the first use, here and in metrics_folder only.

Several processes: the supervisor calls `prepare_metrics` before anything is counted, forks, and calls `reap_worker` for
each worker that has ended; any process can then `render` the sum of all. Without `prepare_metrics` a process counts for
itself. Labels are words from closed sets or configured names, never what a device sent.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from contentapp import metrics_folder
from contentapp.core import errors
from contentapp.metrics_folder import FolderCollector, find_folder, locked

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

OTHER = "other"
NONE = "none"
TICKS = 1 << 18  # a second
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
FIRST_BYTE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Outcome(StrEnum):
    """How a request was answered."""

    HIT = "hit"
    MISS = "miss"
    COLLAPSED = "collapsed"  # fed from a flight that another request began
    STALE = "stale"  # from what is stored, since no source answered
    STREAMED = "streamed"
    ERROR = "error"
    NONE = "none"  # no content was asked for


class Verified(StrEnum):
    """What was known of a body's bytes when its last one was sent."""

    YES = "yes"
    PENDING = "pending"
    NO = "no"


class UpstreamResult(StrEnum):
    """How one exchange with a remote ended."""

    OK = "ok"
    NOT_MODIFIED = "not_modified"
    ABSENT = "absent"
    DENIED = "denied"
    THROTTLED = "throttled"
    CLIENT_ERROR = "client_error"
    SERVER_ERROR = "server_error"
    CONNECT_ERROR = "connect_error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"
    PROTOCOL_ERROR = "protocol_error"
    COOLING = "cooling"


class DegradedReason(StrEnum):
    """Why a flight has no spool on disk."""

    NO_SPACE = "no_space"
    STORAGE = "storage"
    ELSEWHERE = "elsewhere"  # its bytes are in the memory of another process


class StorageOperation(StrEnum):
    """What the storage could not do."""

    WRITE = "write"
    COMMIT = "commit"
    READ = "read"


CLOSED = {
    "type": ("container", "file", "none"),
    "policy": ("on_demand", "immediate", "streamed", "none"),
    "outcome": tuple(Outcome),
    "status": ("1xx", "2xx", "3xx", "4xx", "5xx"),
    "verified": tuple(Verified),
    "result": tuple(UpstreamResult),
    "scope": ("artifact", "remote", "host", "path", "absent"),
    "reason": tuple(DegradedReason),
    "operation": tuple(StorageOperation),
}
"""The values of each label but `remote`, which is a configured name; what is not among them is counted as ``other``."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. kind: counter, histogram, or gauge (computed at scrape)."""

    name: str
    kind: str
    labels: tuple[str, ...]
    doc: str
    buckets: tuple[float, ...] = ()


def _spec(name: str, kind: str, labels: str, doc: str, buckets: tuple[float, ...] = ()) -> MetricSpec:
    return MetricSpec(f"contentapp_{name}", kind, tuple(labels.split()), doc, buckets)


METRICS = (
    _spec("requests_total", "counter", "type policy outcome status", "Requests of devices that have ended."),
    _spec("request_duration_seconds", "histogram", "type outcome", "From a request's head to its last byte.", SECONDS),
    _spec(
        "first_byte_seconds",
        "histogram",
        "outcome",
        "From a request's head to the first byte of its body.",
        FIRST_BYTE_SECONDS,
    ),
    _spec("device_bytes_total", "counter", "type policy outcome", "Bytes of bodies sent to devices."),
    _spec("bodies_total", "counter", "type verified", "Bodies sent whole; verified=no: no digest was known."),
    _spec("range_requests_total", "counter", "remote", "Ranged upstream requests outside a flight."),
    _spec("upstream_requests_total", "counter", "remote result", "Exchanges with remotes."),
    _spec("upstream_bytes_total", "counter", "remote", "Bytes of bodies received from remotes."),
    _spec("digest_failures_total", "counter", "remote", "Bodies whose bytes did not match their digest."),
    _spec("cooldown_starts_total", "counter", "remote scope", "Cooldowns begun or prolonged."),
    _spec("failovers_total", "counter", "remote", "Times that the next source was taken instead of this remote."),
    _spec("resumed_transfers_total", "counter", "remote", "Transfers that went on where they had broken off."),
    _spec("wrong_chunks_total", "counter", "remote", "Chunks that were not what a chunk list says."),
    _spec("evictions_total", "counter", "", "Artifacts evicted."),
    _spec("evicted_bytes_total", "counter", "", "Bytes of evicted artifacts."),
    _spec("degraded_flights_total", "counter", "reason", "Flights without a spool on disk (windowed)."),
    _spec("storage_errors_total", "counter", "operation", "Operations on the storage that failed."),
    _spec("damaged_artifacts_total", "counter", "", "Stored artifacts that were missing, damaged or wrong."),
    _spec("coordination_fallbacks_total", "counter", "", "Times that coordination fell back to this host or process."),
    _spec("transfers", "gauge", "", "Flights under way."),
    _spec("cooldowns", "gauge", "remote", "Scopes of a remote that cool down or wait for their trial."),
    _spec("storage_used_bytes", "gauge", "", "Stored and reserved: what counts against the limit."),
    _spec("storage_reserved_bytes", "gauge", "", "Reserved for what is being written."),
    _spec("storage_limit_bytes", "gauge", "", "The quota."),
    _spec("storage_free_bytes", "gauge", "", "Free on the disk."),
    _spec("build_info", "gauge", "version python", "Always 1."),
)


class StorageGauges(NamedTuple):
    """Bytes, as storage.base.StorageUse has them."""

    used: int
    reserved: int
    limit: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """State at the moment of a scrape; what is None is left out. cooldowns: by name of remote."""

    transfers: int | None = None
    cooldowns: Mapping[str, int] = field(default_factory=dict)
    storage: StorageGauges | None = None


def prepare_metrics(run_dir: Path) -> None:
    """Let this process and those it forks count together, in an empty folder below `run_dir`.

    RuntimeError when something has been counted already: it would be lost.
    """
    if metrics.is_started:
        raise RuntimeError("prepare_metrics comes before the first count")
    metrics_folder.prepare(run_dir)


def reap_worker(pid: int) -> None:
    """Fold the counts of a worker that has ended into one file, so that files don't pile up and no count gets lost."""
    folder = find_folder()
    if folder is not None:
        metrics_folder.fold_worker(folder, pid)


def render(gauges: Gauges | Callable[[], Gauges] | None = None) -> bytes:
    """Everything in Prometheus' text format 0.0.4. Reads files: call it in a thread."""
    from prometheus_client import CollectorRegistry, generate_latest

    state = gauges() if callable(gauges) else gauges
    folder = find_folder()
    if folder is None:
        metrics.start()
        return generate_latest(metrics.registry) + generate_latest(_registry_of(state))
    registry = CollectorRegistry()
    registry.register(FolderCollector(folder))
    with locked(folder):
        return generate_latest(registry) + generate_latest(_registry_of(state))


def _registry_of(gauges: Gauges | None) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_GaugeCollector(gauges or Gauges()))
    return registry


class _GaugeCollector:
    """Gauges that are computed at scrape."""

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for spec in METRICS:
            if spec.kind == "gauge":
                family = GaugeMetricFamily(spec.name, spec.doc, labels=spec.labels)
                for labels, value in self._samples(spec.name.removeprefix("contentapp_")):
                    family.add_metric(labels, value)
                yield family

    def _samples(self, name: str) -> list[tuple[tuple[str, ...], float]]:
        from importlib.metadata import version

        state = self.gauges
        if name == "build_info":
            return [((version("contentapp"), platform.python_version()), 1)]
        if name == "cooldowns":
            return [((remote,), count) for remote, count in sorted(state.cooldowns.items())]
        if name == "transfers":
            return [] if state.transfers is None else [((), state.transfers)]
        field_name = name.removeprefix("storage_").removesuffix("_bytes")
        return [] if state.storage is None else [((), getattr(state.storage, field_name))]


class _RequestCounters(NamedTuple):
    """The children that one kind of request counts on."""

    requests: Callable[[], None]
    duration: Callable[[float], None]
    first_byte: Callable[[float], None]
    size: Callable[[float], None]


class Metrics:
    """Counts. Each method resolves its labels once and then only looks them up."""

    registry: CollectorRegistry

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._instruments: dict[str, Any] = {}
        self._requests: dict[tuple[str, str, str, int], _RequestCounters] = {}
        self._children: dict[tuple[str, ...], Any] = {}

    @property
    def is_started(self) -> bool:
        """Whether the instruments exist."""
        return bool(self._instruments)

    def start(self) -> None:
        """Make the instruments, if that has not been done; those without labels then show 0. From any thread."""
        with self._starting:  # two that begin at once would each count on instruments of their own
            if not self._instruments:
                self._instruments = self._make_instruments()

    def request(
        self,
        type: str,  # noqa: A002
        policy: str,
        outcome: str,
        status: int,
        *,
        seconds: float,
        size: int,
        first_byte_seconds: float | None,
    ) -> None:
        """One request has ended. size: bytes of the body sent; first_byte_seconds: None when no body was sent."""
        key = (type, policy, outcome, status // 100)
        counters = self._requests.get(key)
        if counters is None:
            counters = self._requests[key] = self._request_counters(*key)
        counters.requests()
        counters.duration(_exact(seconds))
        if size:
            counters.size(size)
        if first_byte_seconds is not None:
            counters.first_byte(_exact(first_byte_seconds))

    def body(self, type: str, verified: str) -> None:  # noqa: A002
        """A body was sent whole."""
        self._inc("bodies_total", type, verified)

    def range_request(self, remote: str) -> None:
        """A range was asked from a remote outside a flight."""
        self._inc("range_requests_total", remote)

    def upstream_request(self, remote: str, result: str) -> None:
        """An exchange with a remote has ended, at its head or in its body."""
        self._inc("upstream_requests_total", remote, result)

    def upstream_bytes(self, remote: str, size: int) -> None:
        """Bytes came from a remote."""
        self._inc("upstream_bytes_total", remote, amount=size)

    def digest_failure(self, remote: str) -> None:
        """A remote delivered wrong bytes."""
        self._inc("digest_failures_total", remote)

    def cooldown_start(self, remote: str, scope: str) -> None:
        """A scope of a remote begins to cool down, or does so for longer."""
        self._inc("cooldown_starts_total", remote, scope)

    def failover(self, remote: str) -> None:
        """The next source is tried, since this remote failed."""
        self._inc("failovers_total", remote)

    def wrong_chunk(self, remote: str) -> None:
        """A chunk from this remote is not what a chunk list says."""
        self._inc("wrong_chunks_total", remote)

    def resumed_transfer(self, remote: str) -> None:
        """A transfer that had broken off goes on, from this remote."""
        self._inc("resumed_transfers_total", remote)

    def eviction(self, size: int) -> None:
        """An artifact was evicted."""
        self._inc("evictions_total")
        self._inc("evicted_bytes_total", amount=size)

    def degraded_flight(self, reason: str) -> None:
        """A flight goes on without a spool."""
        self._inc("degraded_flights_total", reason)

    def storage_write_error(self, operation: str) -> None:
        """A write, commit or read failed."""
        self._inc("storage_errors_total", operation)

    def artifact_damaged(self) -> None:
        """A stored artifact was missing, damaged or wrong."""
        self._inc("damaged_artifacts_total")

    def coordination_fallback(self) -> None:
        """Coordination is not what it should be."""
        self._inc("coordination_fallbacks_total")

    def _make_instruments(self) -> dict[str, Any]:
        from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

        if find_folder() is not None:
            metrics_folder.reserve_room()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        made: dict[str, Any] = {}
        for spec in METRICS:
            if spec.kind == "counter":
                made[spec.name] = Counter(spec.name, spec.doc, spec.labels, registry=registry)
            elif spec.kind == "histogram":
                made[spec.name] = Histogram(spec.name, spec.doc, spec.labels, registry=registry, buckets=spec.buckets)
        return made

    def _inc(self, name: str, *labels: str, amount: float = 1) -> None:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._child(name, *labels).inc
        child(amount)

    def _child(self, name: str, *labels: str) -> Any:
        """The child of an instrument; values outside a label's closed set become ``other``."""
        self.start()
        instrument = self._instruments[f"contentapp_{name}"]
        if not labels:
            return instrument
        names = instrument._labelnames
        return instrument.labels(*(_label(label, value) for label, value in zip(names, labels, strict=True)))

    def _request_counters(self, type: str, policy: str, outcome: str, status: int) -> _RequestCounters:  # noqa: A002
        return _RequestCounters(
            self._child("requests_total", type, policy, outcome, f"{status}xx").inc,
            self._child("request_duration_seconds", type, outcome).observe,
            self._child("first_byte_seconds", outcome).observe,
            self._child("device_bytes_total", type, policy, outcome).inc,
        )


def _label(label: str, value: str) -> str:
    if label not in CLOSED or value in CLOSED[label]:
        return str(value)
    return NONE if not value and NONE in CLOSED[label] else OTHER


def _exact(seconds: float) -> float:
    """Rounded to some microseconds, such that sums of them are exact: in whatever order they are added, none shrinks.

    A scrape or a fold adds the processes' sums up anew, and Prometheus takes a counter that shrinks for one that began
    again.
    """
    return int(seconds * TICKS) / TICKS


def upstream_result(error: errors.UpstreamError) -> UpstreamResult:
    """The result that an error counts as."""
    if isinstance(error, errors.UpstreamStatusError):
        return _status_result(error.status)
    for kind, result in (
        (errors.ConnectError, UpstreamResult.CONNECT_ERROR),
        (errors.UpstreamTimeout, UpstreamResult.TIMEOUT),
        (errors.TransferInterrupted, UpstreamResult.INTERRUPTED),
        (errors.HostCooling, UpstreamResult.COOLING),
        (errors.UpstreamProtocolError, UpstreamResult.PROTOCOL_ERROR),
    ):
        if isinstance(error, kind):
            return result
    return UpstreamResult.REFUSED


def _status_result(status: int) -> UpstreamResult:
    if status in {401, 403, 407}:
        return UpstreamResult.DENIED
    if status in {404, 410}:
        return UpstreamResult.ABSENT
    if status == 429:
        return UpstreamResult.THROTTLED
    return UpstreamResult.SERVER_ERROR if status >= 500 else UpstreamResult.CLIENT_ERROR


metrics = Metrics()
"""This process's."""
