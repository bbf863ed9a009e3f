"""Follow: feed one device from a flight, from the first byte that may be released to the last (P1, P2, P4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from contentapp.coordination.base import FlightState
from contentapp.core.conditional import parse_entity_tag, undigested_tag
from contentapp.core.digest import Hasher
from contentapp.core.errors import ContentAppError, ContentUnavailable
from contentapp.core.settings import MIB, DistributionSettings
from contentapp.pipeline.flight import Flight
from contentapp.pipeline.frame import Frame
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.respond import Device
from contentapp.pipeline.verify import is_verified_first, releasable
from contentapp.storage.base import ArtifactReader

MakeFrame = Callable[[Attempt], Frame]


class Outdated(ContentAppError):
    """The artifact has been stored meanwhile, or its metadata has changed: resolve again."""


class BodyBroken(ContentAppError):
    """The body can't be completed; after its first byte the connection is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one device's answer is released.

    is_old_http: HTTP/1.0, where a body of unknown size can't be told from a broken one, so it is verified first.
    is_strict: a range waits for the whole. is_digested: any source's bytes can be told to be the right ones.
    """

    settings: DistributionSettings
    deadline: float
    is_old_http: bool = False
    is_strict: bool = False
    is_digested: bool = True


async def until_ready(flight: Flight, rule: Rule, make_frame: MakeFrame) -> tuple[Attempt, Frame]:
    """Wait until a head can be sent, with a first byte behind it: the attempt and the frame.

    Raises the flight's error when no source is left, Outdated when the device is better served otherwise, and
    ContentUnavailable when nothing has begun by the deadline.
    """
    loop = asyncio.get_running_loop()
    while True:
        attempt = flight.attempt
        if flight.is_stored:
            raise Outdated("stored meanwhile")
        if attempt.state is FlightState.VERIFIED:
            return attempt, make_frame(attempt)
        if flight.error is not None:
            raise flight.error
        wake = rule.deadline
        if attempt.state is FlightState.RUNNING:
            frame = make_frame(attempt)
            is_size_known = flight.plan.size is not None or flight.plan.digest is None
            wake = _release_at(attempt, rule, frame) if frame.status != 416 or is_size_known else float("inf")
            if loop.time() >= wake:
                return attempt, frame
        elif loop.time() >= wake:
            raise ContentUnavailable("no source has answered in time", "i/o timeout")
        await _wait(flight, None if wake == float("inf") else wake)


def _release_at(attempt: Attempt, rule: Rule, frame: Frame) -> float:
    """When (loop.time()) a running attempt's head may go out even if nothing changes; 0: now."""
    if frame.has_body and frame.length == 0:
        return float("inf")  # its head alone is a complete answer
    is_strict = rule.is_strict and not (frame.is_part and attempt.is_proven)
    is_whole_first = is_strict or (rule.is_old_http and attempt.size is None)
    if attempt.is_stalled:
        # Nothing more comes until somebody takes what has come.
        if is_whole_first and not is_strict:
            raise ContentUnavailable("there is no room to verify it before its first byte", "i/o timeout")
        return 0.0
    if is_whole_first:
        return float("inf")
    if not frame.has_body or is_far(attempt, frame, rule):
        return 0.0
    if is_verified_first(attempt.size, rule.settings.verify_first_bytes):
        return attempt.started + rule.settings.verify_first_seconds
    if releasable(attempt, frame.end, is_part=frame.is_part) > frame.start:
        return 0.0
    # The transfer is alive but has not come to the device's part: its head need not wait longer than any first byte.
    return rule.deadline if attempt.size is not None else float("inf")


@dataclass(slots=True)
class Place:
    """How far a device has come; `mark`: the running hash over all before it, known where a window's chunk ended."""

    position: int
    mark: Hasher | None = None


def is_far(attempt: Attempt, frame: Frame, rule: Rule) -> bool:
    """Whether a range begins further ahead than is worth waiting for.

    A window is always waited for, and so are bytes of which neither digest nor validator says that they are the same.
    """
    if attempt.state is not FlightState.RUNNING or attempt.window is not None or attempt.size is None or rule.is_strict:
        return False
    if not rule.is_digested and not undigested_tag(attempt.head.etag, attempt.size, attempt.remote):
        return False
    is_first = is_verified_first(attempt.size, rule.settings.verify_first_bytes)
    return not is_first and frame.start - attempt.arrived >= max(1, rule.settings.range_wait_size)


