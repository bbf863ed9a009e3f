"""P3's state machine: a table of stories, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.cooldown import (
    CLEAR,
    CLOCK_STEP_SECONDS,
    FORGET_SECONDS,
    REASON_SIZE,
    CooldownRule,
    CooldownState,
    Scope,
    ScopeKind,
    admitted,
    expires_at,
    failed,
    remaining_seconds,
    succeeded,
    trial_ended,
)

HOST = CooldownRule(threshold=3, initial_seconds=5, max_seconds=300, trial_seconds=30)
PAIR = CooldownRule(threshold=1, initial_seconds=300, max_seconds=3600, trial_seconds=30)


def fail_after_each(rule: CooldownRule, times: int, start: float = 1000.0) -> list[CooldownState]:
    """A source that fails its every trial, each taken at once."""
    states = [failed(CLEAR, rule, start, "refused")]
    for _ in range(times - 1):
        last = states[-1]
        states.append(failed(last, rule, max(last.until, last.failed_at), "refused"))
    return states


def test_nothing_known_lets_everything_through_unchanged() -> None:
    assert admitted(CLEAR, 1000.0) == (True, CLEAR, 0.0)


def test_failures_below_the_threshold_do_not_cool() -> None:
    first, second, third = fail_after_each(HOST, 3)
    assert [state.failures for state in (first, second, third)] == [1, 2, 3]
    assert admitted(first, 1000.0)[0]
    assert admitted(second, 1000.0)[0]
    assert admitted(third, 1000.0) == (False, third, 5.0)
    assert third.since == 1000.0


def test_a_source_that_keeps_failing_cools_twice_as_long_each_time_up_to_the_cap() -> None:
    states = fail_after_each(HOST, 11)
    assert [state.seconds for state in states[2:]] == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert [state.level for state in states[2:]] == list(range(1, 10))
    assert {state.since for state in states[2:]} == {1000.0}


def test_after_its_end_one_trial_and_only_one() -> None:
    cooling = failed(CLEAR, PAIR, 1000.0, "digest mismatch")
    assert admitted(cooling, 1299.0) == (False, cooling, 1.0)
    is_admitted, trying, _ = admitted(cooling, 1300.0)
    assert is_admitted
    assert trying.trial_until == 1330.0
    assert admitted(trying, 1301.0) == (False, trying, 29.0)
    assert admitted(trying, 1330.0)[0]


def test_a_failed_trial_doubles_and_ends_the_trial() -> None:
    trying = admitted(failed(CLEAR, PAIR, 1000.0, "bad"), 1300.0)[1]
    again = failed(trying, PAIR, 1310.0, "bad")
    assert (again.until, again.trial_until) == (1910.0, 0.0)
    assert not admitted(again, 1909.0)[0]
    assert admitted(again, 1910.0)[0]


def test_a_failure_after_the_trials_time_doubles_too() -> None:
    trying = admitted(failed(CLEAR, PAIR, 1000.0, "bad"), 1300.0)[1]
    assert failed(trying, PAIR, 1400.0, "bad").seconds == 600.0


def test_a_single_failure_after_a_cooldown_needs_no_threshold() -> None:
    cooling = fail_after_each(HOST, 3)[-1]
    assert failed(cooling, HOST, cooling.until, "refused").seconds == 10.0


def test_a_burst_of_failures_of_parallel_requests_is_one_outage() -> None:
    state = CLEAR
    for number in range(20):
        state = failed(state, HOST, 1000.0 + number / 100, "timeout")
    assert (state.level, state.seconds) == (1, 5.0)
    assert state.until == pytest.approx(1005.19)


def test_too_many_requests_prolongs_a_shorter_cooldown_and_never_shortens_one() -> None:
    cooling = fail_after_each(HOST, 3)[-1]
    prolonged = failed(cooling, CooldownRule(initial_seconds=60), 1001.0, "429")
    assert (prolonged.until, prolonged.level, prolonged.seconds) == (1061.0, 1, 60.0)
    assert failed(prolonged, HOST, 1002.0, "timeout").until == 1061.0


def test_retry_after_is_the_least_that_a_later_cooldown_lasts() -> None:
    cooling = fail_after_each(HOST, 3)[-1]
    again = failed(cooling, CooldownRule(initial_seconds=120), cooling.until, "429")
    assert again.seconds == 120.0
    assert failed(again, HOST, again.until, "timeout").seconds == 240.0


def test_one_failure_of_a_rule_with_a_threshold_does_not_prolong() -> None:
    cooling = failed(CLEAR, CooldownRule(initial_seconds=2), 1000.0, "429")
    assert failed(cooling, HOST, 1001.0, "timeout").until == 1002.0


def test_only_failures_within_the_window_add_up() -> None:
    rule = CooldownRule(threshold=3, initial_seconds=300, window_seconds=300)
    state = failed(failed(CLEAR, rule, 1000.0, "bad"), rule, 1290.0, "bad")
    outside = failed(state, rule, 1310.0, "bad")
    assert (outside.failures, outside.level) == (2, 0)
    within = failed(outside, rule, 1311.0, "bad")
    assert (within.failures, within.level) == (3, 1)


def test_without_trials_everybody_is_let_through_at_the_end_and_nothing_doubles_after_it() -> None:
    rule = CooldownRule(initial_seconds=60, max_seconds=60, trial_seconds=0)
    state = failed(CLEAR, rule, 1000.0, "404")
    assert not admitted(state, 1059.0)[0]
    assert admitted(state, 1060.0) == (True, state, 0.0)
    assert expires_at(state) == 1060.0


def test_a_rule_of_no_time_cools_nothing_and_wants_no_trial() -> None:
    state = failed(CLEAR, CooldownRule(initial_seconds=0, max_seconds=0), 1000.0, "denied")
    assert admitted(state, 1000.0) == (True, state, 0.0)
    assert state.failures == 1


def test_a_trial_without_verdict_frees_the_next_one() -> None:
    trying = admitted(failed(CLEAR, PAIR, 1000.0, "bad"), 1300.0)[1]
    assert admitted(trial_ended(trying), 1301.0)[0]


def test_a_clock_that_was_years_ahead_blocks_nobody() -> None:
    cooling = failed(CLEAR, PAIR, 2_000_000_000.0, "bad")
    assert admitted(cooling, 1_700_000_000.0)[0]
    trying = admitted(cooling, 2_000_000_300.0)[1]
    assert admitted(trying, 1_700_000_000.0)[0]


def test_a_clock_a_little_behind_still_sees_the_cooldown() -> None:
    cooling = failed(CLEAR, PAIR, 1000.0, "bad")
    assert admitted(cooling, 999.0) == (False, cooling, 300.0)


def test_what_is_known_is_forgotten_a_day_after_it_meant_something() -> None:
    counting = failed(CLEAR, HOST, 1000.0, "refused")
    assert expires_at(counting) == 1000.0 + FORGET_SECONDS
    assert expires_at(failed(CLEAR, PAIR, 1000.0, "bad")) == 1300.0 + FORGET_SECONDS


def test_reasons_are_bounded() -> None:
    assert len(failed(CLEAR, PAIR, 0.0, "x" * 10_000).reason) == REASON_SIZE


def test_the_key_of_a_scope_is_stable() -> None:
    assert Scope(ScopeKind.HOST, 7, "quay", "quay.io:443").key == "host:7:quay.io:443"


rules = st.builds(
    CooldownRule,
    threshold=st.integers(1, 5),
    initial_seconds=st.floats(0.05, 1000),
    max_seconds=st.floats(0.1, 3600),
    trial_seconds=st.floats(0.1, 60),
    window_seconds=st.none() | st.floats(1, 1000),
)
steps = st.lists(st.tuples(st.sampled_from(["fail", "ask", "give back"]), st.floats(0, 2000), rules), max_size=30)


@given(steps)
def test_in_any_story(story: list[tuple[str, float, CooldownRule]]) -> None:
    """Never two trials at once, never refused for longer than the caps allow, a success clears."""
    state, now, trial_until, longest = CLEAR, 1_700_000_000.0, 0.0, 0.0
    for step, passes, rule in story:
        now += passes
        if step == "fail":
            longest = max(longest, rule.max_seconds)
            before, state = state, failed(state, rule, now, step)
            assert remaining_seconds(state, now) >= remaining_seconds(before, now)
            trial_until = 0.0 if state.level > before.level else trial_until
        elif step == "ask":
            is_admitted, after, wait = admitted(state, now)
            assert is_admitted == (wait == 0.0)
            if is_admitted and state.level:
                assert now >= trial_until - 1e-6
                trial_until = after.trial_until
            state = after
        else:
            state, trial_until = trial_ended(state), 0.0
        assert remaining_seconds(state, now) <= longest + 1e-6
        assert admitted(state, max(now, state.until, state.trial_until))[0], "skipped for ever"
        assert succeeded(state) is CLEAR


@given(rules, st.integers(2, 40))
def test_cooldowns_of_one_rule_double_until_the_cap(rule: CooldownRule, times: int) -> None:
    rule = replace(rule, window_seconds=None)
    lengths = [state.seconds for state in fail_after_each(rule, times) if state.level]
    for last, following in pairwise(lengths):
        assert following == min(2 * last, rule.max_seconds)
    assert all(length <= rule.max_seconds for length in lengths)


@given(rules, st.floats(0, 1e10), st.floats(0, 1e10))
def test_no_two_clocks_make_it_wait_longer_than_the_cooldown_and_a_trial(
    rule: CooldownRule, written: float, read: float
) -> None:
    state = failed(CLEAR, replace(rule, threshold=1), written, "x")
    is_admitted, _, wait = admitted(state, read)
    assert is_admitted or wait <= state.seconds
    if read < written - CLOCK_STEP_SECONDS - 1:
        assert is_admitted
