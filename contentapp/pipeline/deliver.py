"""Deliver: the way of the data in one place.

request → route → resolve → fetch (one flight) → verify → store → respond

`Delivery.deliver` takes a device's request through these stages; each stage is a file of this folder. Start here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from contentapp.coordination.base import FlightState
from contentapp.core.conditional import content_tag, names_content, undigested_tag, unverified_tag
from contentapp.core.digest import Digest
from contentapp.core.errors import ContentDenied, ContentNotFound, ContentUnavailable
from contentapp.core.httpdate import parse_http_date
from contentapp.core.records import ArtifactRecord, Distribution
from contentapp.core.settings import EngineSettings
from contentapp.pipeline.alone import Alone, RangeRefused
from contentapp.pipeline.chunklists import SUFFIX
from contentapp.pipeline.document import Documents
from contentapp.pipeline.fetch import Fetched
from contentapp.pipeline.flight import Flight, Flights
from contentapp.pipeline.follow import BehindWindow, BodyBroken, Outdated, Rule, is_far, send, until_ready
from contentapp.pipeline.frame import Frame, Representation, frame
from contentapp.pipeline.lookup import now
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.resolve import Content, Resolver
from contentapp.pipeline.respond import Device
from contentapp.pipeline.route import Route, Router
from contentapp.pipeline.store import Store
from contentapp.pipeline.wrong import ExpectationOutdated
from contentapp.plugins.base import Wanted
from contentapp.storage.base import ArtifactReader

log = structlog.get_logger("contentapp.deliver")

RESOLUTIONS = 3
"""How often one request is resolved again because what it was resolved to has changed under it."""


@dataclass(slots=True)
class Served:
    """What became of a request, for log and metrics. outcome: hit, miss, collapsed, stale, streamed or error."""

    distribution: Distribution | None = None
    policy: str = "none"
    outcome: str = "hit"
    verified: str = "yes"


class Delivery:
    """Delivers what devices ask for."""

    def __init__(
        self,
        *,
        router: Router,
        resolver: Resolver,
        documents: Documents,
        store: Store,
        flights: Flights,
        alone: Alone,
        settings: EngineSettings,
    ) -> None:
        self._router = router
        self._resolver = resolver
        self._documents = documents
        self._store = store
        self._flights = flights
        self._alone = alone
        self._settings = settings

    async def deliver(self, request: DeviceRequest, device: Device, served: Served) -> None:
        """Answer one request, completely or not at all; errors of before the first byte are the caller's to show."""
        if self._documents.answers(request, device):
            return
        route = self._router.route(request)
        served.distribution = route.distribution
        served.policy = str(route.distribution.remotes[0].policy) if route.distribution.remotes else "none"
        if route.path.wanted is Wanted.BLOB:
            await self._deliver_body(request, route, device, served)
        elif route.path.wanted is Wanted.FILE:
            await self._deliver_file(request, route, device, served)
        else:
            served.outcome = await self._documents.deliver(request, route, device)

    async def _deliver_file(self, request: DeviceRequest, route: Route, device: Device, served: Served) -> None:
        """A file as the remotes have it, or else the chunk list that is known of the file it is named after."""
        try:
            await self._deliver_body(request, route, device, served)
        except (ContentNotFound, ContentUnavailable):
            if device.has_begun or not await self._deliver_chunk_list(request, route, device):
                raise
            served.outcome = "hit"

    async def _deliver_chunk_list(self, request: DeviceRequest, route: Route, device: Device) -> bool:
        if not route.name.endswith(SUFFIX):
            return False
        of_file = replace(route, name=route.name.removesuffix(SUFFIX))
        return await self._documents.send_chunk_list(request, device, await self._resolver.resolve(of_file))

    async def _deliver_body(self, request: DeviceRequest, route: Route, device: Device, served: Served) -> None:
        """A blob or file: from the storage, or from a flight, or first one and then the other."""
        for _ in range(RESOLUTIONS):
            content = await self._resolver.resolve(route)
            position = None
            if (opened := await self._open(content)) is not None:
                position = await self._deliver_stored(request, content, *opened, device, served)
                if position is None:
                    return
            if content.entry is not None:
                content = replace(content, digest=None, size=None, entry=None)  # its artifact is gone
            if position is not None and opened is not None:
                # The device was promised this size, whatever else is known of the content.
                content = replace(content, size=opened[0].size)
                await self._continue(content, device, position, served)
                return
            if request.is_head:
                await self._deliver_head(request, content, device, served)
                return
            try:
                await self._deliver_flight(request, content, device, served)
                return
            except (Outdated, ExpectationOutdated):
                if device.has_begun:
                    raise
            except (ContentUnavailable, ContentDenied):
                if device.has_begun or not await self._deliver_previous(request, content, device, served):
                    raise
                return
        raise ContentUnavailable("it keeps changing upstream", "unexpected EOF", 1.0)

    # From the storage.

    async def _open(self, content: Content) -> tuple[ArtifactRecord, ArtifactReader] | None:
        if content.digest is None:
            return None
        return await self._store.open(content.digest, verify_on_read=content.distribution.settings.verify_on_read)

    async def _deliver_stored(
        self,
        request: DeviceRequest,
        content: Content,
        record: ArtifactRecord,
        reader: ArtifactReader,
        device: Device,
        served: Served,
    ) -> tuple[Frame, int] | None:
        """Send a stored artifact; None when that went well, else how far it came before it proved damaged (P7)."""
        served.outcome = "stale" if content.is_stale else "hit"
        served.verified = "no" if content.entry is not None else "yes"
        try:
            answer = frame(request, stored(content, record), now())
            await device.begin(answer)
            if answer.has_body and answer.end is not None:
                reached = await self._send_stored(record, reader, answer.start, answer.end, device)
                if reached < answer.end:
                    return answer, reached
        finally:
            reader.close()
        await device.finish()
        return None

    async def _deliver_previous(self, request: DeviceRequest, content: Content, device: Device, served: Served) -> bool:
        """What was there before, while what is new can't be had (P7); whether it is there."""
        if content.previous is None or (opened := await self._open(content.previous)) is None:
            return False
        if await self._deliver_stored(request, content.previous, *opened, device, served) is not None:
            raise BodyBroken("damaged, and without a digest to go on by")
        return True

    async def _send_stored(
        self, record: ArtifactRecord, reader: ArtifactReader, start: int, end: int, device: Device
    ) -> int:
        """How far it came; less than `end` means that the artifact is damaged there, and out of the way now."""
        reached = await device.send_file(reader, start, end)
        if reached < end:
            await self._store.damaged(record, f"unreadable at {reached}", reader)
        return reached

    async def _continue(self, content: Content, device: Device, broken: tuple[Frame, int], served: Served) -> None:
        """The artifact was damaged in the middle: go on at the offset (P7), from a flight, or from what another
        device's flight has stored meanwhile.
        """
        answer, position = broken
        if not content.is_digested or answer.end is None:
            raise BodyBroken("damaged, and without a digest to go on by")
        served.outcome = "miss"
        for _ in range(RESOLUTIONS):
            if (opened := await self._open(content)) is not None:
                record, reader = opened
                try:
                    position = await self._send_stored(record, reader, position, answer.end, device)
                finally:
                    reader.close()
            if position < answer.end:
                try:
                    await self._follow_from(content, replace(answer, start=position), device)
                except Outdated:
                    continue
            await device.finish()
            return
        raise BodyBroken("it keeps being damaged")

    async def _follow_from(self, content: Content, rest: Frame, device: Device) -> None:
        """Send the rest of an answer that has begun; Outdated when it is stored now."""
        flight, _ = self._flights.join(self._resolver.plan(content))
        rule = self._rule(content, None)
        try:
            attempt, _ = await until_ready(flight, rule, lambda attempt: rest)
            try:
                await send(flight, attempt, rest, device, rule)
            except BehindWindow as behind:
                await self._alone.send_rest(flight, behind, rest, device)
        finally:
            self._flights.leave(flight)

    # From upstream.

    async def _deliver_head(self, request: DeviceRequest, content: Content, device: Device, served: Served) -> None:
        """The head that a GET would have: never a body's transfer."""
        attempt = self._flights.attempt(content.key)
        if attempt is not None:
            served.outcome = "hit" if attempt.state is FlightState.VERIFIED else "collapsed"
            served.outcome = served.outcome if attempt.keep else "streamed"
            representation = in_flight(content, attempt, served.outcome)
        else:
            served.outcome = "miss"
            fetched = await self._resolver.head(content)
            known = None if content.digest is None else await self._resolver.modified(content.digest)
            representation = announced(content, fetched, known)
        await device.begin(frame(request, representation, now()))
        await device.finish()

    async def _deliver_flight(self, request: DeviceRequest, content: Content, device: Device, served: Served) -> None:
        """Join the one flight, or start it; send what it brings as it may be released."""
        plan = self._resolver.plan(content)
        flight, is_joined = self._flights.join(plan)
        is_done = is_joined and flight.attempt.state is FlightState.VERIFIED
        rule = self._rule(content, request)

        def outcome_of(attempt: Attempt) -> str:
            if not attempt.keep:
                return "streamed"
            if is_done:
                return "hit"  # all there, and being committed
            return "collapsed" if is_joined or not flight.was_led_here else "miss"

        def make_frame(attempt: Attempt) -> Frame:
            answer = frame(request, in_flight(content, attempt, outcome_of(attempt)), now())
            if attempt.keep and is_far(attempt, answer, rule):
                answer.headers["Cache-Status"] = "contentapp; fwd=miss; detail=range"
            return answer

        try:
            attempt, answer = await until_ready(flight, rule, make_frame)
            served.outcome = outcome_of(attempt)
            served.verified = _verified(content, attempt, answer)
            attempt.hold()
            try:
                await device.begin(answer)
                if answer.has_body:
                    await self._send(flight, attempt, answer, device, rule)
            finally:
                attempt.let_go()
        except (ContentUnavailable, ContentNotFound, ContentDenied) as error:
            if device.has_begun or error is not flight.error or flight.tried_all(plan):
                raise
            raise Outdated("another name's sources failed, not all of ours") from error
        finally:
            self._flights.leave(flight)
        await device.finish()

    async def _send(self, flight: Flight, attempt: Attempt, answer: Frame, device: Device, rule: Rule) -> None:
        if attempt.size is not None and is_far(attempt, answer, rule):
            with suppress(RangeRefused):  # then it comes with the flight
                await self._alone.send_range(flight, attempt, answer, attempt.size, device)
                return
        try:
            await send(flight, attempt, answer, device, rule)
        except BehindWindow as behind:
            await self._alone.send_rest(flight, behind, answer, device)

    def _rule(self, content: Content, request: DeviceRequest | None) -> Rule:
        settings = content.distribution.settings
        started = asyncio.get_running_loop().time() if request is None else request.started
        has_range = request is not None and request.range_header is not None
        return Rule(
            settings=settings,
            deadline=started + settings.first_byte_deadline_seconds,
            is_old_http=request is not None and request.version < (1, 1),
            is_strict=has_range and settings.cold_range == "strict",
            is_digested=content.is_digested,
        )


