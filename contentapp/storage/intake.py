"""Beginning writers: space first, then a file; and knowing which of them have not ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from contentapp.storage.background import Background
from contentapp.storage.descriptor import Closer
from contentapp.storage.partial import PartialWriter, Place
from contentapp.storage.quota import STEP, Ledger, Reservation, Room
from contentapp.storage.spool import Spool


@dataclass(frozen=True, slots=True)
class NewFile:
    """An empty file: descriptors to write and to read it, as Spool wants them, and its place."""

    target: int
    source: int
    place: Place


class Create(Protocol):
    """Make the file of a partial, in a thread; StorageError."""

    def __call__(self, key: str, *, keep: bool) -> NewFile: ...


class Intake:
    """The writers of one storage."""

    def __init__(
        self, ledger: Ledger, room: Room, background: Background, create: Create, close_descriptor: Closer
    ) -> None:
        self._ledger = ledger
        self._room = room
        self._background = background
        self._create = create
        self._close_descriptor = close_descriptor
        self._writers: set[PartialWriter] = set()

    async def begin(self, key: str, *, size: int | None, keep: bool) -> PartialWriter:
        """A writer with room for `size` bytes, or for the first step of an unknown number."""
        first = STEP if size is None else size
        attempt = partial(self._try_begin, key, first, keep=keep)
        if (writer := await self._background.make(attempt, _abandon)) is not None:
            return writer
        for pause in self._room.pauses(first):
            await asyncio.sleep(pause)  # why by polling: see quota.POLL_SECONDS
            if (writer := await self._background.make(attempt, _abandon)) is not None:
                return writer
        raise AssertionError("unreachable: pauses end by NoSpace")

    def abort_all(self) -> None:
        """Abort, blocking, what has not ended."""
        for writer in tuple(self._writers):
            writer.abort_now()

    def _try_begin(self, key: str, size: int, *, keep: bool) -> PartialWriter | None:
        if not self._ledger.try_reserve(size):
            return None
        try:
            new = self._create(key, keep=keep)
        except BaseException:
            self._ledger.move(reserved=-size, unwritten=-size)
            raise
        spool = Spool(
            new.target,
            new.source,
            Reservation(self._ledger, size),
            self._background,
            self._close_descriptor,
            is_durable=keep,
        )
        writer = PartialWriter(
            spool, new.place, self._room, self._background.run, keep=keep, on_ended=self._writers.discard
        )
        self._writers.add(writer)
        return writer


def _abandon(writer: PartialWriter | None) -> None:
    if writer is not None:
        writer.abort_now()
