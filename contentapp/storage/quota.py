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

from contentapp.core.errors import NoSpace, StorageUnavailable
from contentapp.core.settings import MIB
from contentapp.storage.base import StorageUse
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock

STEP = 64 * MIB
LARGEST_MARGIN = 64 * MIB
# Room is made by eviction, in any process of the host, which has no way to wake us; what a flight may lose by looking
# this often is small against the time that removing files takes.
POLL_SECONDS = 0.02

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

    def set_stored(self, size: int) -> None:
        with self._updating():
            self._write_kept(size, self._read_kept()[1])

    def set_suspended(self, size: int) -> None:
        with self._updating():
            self._write_kept(self._read_kept()[0], size)

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
        for other_reserved, other_unwritten in self._other_slots():
            reserved += other_reserved
            unwritten += other_unwritten
        return Totals(stored, suspended, reserved, max(0, unwritten))

    def _other_slots(self) -> Iterator[tuple[int, int]]:
        for name in os.listdir(self._folder):  # noqa: PTH208 - names are all that is needed, and this runs per flight
            if name.endswith(SLOT_SUFFIX) and name != self._slot_path.name:
                yield _living_slot(self._folder / name)


def _living_slot(path: Path) -> tuple[int, int]:
    """What a slot holds; nothing if its process is dead, and then it is removed."""
    try:
        slot = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0, 0
    try:
        fcntl.flock(slot, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raw = os.pread(slot, PAIR.size, 0)
        return PAIR.unpack(raw) if len(raw) == PAIR.size else (0, 0)
    else:
        path.unlink(missing_ok=True)
        return 0, 0
    finally:
        os.close(slot)


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


class Reservation:
    """The space of one growing body: what is set aside, and how much of that is written. One thread at a time."""

    def __init__(self, ledger: Ledger, held: int) -> None:
        self._ledger = ledger
        self._held = held  # already reserved
        self._written = 0

    def missing(self, size: int) -> int:
        """What must be reserved before `size` more bytes may be written; grows in steps, as the end is not known."""
        short = self._written + size - self._held
        return max(STEP, short) if short > 0 else 0

    def try_grow(self, size: int) -> bool:
        """Reserve `size` bytes more, if there is room."""
        if not self._ledger.try_reserve(size):
            return False
        self._held += size
        return True

    def wrote(self, size: int) -> None:
        """`size` bytes of it are written."""
        self._written += size
        self._ledger.wrote(size)

    def release(self) -> None:
        """Give all of it back."""
        self._ledger.move(reserved=-self._held, unwritten=self._written - self._held)
        self._held = self._written = 0

    def store(self, *, replaced: int = 0) -> None:
        """What is written counts as stored from now on, in the place of `replaced` stored bytes."""
        stored = self._written - replaced
        self._ledger.move(reserved=-self._held, unwritten=self._written - self._held, stored=stored)
        self._held = self._written = 0

    def suspend(self) -> None:
        """What is written stays as a suspended partial."""
        self._ledger.suspend(reserved=-self._held, unwritten=self._written - self._held, size=self._written)
        self._held = self._written = 0


class Room:
    """How long to wait for room, and whom to ask for it."""

    def __init__(
        self,
        limit: int,
        *,
        clock: Callable[[], float],
        wait_seconds: float,
        on_space_wanted: Callable[[int], None],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._on_space_wanted = on_space_wanted

    def pauses(self, size: int) -> Iterator[float]:
        """After a failed try: ask for room, then yield the seconds to pause before each further try; then NoSpace."""
        if size <= self._limit:
            self._on_space_wanted(size)
            deadline = self._clock() + self._wait_seconds
            while (left := deadline - self._clock()) > 0:
                yield min(POLL_SECONDS, left)
        raise NoSpace(f"no room for {size} bytes")