def stored(content: Content, record: ArtifactRecord) -> Representation:
    """The representation of a stored artifact."""
    entry, digest = content.entry, record.digest
    if entry is not None:
        validator = entry.validator
        return Representation(
            media_type=content.media_type,
            size=record.size,
            etag=f'"{validator}"' if validator else "",
            is_current=lambda opaque: bool(validator) and opaque == validator,
            last_modified=entry.modified_at,
            is_private=content.is_private,
            cache_status=_stored_status(content),
        )
    return Representation(
        media_type=content.media_type,
        size=record.size,
        digest=digest,
        etag=content_tag(digest),
        is_current=lambda opaque: names_content(opaque, digest, lambda flight: flight == record.flight),
        last_modified=record.modified_at,
        is_verified=True,
        is_private=content.is_private,
        is_immutable=content.wanted is Wanted.BLOB,
        docker_digest=digest if content.wanted is Wanted.BLOB else None,
    )


def _stored_status(content: Content) -> str:
    if content.is_stale and content.entry is not None:
        fresh_until = content.entry.checked_at.timestamp() + content.distribution.settings.content_ttl_seconds
        return f"hit; ttl={min(-1, int(fresh_until - now().timestamp()))}; detail=stale-if-error"
    return "fwd=stale; fwd-status=200" if content.is_revalidated else "hit"


