"""The bytes of a windowed flight: the newest part of a body, in memory (P4, P9)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Mark = TypeVar("Mark")

MERGED_SIZE = 16 * 1024
"""Smaller chunks are merged: each has a cost of its own."""


@dataclass(frozen=True, slots=True)
class Piece(Generic[Mark]):
    """Some bytes, b"" while they are still to come, and the mark where they end, if they end where a chunk ended."""

    data: bytes
    mark: Mark | None = None


class Window(Generic[Mark]):
    """A body's bytes from `start` to `end`, about `size` of them; chunks are kept as they came.

    With each chunk goes a mark (a copy of the running hash behind it), so that a follower that falls behind can go on
    verifying from its own place.
    """

    def __init__(self, size: int, start: int, mark: Mark) -> None:
        self.size = size
        self.start = start
        self.end = start
        self._chunks: deque[tuple[bytes, Mark]] = deque()
        self.first_mark = mark

    def append(self, chunk: bytes, mark: Mark) -> None:
        """Add what follows, and let the oldest chunks go as far as the rest is not less than `size`."""
        if self._chunks and len(self._chunks[-1][0]) + len(chunk) <= MERGED_SIZE:
            chunk_before, _ = self._chunks.pop()
            self._chunks.append((chunk_before + chunk, mark))
        else:
            self._chunks.append((chunk, mark))
        self.end += len(chunk)
        self._trim()

    def has_room(self, size: int, reader: int) -> bool:
        """Whether so many bytes more take nothing away from a reader that has come this far."""
        return self.end + size - reader <= self.size

    def shrink(self, size: int) -> None:
        """Keep no more than this, if it was more."""
        self.size = min(self.size, size)
        self._trim()

    def _trim(self) -> None:
        while self._chunks and self.end - self.start - len(self._chunks[0][0]) >= self.size:
            self.start += len(self._chunks.popleft()[0])

    def read(self, offset: int) -> Piece[Mark] | None:
        """The rest of the chunk that `offset` lies in; None if it is gone."""
        if offset < self.start:
            return None
        position = self.start
        for chunk, mark in self._chunks:
            if offset < position + len(chunk):
                return Piece(chunk[offset - position :], mark)
            position += len(chunk)
        return Piece(b"")
