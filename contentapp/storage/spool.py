"""The growing bytes of one partial: one writer, any number of followers, space held until the last of them is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from contentapp.core.errors import StorageError, StorageUnavailable
from contentapp.core.settings import KIB
from contentapp.storage.background import Background
from contentapp.storage.descriptor import Closer, FileReader
from contentapp.storage.failure import storage_errors
from contentapp.storage.reservation import Reservation
from contentapp.storage.writeback import STEP, start_writeback

IOV_MAX = 1024  # buffers that one writev takes (limits.h)
# Measured: for larger writes ext4 takes pages in larger groups, which come from memory that was not used lately. On a
# virtual machine whose host has taken free memory back, that costs ten times the copy itself, from 1 MiB on.
BATCH_SIZE = 256 * KIB

Buffer = bytes | bytearray | memoryview


class Spool:
    """An open file that grows. Its descriptors:

    - `target`, writable, the writer's alone;
    - `source`, read-only, of which each follower gets a duplicate, safe to pass to another process.

    They must be opened apart: duplicates share their position, and asyncio's sendfile moves it. `source` must hold a
    shared flock, which lasts until all its duplicates are closed, in every process.

    written: bytes that are there already, and counted as written in `reservation`; `target` is positioned behind them.
    """

    def __init__(
        self,
        target: int,
        source: int,
        reservation: Reservation,
        background: Background,
        close_descriptor: Closer,
        *,
        is_durable: bool,
        written: int = 0,
    ) -> None:
        self.target = target
        self.source = source
        self.reservation = reservation
        self.written = written
        self._background = background
        self._close_descriptor = close_descriptor
        self._is_durable = is_durable
        self._flushed = written
        self._is_flushing = False
        self._holders = 1  # the writer
        self._mutex = threading.Lock()
        self._is_settled = False
        self._sync_failure: StorageError | None = None

    def append(self, views: Sequence[memoryview]) -> None:
        """Write all views at the end. What was written when an error comes counts."""
        before = self.written
        try:
            for batch in batches(views):
                self._append_batch(batch)
        finally:
            self.reservation.wrote(self.written - before)
        if self._is_durable and not self._is_flushing and self.written - self._flushed >= STEP:
            self._flush_early()

    def cut(self, size: int) -> None:
        """Forget the bytes from `size` on, if there are any."""
        if size >= self.written:
            return
        with storage_errors("cut"):
            os.ftruncate(self.target, size)
            os.lseek(self.target, size, os.SEEK_SET)
        self.reservation.cut(self.written - size)
        self.written = size
        self._flushed = min(self._flushed, size)

    def sync(self) -> None:
        """Make the file durable."""
        self._sync(os.fsync)

    def sync_bytes(self) -> None:
        """Make durable what is written, and what it takes to read it; in any thread, while writing goes on."""
        self._sync(os.fdatasync)

    def _sync(self, sync: Callable[[int], None]) -> None:
        # The kernel reports a lost write once: after that, a sync would succeed over bytes that are not on the disk.
        if self._sync_failure is not None:
            raise self._sync_failure
        try:
            with storage_errors("fsync"):
                sync(self.target)
        except StorageError as error:
            self._sync_failure = error
            raise

    def follow(self) -> SpoolReader:
        """A further reader; StorageUnavailable after close, or when no descriptor is to be had."""
        with self._mutex:
            if self.source < 0:
                raise StorageUnavailable("follow: the writer has ended")
            with storage_errors("follow"):
                descriptor = os.dup(self.source)
            self._holders += 1
        return SpoolReader(descriptor, self)

    def store(self, *, replaced: int = 0) -> None:
        """Its space counts as stored from now on, in the place of `replaced` stored bytes."""
        self.reservation.store(replaced=replaced)
        self._is_settled = True

    def suspend(self) -> None:
        """Its space counts as a suspended partial's from now on."""
        self.reservation.suspend()
        self._is_settled = True

    def close(self) -> None:
        """End writing; blocking."""
        with self._mutex:
            descriptors = [descriptor for descriptor in (self.target, self.source) if descriptor >= 0]
            self.target = self.source = -1
        for descriptor in descriptors:
            os.close(descriptor)
        self._leave()

    def close_follower(self, descriptor: int) -> None:
        """Close a follower's descriptor; what may take long, or waits for the ledger, goes to the background."""
        if self._is_settled:
            self._close_descriptor(descriptor)
        else:
            self._background.soon(self._close_last, descriptor)

    def _close_last(self, descriptor: int) -> None:
        os.close(descriptor)
        self._leave()

    def _leave(self) -> None:
        # After the close: space is given back only when it is free.
        with self._mutex:
            self._holders -= 1
            is_last = self._holders == 0
        if is_last and not self._is_settled:
            self._is_settled = True
            self.reservation.release()

    def _flush_early(self) -> None:
        """Aside, since it takes a tenth of the time of writing, and waits when the disk is slow."""
        with suppress(OSError):  # without a descriptor it is left to the sync
            descriptor = os.dup(self.target)
            self._is_flushing = True  # before: it may be over at once
            if not self._background.aside(self._flush, descriptor, self._flushed, self.written):
                self._is_flushing = False
                os.close(descriptor)

    def _flush(self, descriptor: int, start: int, end: int) -> None:
        try:
            start_writeback(descriptor, start, end - start)
        finally:
            os.close(descriptor)
            self._flushed = end
            self._is_flushing = False

    def _append_batch(self, views: list[memoryview]) -> None:
        left = sum(view.nbytes for view in views)
        while left:
            with storage_errors("write"):
                count = os.writev(self.target, views)
            if not count:
                raise StorageUnavailable("write: nothing was taken")
            self.written += count
            left -= count
            if left:
                views = after(views, count)


class SpoolReader(FileReader):
    """A follower: `size` is what has been written so far."""

    __slots__ = ("_spool",)

    def __init__(self, descriptor: int, spool: Spool) -> None:
        super().__init__(descriptor, 0, spool.close_follower)
        self._spool = spool

    @property
    def size(self) -> int:
        return self._spool.written


def batches(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The views in groups for one writev each: of BATCH_SIZE at most, unless a view alone is larger."""
    batch: list[memoryview] = []
    size = 0
    for view in views:
        if batch and (size + view.nbytes > BATCH_SIZE or len(batch) == IOV_MAX):
            yield batch
            batch, size = [], 0
        batch.append(view)
        size += view.nbytes
    yield batch


def as_views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """The buffers as views, whose `nbytes` is their size whatever their format."""
    return [memoryview(buffer) for buffer in buffers]


def after(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the views after their first `count` bytes."""
    for index, view in enumerate(views):
        if count < view.nbytes:
            return [view.cast("B")[count:], *views[index + 1 :]]
        count -= view.nbytes
    return []
