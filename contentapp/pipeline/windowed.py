"""Windows: flights that go on in memory, where there is no room on disk (P4, P9)."""

from __future__ import annotations

import structlog

from contentapp.core.errors import ContentUnavailable, NoSpace, StorageError
from contentapp.core.settings import MIB
from contentapp.core.window import Window
from contentapp.metrics import metrics
from contentapp.pipeline.load import Load
from contentapp.pipeline.note import MarkedHasher
from contentapp.pipeline.progress import Attempt, Signal
from contentapp.pipeline.verify import HOLD_BACK_SIZE

log = structlog.get_logger("contentapp.windowed")

WINDOWS_OF_ALL = 64 * MIB
"""Memory of all flights of a process that have no room on disk."""

LEAST_WINDOW_SIZE = 256 * 1024


class Windows:
    """All windowed flights of a process, which share the memory there is for them. most: bytes of one of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._windowed: set[Attempt] = set()

    @property
    def size(self) -> int:
        """Bytes of one flight that are kept in memory now, when there is no room on disk."""
        size = self._most
        return max(LEAST_WINDOW_SIZE, min(size, max(size, WINDOWS_OF_ALL) // max(1, len(self._windowed))))

    def degrade(self, attempt: Attempt, hasher: MarkedHasher, error: StorageError) -> None:
        """Go on in memory, from where the spool ends."""
        reason = "no_space" if isinstance(error, NoSpace) else "storage"
        metrics.degraded_flight(reason)
        log.warning("delivering unstored", reason=reason, error=str(error))
        attempt.spool_end = attempt.arrived
        self._windowed.add(attempt)
        attempt.on_closed = lambda: self._windowed.discard(attempt)
        attempt.window = Window(self.size, attempt.arrived, hasher.running.copy())
        for other in self._windowed:
            if other.is_final and other.window is not None:  # the others make room as they go on
                other.window.shrink(self.size)

    async def pass_on(self, load: Load, chunk: bytes) -> None:
        """Add one chunk to the window when the fastest follower has made room for it."""
        flight, attempt, window = load.flight, load.attempt, load.attempt.window
        if window is None:
            raise RuntimeError("not a windowed attempt")
        moved = Signal()
        attempt.on_moved = moved.notify
        window.size = self.size
        while window.end > max(window.start, attempt.fastest) and not window.has_room(len(chunk), attempt.fastest):
            if flight.is_deserted:  # the last one had left before the disk was full
                raise ContentUnavailable("nobody wants it any more", "unexpected EOF", 1.0)
            if not attempt.is_stalled:
                attempt.is_stalled = True
                flight.changed()
            await moved.wait()
        attempt.is_stalled = False
        load.hasher.update(chunk)
        window.append(chunk, load.hasher.running.copy())
        attempt.last_read = min(len(chunk), HOLD_BACK_SIZE)
        attempt.arrived = window.end
        flight.changed()
