"""Beginning and resuming writers: space first, then a file; and knowing which of them have not ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from contentapp.storage.background import Background
from contentapp.storage.base import Note
from contentapp.storage.descriptor import Closer
from contentapp.storage.partial import PartialWriter, Place
from contentapp.storage.quota import Ledger
from contentapp.storage.reservation import STEP, Reservation, Room, unsized_limit
from contentapp.storage.spool import Spool


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose end is to be written: descriptors to write there and to read it, as Spool wants them; its place."""

    target: int
    source: int
    place: Place


@dataclass(frozen=True, slots=True)
class Taken:
    """A suspended partial that is ours now: cut to note.offset, `held` bytes reserved for all of it."""

    file: NewFile
    note: Note
    held: int


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no room for `size` bytes more."""

    size: int


class Create(Protocol):
    """Make the file of a partial, in a thread; StorageError."""

    def __call__(self, key: str, *, keep: bool) -> NewFile: ...


Take = Callable[[str], Taken | Missing | None]
"""Take over a suspended partial of a key, in a thread; None when there is none. StorageError."""

Resumed = tuple[PartialWriter, Note]
T = TypeVar("T")


class Intake:
    """The writers of one storage."""

    def __init__(
        self,
        ledger: Ledger,
        room: Room,
        background: Background,
        create: Create,
        take: Take,
        close_descriptor: Closer,
    ) -> None:
        self._ledger = ledger
        self._room = room
        self._background = background
        self._create = create
        self._take = take
        self._close_descriptor = close_descriptor
        self._writers: set[PartialWriter] = set()

    async def begin(self, key: str, *, size: int | None, keep: bool) -> PartialWriter:
        """A writer with room for `size` bytes, or for the first step of an unknown number."""
        first = first_step(self._ledger.limit) if size is None else size
        attempt = partial(self._try_begin, key, first, keep=keep, is_sized=size is not None)
        return await self._until_room(attempt, _abandon)

    async def resume(self, key: str) -> Resumed | None:
        """A writer that goes on where a suspended one stopped, with room for the rest, or for a step of an unknown one;
        None when there is none."""
        return await self._until_room(partial(self._try_resume, key), _suspend_again)

    def abort_all(self) -> None:
        """Abort, blocking, what has not ended."""
        for writer in tuple(self._writers):
            writer.abort_now()

    async def _until_room(self, attempt: Callable[[], T | Missing], dispose: Callable[[T | Missing], None]) -> T:
        """The outcome of the attempt, again and again in a thread, that found room; NoSpace."""
        outcome = await self._background.make(attempt, dispose)
        if not isinstance(outcome, Missing):
            return outcome
        for pause in self._room.pauses(outcome.size):
            await asyncio.sleep(pause)  # why by polling: see reservation.POLL_SECONDS
            outcome = await self._background.make(attempt, dispose)
            if not isinstance(outcome, Missing):
                return outcome
        raise AssertionError("unreachable: pauses end by NoSpace")

    def _try_begin(self, key: str, size: int, *, keep: bool, is_sized: bool) -> PartialWriter | Missing:
        if not self._ledger.try_reserve(size):
            return Missing(size)
        try:
            new = self._create(key, keep=keep)
        except BaseException:
            self._ledger.move(reserved=-size, unwritten=-size)
            raise
        return self._writer(key, new, size, written=0, keep=keep, is_sized=is_sized)

    def _try_resume(self, key: str) -> Resumed | Missing | None:
        taken = self._take(key)
        if not isinstance(taken, Taken):
            return taken
        note = taken.note
        is_sized = note.size is not None
        return self._writer(key, taken.file, taken.held, written=note.offset, keep=True, is_sized=is_sized), note

    def _writer(self, key: str, file: NewFile, held: int, *, written: int, keep: bool, is_sized: bool) -> PartialWriter:
        most = None if is_sized else unsized_limit(self._ledger.limit)
        spool = Spool(
            file.target,
            file.source,
            Reservation(self._ledger, held, written=written, most=most),
            self._background,
            self._close_descriptor,
            is_durable=keep,
            written=written,
        )
        writer = PartialWriter(
            key, spool, file.place, self._room, self._background.run, keep=keep, on_ended=self._writers.discard
        )
        self._writers.add(writer)
        return writer


def first_step(limit: int) -> int:
    """What is reserved for a body of unknown size before anything has come of it."""
    return min(STEP, unsized_limit(limit))


def rest_of(note: Note, limit: int) -> int:
    """What is reserved for the rest of a suspended partial."""
    if note.size is not None:
        return note.size - note.offset
    return max(0, min(STEP, unsized_limit(limit) - note.offset))


def _abandon(outcome: PartialWriter | Missing) -> None:
    if isinstance(outcome, PartialWriter):
        outcome.abort_now()


def _suspend_again(outcome: Resumed | Missing | None) -> None:
    if isinstance(outcome, tuple):
        writer, note = outcome
        writer.suspend_now(note)
