"""The settings that have a scope: global, and per remote or per distribution; the more specific scope wins.

Each field carries its range and meaning, from which config.py validates, the catalog merges and the docs' table is held
to the truth. Durations in seconds, sizes in bytes, rates in bytes or requests a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
DAY = 86400.0
UNLIMITED = 1 << 62


def setting(
    default: Any, doc: str, *, minimum: float | None = None, maximum: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field that knows its own range and meaning."""
    return field(default=default, metadata=described(doc, minimum=minimum, maximum=maximum, choices=choices))


def described(
    doc: str, *, minimum: float | None = None, maximum: float | None = None, choices: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What a field knows of itself."""
    return {"doc": doc, "minimum": minimum, "maximum": maximum, "choices": choices}


class Scoped:
    """Settings that a more specific scope can override."""

    def overridden(self, values: dict[str, Any]) -> Self:
        """These settings with the given ones in their place; names that are not settings are a TypeError."""
        return replace(self, **values)  # type: ignore[type-var]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings of this scope, in their order."""
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings(Scoped):
    """How one remote is talked to; Pulp's names where Pulp has the field."""

    total_timeout: float | None = setting(None, "Longest time for one whole exchange; null: no limit.", minimum=0.1)
    connect_timeout: float = setting(15.0, "Longest wait for a free or new connection.", minimum=0.1, maximum=600)
    sock_connect_timeout: float = setting(10.0, "Longest TCP or TLS connect.", minimum=0.1, maximum=600)
    sock_read_timeout: float = setting(30.0, "Longest time without a byte.", minimum=0.1, maximum=3600)
    max_retries: int = setting(3, "Tries after the first, on the last source.", minimum=0, maximum=20)
    retry_backoff_seconds: float = setting(0.5, "First backoff; doubles, with full jitter.", minimum=0.01, maximum=60)
    retry_backoff_max_seconds: float = setting(20.0, "Longest backoff.", minimum=0.01, maximum=600)
    download_concurrency: int = setting(64, "Connections to one remote at a time, per worker.", minimum=1, maximum=1000)
    rate_limit: float | None = setting(None, "Requests a second to the remote, all workers together.", minimum=0.01)
    bandwidth_limit: float | None = setting(
        None, "Bytes a second from the remote, all workers together.", minimum=16 * KIB
    )
    tls_validation: bool = setting(True, "Whether the remote's certificate is checked.")
    allow_private_redirects: bool = setting(
        False, "Whether redirects and token realms may lead to loopback, link-local and private addresses."
    )
    max_redirects: int = setting(5, "Redirects followed for one request.", minimum=0, maximum=5)
    allow_html: bool = setting(False, "Whether undigested content may be text/html.")
    cooldown_seconds: float = setting(300.0, "Cooldown after wrong bytes; cap of a host's.", minimum=0.1, maximum=86400)
    cooldown_initial_seconds: float = setting(5.0, "First cooldown of a failing host.", minimum=0.05, maximum=3600)
    cooldown_max_seconds: float = setting(3600.0, "Cap of a doubled cooldown.", minimum=0.1, maximum=7 * DAY)
    failure_threshold: int = setting(3, "Failed requests in a row that cool a host.", minimum=1, maximum=100)
    trial_seconds: float = setting(30.0, "How long one trial after a cooldown has.", minimum=0.1, maximum=600)
    negative_ttl_seconds: float = setting(
        60.0, "How long a 404 or 403 of a path is believed.", minimum=0, maximum=86400
    )
    metadata_ttl_seconds: float = setting(600.0, "How long a PULP_MANIFEST is fresh.", minimum=0, maximum=30 * DAY)
    metadata_wait_seconds: float = setting(
        5.0, "How long a request waits for it the first time.", minimum=0, maximum=300
    )
    chunk_list_wait_seconds: float = setting(
        1.0, "How long a transfer waits for the chunk list of its file.", minimum=0, maximum=300
    )
    metadata_max_size: int = setting(256 * MIB, "Largest PULP_MANIFEST that is read.", minimum=KIB, maximum=8 * GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionSettings(Scoped):
    """How one distribution answers its devices."""

    tag_ttl_seconds: float = setting(600.0, "How long a tag is fresh.", minimum=0, maximum=30 * DAY)
    tag_ttl_patterns: dict[str, float] = field(
        default_factory=dict,
        metadata=described("Shell patterns of tags and their own TTL; the first match wins."),
    )
    content_ttl_seconds: float = setting(600.0, "How long undigested content is fresh.", minimum=0, maximum=30 * DAY)
    stale_if_error_seconds: float = setting(
        7 * DAY, "How long after its TTL a tag is served when no source answers.", minimum=0, maximum=365 * DAY
    )
    unavailable_status: int | None = setting(
        None, "Status when no source can deliver; null: 404 for files, 503 for the registry.", minimum=400, maximum=599
    )
    max_manifest_size: int = setting(4 * MIB, "Largest manifest.", minimum=16 * KIB, maximum=64 * MIB)
    verify_first_bytes: int = setting(
        MIB, "Bodies up to this size are verified before their first byte; 'unlimited': all.", minimum=0
    )
    verify_first_seconds: float = setting(5.0, "Longest wait for that.", minimum=0, maximum=3600)
    first_byte_deadline_seconds: float = setting(
        30.0, "Longest time all sources together have for the first byte.", minimum=0.1, maximum=3600
    )
    resume_deadline_seconds: float = setting(
        60.0, "Longest time that a transfer which broke off may stay without a new byte.", minimum=0.1, maximum=3600
    )
    range_wait_size: int = setting(64 * MIB, "A range this far ahead of a transfer waits for it.", minimum=0)
    cold_range: str = setting(
        "stream", "strict holds every range until the whole is verified.", choices=("stream", "strict")
    )
    verify_on_read: str = setting(
        "never",
        "When a stored artifact is read again before it is served.",
        choices=("never", "first_after_start", "always"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings(Scoped):
    """What holds for the whole process."""

    min_device_rate: float = setting(10 * KIB, "A device slower than this is dropped …", minimum=0)
    device_write_timeout_seconds: float = setting(60.0, "… after this time.", minimum=0.1, maximum=3600)
    request_head_timeout_seconds: float = setting(
        75.0, "Longest time for a request's head, and idle time of a connection.", minimum=0.1, maximum=3600
    )
    window_size: int = setting(8 * MIB, "Memory of a flight that has no room on disk.", minimum=256 * KIB, maximum=GIB)
    space_wait_seconds: float = setting(
        1.0, "How long a flight waits for eviction to make room.", minimum=0, maximum=60
    )
    range_requests: int = setting(16, "Ranged upstream requests of one worker at a time.", minimum=1, maximum=1000)
    progress_interval_seconds: float = setting(
        2.0,
        "How often a transfer writes down how far it has come, to go on there after a restart.",
        minimum=0.05,
        maximum=3600,
    )
    resume_concurrency: int = setting(
        2, "Interrupted transfers that a worker goes on with by itself at a time; 0: none.", minimum=0, maximum=100
    )
    resume_interval_seconds: float = setting(60.0, "How often it looks for them.", minimum=0.1, maximum=3600)
    partial_max_age_seconds: float = setting(
        DAY, "How long an interrupted transfer is kept that nobody resumes.", minimum=1, maximum=30 * DAY
    )
    grace_seconds: float = setting(30.0, "How long responses may go on after SIGTERM.", minimum=0, maximum=3600)
    chunk_learning_rate: float = setting(
        64 * MIB, "Bytes a second that are read of new artifacts to learn their chunk digests; 0: none.", minimum=0
    )
    scrub_interval_days: float = setting(30.0, "Every artifact is read again in this time; 0: never.", minimum=0)
    scrub_rate: float = setting(32 * MIB, "Bytes a second that the scrub reads.", minimum=64 * KIB)
    memory_cache_size: int = setting(32 * MIB, "Memory of a worker for small bodies.", minimum=0, maximum=4 * GIB)
    record_ttl_seconds: float = setting(60.0, "How long a worker trusts a catalog record.", minimum=0.1, maximum=3600)
