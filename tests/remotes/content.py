"""What a remote has to give: bytes in memory, or any number of bytes made up while they are sent."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

PIECE = 128 * 1024


class Content(Hashable, Protocol):
    """A body that can be read from any offset, again and again, always the same."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes [start, end) in pieces of at most PIECE; 0 <= start <= end <= size."""
        ...


@dataclass(frozen=True)
class Stored:
    """Bytes held in memory."""

    body: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.body)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, PIECE):
            yield self.body[at : min(at + PIECE, end)]


@dataclass(frozen=True)
class Synthetic:
    """`size` bytes that look random, no two blocks alike, and cost no memory; `seed` makes another such body."""

    size: int
    seed: int = 0

    @cached_property
    def block(self) -> bytes:
        """What every block has in common; its first 8 bytes are replaced by the block's number."""
        return random.Random(self.seed).randbytes(PIECE)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            number, skipped = divmod(start, PIECE)
            block = number.to_bytes(8, "big") + self.block[8:]
            yield block[skipped : min(PIECE, skipped + end - start)]
            start += PIECE - skipped


@dataclass(frozen=True)
class Flipped:
    """Another content with one bit of the byte at `at` flipped."""

    whole: Content
    at: int

    @property
    def size(self) -> int:
        return self.whole.size

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        for piece in self.whole.pieces(start, end):
            if start <= self.at < start + len(piece):
                changed = bytearray(piece)
                changed[self.at - start] ^= 1
                yield bytes(changed)
            else:
                yield piece
            start += len(piece)


@dataclass(frozen=True)
class Shortened:
    """The first `size` bytes of another content."""

    whole: Content
    size: int

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        return self.whole.pieces(start, end)


def content_of(body: bytes | Content) -> Content:
    """Bytes become Stored; content stays what it is."""
    return Stored(body) if isinstance(body, bytes) else body


def read_all(content: Content) -> bytes:
    """The whole content in memory."""
    return b"".join(content.pieces(0, content.size))


@lru_cache(maxsize=256)
def digest_of(content: Content) -> str:
    """sha256 of the whole, as OCI writes it; remembered, for the sake of large ones."""
    running = hashlib.sha256()
    for piece in content.pieces(0, content.size):
        running.update(piece)
    return f"sha256:{running.hexdigest()}"
