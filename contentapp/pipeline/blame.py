"""Blame: what a failed attempt says of its sources, and what comes next (P2, P3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from contentapp.core.errors import ContentAppError, UpstreamProtocolError
from contentapp.core.records import Source
from contentapp.pipeline.course import Course
from contentapp.pipeline.fetch import Fetcher, Refusal, refusal_of
from contentapp.pipeline.load import Load
from contentapp.pipeline.resume import CannotGoOn, Changed
from contentapp.pipeline.wrong import ExpectationOutdated, WrongBytes, WrongChunk, WrongSize

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Flight

log = structlog.get_logger("contentapp.blame")


class Blame:
    """Finds out who is to blame, and has it cooled."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    async def attempt(self, load: Load, course: Course, began: Source, error: ContentAppError) -> Refusal:
        """Why an attempt that had begun with a source came to nothing, and what comes next."""
        plan, name = load.flight.plan, began.remote.name
        if isinstance(error, Changed):
            course.changed(began)
            return Refusal(name, "failed", str(error), "unexpected EOF")
        if isinstance(error, CannotGoOn):
            course.failed(began)
            if plan.digest is not None and not error.may_begin_anew and not course.is_alone:
                raise error.refusals.unavailable()  # all of them have been asked for the rest
            return Refusal(name, "failed", str(error), "unexpected EOF")
        if isinstance(error, WrongChunk):
            course.failed(began)
            return Refusal(name, "failed", str(error), "unexpected EOF")
        is_wrong = isinstance(error, WrongBytes) and not isinstance(error, WrongSize)
        # One exchange alone is to blame, unless all had come before a restart.
        is_composed = load.transfer.is_composed or not load.transfer.exchanges
        if is_wrong and is_composed and not course.is_alone:
            refusal = await self._suspect(load, error)
            course.mixed([source for source in plan.sources if source.url in load.contributors])
            return refusal
        course.failed(began)
        host = getattr(error, "host", "")
        return await self.answer(load.flight, load.transfer.source, host, error)

    async def _suspect(self, load: Load, error: ContentAppError) -> Refusal:
        """Several answers contributed to a wrong whole, and nothing tells which was wrong: nobody is cooled yet."""
        plan = load.flight.plan
        remotes = [source.remote.name for source in plan.sources if source.url in load.contributors]
        log.warning("wrong bytes of several answers", remotes=remotes, key=plan.key, error=str(error))
        if await plan.revalidate():
            raise ExpectationOutdated("its metadata has changed upstream", "unexpected EOF", 1.0)
        name = load.transfer.source.remote.name
        return Refusal(name, "failed", f"{error}, to which several answers contributed", "unexpected EOF")

    async def answer(self, flight: Flight, source: Source, host: str, error: ContentAppError) -> Refusal:
        """Find out who is to blame, and cool it."""
        digest = flight.plan.digest
        if isinstance(error, WrongBytes):
            log.warning("wrong bytes", remote=source.remote.name, key=flight.key, error=str(error))
            if await flight.plan.revalidate():
                raise ExpectationOutdated("its metadata has changed upstream", "unexpected EOF", 1.0)
            if isinstance(error, WrongSize):
                await self._fetcher.failed(source, UpstreamProtocolError(str(error), host=host))
            elif digest is not None:
                await self._fetcher.wrong_bytes(source, digest, str(error))
            return Refusal(source.remote.name, "failed", str(error), "unexpected EOF")
        await self._fetcher.failed(source, error)
        return refusal_of(source, error)
