"""What followers of a flight can see of it: attempts that grow, and one shared signal a change."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from contentapp.coordination.base import FlightState
from contentapp.core.digest import Hasher
from contentapp.core.errors import ArtifactDamaged, ContentAppError
from contentapp.core.window import Window
from contentapp.storage.base import ArtifactReader

FINAL_STATES = frozenset(
    {
        FlightState.VERIFIED,
        FlightState.WRONG,
        FlightState.FAILED,
        FlightState.UNAVAILABLE,
        FlightState.ABSENT,
        FlightState.DENIED,
    }
)


class Signal:
    """Wakes everybody who waits, once a change. Waiting costs one future for all."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return after the next `notify`. Check the condition, then wait without an await between: nothing is
        missed.
        """
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._future)

    def notify(self) -> None:
        """Wake all who wait now."""
        if self._future is not None:
            self._future.set_result(None)
            self._future = None


class SpoolReader:
    """A reader of another process's spool, through a descriptor that was handed over."""

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno

    @property
    def size(self) -> int:
        return os.fstat(self._fileno).st_size

    def fileno(self) -> int:
        return self._fileno

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._fileno, size, offset)
        except OSError as error:
            raise ArtifactDamaged(f"spool: {error.strerror}") from error

    def close(self) -> None:
        if self._fileno >= 0:
            os.close(self._fileno)
            self._fileno = -1


FACT_LENGTH = 512
"""Longer validators and media types count as none."""


def fact(text: str) -> str:
    """A header's value as it may be kept and passed on; "" for one that is odd."""
    return text if len(text) <= FACT_LENGTH and text.isascii() and text.isprintable() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Facts of the source's answer that a response needs; all JSON.

    modified_at: in ISO format, the first Last-Modified known for these bytes.
    """

    media_type: str = ""
    etag: str = ""
    last_modified: str = ""
    modified_at: str = ""

    @property
    def modified(self) -> datetime | None:
        """When the bytes were last modified, as devices are told."""
        return datetime.fromisoformat(self.modified_at) if self.modified_at else None


@dataclass(eq=False, slots=True, kw_only=True)
class Attempt:
    """One try to get the whole body, from byte 0, in one spool.

    Its reader is shared by all followers and closed with the last of them, once the flight has let go of it too.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(4))
    former: str = ""  # of the one whose bytes it went on from: what devices had of that is the same
    state: FlightState = FlightState.CONNECTING
    size: int | None = None
    arrived: int = 0
    last_read: int = 0
    keep: bool = True
    remote: str = ""
    head: Head = field(default_factory=Head)
    reader: ArtifactReader | None = None
    is_proven: bool = False  # what has arrived was held against proven chunk digests
    is_unspooled: bool = False  # the disk is full: what comes from now on goes to the window
    spool_end: int | None = None  # where the spool ends and the window begins; None: all is in the spool
    window: Window[Hasher] | None = None
    started: float = 0.0  # loop.time()
    error: ContentAppError | None = None
    positions: dict[object, int] = field(default_factory=dict)
    on_moved: Callable[[], None] | None = None
    is_stalled: bool = False  # its window takes nothing more before a follower moves
    on_closed: Callable[[], None] | None = None
    _holders: int = 1

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES

    @property
    def is_out_of_reach(self) -> bool:
        """Whether its rest is in the memory of another process."""
        return self.spool_end is not None and self.window is None

    def hold(self) -> None:
        """Keep the reader open until the matching `let_go`."""
        self._holders += 1

    def let_go(self) -> None:
        """The last one closes the reader."""
        self._holders -= 1
        if self._holders:
            return
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.on_closed is not None:
            self.on_closed()

    @property
    def fastest(self) -> int:
        """How far the fastest follower of the window has come."""
        return max(self.positions.values(), default=0)

    def move(self, follower: object, position: int) -> None:
        """A follower of a window has come this far."""
        self.positions[follower] = position
        if self.on_moved is not None:
            self.on_moved()
