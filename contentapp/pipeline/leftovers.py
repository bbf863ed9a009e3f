"""Leftovers: going on with interrupted transfers that no device asks for just now (P6)."""

from __future__ import annotations

import asyncio

import structlog

from contentapp.core.errors import ContentAppError
from contentapp.core.settings import EngineSettings
from contentapp.pipeline.flight import Flights
from contentapp.pipeline.note import parse_facts
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.resolve import Resolver
from contentapp.pipeline.route import Router
from contentapp.storage.base import Note, Storage

log = structlog.get_logger("contentapp.leftovers")


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
        async with asyncio.TaskGroup() as group:
            for suspended in found:
                group.create_task(self._resume(suspended.note, slots), name=f"resume {suspended.note.key}")

    async def _resume(self, note: Note, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                await self._follow(note)
            except ContentAppError as error:
                log.info("not resumed", key=note.key, reason=str(error))

    async def _follow(self, note: Note) -> None:
        """Ask for it as a device would, but for its bytes."""
        if (facts := parse_facts(note.facts)) is None:
            return
        route = self._router.route(_request(facts.path))
        content = await self._resolver.resolve(route)
        if content.key != note.key:
            return  # its path means something else now
        flight, _ = self._flights.join(self._resolver.plan(content))
        try:
            while not flight.is_over:
                await flight.signal.wait()
        finally:
            self._flights.leave(flight)


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
