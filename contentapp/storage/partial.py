"""The one ArtifactWriter: a spool, and the place where its bytes get or lose their name."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageError, StorageUnavailable
from contentapp.storage.base import ArtifactReader
from contentapp.storage.quota import Room
from contentapp.storage.spool import Buffer, Spool, as_views

Run = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]


class Place(Protocol):
    """Where one partial is. All of it blocks; StorageError."""

    def publish(self, spool: Spool, digest: Digest) -> None:
        """Make it an artifact; nothing is left of the partial."""
        ...

    def keep(self, spool: Spool) -> None:
        """Make it a suspended partial."""
        ...

    def remove(self) -> None:
        """Remove its name, if it still has one."""
        ...


class PartialWriter:
    """An ArtifactWriter. `run` executes in a thread what blocks, to its end even if the caller is cancelled.

    An ending that fails removes the partial, as abort does. `on_ended` is called in a thread, once.
    """

    def __init__(
        self,
        spool: Spool,
        place: Place,
        room: Room,
        run: Run,
        *,
        keep: bool,
        on_ended: Callable[[PartialWriter], None],
    ) -> None:
        self._spool = spool
        self._place = place
        self._room = room
        self._run = run
        self._keep = keep
        self._on_ended = on_ended
        # A write whose caller was cancelled goes on in its thread: an ending must not close descriptors under it.
        self._writing = threading.Lock()
        self._is_ended = False

    @property
    def written(self) -> int:
        return self._spool.written

    def write(self, buffers: Sequence[Buffer]) -> None:
        views = as_views(buffers)
        if not (size := sum(view.nbytes for view in views)):
            return
        with self._writing:
            self._check()
            self._make_room(size)
            self._spool.append(views)

    def follow(self) -> ArtifactReader:
        return self._spool.follow()

    async def commit(self, digest: Digest) -> None:
        if not self._keep:
            raise ValueError("what is not to be kept can't be committed")
        await self._end(lambda: self._place.publish(self._spool, digest))

    async def suspend(self) -> None:
        if self._keep:
            await self._end(lambda: self._place.keep(self._spool))
        else:
            await self.abort()

    async def abort(self) -> None:
        await self._end(self._remove)

    def abort_now(self) -> None:
        """Abort, blocking."""
        if not self._is_ended:
            self._is_ended = True
            self._finish(self._remove)

    async def _end(self, ending: Callable[[], None]) -> None:
        if not self._is_ended:
            self._is_ended = True
            await self._run(lambda: self._finish(ending))

    def _finish(self, ending: Callable[[], None]) -> None:
        with self._writing:
            try:
                ending()
            except BaseException:
                self._remove()
                raise
            finally:
                self._spool.close()
                self._on_ended(self)

    def _remove(self) -> None:
        # What can't be removed is unlocked by the close that follows, and so goes with the stale partials.
        with suppress(StorageError):
            self._place.remove()

    def _check(self) -> None:
        if self._is_ended:
            raise StorageUnavailable("write: the writer has ended")

    def _make_room(self, size: int) -> None:
        missing = self._spool.reservation.missing(size)
        if not missing or self._spool.reservation.try_grow(missing):
            return
        for pause in self._room.pauses(missing):
            time.sleep(pause)  # in the caller's thread; why by polling: see quota.POLL_SECONDS
            self._check()
            if self._spool.reservation.try_grow(missing):
                return
