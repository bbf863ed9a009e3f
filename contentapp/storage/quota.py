"""The quota (P9): space is reserved before it is written, over all processes of a host."""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from contentapp.core.errors import StorageUnavailable
from contentapp.core.settings import MIB
from contentapp.storage.base import StorageUse
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock

LARGEST_MARGIN = 64 * MIB

PAIR = struct.Struct("=qq")
SLOT_SUFFIX = ".slot"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Bytes of a filesystem: in all, and free for us."""

    total: int
    free: int

    @property
    def usable(self) -> int:
        """What may still be written, a margin (1 %, at most 64 MiB) being left to everybody else."""
        return self.free - min(LARGEST_MARGIN, self.total // 100)


def disk_space(folder: Path) -> DiskSpace:
    """The space of the filesystem that holds `folder`; OSError when it is not there."""
    found = os.statvfs(folder)
    return DiskSpace(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


class Ledger(Protocol):
    """Who may write how much. Calls are short but may wait for a lock: not in the event loop. Safe in any thread."""

    @property
    def limit(self) -> int: ...

    def try_reserve(self, size: int) -> bool:
        """Set `size` bytes aside, or tell that there is no room for them. StorageUnavailable."""
        ...

    def wrote(self, size: int) -> None:
        """Reserved bytes are on the disk now, so that its free space already tells of them. Never waits."""
        ...

    def move(self, *, reserved: int = 0, unwritten: int = 0, stored: int = 0) -> None:
        """Change the counters by these differences; nothing happens after close."""
        ...

    def suspend(self, *, reserved: int, unwritten: int, size: int) -> None:
        """As `move`, and `size` bytes now belong to a suspended partial, which outlives this process."""
        ...

    def try_resume(self, *, size: int, rest: int) -> bool:
        """`size` bytes of a suspended partial are this process's from now on, and `rest` bytes more are set aside for
        it; or tell that there is no room for these, and nothing has changed. StorageUnavailable."""
        ...

    def discard(self, size: int) -> None:
        """`size` bytes of suspended partials are gone; nothing happens after close."""
        ...

    def set_stored(self, size: int) -> None: ...

    def set_suspended(self, size: int) -> None: ...

    def use(self) -> StorageUse: ...

    def close(self) -> None:
        """Give back what this process has reserved."""
        ...


@dataclass(frozen=True, slots=True)
class Totals:
    """All counters at one moment. `reserved` and `unwritten` are sums over living processes."""

    stored: int
    suspended: int
    reserved: int
    unwritten: int

    def fits(self, size: int, limit: int, disk: DiskSpace) -> bool:
        """Whether `size` more bytes fit, in the quota and on the disk."""
        used = self.stored + self.suspended + self.reserved
        return used + size <= limit and self.unwritten + size <= disk.usable

    def use(self, limit: int, disk: DiskSpace) -> StorageUse:
        """The same as others see it."""
        return StorageUse(stored=self.stored, reserved=self.reserved + self.suspended, limit=limit, free=disk.free)


class HostLedger:
    """A ledger shared by all processes of a host through files in one folder.

    `ledger` holds the stored and suspended bytes and is the lock of every update; each process has a slot file with
    what it has reserved, and of that not yet written, which it keeps locked while it lives. Whoever adds up removes
    slots that are not locked: so a killed process's reservations are gone at the next look, and slots don't pile up.
    What it had written counts as suspended, since its partials may be resumed, until `set_suspended` says better.
    Files that somebody removes are made again; the stored bytes are then counted by `recount`.
    Use it in one process only: one constructed before a fork must not have been used before it.
    """

    def __init__(
        self, folder: Path, limit: int, disk: Callable[[], DiskSpace], recount: Callable[[], int] = lambda: 0
    ) -> None:
        self.limit = limit
        self._recount = recount
        self._folder = folder
        self._disk = disk
        self._lock = FileLock(folder / "ledger")
        self._slot_mutex = threading.Lock()
        self._slot_path = folder / SLOT_SUFFIX  # named when it is made, which may be after a fork
        self._slot = -1
        self._pid = 0
        self._reserved = 0
        self._unwritten = 0
        self._is_closed = False

    def try_reserve(self, size: int) -> bool:
        with self._updating():
            if not self._totals().fits(size, self.limit, self._disk()):
                return False
            self._change_slot(size, size)
            return True

    def wrote(self, size: int) -> None:
        # The number others see is only too careful until the next update; no reason to fail a write that succeeded.
        with suppress(OSError):
            self._change_slot(0, -size)

    def move(self, *, reserved: int = 0, unwritten: int = 0, stored: int = 0) -> None:
        self._move(reserved, unwritten, stored, 0)

    def suspend(self, *, reserved: int, unwritten: int, size: int) -> None:
        self._move(reserved, unwritten, 0, size)

    def try_resume(self, *, size: int, rest: int) -> bool:
        with self._updating():
            totals = self._totals()
            if not totals.fits(rest, self.limit, self._disk()):
                return False
            # In this order: a kill in between counts the bytes twice until the next count.
            self._change_slot(size + rest, rest)
            self._write_kept(totals.stored, totals.suspended - size)
            return True

    def discard(self, size: int) -> None:
        if self._is_closed:
            return
        with self._updating():
            totals = self._totals()  # with what the dead left, which may be what is gone
            self._write_kept(totals.stored, totals.suspended - size)

    def set_stored(self, size: int) -> None:
        with self._updating():
            self._write_kept(size, self._read_kept()[1])

    def set_suspended(self, size: int) -> None:
        with self._updating():
            totals = self._totals()  # what the dead left is in `size`, and must not be added to it later
            self._write_kept(totals.stored, size)

    def use(self) -> StorageUse:
        with self._updating():
            return self._totals().use(self.limit, self._disk())

    def close(self) -> None:
        with self._slot_mutex:
            self._is_closed = True
            if self._slot >= 0:
                with suppress(OSError):  # unlocked by the close, it is removed by whoever adds up next
                    self._slot_path.unlink()
                os.close(self._slot)
                self._slot = -1
        self._lock.close()

    def _move(self, reserved: int, unwritten: int, stored: int, suspended: int) -> None:
        if self._is_closed:
            return
        with self._updating():
            # A kill between the two writes leaves the bytes in the kept counters, where they are: the slot goes anyway.
            if stored or suspended:
                before = self._read_kept()
                self._write_kept(before[0] + stored, before[1] + suspended)
            self._change_slot(reserved, unwritten)

    @contextmanager
    def _updating(self) -> Iterator[None]:
        if self._is_closed:
            raise StorageUnavailable("quota: closed")
        with storage_errors("quota"), self._lock:
            self._join()
            yield

    def _join(self) -> None:
        """Make this process's slot, under the ledger's lock: nobody sees it unlocked and takes it for a dead one's."""
        if self._slot >= 0:
            if self._pid != os.getpid():
                raise RuntimeError("a storage must not be used on both sides of a fork")
            if os.fstat(self._slot).st_nlink:
                return
            with self._slot_mutex:  # somebody has removed it
                os.close(self._slot)
                self._slot = -1
        self._pid = os.getpid()
        self._slot_path = self._folder / f"{self._pid}-{secrets.token_hex(8)}{SLOT_SUFFIX}"
        self._slot = os.open(self._slot_path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._slot, fcntl.LOCK_EX)
        self._change_slot(0, 0)

    def _change_slot(self, reserved: int, unwritten: int) -> None:
        with self._slot_mutex:
            self._reserved += reserved
            self._unwritten += unwritten
            if self._slot >= 0:
                os.pwrite(self._slot, PAIR.pack(self._reserved, self._unwritten), 0)

    def _read_kept(self) -> tuple[int, int]:
        raw = os.pread(self._lock.fileno(), PAIR.size, 0)
        if len(raw) != PAIR.size:  # new; or somebody has removed it, and we are the first to come
            stored, suspended = self._recount(), 0
            self._write_kept(stored, suspended)
        else:
            stored, suspended = PAIR.unpack(raw)
        return max(0, stored), max(0, suspended)

    def _write_kept(self, stored: int, suspended: int) -> None:
        os.pwrite(self._lock.fileno(), PAIR.pack(max(0, stored), max(0, suspended)), 0)

    def _totals(self) -> Totals:
        stored, suspended = self._read_kept()
        reserved, unwritten = self._reserved, self._unwritten
        for path in self._other_slots():
            slot = _read_slot(path)
            if slot.is_living:
                reserved += slot.reserved
                unwritten += slot.unwritten
                continue
            if slot.written:
                suspended += slot.written
                self._write_kept(stored, suspended)
            path.unlink(missing_ok=True)  # last: a kill before it counts the bytes twice until the next count
        return Totals(stored, suspended, reserved, max(0, unwritten))

    def _other_slots(self) -> Iterator[Path]:
        for name in os.listdir(self._folder):  # noqa: PTH208 - names are all that is needed, and this runs per flight
            if name.endswith(SLOT_SUFFIX) and name != self._slot_path.name:
                yield self._folder / name


