"""The rule of shared limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.gcra import reserve


def waits(amounts: list[float], *, rate: float, burst: float, now: float = 1000.0) -> list[float]:
    tat, found = 0.0, []
    for amount in amounts:
        tat, wait = reserve(tat, now, amount=amount, rate=rate, burst=burst)
        found.append(round(wait, 6))
    return found


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    assert waits([1] * 6, rate=2, burst=3) == [0, 0, 0, 0.5, 1.0, 1.5]


def test_without_a_burst_each_waits_for_its_own() -> None:
    assert waits([100, 50], rate=100, burst=0) == [1.0, 1.5]


def test_an_amount_above_the_burst_waits_for_what_is_above_it() -> None:
    assert waits([10], rate=1, burst=4) == [6.0]


def test_time_that_passed_unused_gives_no_more_than_the_burst() -> None:
    tat, _ = reserve(0.0, 1000.0, amount=3, rate=1, burst=3)
    tat, wait = reserve(tat, 5000.0, amount=3, rate=1, burst=3)
    assert wait == 0.0
    assert reserve(tat, 5000.0, amount=1, rate=1, burst=3)[1] == 1.0


@pytest.mark.parametrize(
    ("amount", "rate", "burst"),
    [(1, 0, 1), (1, -1, 1), (-1, 1, 1), (1, 1, -1), (math.nan, 1, 1), (math.inf, 1, 1), (1, math.nan, 1)],
)
def test_what_is_no_limit(amount: float, rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="no such limit"):
        reserve(0.0, 0.0, amount=amount, rate=rate, burst=burst)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=50),
    st.floats(0.5, 1000),
    st.floats(0, 500),
)
def test_in_any_span_no_more_than_burst_and_rate_allow(
    asked: list[tuple[float, float]], rate: float, burst: float
) -> None:
    """From any start on, what may be used is at most burst + rate × time (and the first amount, if larger)."""
    tat, now, used = 0.0, 1000.0, []
    for passes, amount in asked:
        now += passes
        tat, wait = reserve(tat, now, amount=amount, rate=rate, burst=burst)
        used.append((now + wait, amount))
    for first, (start, _) in enumerate(used):
        total = 0.0
        for at, amount in used[first:]:
            total += amount
            allowed = burst + rate * (at - start) + (used[first][1] if used[first][1] > burst else 0.0)
            assert total <= allowed + 1e-3 * max(1.0, rate)
