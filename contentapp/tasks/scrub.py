"""The background scrub: every artifact is read again once an interval (P1), a little at a time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from contentapp.catalog.base import UpkeepCatalog
from contentapp.core.records import ArtifactRecord
from contentapp.core.settings import DAY, EngineSettings
from contentapp.tasks.verify import Verdicts, Verifier

log = structlog.get_logger("contentapp.scrub")

LONGEST_PAUSE_SECONDS = 3600.0
ROUNDS = 2
"""In an interval: from being read early in one round to being read late in the next takes an artifact two of them."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a round has come. began: time.time() of its begin; after: the last one read; done: how many."""

    began: float
    after: str = ""
    done: int = 0


class Scrub:
    """Reads on where it stopped, also after a restart: `file` says where that was.

    clock: time.time(); sleep: asyncio.sleep, or something as patient.
    """

    def __init__(
        self,
        verifier: Verifier,
        upkeep: UpkeepCatalog,
        settings: EngineSettings,
        file: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._verifier = verifier
        self._upkeep = upkeep
        self._round_seconds = settings.scrub_interval_days * DAY / ROUNDS
        self._rate = settings.scrub_rate
        self._file = file
        self._clock = clock
        self._sleep = sleep
        self.found = Verdicts()

    @property
    def is_wanted(self) -> bool:
        """Whether there is an interval."""
        return self._round_seconds > 0

    async def run(self) -> None:
        """One round, from the position to its end in time. An error leaves the position where it is."""
        position = self._read()
        while page := await self._upkeep.artifacts(position.after, 1):
            await self._wait_until(position.began + await self._share(position))
            position = await self._check(page[0], position)
        await self._wait_until(position.began + self._round_seconds)
        self._write(Position(self._clock()))

    async def _share(self, position: Position) -> float:
        """When the next one is due, in seconds after the round's begin."""
        count = max(await self._upkeep.artifact_count(), position.done + 1)
        return self._round_seconds * position.done / count

    async def _check(self, record: ArtifactRecord, position: Position) -> Position:
        await self._verifier.check(record, self.found, rate=self._rate)
        position = Position(position.began, str(record.digest), position.done + 1)
        self._write(position)
        return position

    async def _wait_until(self, at: float) -> None:
        """In parts, since the clock may be set meanwhile, and never longer than a round."""
        longest = self._clock() + self._round_seconds
        while (left := min(at, longest) - self._clock()) > 0:
            await self._sleep(min(left, LONGEST_PAUSE_SECONDS))

    def _read(self) -> Position:
        """Where it stopped; the beginning if that is not known, or is in the future."""
        try:
            values = json.loads(self._file.read_bytes())
            position = Position(float(values["began"]), str(values["after"]), int(values["done"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return Position(self._clock())
        return position if position.began <= self._clock() else Position(self._clock(), position.after, position.done)

    def _write(self, position: Position) -> None:
        """Not durably: what a crash loses is read again."""
        temporary = self._file.with_name(f"{self._file.name}.new")
        try:
            temporary.write_text(json.dumps(asdict(position)))
            temporary.replace(self._file)
        except OSError as error:
            log.warning("position not kept", error=error.strerror)