@dataclass(frozen=True, slots=True)
class Slot:
    """What one process has reserved, and of that not yet written."""

    reserved: int
    unwritten: int
    is_living: bool

    @property
    def written(self) -> int:
        return max(0, self.reserved - max(0, self.unwritten))


def _read_slot(path: Path) -> Slot:
    """Another process's slot; one that has vanished is an empty one of the dead."""
    try:
        slot = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Slot(0, 0, is_living=False)
    try:
        is_living = _is_locked(slot)
        # Without a name: its process has closed it, and given back all it had.
        raw = os.pread(slot, PAIR.size, 0) if os.fstat(slot).st_nlink else b""
    finally:
        os.close(slot)
    reserved, unwritten = PAIR.unpack(raw) if len(raw) == PAIR.size else (0, 0)
    return Slot(reserved, unwritten, is_living=is_living)


def _is_locked(slot: int) -> bool:
    try:
        fcntl.flock(slot, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


class MemoryLedger:
    """A ledger of one process, for a storage that ends with it."""

    def __init__(self, limit: int, disk: Callable[[], DiskSpace]) -> None:
        self.limit = limit
        self._disk = disk
        self._mutex = threading.Lock()
        self._totals = Totals(0, 0, 0, 0)

    def try_reserve(self, size: int) -> bool:
        with self._mutex:
            if not self._totals.fits(size, self.limit, self._disk()):
                return False
            self._change(reserved=size, unwritten=size)
            return True

    def wrote(self, size: int) -> None:
        self.move(unwritten=-size)

    def move(self, *, reserved: int = 0, unwritten: int = 0, stored: int = 0) -> None:
        with self._mutex:
            self._change(reserved=reserved, unwritten=unwritten, stored=stored)

    def suspend(self, *, reserved: int, unwritten: int, size: int) -> None:
        with self._mutex:
            self._change(reserved=reserved, unwritten=unwritten, suspended=size)

    def try_resume(self, *, size: int, rest: int) -> bool:
        with self._mutex:
            if not self._totals.fits(rest, self.limit, self._disk()):
                return False
            self._change(reserved=size + rest, unwritten=rest, suspended=-size)
            return True

    def discard(self, size: int) -> None:
        with self._mutex:
            self._change(suspended=-size)

    def set_stored(self, size: int) -> None:
        with self._mutex:
            self._totals = replace(self._totals, stored=size)

    def set_suspended(self, size: int) -> None:
        with self._mutex:
            self._totals = replace(self._totals, suspended=size)

    def use(self) -> StorageUse:
        return self._totals.use(self.limit, self._disk())

    def close(self) -> None:
        """Nothing outlives the process."""

    def _change(self, *, reserved: int = 0, unwritten: int = 0, stored: int = 0, suspended: int = 0) -> None:
        now = self._totals
        self._totals = Totals(
            stored=max(0, now.stored + stored),
            suspended=max(0, now.suspended + suspended),
            reserved=now.reserved + reserved,
            unwritten=now.unwritten + unwritten,
        )
