from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contentapp.core.byterange import (
    MAX_HEADER_LENGTH,
    ByteRange,
    ContentRange,
    Unsatisfiable,
    Whole,
    content_range,
    parse_content_range,
    parse_range,
    range_header,
)

HUGE = "9" * 100


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (None, 10, Whole()),
        ("", 10, Whole()),
        # one satisfiable range
        ("bytes=0-", 10, ByteRange(0, 10)),
        ("bytes=0-0", 10, ByteRange(0, 1)),
        ("bytes=3-5", 10, ByteRange(3, 6)),
        ("bytes=9-9", 10, ByteRange(9, 10)),
        ("bytes=9-", 10, ByteRange(9, 10)),
        ("bytes=000-009", 10, ByteRange(0, 10)),
        ("BYTES=3-5", 10, ByteRange(3, 6)),
        # clipped
        ("bytes=3-10", 10, ByteRange(3, 10)),
        ("bytes=3-" + HUGE, 10, ByteRange(3, 10)),
        ("bytes=-3", 10, ByteRange(7, 10)),
        ("bytes=-10", 10, ByteRange(0, 10)),
        ("bytes=-11", 10, ByteRange(0, 10)),
        ("bytes=-" + HUGE, 10, ByteRange(0, 10)),
        # none satisfiable
        ("bytes=10-", 10, Unsatisfiable()),
        ("bytes=10-20", 10, Unsatisfiable()),
        (f"bytes={HUGE}-", 10, Unsatisfiable()),
        (f"bytes={HUGE}-{HUGE}", 10, Unsatisfiable()),
        ("bytes=-0", 10, Unsatisfiable()),
        ("bytes=-000", 10, Unsatisfiable()),
        # nothing to send a part of
        ("bytes=0-", 0, Unsatisfiable()),
        ("bytes=0-5", 0, Unsatisfiable()),
        ("bytes=-0", 0, Unsatisfiable()),
        ("bytes=-5", 0, Whole()),
        # broken syntax
        ("bytes=5-3", 10, Whole()),
        (f"bytes={HUGE}9-{HUGE}", 10, Whole()),
        ("bytes=-", 10, Whole()),
        ("bytes=", 10, Whole()),
        ("bytes", 10, Whole()),
        ("bytes=5", 10, Whole()),
        ("bytes=a-b", 10, Whole()),
        ("bytes=+1-5", 10, Whole()),
        ("bytes=1-+5", 10, Whole()),
        ("bytes=0x1-0x5", 10, Whole()),
        ("bytes=1_0-", 100, Whole()),
        ("bytes=1.0-5", 10, Whole()),
        ("bytes=--5", 10, Whole()),
        ("bytes=1-5-7", 10, Whole()),
        ("bytes =1-5", 10, Whole()),
        ("bytes= 1-5", 10, Whole()),
        ("bytes=1 -5", 10, Whole()),
        ("bytes=1-5\n", 10, Whole()),
        ("bytes=١-٥", 10, Whole()),
        ("bytes=1-5/10", 10, Whole()),
        # other units and several ranges
        ("items=1-5", 10, Whole()),
        ("=1-5", 10, Whole()),
        ("bytes=0-1,3-4", 10, Whole()),
        ("bytes=0-1, 3-4", 10, Whole()),
        ("bytes=0-0,-1", 10, Whole()),
        ("bytes=20-,30-", 10, Whole()),
        # absurdly long, beyond what int() would take
        ("bytes=" + "0" * MAX_HEADER_LENGTH + "-", 10, Whole()),
        ("bytes=" + "9" * 100_000 + "-", 10, Whole()),
        ("bytes=" + ",".join(["0-1"] * 1000), 10, Whole()),
    ],
)
def test_range_of_a_device(header: str | None, size: int, expected: Whole | ByteRange | Unsatisfiable) -> None:
    assert parse_range(header, size) == expected


@given(
    st.one_of(st.text(), st.from_regex(r"bytes=[0-9]*-[0-9]*", fullmatch=True)), st.integers(min_value=0, max_value=50)
)
def test_a_range_lies_within_the_body(header: str, size: int) -> None:
    parsed = parse_range(header, size)
    if isinstance(parsed, ByteRange):
        assert 0 <= parsed.start < parsed.end <= size
        assert parsed.length >= 1


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
@example(first=0, last=0, size=0)
def test_a_range_selects_what_a_slice_does(first: int, last: int, size: int) -> None:
    body = bytes(range(size))
    parsed = parse_range(f"bytes={first}-{last}", size)
    if last < first:
        assert parsed == Whole()
    elif isinstance(parsed, ByteRange):
        assert body[parsed.start : parsed.end] == body[first : last + 1] != b""
    else:
        assert parsed == Unsatisfiable()
        assert body[first : last + 1] == b""


@given(st.integers(1, 60), st.integers(1, 50))
def test_a_suffix_selects_what_a_slice_does(length: int, size: int) -> None:
    body = bytes(range(size))
    parsed = parse_range(f"bytes=-{length}", size)
    assert isinstance(parsed, ByteRange)
    assert body[parsed.start : parsed.end] == body[-length:]


def test_content_range_is_inclusive() -> None:
    assert content_range(ByteRange(0, 1), 10) == "bytes 0-0/10"
    assert content_range(ByteRange(3, 10), 10) == "bytes 3-9/10"
    assert content_range(Unsatisfiable(), 10) == "bytes */10"
    assert content_range(Unsatisfiable(), 0) == "bytes */0"


def test_what_a_remote_is_asked() -> None:
    assert range_header(5) == "bytes=5-"
    assert range_header(0, 1) == "bytes=0-0"
    assert range_header(5, 10) == "bytes=5-9"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 3-9/10", ContentRange(3, 10, 10)),
        ("bytes 3-9/11", ContentRange(3, 10, 11)),
        ("Bytes 3-9/*", ContentRange(3, 10, None)),
        (f"bytes 0-{(1 << 63) - 2}/{(1 << 63) - 1}", ContentRange(0, (1 << 63) - 1, (1 << 63) - 1)),
        (None, None),
        ("", None),
        ("bytes */10", None),
        ("bytes 0-9/9", None),
        ("bytes 0-9/0", None),
        ("bytes 5-4/10", None),
        ("bytes 0-9", None),
        ("bytes=0-9/10", None),
        ("bytes  0-9/10", None),
        ("bytes 0-9/10 ", None),
        ("bytes 0-9/10, bytes 0-9/10", None),
        ("items 0-9/10", None),
        ("bytes -1-9/10", None),
        ("bytes 0-/10", None),
        ("bytes ٠-٩/10", None),
        (f"bytes 0-9/{1 << 63}", None),
        (f"bytes 0-{1 << 63}/*", None),
        ("bytes 0-" + "9" * 5000 + "/*", None),
    ],
)
def test_content_range_of_a_remote(header: str | None, expected: ContentRange | None) -> None:
    assert parse_content_range(header) == expected


@given(st.text())
def test_any_content_range_is_read_or_refused(header: str) -> None:
    parsed = parse_content_range(header)
    assert parsed is None or 0 <= parsed.start < parsed.end


@given(st.data(), st.integers(1, 1 << 62))
def test_content_range_round_trip(data: st.DataObject, size: int) -> None:
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    parsed = parse_range(range_header(start, end), size)
    assert parsed == ByteRange(start, end)
    assert parse_content_range(content_range(ByteRange(start, end), size)) == ContentRange(start, end, size)