async def send(
    flight: Flight, attempt: Attempt, frame: Frame, device: Device, rule: Rule, *, position: int | None = None
) -> None:
    """Send the frame's part of the body as it is released; returns when the last byte is out and may be.

    BodyBroken when an attempt fails of which the device already has bytes; BehindWindow when a window has passed it.
    `position`: go on there, behind bytes that came from elsewhere.
    """
    follower = object()
    place = Place(frame.start if position is None else position)
    attempt.hold()
    try:
        while True:
            attempt.move(follower, place.position)
            end = attempt.size if frame.end is None else frame.end
            if end is not None and place.position >= end and _is_complete(attempt, end, is_part=frame.is_part):
                return
            is_held = rule.is_strict and not _has_held_tail(attempt, end)
            limit = releasable(attempt, frame.end, is_strict=is_held, is_part=frame.is_part)
            limit = limit if end is None else min(limit, end)
            if limit > place.position:
                if not await _feed(attempt, device, place, limit):
                    raise await _behind(flight, attempt, place, is_strict=rule.is_strict)
            elif attempt.is_final and attempt.state is not FlightState.VERIFIED:
                if place.position != frame.start:
                    raise BodyBroken(f"attempt {attempt.state}")
                attempt = await _next(flight, attempt, frame, follower, is_digested=rule.is_digested)
            elif attempt.is_out_of_reach or (is_held and attempt.window is not None):
                raise await _behind(flight, attempt, place, is_strict=rule.is_strict)
            else:
                await flight.signal.wait()
    finally:
        attempt.positions.pop(follower, None)
        attempt.let_go()


def _has_held_tail(attempt: Attempt, end: int | None) -> bool:
    """Whether a window holds the last bytes back anyway; it would never move if a device took none before them."""
    return attempt.window is not None and (end is None or end == attempt.size)


def _is_complete(attempt: Attempt, end: int, *, is_part: bool) -> bool:
    """Whether the part up to `end` is all that was to come: the last byte only once the whole is verified, or, of a
    part, its chunk.
    """
    if is_part and attempt.is_proven:
        return True
    if attempt.size is not None and end < attempt.size:
        return True
    return attempt.state is FlightState.VERIFIED


async def _next(flight: Flight, failed: Attempt, frame: Frame, follower: object, *, is_digested: bool) -> Attempt:
    """The attempt after one that failed before this device had a byte of it.

    The failed one's head is out: what comes under it must be of its size and, without a digest, of its validator too.
    """
    while flight.attempt is failed or flight.attempt.state is FlightState.CONNECTING:
        if flight.error is not None or flight.is_stored:
            raise BodyBroken("no attempt is left")
        await flight.signal.wait()
    attempt = flight.attempt
    if frame.end is not None and (attempt.size is None or attempt.size != failed.size):
        raise BodyBroken("the size has changed")
    if not is_digested and not _has_same_validator(attempt, failed):
        raise BodyBroken("nothing says that it is still the same")
    attempt.hold()
    failed.positions.pop(follower, None)
    failed.let_go()
    return attempt


def _has_same_validator(attempt: Attempt, failed: Attempt) -> bool:
    tag = parse_entity_tag(failed.head.etag)
    is_strong = tag is not None and not tag.is_weak
    return is_strong and attempt.remote == failed.remote and attempt.head.etag == failed.head.etag


async def _feed(attempt: Attempt, device: Device, place: Place, limit: int) -> bool:
    """Send what is between the device's place and `limit`, or some of it; False when it is there no more."""
    spool_end = limit if attempt.spool_end is None else min(limit, attempt.spool_end)
    if place.position < spool_end:
        if attempt.reader is None:
            raise BodyBroken("no spool")
        place.position = await device.send_file(attempt.reader, place.position, spool_end, is_on_disk=False)
        if place.position < spool_end:
            raise BodyBroken("the spool is damaged")
        place.mark = attempt.window.first_mark if attempt.window and spool_end == attempt.spool_end else None
        return True
    piece = None if attempt.window is None else attempt.window.read(place.position)
    if piece is None:
        return False
    data = piece.data[: limit - place.position]
    if not data:
        raise BodyBroken("the window is empty")
    await device.send_bytes(data)
    place.position += len(data)
    place.mark = piece.mark if len(data) == len(piece.data) else None
    return True


class BehindWindow(BodyBroken):
    """A device was too slow for a window or came too late, or the window is another process's.

    attempt, place: of which it has how much. is_strict: as in its Rule.
    """

    def __init__(self, attempt: Attempt, place: Place, *, is_strict: bool) -> None:
        super().__init__("the window has passed")
        self.attempt = attempt
        self.place = place
        self.is_strict = is_strict


async def _behind(flight: Flight, attempt: Attempt, place: Place, *, is_strict: bool) -> BehindWindow:
    """With the mark, wherever what came before is still there to be hashed."""
    reader, hasher = attempt.reader, flight.plan.hasher()
    if place.mark is None and reader is not None and place.position <= (attempt.spool_end or 0):
        await asyncio.to_thread(hash_range, reader, 0, place.position, hasher)
        place.mark = hasher
    return BehindWindow(attempt, place, is_strict=is_strict)


def hash_range(reader: ArtifactReader, start: int, end: int, hasher: Hasher) -> None:
    """Run the bytes start <= i < end of a spool through a hash; blocking. What can't be read makes it a wrong one."""
    position = start
    while position < end:
        data = reader.read(position, min(MIB, end - position))
        if not data:
            return
        hasher.update(data)
        position += len(data)


async def _wait(flight: Flight, wake: float | None) -> None:
    try:
        async with asyncio.timeout_at(wake):
            await flight.signal.wait()
    except TimeoutError:
        pass
