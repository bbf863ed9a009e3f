"""One flight: one transfer of one body, and all who follow it, in this process and in others (P4).

A flight is led by the process that holds its lease; in the others it mirrors the leader's progress. It makes attempts,
each from byte 0 in a spool of its own, until one is verified or no source is left.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

import structlog

from contentapp.coordination.base import (
    Coordination,
    FlightProgress,
    FlightState,
    Following,
    Lease,
)
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import (
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    LeaderLost,
)
from contentapp.core.records import Source
from contentapp.metrics import metrics
from contentapp.pipeline.chunked import KnownChunks
from contentapp.pipeline.intake import Intake, Received
from contentapp.pipeline.progress import Attempt, Head, Signal, SpoolReader
from contentapp.pipeline.wrong import ExpectationOutdated

log = structlog.get_logger("contentapp.flight")

CANCEL_TOPIC = "cancel-transfer"
"""Published with the key of a flight that is to be ended, wherever it is."""

ERROR_STATES: dict[FlightState, type[ContentAppError]] = {
    FlightState.ABSENT: ContentNotFound,
    FlightState.DENIED: ContentDenied,
}


async def no_chunks() -> KnownChunks | None:
    """No list is known."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a flight is to get.

    key: the same for everybody who wants these bytes. path: by which a device asks for them.
    digest: None for undigested bytes: any complete transfer will do.
    is_stored: asked again once the lease is held; True means that another process has finished meanwhile.
    delivered: called with the source and the digest of verified bytes, before they are committed.
    record: called with the outcome, after that.
    revalidate: asked once when the bytes contradict digest or size; True means that the expectation itself was
    outdated, and nobody is to blame.
    find_modified: the Last-Modified that these bytes had before. find_chunks: the list of their chunks' digests.
    """

    key: str
    path: str
    sources: Sequence[Source]
    digest: Digest | None
    size: int | None
    is_stored: Callable[[], Awaitable[bool]]
    delivered: Callable[[Source, Digest], Awaitable[None]]
    record: Callable[[Received], Awaitable[None]]
    revalidate: Callable[[], Awaitable[bool]]
    find_modified: Callable[[], Awaitable[datetime | None]]
    find_chunks: Callable[[], Awaitable[KnownChunks | None]] = no_chunks
    must_exist: bool = False
    first_byte_deadline_seconds: float = 30.0
    resume_deadline_seconds: float = 60.0
    is_html_allowed: bool = True

    def hasher(self) -> Hasher:
        """A fresh running hash over the body; sha256 for what has no digest yet."""
        return hashlib.sha256() if self.digest is None else self.digest.hasher()


def no_others() -> int:
    """Nobody follows in another process."""
    return 0


@dataclass(eq=False)
class Flight:
    """What followers hold on to. `attempt` is the current one; `signal` tells of every change."""

    key: str
    plan: Plan
    attempt: Attempt
    signal: Signal = field(default_factory=Signal)
    is_leading: bool = False
    is_stored: bool = False
    was_led_here: bool = False
    has_landed: bool = False
    is_cancelled: bool = False
    followers: int = 0
    started_at: float = field(default_factory=time.time)
    error: ContentAppError | None = None
    task: asyncio.Task[None] | None = None
    on_changed: Callable[[], None] | None = None
    count_others: Callable[[], int] = no_others

    @property
    def is_deserted(self) -> bool:
        """Whether nobody follows, here or in another process, and nothing would be kept."""
        keeps = self.attempt.keep and self.attempt.window is None
        return not keeps and self.followers + self.count_others() <= 0

    @property
    def is_over(self) -> bool:
        """Whether no further attempt will come."""
        return self.error is not None or self.is_stored or self.attempt.state is FlightState.VERIFIED

    def tried_all(self, plan: Plan) -> bool:
        """Whether its failure is the last word on a plan that joined it: a digest is known by many names, each with its
        own sources; of a flight that another process led the sources are not known.
        """
        tried = {source.url for source in self.plan.sources}
        has_same_sources = all(source.url in tried for source in plan.sources)
        return self.was_led_here and has_same_sources and self.plan.must_exist >= plan.must_exist

    def changed(self) -> None:
        """Tell everybody, here and in other processes."""
        if self.on_changed is not None:
            self.on_changed()
        self.signal.notify()

    def begin(self, attempt: Attempt) -> None:
        """Go on with a new attempt."""
        self.attempt.let_go()
        self.attempt = attempt
        self.changed()

    def let_go_if_unused(self) -> None:
        """Its last attempt stays open for those who have joined, though they may not have begun to read it yet."""
        if self.has_landed and self.followers == 0:
            self.attempt.let_go()

    def fail(self, error: ContentAppError) -> None:
        """No source is left."""
        self.error = error
        self.changed()


class Flights:
    """All flights of this process, by key."""

    def __init__(self, coordination: Coordination, intake: Intake) -> None:
        self._coordination = coordination
        self._intake = intake
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        coordination.subscribe(CANCEL_TOPIC, self.cancel)

    def cancel(self, key: str) -> None:
        """End a flight, if it is here; nothing of it is kept, and whoever follows it is cut."""
        flight = self._flights.get(key)
        if flight is not None and flight.task is not None:
            flight.is_cancelled = True
            self._forget(flight)
            flight.task.cancel()

    def join(self, plan: Plan) -> tuple[Flight, bool]:
        """Follow the flight for this plan, starting it if there is none; whether it was already there. Pair with
        `leave`.
        """
        flight = self._flights.get(plan.key)
        existed = flight is not None and flight.error is None
        if flight is None or not existed:
            flight = Flight(plan.key, plan, Attempt())
            self._flights[plan.key] = flight
            flight.task = asyncio.create_task(self._run(flight), name=f"flight {plan.key}")
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._tasks.discard)
        flight.followers += 1
        flight.changed()
        return flight, existed

    def attempt(self, key: str) -> Attempt | None:
        """What is on its way here under a key, or has just come."""
        flight = self._flights.get(key)
        states = {FlightState.RUNNING, FlightState.VERIFIED}
        return flight.attempt if flight is not None and flight.attempt.state in states else None

    def leave(self, flight: Flight) -> None:
        """Stop following. A transfer that is kept goes on; one that is not stops with its last follower."""
        flight.followers -= 1
        flight.let_go_if_unused()
        flight.changed()
        self._stop_if_deserted(flight)

    def _stop_if_deserted(self, flight: Flight) -> None:
        """Not while an attempt's failure is being dealt with: whoever is to blame must be cooled, device or no
        device.
        """
        if flight.is_deserted and not flight.attempt.is_final and not flight.is_over and flight.task is not None:
            self._forget(flight)  # whoever comes while it ends begins anew
            flight.task.cancel()

    def _forget(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def close(self, grace_seconds: float = 0.0) -> None:
        """End all flights; kept ones may finish within the grace period."""
        if self._tasks and grace_seconds > 0:
            await asyncio.wait(set(self._tasks), timeout=grace_seconds)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, flight: Flight) -> None:
        """Lead or mirror until there is an outcome; nobody is left waiting, whatever happens here."""
        try:
            while not flight.is_over:
                held = await self._coordination.lease(flight.key)
                # The lease was free, held elsewhere, or has just been given up by a process that stored the artifact:
                # so whoever gets it looks once more before it asks upstream.
                if isinstance(held, Following):
                    await self._mirror(flight, held)
                else:
                    await self._lead(flight, held)
        except asyncio.CancelledError:
            if not flight.attempt.is_final:  # led by another process, and this one hears no more of it
                flight.attempt.state = FlightState.FAILED
            flight.fail(ContentUnavailable("the transfer was stopped", "unexpected EOF", 1.0))
            raise
        except ContentAppError as error:
            flight.fail(error)
        except Exception:
            log.exception("flight failed", key=flight.key)
            flight.fail(ContentUnavailable("internal error", "unexpected EOF", 5.0))
        finally:
            self._forget(flight)
            flight.has_landed = True
            flight.let_go_if_unused()
            flight.signal.notify()

    async def _lead(self, flight: Flight, lease: Lease | None) -> None:
        """Fetch, as the one who does it for all."""
        flight.is_leading = flight.was_led_here = True
        try:
            if lease is not None:
                flight.count_others = lease.followers
                lease.on_followers_changed(lambda: self._stop_if_deserted(flight))
                flight.on_changed = lambda: _publish(flight, lease)
                flight.changed()
            if await flight.plan.is_stored():
                flight.is_stored = True
                flight.changed()
                return
            await self._intake.run(flight)
        except ContentAppError as error:
            flight.fail(error)
        finally:
            flight.on_changed = None
            flight.count_others = no_others
            flight.is_leading = False
            if lease is not None:
                await asyncio.shield(lease.release())

    async def _mirror(self, flight: Flight, following: Following) -> None:
        """Show the progress of another process's flight as this one's own."""
        try:
            async for update in following.updates():
                progress = update.progress
                if progress.attempt and progress.attempt != flight.attempt.id:
                    flight.begin(_mirrored(progress, update.fileno, asyncio.get_running_loop().time()))
                if progress.is_windowed and not flight.is_over:
                    # Its bytes are in the other process's memory only: fetch for ourselves. Those who have some of
                    # them already go on alone.
                    metrics.degraded_flight("elsewhere")
                    flight.attempt.spool_end = flight.attempt.arrived
                    flight.changed()
                    await following.close()
                    await self._lead(flight, None)
                    return
                _apply(flight, progress)
        except LeaderLost:
            log.warning("leader lost", key=flight.key)
            if not flight.attempt.is_final:
                flight.attempt.state = FlightState.FAILED
                flight.changed()
            return
        finally:
            await following.close()
        if not flight.is_over:
            # It was released without a verdict (the last device left it): look again, then lead.
            if not flight.attempt.is_final and flight.attempt.state is not FlightState.CONNECTING:
                flight.attempt.state = FlightState.FAILED
                flight.changed()
            if await flight.plan.is_stored():
                flight.is_stored = True
                flight.changed()

    def progress(self) -> list[FlightProgress]:
        """The flights that this process leads."""
        return [snapshot(flight) for flight in self._flights.values() if flight.is_leading]


def snapshot(flight: Flight) -> FlightProgress:
    """What other processes are told."""
    attempt = flight.attempt
    state, detail = attempt.state, ""
    if flight.error is not None:
        state, detail = _described(flight.error)
    elif flight.is_stored:
        state = FlightState.VERIFIED
    return FlightProgress(
        key=flight.key,
        attempt=attempt.id if attempt.reader is not None or attempt.window is not None else "",
        state=state,
        size=attempt.size,
        arrived=attempt.arrived,
        keep=attempt.keep,
        is_windowed=attempt.window is not None,
        remote=attempt.remote,
        started_at=flight.started_at,
        followers=flight.followers,
        detail=detail,
        head=json.dumps(asdict(attempt.head) | _extras(flight)),
    )


def _extras(flight: Flight) -> dict[str, object]:
    attempt = flight.attempt
    return {
        "is_stored": flight.is_stored,
        "last_read": attempt.last_read,
        "is_proven": attempt.is_proven,
        "former": attempt.former,
    }


def _publish(flight: Flight, lease: Lease) -> None:
    reader = flight.attempt.reader
    lease.publish(snapshot(flight), None if reader is None else reader.fileno())


def _described(error: ContentAppError) -> tuple[FlightState, str]:
    if isinstance(error, ContentNotFound):
        return FlightState.ABSENT, str(error)
    if isinstance(error, ContentDenied):
        return FlightState.DENIED, str(error)
    if isinstance(error, ExpectationOutdated):
        return FlightState.UNAVAILABLE, json.dumps({"is_outdated": True, "reason": error.reason})
    if isinstance(error, ContentUnavailable):
        return FlightState.UNAVAILABLE, json.dumps(
            {"reason": error.reason, "phrase": error.phrase, "retry_after_seconds": error.retry_after_seconds}
        )
    return FlightState.UNAVAILABLE, json.dumps({"reason": str(error)})


def _mirrored(progress: FlightProgress, fileno: int | None, now: float) -> Attempt:
    return Attempt(
        id=progress.attempt,
        state=FlightState.RUNNING,
        keep=progress.keep,
        remote=progress.remote,
        reader=None if fileno is None else SpoolReader(fileno),
        started=now,
    )


def _apply(flight: Flight, progress: FlightProgress) -> None:
    """Take over a snapshot."""
    if progress.state in ERROR_STATES:
        flight.fail(ERROR_STATES[progress.state](progress.detail))
        return
    if progress.state is FlightState.UNAVAILABLE:
        detail = json.loads(progress.detail)
        kind = ExpectationOutdated if detail.pop("is_outdated", False) else ContentUnavailable
        flight.fail(kind(**detail))
        return
    attempt = flight.attempt
    facts = json.loads(progress.head)
    if facts.pop("is_stored", False):
        flight.is_stored = True
        flight.changed()
        return
    attempt.last_read = facts.pop("last_read", 0)
    attempt.is_proven = facts.pop("is_proven", False)
    attempt.former = facts.pop("former", "")
    attempt.head = Head(**facts)
    attempt.size, attempt.arrived, attempt.state = progress.size, progress.arrived, progress.state
    flight.changed()
