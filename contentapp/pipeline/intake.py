"""Intake: attempt after attempt, take a body in, write and hash it once, and let followers see it grow (P1, P4, P9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from cachetools import LRUCache

from contentapp.coordination.base import FlightState
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import (
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    StorageError,
    UpstreamError,
    UpstreamProtocolError,
)
from contentapp.core.httpdate import parse_http_date
from contentapp.core.records import Source
from contentapp.core.settings import MIB, EngineSettings
from contentapp.metrics import metrics
from contentapp.pipeline.blame import Blame
from contentapp.pipeline.chunked import Checked, ChunkMemory, KnownChunks, Repair
from contentapp.pipeline.course import Course
from contentapp.pipeline.expect import bounded, check_answer, check_whole
from contentapp.pipeline.fetch import Fetched, Fetcher, Refusal, Refusals
from contentapp.pipeline.held import take_up
from contentapp.pipeline.load import Load
from contentapp.pipeline.lookup import now
from contentapp.pipeline.note import MarkedHasher
from contentapp.pipeline.progress import Attempt, Head, fact
from contentapp.pipeline.resume import CannotGoOn, Changed, Terms, Transfer, resume_validator
from contentapp.pipeline.spooling import Means, Spooling
from contentapp.pipeline.windowed import Windows
from contentapp.pipeline.wrong import WrongBytes, WrongChunk
from contentapp.storage.base import ArtifactWriter, Storage
from contentapp.upstream.base import UpstreamRequest, UpstreamResponse

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Flight, Plan

log = structlog.get_logger("contentapp.intake")

PENDING_SIZE = 4 * MIB
"""Bytes of one flight that may wait for the writing thread."""


PENDING_OF_ALL = 64 * MIB
"""The same of all flights of a process together."""

LEAST_PENDING_SIZE = 256 * 1024

SUSPICIONS = 10_000
"""Contents of which it is remembered that several answers made a wrong whole, when their flight has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A verified body. is_stored: it is in the storage now. flight: id of the attempt (for If-Range)."""

    digest: Digest
    size: int
    flight: str
    source: Source
    head: Head
    is_stored: bool


Looking = asyncio.Future[KnownChunks | None]


class Intake:
    """Takes bodies in for flights."""

    def __init__(
        self,
        fetcher: Fetcher,
        storage: Storage,
        executor: Executor,
        settings: EngineSettings,
        memory: ChunkMemory | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._storage = storage
        self._spooling = 0
        self._windows = Windows(settings.window_size)
        self._blame = Blame(fetcher)
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspects: LRUCache[str, tuple[str, ...]] = LRUCache(SUSPICIONS)
        self._chunk_memory = memory or ChunkMemory()
        self._means = Means(
            executor=executor,
            windows=self._windows,
            pending_size=lambda: self.pending_size,
            spawn=self._spawn,
            progress_seconds=settings.progress_interval_seconds,
        )

    @property
    def pending_size(self) -> int:
        """Bytes of one flight that may wait for the writing thread now; more than this stops reading from upstream."""
        return max(LEAST_PENDING_SIZE, min(PENDING_SIZE, PENDING_OF_ALL // max(1, self._spooling)))

    async def close(self) -> None:
        """Wait for what is still being written down."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def run(self, flight: Flight) -> None:
        """Attempts until one is verified; raises the error for those who still wait when no source is left."""
        plan, course = flight.plan, Course(flight.plan.sources)
        suspects = self._suspects.pop(flight.key, ())
        course.mixed([source for source in plan.sources if source.url in suspects])
        looking = asyncio.ensure_future(plan.find_chunks())
        try:
            await self._run(flight, course, looking)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            if course.suspects:
                self._suspects[flight.key] = tuple(course.suspects)

    async def _run(self, flight: Flight, course: Course, looking: Looking) -> None:
        plan, refusals = flight.plan, Refusals()
        if not course.is_alone and await self._resume(flight, course, looking, refusals):
            return
        while True:
            async with AsyncExitStack() as exchange:
                try:
                    fetched = await exchange.enter_async_context(self._open(plan, course, refusals))
                except (ContentUnavailable, ContentNotFound, ContentDenied):
                    if course.none_answered():
                        continue
                    raise
                refusal = await self._attempt(flight, course, looking, exchange, fetched)
            if refusal is None:
                return
            refusals.add(refusal)
            if flight.is_deserted or not course.sources:
                raise refusals.unavailable()
            metrics.failover(fetched.source.remote.name)

    def _open(self, plan: Plan, course: Course, refusals: Refusals) -> AbstractAsyncContextManager[Fetched]:
        return self._fetcher.open(
            course.sources,
            lambda source: UpstreamRequest(source=source),
            digest=plan.digest,
            deadline=asyncio.get_running_loop().time() + plan.first_byte_deadline_seconds,
            must_exist=plan.must_exist,
            refusals=refusals,
        )

    # Beginning

    async def _attempt(
        self, flight: Flight, course: Course, looking: Looking, exchange: AsyncExitStack, fetched: Fetched
    ) -> Refusal | None:
        """One attempt that begins with an open answer: None when it was verified, else why not."""
        plan, source = flight.plan, fetched.source
        try:
            check_answer(plan, fetched)
        except (UpstreamProtocolError, WrongBytes) as error:
            course.failed(source)
            return await self._blame.answer(flight, source, fetched.response.host, error)
        response = fetched.response
        size = response.size if plan.size is None else plan.size
        head = await self._head(plan, response)
        attempt = self._new_attempt(source, size, head)
        hasher = MarkedHasher(plan.hasher())
        known = await looking
        writer = await self._begin(flight, attempt, hasher)
        if_range = "" if plan.digest is not None else resume_validator(response)
        buffered: list[bytes] = []
        terms = _terms(flight, course, attempt, hasher, source, if_range, buffered)
        load = Load(
            flight=flight,
            attempt=attempt,
            writer=writer,
            transfer=Transfer.begun(self._fetcher, exchange, fetched, terms),
            hasher=hasher,
            if_range=if_range,
        )
        self._check_chunks(load, course, known, buffered)
        return await self._carry(load, course, source)

    async def _resume(self, flight: Flight, course: Course, looking: Looking, refusals: Refusals) -> bool:
        """An attempt that goes on with what an earlier transfer has left, if there is that; whether it was verified."""
        plan = flight.plan
        if not plan.sources or (held := await take_up(self._storage, plan)) is None:
            return False
        known: KnownChunks | None = None
        source = next((source for source in plan.sources if source.url == held.facts.url), plan.sources[0])
        course.prefer(source)
        size = held.size if plan.size is None else plan.size
        attempt = self._new_attempt(source, size, held.facts.head)
        attempt.arrived = held.hasher.offset
        buffered: list[bytes] = []
        attempt.former = held.former
        terms = _terms(flight, course, attempt, held.hasher, source, held.facts.if_range, buffered)
        async with AsyncExitStack() as exchange:
            load = Load(
                flight=flight,
                attempt=attempt,
                writer=held.writer,
                transfer=Transfer(self._fetcher, exchange, source, terms, held.hasher.offset),
                hasher=held.hasher,
                if_range=held.facts.if_range,
                earlier=held.facts.sources,
                moved_at=held.facts.moved_at,
            )
            try:
                known = await looking
                if not await load.transfer.reopen(refusals):
                    if plan.digest is None and len(plan.sources) > 1:
                        await load.put_down()  # the others may have it, though not the rest of this
                        return False
                    if not load.transfer.may_begin_anew:
                        raise refusals.error(must_exist=plan.must_exist)
                    raise Changed("no source goes on with what has come")
                attempt.reader = held.writer.follow()
                flight.begin(attempt)
            except ContentNotFound:
                await held.writer.abort()  # no source will ever go on with it
                raise
            except Changed as error:
                await held.writer.abort()
                log.info("begun anew", key=plan.key, reason=str(error))
                return False
            except BaseException:
                await asyncio.shield(load.put_down())
                raise
            metrics.resumed_transfer(source.remote.name)
            self._check_chunks(load, course, known, buffered)
            refusal = await self._carry(load, course, source)
        if refusal is not None:
            refusals.add(refusal)
        return refusal is None

    def _check_chunks(self, load: Load, course: Course, known: KnownChunks | None, buffered: list[bytes]) -> None:
        """Have its chunks held against their digests, if those are known. A source that is tried alone gets no help."""
        plan, attempt, offset = load.flight.plan, load.attempt, load.transfer.offset
        if known is None or plan.digest is None or course.is_alone or not known.fits(plan.digest, attempt.size):
            return
        repair = Repair(
            fetcher=self._fetcher,
            sources=plan.sources,
            digest=plan.digest,
            deadline_seconds=plan.resume_deadline_seconds,
        )

        def distrust() -> None:
            attempt.is_proven = False

        load.checked = Checked(load.transfer, known, repair, self._chunk_memory, buffered, distrust)
        attempt.is_proven = known.is_proven and offset == 0  # what is held was never held against it

    def _new_attempt(self, source: Source, size: int | None, head: Head) -> Attempt:
        return Attempt(
            state=FlightState.RUNNING,
            size=size,
            keep=source.remote.keeps,
            remote=source.remote.name,
            started=asyncio.get_running_loop().time(),
            head=head,
        )

    async def _head(self, plan: Plan, response: UpstreamResponse) -> Head:
        at = now()
        modified = await plan.find_modified() or parse_http_date(response.last_modified, at) or at
        return Head(
            media_type=fact(response.headers.get("Content-Type", "")),
            etag=fact(response.etag),
            last_modified=fact(response.last_modified),
            modified_at=modified.isoformat(),
        )

    async def _begin(self, flight: Flight, attempt: Attempt, hasher: MarkedHasher) -> ArtifactWriter | None:
        """A spool for the body, or a window where there is no room for one."""
        writer: ArtifactWriter | None = None
        try:
            writer = await self._storage.begin(flight.key, size=attempt.size, keep=attempt.keep)
            attempt.reader = writer.follow()
        except StorageError as error:
            if writer is not None:
                await writer.abort()
                writer = None
            self._windows.degrade(attempt, hasher, error)
        try:
            flight.begin(attempt)
        except BaseException:
            if writer is not None:
                await asyncio.shield(writer.abort())
            raise
        return writer

    # Taking in

    async def _carry(self, load: Load, course: Course, began: Source) -> Refusal | None:
        """Take a load in to its end: None when it was verified, else why not."""
        flight, plan = load.flight, load.flight.plan
        try:
            if flight.is_deserted:  # all left before the head had come
                raise ContentUnavailable("nobody wants it any more", "unexpected EOF", 1.0)
            await self._receive(load)
            check_whole(plan, load.attempt, load.hasher)
        except (UpstreamError, WrongBytes, CannotGoOn, Changed) as error:
            await self._end(load, error)
            return await self._blame.attempt(load, course, began, error)
        except BaseException as error:
            await asyncio.shield(self._end(load, error))
            raise
        await self._finish(load, course.convicted(began))
        course.cleared()
        return None

    async def _receive(self, load: Load) -> None:
        """Take the whole body in, and hash it."""
        chunks = bounded(load)
        if load.writer is not None:
            self._spooling += 1
            try:
                await Spooling(self._means, load, load.writer).run(chunks)
            finally:
                self._spooling -= 1
            return
        async for chunk in chunks:
            await self._windows.pass_on(load, chunk)

    # Failing

    async def _end(self, load: Load, error: BaseException) -> None:
        """The attempt is over; what has come of it is kept where another one may go on with it (P6)."""
        attempt, writer = load.attempt, load.writer
        is_wrong = isinstance(error, WrongBytes) and not isinstance(error, WrongChunk)
        attempt.state = FlightState.WRONG if is_wrong else FlightState.FAILED
        attempt.error = error if isinstance(error, ContentAppError) else None
        load.flight.changed()
        if isinstance(error, CannotGoOn | WrongChunk | asyncio.CancelledError):
            await load.put_down()
        elif writer is not None:
            await writer.abort()

    # Finishing

    async def _finish(self, load: Load, convicted: Sequence[Source]) -> None:
        """Verified: release the devices first, then make it durable, then record it."""
        flight, attempt, writer, plan = load.flight, load.attempt, load.writer, load.flight.plan
        attempt.state = FlightState.VERIFIED
        attempt.size = attempt.arrived
        flight.changed()
        digest = plan.digest or Digest("sha256", load.hasher.hexdigest())
        try:
            for source in convicted:
                await self._fetcher.wrong_bytes(source, digest, f"digest mismatch on {digest}")
            for url, fetched in load.transfer.exchanges.items():
                if url in load.convicted:
                    await self._fetcher.ended(fetched)
                else:
                    await self._fetcher.right_bytes(fetched, plan.digest)
            for source in plan.sources:
                if source.url in load.contributors:
                    await self._recorded(flight, plan.delivered(source, digest))
        except BaseException:
            if writer is not None:
                await asyncio.shield(writer.abort())
            raise
        is_stored = writer is not None and await self._commit(attempt, writer, digest)
        received = Received(
            digest=digest,
            size=attempt.arrived,
            flight=attempt.id,
            source=load.transfer.source,
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="progress")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _terms(
    flight: Flight,
    course: Course,
    attempt: Attempt,
    hasher: MarkedHasher,
    source: Source,
    if_range: str,
    buffered: list[bytes],
) -> Terms:
    """What an attempt's transfer keeps to."""
    plan = flight.plan

    async def held(offset: int) -> Hasher | None:
        # What is passed on is written and hashed in a thread, unless that has failed.
        passed = offset - sum(map(len, buffered))
        while attempt.arrived < passed and not attempt.is_unspooled:
            await flight.signal.wait()
        if attempt.arrived != passed:
            return None
        running = hasher.running.copy()
        for piece in buffered:
            running.update(piece)
        return running

    return Terms(
        sources=[source] if course.is_alone else plan.sources,
        digest=plan.digest,
        deadline_seconds=plan.resume_deadline_seconds,
        first_byte_deadline_seconds=plan.first_byte_deadline_seconds,
        if_range=if_range,
        etag=attempt.head.etag,
        last_modified=attempt.head.last_modified,
        size=attempt.size,
        held=held,
    )
