"""The window of a flight that has no room on disk."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.window import MERGED_SIZE, Piece, Window

LARGE = MERGED_SIZE + 1
A, B = b"a" * LARGE, b"b" * LARGE


def filled(size: int, chunks: list[bytes], start: int = 0) -> Window[int]:
    """A window whose marks are the offsets behind each chunk."""
    window: Window[int] = Window(size, start, start)
    for chunk in chunks:
        window.append(chunk, window.end + len(chunk))
    return window


def test_empty_window_waits() -> None:
    window = filled(10, [], start=100)
    assert (window.start, window.end, window.first_mark) == (100, 100, 100)
    assert window.read(100) == Piece(b"")
    assert window.read(99) is None


def test_chunks_are_read_as_they_came() -> None:
    window = filled(2 * LARGE, [A, B], start=5)
    assert window.read(5) == Piece(A, 5 + LARGE)
    assert window.read(6) == Piece(A[1:], 5 + LARGE)
    assert window.read(5 + LARGE) == Piece(B, 5 + 2 * LARGE)
    assert window.read(5 + 2 * LARGE) == Piece(b"")


def test_oldest_chunk_goes_when_the_rest_is_enough() -> None:
    window = filled(LARGE + 1, [A, B])
    assert (window.start, window.end) == (0, 2 * LARGE), "without the first there would be less than its size"
    window.append(A, 3 * LARGE)
    assert (window.start, window.end) == (LARGE, 3 * LARGE)
    assert window.read(LARGE - 1) is None
    assert window.read(LARGE) == Piece(B, 2 * LARGE)


def test_chunk_larger_than_the_window_stays_whole() -> None:
    window = filled(4, [A])
    assert window.read(0) == Piece(A, LARGE)
    window.append(B, 2 * LARGE)
    assert (window.start, window.read(LARGE)) == (LARGE, Piece(B, 2 * LARGE))


def test_small_chunks_are_merged() -> None:
    """A remote that sends byte by byte costs no more than one that does not."""
    window = filled(LARGE * 4, [b"x"] * LARGE)
    assert len(window._chunks) <= LARGE // MERGED_SIZE + 1
    assert window.read(7) == Piece(b"x" * (MERGED_SIZE - 7), MERGED_SIZE)


def test_room_is_what_takes_nothing_from_the_reader() -> None:
    window = filled(10, [b"aaaa", b"bbbb"])
    assert window.has_room(2, 0)
    assert not window.has_room(3, 0)
    assert window.has_room(6, 4)


def test_shrinking_lets_the_oldest_go_and_never_grows() -> None:
    window = filled(100, [bytes(60_000), bytes(60_000), bytes(60_000)])
    window.shrink(60_000)
    assert (window.start, window.end, window.size) == (120_000, 180_000, 100)
    window = filled(1_000_000, [bytes(60_000), bytes(60_000), bytes(60_000)])
    window.shrink(60_000)
    assert (window.start, window.end, window.size) == (120_000, 180_000, 60_000)
    window.shrink(1_000_000)
    assert window.size == 60_000


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30), st.integers(1, 64), st.integers(0, 10))
def test_reader_that_keeps_up_gets_every_byte(chunks: list[bytes], size: int, start: int) -> None:
    window: Window[str] = Window(size, start, "")
    whole, running, got, position = b"".join(chunks), hashlib.sha256(), b"", start
    for chunk in chunks:
        running.update(chunk)
        window.append(chunk, running.hexdigest())
        piece = window.read(position)
        assert piece is not None
        got += piece.data
        position += len(piece.data)
        assert piece.mark == hashlib.sha256(got).hexdigest()
        largest = max(map(len, chunks))
        assert window.end - window.start <= size + 2 * max(largest, MERGED_SIZE), "bounded"
        assert window.end - window.start >= min(size, window.end - start)
    assert got == whole


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=30), st.integers(1, 64), st.integers(0, 1000))
def test_any_place_is_right_or_gone(chunks: list[bytes], size: int, place: int) -> None:
    window, whole = filled(size, chunks), b"".join(chunks)
    piece = window.read(min(place, len(whole)))
    if place < window.start:
        assert piece is None
    else:
        assert piece is not None
        assert piece.data == whole[place : place + len(piece.data)]
        assert bool(piece.data) == (place < len(whole))
