"""Alone: what a device is fed outside its flight: the rest of a body whose window has passed, or a far range (P4).

Both are ranged upstream requests of the device's own, counted and limited.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

import structlog

from contentapp.coordination.base import FlightState
from contentapp.core.digest import Digest, Hasher
from contentapp.core.errors import ContentAppError, UpstreamError, UpstreamProtocolError
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetched, Fetcher
from contentapp.pipeline.flight import Flight, Plan
from contentapp.pipeline.follow import BodyBroken
from contentapp.pipeline.frame import Frame
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.respond import Device
from contentapp.pipeline.verify import HOLD_BACK_SIZE
from contentapp.upstream.base import UpstreamRequest

log = structlog.get_logger("contentapp.alone")


class RangeRefused(ContentAppError):
    """No source gives the range; nothing of it was sent."""


class Alone:
    """Ranged requests for single devices, so many at a time."""

    def __init__(self, fetcher: Fetcher, limit: int) -> None:
        self._fetcher = fetcher
        self._slots = asyncio.Semaphore(limit)

    async def send_rest(
        self, plan: Plan, digest: Digest, size: int, position: int, hasher: Hasher, device: Device
    ) -> None:
        """Go on from `position` to the end; `hasher` has seen what came before. The tail waits for the digest."""
        tail = bytearray()
        async for chunk in self._chunks(plan, position, size):
            await asyncio.to_thread(hasher.update, chunk)
            tail += chunk
            if len(tail) > HOLD_BACK_SIZE:
                await device.send_bytes(bytes(tail[:-HOLD_BACK_SIZE]))
                del tail[:-HOLD_BACK_SIZE]
        if not digest.matches(hasher):
            # Two answers contributed, and nothing tells which was wrong: nobody is blamed.
            raise BodyBroken("the rest does not match the digest")
        await device.send_bytes(bytes(tail))

    async def send_range(self, flight: Flight, frame: Frame, size: int, device: Device) -> None:
        """Send a range far ahead of the flight. With the last byte, its tail waits until the whole is verified and
        equal. RangeRefused when it has to come with the flight.
        """
        if frame.end is None:
            raise BodyBroken("a range needs a size")
        followed = flight.attempt
        hold_back = HOLD_BACK_SIZE if frame.end == size else 0
        hasher, tail = hashlib.sha256(), bytearray()
        async for chunk in self._chunks(_alike(flight.plan, followed), frame.start, frame.end, _validator(flight)):
            _check_flight(flight, followed)
            hasher.update(chunk)
            tail += chunk
            if len(tail) > hold_back:
                await device.send_bytes(bytes(tail[: len(tail) - hold_back]))
                del tail[: len(tail) - hold_back]
        if hold_back:
            await self._until_equal(flight, followed, frame.start, frame.end, hasher)
        await device.send_bytes(bytes(tail))

    async def _until_equal(self, flight: Flight, followed: Attempt, start: int, end: int, hasher: Hasher) -> None:
        """Wait for the flight's verdict, and compare our bytes with its."""
        while flight.attempt.state is not FlightState.VERIFIED:
            _check_flight(flight, followed)
            if flight.is_stored:
                raise BodyBroken("stored by another process meanwhile")
            await flight.signal.wait()
        attempt = flight.attempt
        if attempt.reader is None or attempt.window is not None:
            raise BodyBroken("nothing to compare with")
        attempt.hold()
        try:
            same = await asyncio.to_thread(_hash_range, attempt, start, end)
        finally:
            attempt.let_go()
        if same != hasher.hexdigest():
            raise BodyBroken("the range is not what the whole has there")

    async def _chunks(self, plan: Plan, start: int, end: int, if_range: str = "") -> AsyncIterator[bytes]:
        """Bytes start <= i < end from the first source that delivers exactly them; RangeRefused before the first."""
        async with self._slots:
            deadline = asyncio.get_running_loop().time() + plan.first_byte_deadline_seconds
            opened = self._fetcher.open(
                plan.sources,
                lambda source: UpstreamRequest(source=source, offset=start, end=end, if_range=if_range),
                digest=plan.digest,
                deadline=deadline,
                must_exist=plan.must_exist,
            )
            async with _refusing(opened) as fetched:
                metrics.range_request(fetched.source.remote.name)
                if fetched.response.offset != start:
                    raise RangeRefused("it was answered with the whole")  # a remote may: it is not to blame
                async for chunk in self._exactly(fetched, plan, start, end):
                    yield chunk

    async def _exactly(self, fetched: Fetched, plan: Plan, start: int, end: int) -> AsyncIterator[bytes]:
        response, left = fetched.response, end - start
        try:
            if plan.size is not None and response.size not in {None, plan.size}:
                raise UpstreamProtocolError("a range of another size", host=response.host)
            async for chunk in response.chunks():
                metrics.upstream_bytes(fetched.source.remote.name, len(chunk))
                left -= len(chunk)
                if left < 0:
                    raise UpstreamProtocolError("answered more than the range", host=response.host)
                yield chunk
            if left:
                raise UpstreamProtocolError("answered less than the range", host=response.host)
        except UpstreamError as error:
            await self._fetcher.failed(fetched.source, error)
            raise BodyBroken(str(error)) from error


@asynccontextmanager
async def _refusing(opened: AbstractAsyncContextManager[Fetched]) -> AsyncIterator[Fetched]:
    """The same, but RangeRefused when no source answers."""
    async with AsyncExitStack() as stack:
        try:
            fetched = await stack.enter_async_context(opened)
        except ContentAppError as error:
            raise RangeRefused(str(error)) from error
        yield fetched


def _alike(plan: Plan, attempt: Attempt) -> Plan:
    """The plan with those sources alone that are known to have the attempt's bytes: without a digest its own."""
    if plan.digest is not None:
        return plan
    return replace(plan, sources=[source for source in plan.sources if source.remote.name == attempt.remote])


def _validator(flight: Flight) -> str:
    """The If-Range of a range that no digest vouches for."""
    return "" if flight.plan.digest is not None else flight.attempt.head.etag


def _check_flight(flight: Flight, followed: Attempt) -> None:
    """A flight that fails, or whose bytes were wrong, resets the ranges that were sent meanwhile."""
    if flight.error is not None or followed.state is FlightState.WRONG:
        raise BodyBroken("the flight failed")


def _hash_range(attempt: Attempt, start: int, end: int) -> str:
    hasher = hashlib.sha256()
    position = start
    while position < end and attempt.reader is not None:
        data = attempt.reader.read(position, min(MIB, end - position))
        if not data:
            break
        hasher.update(data)
        position += len(data)
    return hasher.hexdigest()
