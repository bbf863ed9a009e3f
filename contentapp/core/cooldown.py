"""Cooldown rules (P3) as a pure state machine; who stores the state and shares it is Coordination's affair.

counting ──threshold failures──> cooling ──its time passes──> due ──admitted()──> on trial
due, on trial ──failure──> cooling, twice as long; any state ──success──> forgotten
on trial ──trial_seconds pass──> due
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

REASON_SIZE = 500
FORGET_SECONDS = 86400.0  # after this long without a request nothing is known of a scope any more
CLOCK_STEP_SECONDS = 60.0  # a cooldown that seems to have more than this too much left was written by another clock


class ScopeKind(StrEnum):
    """What a cooldown is kept for; never across domains."""

    ARTIFACT = "artifact"  # (remote, artifact): wrong bytes
    REMOTE = "remote"  # the whole remote
    HOST = "host"  # (remote, host actually connected to)
    PATH = "path"  # (remote, repository name or path): denied, or odd 5xx
    ABSENT = "absent"  # (remote, path): said 404; not a cooldown, believed as long as one


@dataclass(frozen=True, slots=True)
class Scope:
    """One thing that can cool down. `subject` is the digest, the host, the path, or "" for the whole remote."""

    kind: ScopeKind
    remote_id: int
    remote_name: str
    subject: str = ""

    @property
    def key(self) -> str:
        """Unique, stable across restarts."""
        return f"{self.kind}:{self.remote_id}:{self.subject}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownRule:
    """How failures of one scope are punished; durations in seconds.

    threshold: failures in a row before it cools; initial_seconds: the first cooldown, and the least of a later one,
    doubled by each further failure up to max_seconds; trial_seconds: how long one trial has, 0: no trials, all are let
    through when the time has passed; window_seconds: only failures of this last time add up (None: they always do).
    """

    threshold: int = 1
    initial_seconds: float = 300.0
    max_seconds: float = 3600.0
    trial_seconds: float = 30.0
    window_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CooldownState:
    """What is known of one scope; times are time.time() of the host.

    failures: in a row, or in the window; recent: their times, where a window is set; level: cooldowns in a row (0:
    never cooled); seconds: the length of the last one; until: its end; trial_until: end of the trial that is under way;
    since: start of the first cooldown in a row; reason: a plain phrase for people.
    """

    failures: int = 0
    level: int = 0
    until: float = 0.0
    trial_until: float = 0.0
    trial_seconds: float = 30.0
    failed_at: float = 0.0
    since: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    recent: tuple[float, ...] = ()


CLEAR = CooldownState()


def remaining_seconds(state: CooldownState, now: float) -> float:
    """How long it still cools; 0 when it doesn't."""
    left = state.until - now
    if state.level == 0 or left > state.seconds + CLOCK_STEP_SECONDS:
        return 0.0
    return max(0.0, min(left, state.seconds))


def failed(state: CooldownState, rule: CooldownRule, now: float, reason: str) -> CooldownState:
    """The state after one more failure.

    A failure while it cools comes from a request that began before: it may prolong the cooldown to what its own rule
    asks for (a Retry-After), but does not double it, else one burst of parallel requests would count as many outages.
    """
    counted = _counted(state, rule, now, reason)
    if remaining_seconds(state, now) > 0:
        return _prolonged(counted, rule, now)
    if min(rule.initial_seconds, rule.max_seconds) <= 0:
        return counted  # cooldowns switched off: no time to wait, so no trial after it
    if state.level == 0 and counted.failures < rule.threshold:
        return counted
    return _cooled(counted, rule, now)


def admitted(state: CooldownState, now: float) -> tuple[bool, CooldownState, float]:
    """Whether a request may go now, the state after that (with the trial taken), and else the seconds to wait."""
    left = remaining_seconds(state, now)
    if left > 0:
        return False, state, left
    if state.level == 0 or state.trial_seconds <= 0:
        return True, state, 0.0
    left = _trial_remaining_seconds(state, now)
    if left > 0:
        return False, state, left
    return True, replace(state, trial_until=now + state.trial_seconds), 0.0


def succeeded(_state: CooldownState) -> CooldownState:
    """The state after a success: nothing is held against it."""
    return CLEAR


def trial_ended(state: CooldownState) -> CooldownState:
    """The state after the trial came to no verdict: the next one may be taken at once."""
    return replace(state, trial_until=0.0)


def expires_at(state: CooldownState) -> float:
    """When the state means nothing any more and may be dropped."""
    if state.level == 0:
        return state.failed_at + FORGET_SECONDS
    return state.until + (FORGET_SECONDS if state.trial_seconds > 0 else 0.0)


def _trial_remaining_seconds(state: CooldownState, now: float) -> float:
    left = state.trial_until - now
    return 0.0 if left > state.trial_seconds + CLOCK_STEP_SECONDS else max(0.0, min(left, state.trial_seconds))


def _counted(state: CooldownState, rule: CooldownRule, now: float, reason: str) -> CooldownState:
    recent: tuple[float, ...] = ()
    failures = state.failures + 1
    if rule.window_seconds is not None:
        recent = (*(at for at in state.recent if abs(now - at) < rule.window_seconds), now)[-rule.threshold :]
        failures = len(recent)
    return replace(
        state,
        failures=failures,
        recent=recent,
        failed_at=now,
        trial_seconds=rule.trial_seconds,
        reason=reason[:REASON_SIZE],
    )


def _prolonged(state: CooldownState, rule: CooldownRule, now: float) -> CooldownState:
    seconds = min(rule.initial_seconds, rule.max_seconds)
    if state.failures < rule.threshold or now + seconds <= state.until:
        return state
    return replace(state, until=now + seconds, seconds=max(state.seconds, seconds))


def _cooled(state: CooldownState, rule: CooldownRule, now: float) -> CooldownState:
    seconds = min(max(rule.initial_seconds, 2 * state.seconds), rule.max_seconds)
    return replace(
        state,
        level=state.level + 1,
        seconds=seconds,
        until=now + seconds,
        trial_until=0.0,
        since=state.since if state.level else now,
    )
