"""The space of one body: reserved before it is written, and waited for (P9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from contentapp.core.errors import NoSpace
from contentapp.core.settings import MIB
from contentapp.storage.quota import Ledger

STEP = 64 * MIB
UNSIZED_SHARE = 0.25
"""Of the quota: what a body of unknown size may take, so that one without an end can't have everything evicted."""
# Room is made by eviction, in any process of the host, which has no way to wake us; what a flight may lose by looking
# this often is small against the time that removing files takes.
POLL_SECONDS = 0.02


class Reservation:
    """The space of one growing body: what is set aside, and how much of that is written. One thread at a time.

    held: already reserved. written: of that already written. most: bytes that it may take in all, None for no such
    bound.
    """

    def __init__(self, ledger: Ledger, held: int, *, written: int = 0, most: int | None = None) -> None:
        self._ledger = ledger
        self._held = held
        self._written = written
        self._most = most

    def missing(self, size: int) -> int:
        """What must be reserved before `size` more bytes may be written; grows in steps, as the end is not known.

        NoSpace when they would be more than it may take.
        """
        end = self._written + size
        if self._most is not None and end > self._most:
            raise NoSpace(f"a body of unknown size may take {self._most} bytes")
        if (short := end - self._held) <= 0:
            return 0
        wanted = max(STEP, short)
        return wanted if self._most is None else min(wanted, self._most - self._held)

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

    def cut(self, size: int) -> None:
        """`size` bytes of what was written are free again, and stay set aside."""
        self._written -= size
        self._ledger.wrote(-size)

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


def unsized_limit(limit: int) -> int:
    """The bytes that a body of unknown size may take of this quota."""
    return int(limit * UNSIZED_SHARE)


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
