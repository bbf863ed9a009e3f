"""Byte ranges (RFC 9110 §14): half-open inside, inclusive only on the wire."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEADER_LENGTH = 256  # longer ones are no range that anybody needs; int() stays cheap
MAX_POSITION = (1 << 63) - 1
RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)  # range units are case-insensitive (§14.1)
CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole representation is to be sent: there is no Range header, or it is to be ignored."""


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """416: the one range asked for holds no byte."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes start <= i < end, never empty."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a 206 says that it holds: bytes start <= i < end of `size`, None if the remote does not know it."""

    start: int
    end: int
    size: int | None


def parse_range(header: str | None, size: int) -> Whole | ByteRange | Unsatisfiable:
    """What a device's Range asks of a representation of `size` bytes.

    One satisfiable range comes clipped; start >= size and ``-0`` are Unsatisfiable; another unit, broken syntax and
    several ranges are Whole, which is always a right answer. A suffix of an empty representation is Whole too: it is
    satisfiable (§14.1.2), but no Content-Range can say so.
    """
    match = RANGE.fullmatch(header) if header and len(header) <= MAX_HEADER_LENGTH else None
    if match is None:
        return Whole()
    first, last = match.groups()
    if first:
        return _from_position(int(first), int(last) if last else None, size)
    return _suffix(int(last), size) if last else Whole()


def _from_position(first: int, last: int | None, size: int) -> Whole | ByteRange | Unsatisfiable:
    if last is not None and last < first:
        return Whole()
    if first >= size:
        return Unsatisfiable()
    return ByteRange(first, size if last is None else min(last + 1, size))


def _suffix(length: int, size: int) -> Whole | ByteRange | Unsatisfiable:
    if length == 0:
        return Unsatisfiable()
    return ByteRange(max(size - length, 0), size) if size else Whole()


def content_range(byte_range: ByteRange | Unsatisfiable, size: int) -> str:
    """The Content-Range of a 206, or with Unsatisfiable of a 416."""
    if isinstance(byte_range, Unsatisfiable):
        return f"bytes */{size}"
    return f"bytes {byte_range.start}-{byte_range.end - 1}/{size}"


def range_header(start: int, end: int | None = None) -> str:
    """The Range that asks a remote for the bytes from `start` on, up to the half-open `end`."""
    return f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"


def parse_content_range(header: str | None) -> ContentRange | None:
    """A remote's Content-Range; None if it is absent, broken, contradicts itself or names no range (``bytes */N``)."""
    match = CONTENT_RANGE.fullmatch(header) if header and len(header) <= MAX_HEADER_LENGTH else None
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    if first > last or max(last, size or 0) > MAX_POSITION or (size is not None and last >= size):
        return None
    return ContentRange(first, last + 1, size)
