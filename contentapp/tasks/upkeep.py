"""Upkeep: what goes on beside the requests, for as long as the program runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from contentapp.catalog.base import UpkeepCatalog
from contentapp.core.errors import ContentAppError
from contentapp.core.settings import DAY
from contentapp.storage.base import Storage
from contentapp.tasks.evict import Eviction
from contentapp.tasks.scrub import Scrub
from contentapp.tasks.verify import Verdicts, Verifier

log = structlog.get_logger("contentapp.upkeep")

EVICT_SECONDS = 5.0
TIDY_SECONDS = 600.0
ADOPT_SECONDS = 3600.0
RETRY_SECONDS = 60.0
RECOUNT_SECONDS = 5.0


class Upkeep:
    """Eviction, the background scrub, adoption after a crash, and tidying up.

    recount_seconds: how long a wrong count of stored bytes must stay wrong before it is corrected.
    """

    def __init__(
        self,
        storage: Storage,
        upkeep: UpkeepCatalog,
        eviction: Eviction,
        verifier: Verifier,
        scrub: Scrub,
        *,
        partial_max_age_seconds: float = DAY,
        recount_seconds: float = RECOUNT_SECONDS,
    ) -> None:
        self._storage = storage
        self._upkeep = upkeep
        self._eviction = eviction
        self._verifier = verifier
        self._scrub = scrub
        self._partial_max_age_seconds = partial_max_age_seconds
        self._recount_seconds = recount_seconds
        self._wanted = 0
        self._space = asyncio.Event()
        self._failing: dict[str, str] = {}

    def space_wanted(self, message: str) -> None:
        """A write waits for this many bytes."""
        self._wanted = max(self._wanted, int(message) if message.isascii() and message.isdigit() else 0)
        self._space.set()

    async def run(self) -> None:
        """Everything, until cancelled; one part's failure does not end the others."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._evict_forever(), name="evict")
            group.create_task(self._repeat("adoption", self._adopt, ADOPT_SECONDS), name="adopt")
            group.create_task(self._repeat("partials", self.remove_partials, TIDY_SECONDS), name="partials")
            group.create_task(self._repeat("catalog", self.sweep, TIDY_SECONDS), name="sweep")
            if self._scrub.is_wanted:
                group.create_task(self._scrub_forever(), name="scrub")

    async def adopt(self) -> Verdicts:
        """Verify and record what is stored but unrecorded."""
        return await self._verifier.adopt()

    async def remove_partials(self) -> int:
        """Remove what dead processes were writing and nobody can or will go on with; how many."""
        return await self._storage.remove_stale_partials(self._partial_max_age_seconds)

    async def sweep(self) -> int:
        """Remove rows of the catalog that nothing can reach any more; how many."""
        return await self._upkeep.sweep()

    async def recount(self) -> None:
        """Correct the count of stored bytes, of which a killed process may have counted too few or too many.

        What is being stored or evicted right now is in one count and not yet in the other; so only a difference that
        stays the same for a while is taken for one.
        """
        difference = await self._difference()
        if not difference:
            return
        await asyncio.sleep(self._recount_seconds)
        if await self._difference() == difference:
            log.info("count of stored bytes corrected", difference=-difference)
            await self._storage.set_stored((await self._storage.use()).stored - difference)

    async def _difference(self) -> int:
        return (await self._storage.use()).stored - await self._upkeep.stored_size()

    async def _adopt(self) -> None:
        await self.adopt()
        await self.recount()

    async def _evict_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(EVICT_SECONDS):
                    await self._space.wait()
            except TimeoutError:
                pass
            self._space.clear()
            wanted, self._wanted = self._wanted, 0
            await self._try("eviction", partial(self._eviction.run, wanted))

    async def _scrub_forever(self) -> None:
        while True:
            if not await self._try("scrub", self._scrub.run):
                await asyncio.sleep(RETRY_SECONDS)

    async def _repeat(self, part: str, work: Callable[[], Awaitable[object]], seconds: float) -> None:
        while True:
            await self._try(part, work)
            await asyncio.sleep(seconds)

    async def _try(self, part: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether it went well. A failure is logged, once while it stays the same; it is tried again the next time."""
        try:
            await work()
        except ContentAppError as error:
            if self._failing.get(part) != str(error):
                log.warning("upkeep failed", part=part, error=str(error))
            self._failing[part] = str(error)
            return False
        except Exception:
            log.exception("upkeep failed", part=part)
            return False
        if self._failing.pop(part, ""):
            log.info("upkeep works again", part=part)
        return True
