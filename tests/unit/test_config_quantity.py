"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.config.quantity import (
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("given_value", "size"),
    [
        (0, 0),
        (4096, 4096),
        (1e9, 10**9),
        ("64 MiB", 64 << 20),
        ("1GiB", 1 << 30),
        ("1.5 GiB", 3 << 29),
        ("10GB", 10**10),
        ("10 gb", 10**10),
        ("5k", 5000),
        ("5Ki", 5120),
        ("2 TiB", 2 << 40),
        ("100", 100),
        ("7B", 7),
    ],
)
def test_sizes(given_value: object, size: int) -> None:
    assert parse_size(given_value) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "-1",
        "1 MiBit",
        "1 XB",
        "1,5 GiB",
        "1e6",
        "0x10",
        "9" * 19,
        "1 2",
        True,
        None,
        1.5,
        [],
        "9" * 18 + " PiB",
    ],
)
def test_no_sizes(text: object) -> None:
    assert parse_size(text) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value: float) -> None:
    assert parse_size(value) is None
    assert parse_duration(value) is None


@pytest.mark.parametrize(("text", "rate"), [("10 MiB/s", 10 << 20), ("5MB", 5e6), (100, 100.0), ("5MB/h", None)])
def test_rates(text: object, rate: float | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("given_value", "seconds"),
    [
        (30, 30.0),
        (0.5, 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1w", 604800.0),
        ("500ms", 0.5),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (" 1 h 30 m ", 5400.0),
    ],
)
def test_durations(given_value: object, seconds: float) -> None:
    assert parse_duration(given_value) == seconds


@pytest.mark.parametrize("text", ["", "30", "5 parsecs", "-5s", "h", "1hour", "1y", True, None, {}, "5s!"])
def test_no_durations(text: object) -> None:
    assert parse_duration(text) is None


@given(st.integers(0, 1 << 60))
def test_a_size_is_read_back_as_it_was_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000))
def test_a_duration_is_read_back_as_it_was_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    size, duration = parse_size(text), parse_duration(text)
    assert size is None or size >= 0
    assert duration is None or duration >= 0
