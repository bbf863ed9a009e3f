"""Mutual exclusion among all threads of all processes of a host; the kernel ends it when a holder dies."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """An exclusive lock; `with` blocks until it is held. Not reentrant. It leaves its file behind.

    The file and its folder are made at the first `with`, and again when they have been removed. So it may be
    constructed before a fork, but not used before one: parent and child would share the lock. An OSError of making it
    passes through.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # flock tells open file descriptions apart, not threads: those need a mutex of their own.
        self._mutex = threading.Lock()
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._mutex.acquire()
        try:
            self._lock()
        except BaseException:
            self._mutex.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def fileno(self) -> int:
        """The locked file, open for reading and writing; valid once the lock has been held."""
        return self._descriptor

    def _lock(self) -> None:
        """Lock the file that has the name now: one that somebody has removed locks out nobody who comes later."""
        while True:
            if self._descriptor < 0:
                self._descriptor = self._open()
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._has_name():
                return
            os.close(self._descriptor)
            self._descriptor = -1

    def _has_name(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(follow_symlinks=False), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Close the file; a later `with` opens it again."""
        with self._mutex:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
