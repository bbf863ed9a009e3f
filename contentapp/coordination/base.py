"""Coordination: leases, flights' progress, cooldowns, rate limits, publish/subscribe.

Advisory: losing it costs traffic, never correctness.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from contentapp.core.cooldown import CooldownRule, CooldownState, Scope

RESYNC = "resync"  # topic: messages of other topics may have been lost; whoever caches by them must forget it all


class FlightState(StrEnum):
    """Where an attempt of a flight stands. All but the first two are final for the attempt."""

    CONNECTING = "connecting"
    RUNNING = "running"
    VERIFIED = "verified"  # the bytes match (undigested: the transfer ended properly)
    WRONG = "wrong"  # the bytes do not match
    FAILED = "failed"  # the transfer broke
    UNAVAILABLE = "unavailable"  # no source is left; final for the flight
    ABSENT = "absent"  # every source said 404; final for the flight
    DENIED = "denied"  # every source denied it; final for the flight

    @property
    def is_final(self) -> bool:
        """Whether the attempt is over."""
        return self not in {FlightState.CONNECTING, FlightState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightProgress:
    """A snapshot of a flight that followers in other processes see. All of it is JSON.

    attempt: id of the attempt, new bytes from 0 for each; size: of the whole, None while unknown; arrived: bytes that
    can be read from the spool; is_windowed: there is no spool to read from (fetch for yourself); detail: for
    UNAVAILABLE, the JSON of its reason; head: facts of the answer that the response needs (media type, validators), as
    a JSON object.
    """

    key: str
    attempt: str = ""
    state: FlightState = FlightState.CONNECTING
    size: int | None = None
    arrived: int = 0
    keep: bool = True
    is_windowed: bool = False
    remote: str = ""
    started_at: float = 0.0  # time.time()
    followers: int = 0
    detail: str = ""
    head: str = "{}"


@runtime_checkable
class Lease(Protocol):
    """The right to do `key`; freed at the latest when the process that holds it dies."""

    key: str

    def publish(self, progress: FlightProgress, fileno: int | None = None) -> None:
        """Make this the snapshot that followers see; `fileno` is the attempt's spool, given once an attempt.

        Never blocks. A slow follower sees the newest snapshot of an attempt, not all of them, but every attempt and its
        final state, in order. `fileno` must stay open until the next publish with another one, or until release.
        ValueError: longer than 128 KiB as JSON.
        """
        ...

    def followers(self) -> int:
        """Followers in other processes now."""
        ...

    def on_followers_changed(self, callback: Callable[[], None]) -> None:
        """Call back whenever a follower of another process came or left."""
        ...

    async def release(self) -> None:
        """End it: followers get the last snapshot, then the end of their stream."""
        ...


@dataclass(frozen=True, slots=True)
class Followed:
    """One update: the snapshot, and, when the attempt is new, a descriptor of its spool which the receiver closes."""

    progress: FlightProgress
    fileno: int | None = None


@runtime_checkable
class Following(Protocol):
    """Another process's flight."""

    key: str

    def updates(self) -> AsyncIterator[Followed]:
        """Snapshots as they change, ending when the lease is released; LeaderLost when its holder died."""
        ...

    async def close(self) -> None:
        """Leave. To be called in any case: it closes the descriptors that were not taken. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a source may be asked now. `retry_after_seconds`, `reason` and `scope` tell why not.

    trials: the scopes whose trial this admission took: success or failure of each is to be recorded, or end_trials
    called, else nobody else is let through before the trial's time is over.
    """

    is_admitted: bool
    retry_after_seconds: float = 0.0
    reason: str = ""
    scope: Scope | None = None
    trials: tuple[Scope, ...] = ()


class Coordination(Protocol):
    """One implementation covers all processes of a host, another all replicas."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def lease(self, key: str) -> Lease | Following:
        """The lease, or the flight of whoever holds it; isinstance tells which."""
        ...

    async def transfers(self) -> list[FlightProgress]:
        """The flights of all processes that have published; followers in other processes are added to `followers`."""
        ...

    async def admit(self, scopes: Sequence[Scope]) -> Admission:
        """Whether none of these scopes cools down; takes the trials of those whose cooldown is over. All or nothing."""
        ...

    async def cooldown(self, scope: Scope) -> CooldownState | None:
        """The state of one scope, without taking a trial."""
        ...

    async def record_failure(self, scope: Scope, rule: CooldownRule, reason: str) -> CooldownState:
        """Count one failure of a scope under a rule; the new state."""
        ...

    async def record_success(self, scopes: Sequence[Scope]) -> None:
        """Clear what these scopes have counted."""
        ...

    async def end_trials(self, scopes: Sequence[Scope]) -> None:
        """Give back trials that came to no verdict (the request was cancelled)."""
        ...

    async def cooldowns(self) -> list[tuple[Scope, CooldownState]]:
        """All scopes that cool down or wait for their trial; what is known to be absent is not among them."""
        ...

    async def clear_cooldowns(self, scopes: Sequence[Scope] | None = None) -> int:
        """Forget these scopes, or all; the number of them that `cooldowns` listed."""
        ...

    async def reserve(self, name: str, amount: float, rate: float, burst: float) -> float:
        """Take `amount` from the shared limit `name` (`rate` units a second, GCRA): the seconds to wait first."""
        ...

    def publish(self, topic: str, message: str = "") -> None:
        """Tell every process of this installation, this one included.

        Best effort: a process that could not be told, or not in 8 KiB, gets a message of the topic RESYNC instead.
        """
        ...

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        """Call back in this process's loop with each message of a topic."""
        ...
