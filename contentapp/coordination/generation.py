"""A number in a file by which processes see at once that shared data has changed, without asking the database."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

SIZE = 8


class Generation:
    """Eight random bytes, replaced after each change. A read is one pread of a cached page, about a microsecond.

    It is written after the commit. Two writers may overtake each other; whoever reads either value reads the data again
    when it sees the other, so nothing committed before the last write is missed. A writer that dies between commit and
    write leaves others with what they knew: they look by themselves after a second. (Not mapped into memory: on a full
    disk a store to a mapped page may kill the process.)
    """

    def __init__(self, path: Path) -> None:
        self._own = b""
        self._fileno = -1
        with contextlib.suppress(OSError):
            self._fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def current(self) -> bytes:
        """Compare with what it was; equal means unchanged."""
        if self._fileno < 0:
            return self._own
        try:
            return self._own + os.pread(self._fileno, SIZE, 0)
        except OSError:
            return self._own

    def change(self) -> None:
        """Everybody should look again, this process in any case."""
        self._own = secrets.token_bytes(SIZE)
        if self._fileno >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._fileno, self._own, 0)

    def close(self) -> None:
        """Idempotent."""
        if self._fileno >= 0:
            os.close(self._fileno)
            self._fileno = -1
