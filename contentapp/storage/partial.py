"""The one ArtifactWriter: a spool, and the place where its bytes get or lose their name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageError, StorageUnavailable
from contentapp.storage.base import ArtifactReader, Note
from contentapp.storage.note import check_note
from contentapp.storage.reservation import Room
from contentapp.storage.spool import Buffer, Spool, as_views

Run = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]


class Place(Protocol):
    """Where one partial is. All of it blocks; StorageError."""

    def publish(self, spool: Spool, digest: Digest) -> None:
        """Make it an artifact; nothing is left of the partial."""
        ...

    def note(self, spool: Spool, note: Note) -> None:
        """Make the bytes that the note tells of durable, then the note; while writing goes on."""
        ...

    def forget(self, size: int) -> None:
        """Remove the note if it tells of more than `size` bytes."""
        ...

    def keep(self, spool: Spool, note: Note) -> None:
        """Make what the note tells of a suspended partial."""
        ...

    def remove(self) -> None:
        """Remove its name, if it still has one, and its note."""
        ...


class PartialWriter:
    """An ArtifactWriter. `run` executes in a thread what blocks, to its end even if the caller is cancelled.

    An ending that fails removes the partial, as abort does. `on_ended` is called in a thread, once.
    """

    def __init__(
        self,
        key: str,
        spool: Spool,
        place: Place,
        room: Room,
        run: Run,
        *,
        keep: bool,
        on_ended: Callable[[PartialWriter], None],
    ) -> None:
        self._key = key
        self._spool = spool
        self._place = place
        self._room = room
        self._run = run
        self._keep = keep
        self._on_ended = on_ended
        # A write whose caller was cancelled goes on in its thread: an ending must not close descriptors under it.
        self._writing = threading.Lock()
        # Before `_writing`: an ending, and a cut, wait for a checkpoint that is under way; a write doesn't.
        self._noting = threading.Lock()
        self._is_ended = False

    @property
    def written(self) -> int:
        return self._spool.written

    def write(self, buffers: Sequence[Buffer]) -> None:
        views = as_views(buffers)
        if not (size := sum(view.nbytes for view in views)):
            return
        with self._writing:
            self._check("write")
            self._make_room(size)
            self._spool.append(views)

    def checkpoint(self, note: Note) -> None:
        check_note(note)
        self._check_key(note)
        with self._noting:
            # An ending that begins now waits for us, and removes or replaces the note.
            if self._keep and not self._is_ended and note.offset <= self._spool.written:
                self._place.note(self._spool, note)

    def cut(self, size: int) -> None:
        with self._noting, self._writing:
            self._check("cut")
            if not 0 <= size <= self._spool.written:
                raise ValueError(f"{size} of {self._spool.written} bytes can't be kept")
            self._place.forget(size)
            self._spool.cut(size)

    def follow(self) -> ArtifactReader:
        return self._spool.follow()

    async def commit(self, digest: Digest) -> None:
        if not self._keep:
            raise ValueError("what is not to be kept can't be committed")
        await self._end(lambda: self._place.publish(self._spool, digest))

    async def suspend(self, note: Note) -> None:
        if not self._keep:
            await self.abort()
        elif not self._is_ended:
            check_note(note)
            self._check_key(note)
            await self._end(lambda: self._keep_as(note))

    async def abort(self) -> None:
        await self._end(self._remove)

    def abort_now(self) -> None:
        """Abort, blocking."""
        if not self._is_ended:
            self._is_ended = True
            self._finish(self._remove)

    def suspend_now(self, note: Note) -> None:
        """Suspend what is kept, blocking."""
        if not self._is_ended:
            self._is_ended = True
            self._finish(lambda: self._keep_as(note))

    async def _end(self, ending: Callable[[], None]) -> None:
        if not self._is_ended:
            self._is_ended = True
            await self._run(lambda: self._finish(ending))

    def _finish(self, ending: Callable[[], None]) -> None:
        with self._noting, self._writing:
            try:
                ending()
            except BaseException:
                self._remove()
                raise
            finally:
                self._spool.close()
                self._on_ended(self)

    def _keep_as(self, note: Note) -> None:
        if note.offset <= self._spool.written:
            self._place.keep(self._spool, note)
        else:
            self._remove()

    def _remove(self) -> None:
        # What can't be removed is unlocked by the close that follows, and so goes with the stale partials.
        with suppress(StorageError):
            self._place.remove()

    def _check(self, doing: str) -> None:
        if self._is_ended:
            raise StorageUnavailable(f"{doing}: the writer has ended")

    def _check_key(self, note: Note) -> None:
        if note.key != self._key:
            raise ValueError("a note of another key")

    def _make_room(self, size: int) -> None:
        missing = self._spool.reservation.missing(size)
        if not missing or self._spool.reservation.try_grow(missing):
            return
        for pause in self._room.pauses(missing):
            time.sleep(pause)  # in the caller's thread; why by polling: see reservation.POLL_SECONDS
            self._check("write")
            if self._spool.reservation.try_grow(missing):
                return
