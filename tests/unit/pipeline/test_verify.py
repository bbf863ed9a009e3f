"""What may be released before the verdict: the rule behind P1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.coordination.base import FlightState
from contentapp.core.settings import KIB, MIB, UNLIMITED
from contentapp.pipeline.progress import FINAL_STATES, Attempt
from contentapp.pipeline.verify import HOLD_BACK_SIZE, is_verified_first, releasable

SIZE = 10 * MIB


def running(arrived: int, size: int | None = SIZE, last_read: int = 1000) -> Attempt:
    return Attempt(state=FlightState.RUNNING, size=size, arrived=arrived, last_read=last_read)


@pytest.mark.parametrize("end", [None, SIZE, SIZE + 1])
def test_tail_of_the_whole_is_held_back(end: int | None) -> None:
    assert releasable(running(5 * MIB), end) == 5 * MIB
    assert releasable(running(SIZE), end) == SIZE - HOLD_BACK_SIZE
    assert releasable(running(SIZE - HOLD_BACK_SIZE + 1), end) == SIZE - HOLD_BACK_SIZE


def test_range_without_the_last_byte_is_not() -> None:
    assert releasable(running(SIZE), SIZE - 1) == SIZE


def test_body_smaller_than_the_tail_waits_whole() -> None:
    assert releasable(running(60 * KIB, 60 * KIB), None) == 0


def test_last_read_of_unknown_size_is_held_back() -> None:
    assert releasable(running(5000, None), None) == 4000
    assert releasable(running(500, None), None) == 0
    assert releasable(running(5000, None, 0), None) == 4999, "never all of it"


def test_strict_holds_all() -> None:
    assert releasable(running(SIZE), 10, is_strict=True) == 0


@pytest.mark.parametrize("state", sorted(set(FlightState) - {FlightState.RUNNING, FlightState.VERIFIED}))
def test_nothing_of_any_other_state(state: FlightState) -> None:
    attempt = Attempt(state=state, size=SIZE, arrived=SIZE)
    assert releasable(attempt, None) == releasable(attempt, 5) == 0


def test_verified_is_released_whole() -> None:
    attempt = Attempt(state=FlightState.VERIFIED, size=SIZE, arrived=SIZE)
    for is_strict in (False, True):
        assert releasable(attempt, None, is_strict=is_strict) == SIZE


@given(st.integers(0, SIZE), st.one_of(st.none(), st.integers(0, SIZE)), st.booleans())
def test_last_byte_is_never_released_before_the_verdict(arrived: int, end: int | None, is_known: bool) -> None:
    size = SIZE if is_known else None
    released = releasable(running(arrived, size), end)
    assert 0 <= released <= arrived
    if end is None or end >= SIZE or not is_known:
        assert released <= max(0, SIZE - HOLD_BACK_SIZE) or released < arrived


def test_final_states_are_those_of_the_coordination() -> None:
    assert {state for state in FlightState if state.is_final} == FINAL_STATES


def test_verified_first() -> None:
    assert is_verified_first(MIB, MIB)
    assert not is_verified_first(MIB + 1, MIB)
    assert not is_verified_first(None, MIB)
    assert is_verified_first(None, UNLIMITED)
    assert not is_verified_first(1, 0)
