"""Descriptors of stored bytes: reading by position, and closing where it hurts nobody."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from contentapp.storage.background import Background
from contentapp.storage.failure import read_failure

Closer = Callable[[int], None]


def closer(background: Background) -> Closer:
    """A close for descriptors of files that may have lost their name: the last close of such a one frees its blocks
    (170 ms for 1 GiB on ext4), so that is left to the background."""

    def close(descriptor: int) -> None:
        if os.fstat(descriptor).st_nlink:
            os.close(descriptor)
        else:
            background.soon(os.close, descriptor)

    return close


class FileReader:
    """An ArtifactReader on a descriptor of its own, which it closes with `close`."""

    __slots__ = ("_close", "_descriptor", "_size")

    def __init__(self, descriptor: int, size: int, close: Closer) -> None:
        self._descriptor = descriptor
        self._size = size
        self._close = close

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._descriptor

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise read_failure(error, "read") from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._close(descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()