def in_flight(content: Content, attempt: Attempt, outcome: str) -> Representation:
    """The representation of a body that is being fetched."""
    status = _flight_status(attempt, outcome)
    is_verified = attempt.state is FlightState.VERIFIED
    digest = content.digest
    if digest is None:
        etag = "" if attempt.size is None else undigested_tag(attempt.head.etag, attempt.size, attempt.remote)
        return Representation(
            media_type=content.media_type,
            size=attempt.size,
            etag=etag,
            is_current=lambda opaque: bool(etag) and f'"{opaque}"' == etag,
            last_modified=attempt.head.modified,
            is_private=content.is_private,
            cache_status=status,
        )
    return Representation(
        media_type=content.media_type,
        size=attempt.size,
        digest=digest,
        etag=content_tag(digest) if is_verified else unverified_tag(digest, attempt.id),
        is_current=lambda opaque: names_content(opaque, digest, lambda flight: flight == attempt.id),
        is_resumable=None if is_verified else lambda opaque: opaque in _resumable_tags(digest, attempt),
        last_modified=attempt.head.modified,
        is_verified=is_verified,
        is_private=content.is_private,
        is_immutable=content.wanted is Wanted.BLOB,
        docker_digest=digest if content.wanted is Wanted.BLOB else None,
        cache_status=status,
    )


