"""Leftovers: going on with interrupted transfers that no device asks for just now (P6)."""

from __future__ import annotations

import asyncio
import time

import structlog

from contentapp.core.errors import ContentAppError
from contentapp.core.settings import EngineSettings
from contentapp.pipeline.flight import Flights
from contentapp.pipeline.note import Facts, parse_facts
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.resolve import Resolver
from contentapp.pipeline.route import Router
from contentapp.storage.base import Note, Storage

log = structlog.get_logger("contentapp.leftovers")

LONGEST_PAUSE_SECONDS = 3600.0


class Leftovers:
    """Finishes what a restart or an outage has left, a few transfers at a time."""

    def __init__(
        self, storage: Storage, router: Router, resolver: Resolver, flights: Flights, settings: EngineSettings
    ) -> None:
        self._storage = storage
        self._router = router
        self._resolver = resolver
        self._flights = flights
        self._settings = settings
        self._tries: dict[str, tuple[int, float]] = {}  # by key: how many, and when the next one may be

    async def run(self) -> None:
        """Until cancelled: look for interrupted transfers, and go on with them; let go of those that are too old."""
        while True:
            try:
                await self._storage.remove_stale_partials(self._settings.partial_max_age_seconds)
                await self.resume_all()
            except ContentAppError as error:
                log.warning("interrupted transfers can't be read", error=str(error))
            await asyncio.sleep(self._settings.resume_interval_seconds)

    async def resume_all(self) -> None:
        """Try each once, the oldest first."""
        if not self._settings.resume_concurrency:
            return
        slots = asyncio.Semaphore(self._settings.resume_concurrency)
        found = sorted(await self._storage.suspended(), key=lambda suspended: suspended.noted_at)
        keys = {suspended.note.key for suspended in found}
        self._tries = {key: tries for key, tries in self._tries.items() if key in keys}
        async with asyncio.TaskGroup() as group:
            for suspended in found:
                group.create_task(self._resume(suspended.note, slots), name=f"resume {suspended.note.key}")

    async def _resume(self, note: Note, slots: asyncio.Semaphore) -> None:
        """One of them, unless it is too soon after it has failed: each try reads all that there is."""
        loop = asyncio.get_running_loop()
        count, not_before = self._tries.get(note.key, (0, 0.0))
        async with slots:
            if (facts := parse_facts(note.facts)) is None or loop.time() < not_before:
                return
            try:
                if time.time() - facts.moved_at > self._settings.partial_max_age_seconds:
                    await self._storage.discard(note.key)
                    return
                await self._follow(note, facts)
            except ContentAppError as error:
                log.info("not resumed", key=note.key, reason=str(error))
            pause = min(LONGEST_PAUSE_SECONDS, self._settings.resume_interval_seconds * 2.0**count)
            self._tries[note.key] = (count + 1, loop.time() + pause)

    async def _follow(self, note: Note, facts: Facts) -> None:
        """Ask for it as a device would, but for its bytes."""
        route = self._router.route(_request(facts.path))
        content = await self._resolver.resolve(route)
        if content.key != note.key:
            return  # its path means something else now
        flight, _ = self._flights.join(self._resolver.plan(content))
        try:
            # A window waits for its followers, and nothing of it would be kept: it is not for us.
            while not flight.is_over and flight.attempt.window is None and flight.attempt.spool_end is None:
                await flight.signal.wait()
        finally:
            self._flights.leave(flight)
        if flight.is_stored:
            await self._storage.discard(note.key)  # it has come otherwise


def _request(path: str) -> DeviceRequest:
    return DeviceRequest(
        id="resume",
        method="GET",
        raw_path=path,
        query="",
        headers={},
        version=(1, 1),
        peer="",
        started=asyncio.get_running_loop().time(),
    )
