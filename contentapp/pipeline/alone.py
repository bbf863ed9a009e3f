"""Alone: what a device is fed outside its flight: the rest of a body whose window has passed, or a far range (P4).

Both are ranged upstream requests of the device's own, counted and limited.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog

from contentapp.coordination.base import FlightState
from contentapp.core.conditional import parse_entity_tag
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import ContentAppError, UpstreamError, UpstreamProtocolError
from contentapp.metrics import metrics
from contentapp.pipeline.chunked import Checked, ChunkMemory, KnownChunks, Repair
from contentapp.pipeline.fetch import Fetched, Fetcher
from contentapp.pipeline.flight import Flight, Plan
from contentapp.pipeline.follow import BehindWindow, BodyBroken, hash_range
from contentapp.pipeline.frame import Frame
from contentapp.pipeline.progress import Attempt, fact
from contentapp.pipeline.respond import Device
from contentapp.pipeline.resume import CannotGoOn, Changed, Terms, Transfer, resume_validator
from contentapp.pipeline.verify import HOLD_BACK_SIZE
from contentapp.pipeline.wrong import WrongChunk
from contentapp.upstream.base import UpstreamRequest

log = structlog.get_logger("contentapp.alone")


SLOT_SECONDS = 5.0


class RangeRefused(ContentAppError):
    """No source gives the range; nothing of it was sent."""


class Alone:
    """Ranged requests for single devices, so many at a time."""

    def __init__(self, fetcher: Fetcher, limit: int, memory: ChunkMemory) -> None:
        self._fetcher = fetcher
        self._memory = memory
        self._slots = asyncio.Semaphore(limit)

    async def send_rest(self, flight: Flight, behind: BehindWindow, frame: Frame, device: Device) -> None:
        """Go on where a window has left the device. Its last bytes wait until the whole is verified, or, without a
        digest, until the transfer has ended; a range that ends before them does not wait, unless `behind.is_strict`.
        """
        plan, attempt, place = flight.plan, behind.attempt, behind.place
        if plan.digest is None:
            await self._send_alike(flight, attempt, place.position, frame, device)
        elif _is_inner(frame, attempt) and attempt.size is not None and not behind.is_strict:
            await self.send_range(flight, attempt, replace(frame, start=place.position), attempt.size, device)
        elif place.mark is not None:
            part = _Part(device, place.position, place.position, frame.end)
            await self._send_verified(plan, plan.digest, attempt.size, place.mark.copy(), part)
        elif place.position == frame.start:
            # Nothing was sent, but what precedes is not to be had any more: without it there is no verifying.
            part = _Part(device, 0, place.position, frame.end)
            await self._send_verified(plan, plan.digest, attempt.size, plan.hasher(), part)
        else:
            raise behind

    async def _send_verified(self, plan: Plan, digest: Digest, size: int | None, hasher: Hasher, part: _Part) -> None:
        """Send a part of the whole; `hasher` has seen what comes before the bytes that are asked for."""
        async for chunk in self._chunks(plan, part.position, size, slot_seconds=None):
            await asyncio.to_thread(hasher.update, chunk)
            await part.take(chunk)
        if not digest.matches(hasher):
            # Two answers may have contributed, and nothing tells which was wrong: nobody is blamed.
            raise BodyBroken("the rest does not match the digest")
        await part.end()

    async def _send_alike(self, flight: Flight, attempt: Attempt, position: int, frame: Frame, device: Device) -> None:
        """Without a digest only the same source's same validator says that the bytes are the same (P2)."""
        etag = attempt.head.etag
        tag = parse_entity_tag(etag)
        if position and (tag is None or tag.is_weak):
            raise BodyBroken("nothing says that it is still the same")
        end = attempt.size if frame.end is None else frame.end
        part = _Part(device, position, position, end)
        plan, if_range = _alike(flight.plan, attempt), etag if position else ""
        async for chunk in self._chunks(plan, position, end, if_range, attempt, slot_seconds=None):
            await part.take(chunk)
        await part.end()

    async def send_range(self, flight: Flight, followed: Attempt, frame: Frame, size: int, device: Device) -> None:
        """Send a range far ahead of a flight's attempt. RangeRefused when it has to come with the flight.

        With proven chunks it waits for nothing but those that it touches; else its tail, if it has the last byte, waits
        until the whole is verified and equal.
        """
        if frame.end is None:
            raise BodyBroken("a range needs a size")
        plan = _alike(flight.plan, followed)
        known = await plan.find_chunks()
        if known is not None and known.is_proven and plan.digest is not None and known.fits(plan.digest, size):
            await self._send_proven(plan, known, frame.start, frame.end, device)
            return
        alike = followed if plan.digest is None else None
        hold_back = HOLD_BACK_SIZE if frame.end == size else 0
        hasher, tail = hashlib.sha256(), bytearray()
        async for chunk in self._chunks(plan, frame.start, frame.end, _validator(plan, followed), alike):
            _check_flight(flight, followed)
            hasher.update(chunk)
            tail += chunk
            if len(tail) > hold_back:
                await device.send_bytes(bytes(tail[: len(tail) - hold_back]))
                del tail[: len(tail) - hold_back]
        if hold_back:
            await self._until_equal(flight, followed, frame.start, frame.end, hasher)
        await device.send_bytes(bytes(tail))

    async def _send_proven(self, plan: Plan, known: KnownChunks, start: int, end: int, device: Device) -> None:
        """Send a range out of the chunks that it touches, each once it is known to be right."""
        chunks = known.chunks
        position, stop = chunks.span(chunks.index_of(start)).start, chunks.span(chunks.index_of(end - 1)).end
        async for piece in self._chunks(plan, position, stop, known=known):
            wanted = piece[max(0, start - position) : max(0, end - position)]
            position += len(piece)
            if wanted:
                await device.send_bytes(wanted)

    async def _until_equal(self, flight: Flight, followed: Attempt, start: int, end: int, hasher: Hasher) -> None:
        """Wait for the flight's verdict, and compare our bytes with its."""
        while flight.attempt.state is not FlightState.VERIFIED:
            _check_flight(flight, followed)
            if flight.is_stored:
                raise BodyBroken("stored by another process meanwhile")
            if flight.attempt.spool_end is not None or flight.attempt.window is not None:
                raise BodyBroken("a window keeps nothing to compare with, and would wait for us")
            await flight.signal.wait()
        attempt = flight.attempt
        if attempt.reader is None or attempt.spool_end is not None:
            raise BodyBroken("nothing to compare with")
        attempt.hold()
        try:
            same = hashlib.sha256()
            await asyncio.to_thread(hash_range, attempt.reader, start, end, same)
        finally:
            attempt.let_go()
        if same.hexdigest() != hasher.hexdigest():
            raise BodyBroken("the range is not what the whole has there")

    async def _chunks(
        self,
        plan: Plan,
        start: int,
        end: int | None,
        if_range: str = "",
        alike: Attempt | None = None,
        *,
        known: KnownChunks | None = None,
        slot_seconds: float | None = SLOT_SECONDS,
    ) -> AsyncIterator[bytes]:
        """Bytes start <= i < end (None: all) from the first source that delivers exactly them; RangeRefused before the
        first.

        alike: the source must still say the same of what it has as it did in this attempt. known: the list that whole
        chunks are held against. slot_seconds: how long to
        wait for a slot; None: as long as the device does, for which there is no other way.
        """
        async with self._slot(slot_seconds), AsyncExitStack() as exchange:
            fetched = await exchange.enter_async_context(_refusing(self._open(plan, start, end, if_range)))
            metrics.range_request(fetched.source.remote.name)
            if fetched.response.offset != start:
                raise RangeRefused("it was answered with the whole")  # a remote may: it is not to blame
            if alike is not None and not _is_alike(fetched, alike):
                raise RangeRefused("it has changed upstream")
            terms = Terms(
                sources=plan.sources,
                digest=plan.digest,
                deadline_seconds=plan.resume_deadline_seconds,
                first_byte_deadline_seconds=plan.first_byte_deadline_seconds,
                if_range=if_range or resume_validator(fetched.response),
                etag=fact(fetched.response.etag),
                last_modified=fact(fetched.response.last_modified),
                size=fetched.response.size if plan.size is None else plan.size,
                start=start,
                end=end,
            )
            transfer = Transfer.begun(self._fetcher, exchange, fetched, terms)
            chunks = transfer.chunks() if known is None else self._checked(plan, transfer, known)
            async for chunk in self._exactly(transfer, chunks, plan, fetched, start, end):
                yield chunk

    def _checked(self, plan: Plan, transfer: Transfer, known: KnownChunks) -> AsyncIterator[bytes]:
        repair = Repair(
            fetcher=self._fetcher,
            sources=plan.sources,
            digest=known.chunks.digest,
            deadline_seconds=plan.resume_deadline_seconds,
        )

        def distrust() -> None:
            raise WrongChunk("nothing vouches for the range any more")

        return Checked(transfer, known, repair, self._memory, [], distrust).chunks()

    def _open(self, plan: Plan, start: int, end: int | None, if_range: str) -> AbstractAsyncContextManager[Fetched]:
        is_whole = start == 0 and (end is None or end == plan.size)
        return self._fetcher.open(
            plan.sources,
            lambda source: UpstreamRequest(
                source=source, offset=start, end=None if is_whole else end, if_range=if_range
            ),
            digest=plan.digest,
            deadline=asyncio.get_running_loop().time() + plan.first_byte_deadline_seconds,
            must_exist=plan.must_exist,
        )

    @asynccontextmanager
    async def _slot(self, seconds: float | None) -> AsyncIterator[None]:
        """One of the ranged requests that this process may have at a time; RangeRefused when none is free in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise RangeRefused("too many ranged requests") from None
        try:
            yield
        finally:
            self._slots.release()

    async def _exactly(
        self,
        transfer: Transfer,
        chunks: AsyncIterator[bytes],
        plan: Plan,
        fetched: Fetched,
        start: int,
        end: int | None,
    ) -> AsyncIterator[bytes]:
        """Its bytes. RangeRefused before the first of them, BodyBroken afterwards."""
        response, left = fetched.response, 0 if end is None else end - start
        kind: type[ContentAppError] = RangeRefused
        try:
            if plan.size is not None and response.size not in {None, plan.size}:
                raise UpstreamProtocolError("a range of another size", host=response.host)
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0 and end is not None:
                    raise UpstreamProtocolError("answered more than the range", host=response.host)
                kind = BodyBroken
                yield chunk
            for exchange in transfer.exchanges.values():
                await self._fetcher.ended(exchange)
        except UpstreamError as error:
            await self._fetcher.failed(transfer.source, error)
            raise kind(str(error)) from error
        except (CannotGoOn, Changed, WrongChunk) as error:
            raise kind(str(error)) from error


@dataclass(slots=True)
class _Part:
    """What a device gets of a body that is read from `position` on: the bytes start <= i < stop (None: all), of which
    the last HOLD_BACK_SIZE wait for `end`.
    """

    device: Device
    position: int
    start: int
    stop: int | None
    held: bytearray = field(default_factory=bytearray)

    async def take(self, chunk: bytes) -> None:
        """Send what this chunk lets go."""
        first = max(0, self.start - self.position)
        last = len(chunk) if self.stop is None else max(0, self.stop - self.position)
        self.position += len(chunk)
        self.held += chunk[first:last]
        if len(self.held) > HOLD_BACK_SIZE:
            await self.device.send_bytes(bytes(self.held[:-HOLD_BACK_SIZE]))
            del self.held[:-HOLD_BACK_SIZE]

    async def end(self) -> None:
        """Send what was held back."""
        await self.device.send_bytes(bytes(self.held))


@asynccontextmanager
async def _refusing(opened: AbstractAsyncContextManager[Fetched]) -> AsyncIterator[Fetched]:
    """The same, but RangeRefused when no source answers."""
    async with AsyncExitStack() as stack:
        try:
            fetched = await stack.enter_async_context(opened)
        except ContentAppError as error:
            raise RangeRefused(str(error)) from error
        yield fetched


def _is_inner(frame: Frame, attempt: Attempt) -> bool:
    """Whether a range ends before the last byte."""
    return frame.end is not None and attempt.size is not None and frame.end < attempt.size


def _is_alike(fetched: Fetched, attempt: Attempt) -> bool:
    response, head = fetched.response, attempt.head
    is_same_size = attempt.size is None or response.size in {None, attempt.size}
    return is_same_size and (response.etag, response.last_modified) == (head.etag, head.last_modified)


def _alike(plan: Plan, attempt: Attempt) -> Plan:
    """The plan with those sources alone that are known to have the attempt's bytes: without a digest its own."""
    if plan.digest is not None:
        return plan
    return replace(plan, sources=[source for source in plan.sources if source.remote.name == attempt.remote])


def _validator(plan: Plan, attempt: Attempt) -> str:
    """The If-Range of a range that no digest vouches for."""
    return "" if plan.digest is not None else attempt.head.etag


def _check_flight(flight: Flight, followed: Attempt) -> None:
    """A flight that fails, or whose bytes were wrong, resets the ranges that were sent meanwhile."""
    if flight.error is not None or followed.state is FlightState.WRONG:
        raise BodyBroken("the flight failed")
