"""The bytes of a windowed flight: the newest part of a body, in memory (P4, P9)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Mark = TypeVar("Mark")


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
        self._chunks.append((chunk, mark))
        self.end += len(chunk)
        while self.end - self.start - len(self._chunks[0][0]) >= self.size:
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
