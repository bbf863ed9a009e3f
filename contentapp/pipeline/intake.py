"""Intake: attempt after attempt, take a body in, write and hash it once, and let followers see it grow (P1, P4, P9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from contentapp.coordination.base import FlightState
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import (
    ContentAppError,
    ContentUnavailable,
    NoSpace,
    StorageError,
    UpstreamError,
    UpstreamProtocolError,
)
from contentapp.core.httpdate import parse_http_date
from contentapp.core.records import Source
from contentapp.core.settings import MIB, EngineSettings
from contentapp.core.window import Window
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetched, Fetcher, Refusal, Refusals, refusal_of
from contentapp.pipeline.lookup import now
from contentapp.pipeline.progress import Attempt, Head, Signal
from contentapp.pipeline.verify import HOLD_BACK_SIZE
from contentapp.storage.base import ArtifactWriter, Storage
from contentapp.upstream.base import UpstreamRequest

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Flight, Plan

log = structlog.get_logger("contentapp.intake")

PENDING_SIZE = 4 * MIB
"""Bytes of one flight that may wait for the writing thread."""


FACT_LENGTH = 512
"""Longer validators and media types count as none."""

PENDING_OF_ALL = 64 * MIB
"""The same of all flights of a process together."""

LEAST_PENDING_SIZE = 256 * 1024

WINDOWS_OF_ALL = 64 * MIB
"""Memory of all flights of a process that have no room on disk."""

LEAST_WINDOW_SIZE = 256 * 1024


class ExpectationOutdated(ContentUnavailable):
    """The metadata had changed upstream, so what was asked for is no longer what is wanted: resolve again."""


class WrongBytes(ContentAppError):
    """The body is not what the digest or the size says."""


class WrongSize(WrongBytes):
    """Not as long as a manifest or listing says. Either may be wrong, and whoever can publish a manifest can make it
    so: the pair (remote, artifact) and the remote must not cool for it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A verified body. is_stored: it is in the storage now. flight: id of the attempt (for If-Range)."""

    digest: Digest
    size: int
    flight: str
    source: Source
    head: Head
    is_stored: bool


class Intake:
    """Takes bodies in for flights."""

    def __init__(self, fetcher: Fetcher, storage: Storage, executor: Executor, settings: EngineSettings) -> None:
        self._fetcher = fetcher
        self._storage = storage
        self._executor = executor
        self._settings = settings
        self._spooling = 0
        self._windowed: set[Attempt] = set()

    @property
    def pending_size(self) -> int:
        """Bytes of one flight that may wait for the writing thread now; more than this stops reading from upstream."""
        return max(LEAST_PENDING_SIZE, min(PENDING_SIZE, PENDING_OF_ALL // max(1, self._spooling)))

    @property
    def window_size(self) -> int:
        """Bytes of one flight that are kept in memory now, when there is no room on disk."""
        size = self._settings.window_size
        return max(LEAST_WINDOW_SIZE, min(size, max(size, WINDOWS_OF_ALL) // max(1, len(self._windowed))))

    async def run(self, flight: Flight) -> None:
        """Attempts until one is verified; raises the error for those who still wait when no source is left."""
        plan, sources, refusals = flight.plan, list(flight.plan.sources), Refusals()
        loop = asyncio.get_running_loop()
        while True:
            opened = self._fetcher.open(
                sources,
                lambda source: UpstreamRequest(source=source),
                digest=plan.digest,
                deadline=loop.time() + plan.first_byte_deadline_seconds,
                must_exist=plan.must_exist,
                refusals=refusals,
            )
            async with opened as fetched:
                refusal = await self._attempt(flight, fetched)
            if refusal is None:
                return
            refusals.add(refusal)
            if flight.is_deserted:
                raise refusals.unavailable()
            metrics.failover(fetched.source.remote.name)
            # Those before it were passed over a moment ago; what is left are those behind it.
            sources = sources[sources.index(fetched.source) + 1 :]

    async def _attempt(self, flight: Flight, fetched: Fetched) -> Refusal | None:
        """One attempt with an open answer: None when it was verified, else why not."""
        plan = flight.plan
        try:
            _check_answer(plan, fetched)
            attempt, writer = await self._begin(flight, fetched)
        except (UpstreamProtocolError, WrongBytes) as error:
            return await self._blame(flight, fetched, error)
        try:
            if flight.is_deserted:  # all left before the head had come
                raise ContentUnavailable("nobody wants it any more", "unexpected EOF", 1.0)
            hasher = await self._receive(flight, attempt, writer, fetched)
            _check_whole(plan, attempt, hasher)
        except (UpstreamError, WrongBytes) as error:
            await self._discard(flight, attempt, writer, error)
            return await self._blame(flight, fetched, error)
        except BaseException as error:
            await asyncio.shield(self._discard(flight, attempt, writer, error))
            raise
        await self._finish(flight, attempt, writer, fetched, hasher)
        return None

    async def _begin(self, flight: Flight, fetched: Fetched) -> tuple[Attempt, ArtifactWriter | None]:
        """A spool for the body, or a window where there is no room for one."""
        plan, response = flight.plan, fetched.response
        size = response.size if plan.size is None else plan.size
        at = now()
        modified = await plan.find_modified() or parse_http_date(response.last_modified, at) or at
        attempt = Attempt(
            state=FlightState.RUNNING,
            size=size,
            keep=fetched.source.remote.keeps,
            remote=fetched.source.remote.name,
            started=asyncio.get_running_loop().time(),
            head=Head(
                media_type=_fact(response.headers.get("Content-Type", "")),
                etag=_fact(response.etag),
                last_modified=_fact(response.last_modified),
                modified_at=modified.isoformat(),
            ),
        )
        writer: ArtifactWriter | None = None
        try:
            writer = await self._storage.begin(flight.key, size=size, keep=attempt.keep)
            attempt.reader = writer.follow()
        except StorageError as error:
            if writer is not None:
                await writer.abort()
                writer = None
            self._degrade(attempt, plan.hasher(), error)
        try:
            flight.begin(attempt)
        except BaseException:
            if writer is not None:
                await asyncio.shield(writer.abort())
            raise
        return attempt, writer

    def _degrade(self, attempt: Attempt, hasher: Hasher, error: StorageError) -> None:
        """Go on in memory, from where the spool ends."""
        reason = "no_space" if isinstance(error, NoSpace) else "storage"
        metrics.degraded_flight(reason)
        log.warning("delivering unstored", reason=reason, error=str(error))
        attempt.spool_end = attempt.arrived
        self._windowed.add(attempt)
        attempt.on_closed = lambda: self._windowed.discard(attempt)
        attempt.window = Window(self.window_size, attempt.arrived, hasher.copy())
        for other in self._windowed:
            if other.is_final and other.window is not None:  # the others make room as they go on
                other.window.shrink(self.window_size)

    async def _receive(
        self, flight: Flight, attempt: Attempt, writer: ArtifactWriter | None, fetched: Fetched
    ) -> Hasher:
        """Take the whole body in; the running hash over it."""
        hasher = flight.plan.hasher()
        chunks = _bounded(fetched, attempt.size)
        if writer is not None:
            self._spooling += 1
            try:
                rest = await _Spooling(self, flight, attempt, writer, hasher).run(chunks)
            finally:
                self._spooling -= 1
            if rest is None:
                return hasher
            attempt.arrived = rest.arrived
            self._degrade(attempt, hasher, rest.error)
            for buffer in rest.buffers:
                await self._pass_on(flight, attempt, hasher, buffer)
        async for chunk in chunks:
            metrics.upstream_bytes(fetched.source.remote.name, len(chunk))
            await self._pass_on(flight, attempt, hasher, chunk)
        return hasher

    async def _pass_on(self, flight: Flight, attempt: Attempt, hasher: Hasher, chunk: bytes) -> None:
        """Add one chunk to the window when the fastest follower has made room for it."""
        window = attempt.window
        if window is None:
            raise RuntimeError("not a windowed attempt")
        moved = Signal()
        attempt.on_moved = moved.notify
        window.size = self.window_size
        while window.end > max(window.start, attempt.fastest) and not window.has_room(len(chunk), attempt.fastest):
            if flight.is_deserted:  # the last one had left before the disk was full
                raise ContentUnavailable("nobody wants it any more", "unexpected EOF", 1.0)
            if not attempt.is_stalled:
                attempt.is_stalled = True
                flight.changed()
            await moved.wait()
        attempt.is_stalled = False
        hasher.update(chunk)
        window.append(chunk, hasher.copy())
        attempt.last_read = min(len(chunk), HOLD_BACK_SIZE)
        attempt.arrived = window.end
        flight.changed()

    async def _discard(
        self, flight: Flight, attempt: Attempt, writer: ArtifactWriter | None, error: BaseException
    ) -> None:
        attempt.state = FlightState.WRONG if isinstance(error, WrongBytes) else FlightState.FAILED
        attempt.error = error if isinstance(error, ContentAppError) else None
        flight.changed()
        if writer is not None:
            await writer.abort()

    async def _blame(self, flight: Flight, fetched: Fetched, error: ContentAppError) -> Refusal:
        """Find out who is to blame, and cool it."""
        source, digest = fetched.source, flight.plan.digest
        if isinstance(error, WrongBytes):
            log.warning("wrong bytes", remote=source.remote.name, key=flight.key, error=str(error))
            if await flight.plan.revalidate():
                raise ExpectationOutdated("its metadata has changed upstream", "unexpected EOF", 1.0)
            if isinstance(error, WrongSize):
                await self._fetcher.failed(source, UpstreamProtocolError(str(error), host=fetched.response.host))
            elif digest is not None:
                await self._fetcher.wrong_bytes(source, digest, str(error))
            return Refusal(source.remote.name, "failed", str(error), "unexpected EOF")
        await self._fetcher.failed(source, error)
        return refusal_of(source, error)

    async def _finish(
        self, flight: Flight, attempt: Attempt, writer: ArtifactWriter | None, fetched: Fetched, hasher: Hasher
    ) -> None:
        """Verified: release the devices first, then make it durable, then record it."""
        plan = flight.plan
        attempt.state = FlightState.VERIFIED
        attempt.size = attempt.arrived
        flight.changed()
        digest = plan.digest or Digest("sha256", hasher.hexdigest())
        try:
            await self._fetcher.right_bytes(fetched, plan.digest)
            await self._recorded(flight, plan.delivered(fetched.source, digest))
        except BaseException:
            if writer is not None:
                await asyncio.shield(writer.abort())
            raise
        is_stored = writer is not None and await self._commit(attempt, writer, digest)
        received = Received(
            digest=digest,
            size=attempt.arrived,
            flight=attempt.id,
            source=fetched.source,
            head=attempt.head,
            is_stored=is_stored,
        )
        await self._recorded(flight, plan.record(received))

    async def _recorded(self, flight: Flight, recording: Awaitable[None]) -> None:
        """A catalog that is down costs the record, not the delivery: what is on disk is adopted later (P5, P7)."""
        try:
            await recording
        except ContentAppError as error:
            log.warning("not recorded", key=flight.key, error=str(error))

    async def _commit(self, attempt: Attempt, writer: ArtifactWriter, digest: Digest) -> bool:
        """Whether it is stored now; a storage that fails costs the storing, not the delivery."""
        try:
            if attempt.keep and attempt.window is None:
                await writer.commit(digest)
                return True
            await writer.abort()
        except StorageError as error:
            metrics.storage_write_error("commit")
            log.warning("not stored", digest=str(digest), error=str(error))
            await writer.abort()
        except BaseException:
            await asyncio.shield(writer.abort())
            raise
        return False

    async def write(self, writer: ArtifactWriter, hasher: Hasher, buffers: list[bytes]) -> None:
        """Write, then hash, in one trip to a thread."""

        def work() -> None:
            writer.write(buffers)
            for buffer in buffers:
                hasher.update(buffer)

        await asyncio.get_running_loop().run_in_executor(self._executor, work)


@dataclass(frozen=True, slots=True)
class _Unspooled:
    """What a full disk left over: buffers that were taken in but not written."""

    error: StorageError
    arrived: int
    buffers: list[bytes]


class _Spooling:
    """Reads from upstream while the writing thread works on what came before."""

    def __init__(
        self, intake: Intake, flight: Flight, attempt: Attempt, writer: ArtifactWriter, hasher: Hasher
    ) -> None:
        self._intake = intake
        self._flight = flight
        self._attempt = attempt
        self._writer = writer
        self._hasher = hasher
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._is_done = False
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def run(self, chunks: AsyncIterator[bytes]) -> _Unspooled | None:
        """None when all is on disk; else what could not be written, with upstream still open at its place."""
        writing = asyncio.create_task(self._write_all(), name=f"write {self._flight.key}")
        try:
            await self._read_all(chunks, writing)
            self._is_done = True
            self._work.set()
            rest = await writing
            if rest is not None:
                rest.buffers.extend(self._pending)  # what came in after the write had failed
            return rest
        except BaseException:
            # A write that is under way in the thread can't be stopped: wait for it, the writer is closed after us.
            self._is_done = True
            self._pending.clear()
            self._work.set()
            await asyncio.shield(asyncio.wait([writing]))
            raise

    async def _read_all(self, chunks: AsyncIterator[bytes], writing: asyncio.Task[_Unspooled | None]) -> None:
        remote = self._attempt.remote
        async for chunk in chunks:
            metrics.upstream_bytes(remote, len(chunk))
            self._pending.append(chunk)
            self._pending_size += len(chunk)
            self._work.set()
            if self._pending_size >= self._intake.pending_size:
                self._room.clear()
                await self._room.wait()
            if writing.done():
                return

    async def _write_all(self) -> _Unspooled | None:
        while True:
            if not self._pending:
                if self._is_done:
                    return None
                self._work.clear()
                await self._work.wait()
                continue
            buffers, self._pending, self._pending_size = self._pending, [], 0
            self._room.set()
            before = self._writer.written
            try:
                await self._intake.write(self._writer, self._hasher, buffers)
            except StorageError as error:
                metrics.storage_write_error("write")
                return self._unspooled(error, before, buffers)
            finally:
                self._room.set()
            self._attempt.last_read = min(len(buffers[-1]), HOLD_BACK_SIZE)
            self._attempt.arrived = self._writer.written
            self._flight.changed()

    def _unspooled(self, error: StorageError, before: int, buffers: list[bytes]) -> _Unspooled:
        """Some of the buffers may be on disk, none of them is hashed: all of them go to the window."""
        rest, self._pending = buffers + self._pending, []
        return _Unspooled(error, before, rest)


async def _bounded(fetched: Fetched, size: int | None) -> AsyncIterator[bytes]:
    """The body's chunks, cut off as wrong when they exceed the expected size."""
    arrived = 0
    async for chunk in fetched.response.chunks():
        arrived += len(chunk)
        if size is not None and arrived > size:
            raise WrongSize(f"size mismatch: more than {size} bytes")
        yield chunk


def _fact(text: str) -> str:
    """A header's value as it may be kept and passed on; "" for one that is odd."""
    return text if len(text) <= FACT_LENGTH and text.isascii() and text.isprintable() else ""


def _check_answer(plan: Plan, fetched: Fetched) -> None:
    """What is wrong with an answer before its first byte."""
    response = fetched.response
    if response.status != 200 or response.offset != 0:
        raise UpstreamProtocolError(f"answered {response.status} where the whole was asked for", host=response.host)
    is_html_allowed = plan.is_html_allowed or fetched.source.remote.settings.allow_html
    if not is_html_allowed and response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise UpstreamProtocolError("answered an HTML page", host=response.host)
    if plan.size is not None and response.size is not None and response.size != plan.size:
        raise WrongSize(f"size mismatch: {response.size} bytes instead of {plan.size}")


def _check_whole(plan: Plan, attempt: Attempt, hasher: Hasher) -> None:
    if attempt.size is not None and attempt.arrived != attempt.size:
        raise WrongSize(f"size mismatch: {attempt.arrived} bytes instead of {attempt.size}")
    if plan.digest is not None and not plan.digest.matches(hasher):
        raise WrongBytes(f"digest mismatch on {plan.digest}")