def _resumable_tags(digest: Digest, attempt: Attempt) -> set[str]:
    """What a device that has some of these unverified bytes may name them by."""
    return {f"{digest}-{each}" for each in (attempt.id, attempt.former) if each}


def _flight_status(attempt: Attempt, outcome: str) -> str:
    if attempt.window is not None:
        return "fwd=miss; detail=no-space"
    statuses = {"streamed": "fwd=bypass", "hit": "hit", "collapsed": "fwd=miss; collapsed"}
    return statuses.get(outcome, "fwd=miss; stored")


def announced(content: Content, fetched: Fetched, known_modified: datetime | None) -> Representation:
    """The representation that a source has announced by its head; no flight has begun, so nothing is verified."""
    response, digest = fetched.response, content.digest
    size = content.size if content.size is not None else response.size
    etag = ""
    if digest is not None:
        etag = content_tag(digest)
    elif size is not None:
        etag = undigested_tag(response.etag, size, fetched.source.remote.name)
    return Representation(
        media_type=content.media_type,
        size=size,
        digest=digest,
        etag=etag,
        is_current=lambda opaque: bool(etag) and f'"{opaque}"' == etag,
        last_modified=known_modified or parse_http_date(response.last_modified, now()),
        is_private=content.is_private,
        is_immutable=content.wanted is Wanted.BLOB,
        docker_digest=digest if content.wanted is Wanted.BLOB else None,
        cache_status="fwd=miss" if fetched.source.remote.keeps else "fwd=bypass",
    )


def _verified(content: Content, attempt: Attempt, answer: Frame) -> str:
    """What the metric says: undigested bytes, a range that goes out before the verdict, or all is well."""
    if content.digest is None:
        return "no"
    is_partial = answer.end is not None and attempt.size is not None and answer.end < attempt.size
    return "pending" if is_partial and attempt.state is not FlightState.VERIFIED else "yes"
