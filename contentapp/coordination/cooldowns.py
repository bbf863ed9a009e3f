"""Cooldowns as the loop asks for them: mostly from what this process knows already."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from contentapp.coordination.base import Admission
from contentapp.coordination.cooldown_store import CooldownStore, Known, decide
from contentapp.coordination.worker import Worker
from contentapp.core.cooldown import CLEAR, CooldownRule, CooldownState, Scope, expires_at

FRESH_SECONDS = 1.0
MAX_KNOWN = 4096


class Cooldowns:
    """The part of coordination.base.Coordination that is about cooldowns.

    Requests look at a copy of the states they need, which is good while the shared generation stands, and for a second
    at most; refusals and clear ways are decided on it. A trial is only ever taken in the store's own transaction.
    """

    def __init__(self, store: CooldownStore, worker: Worker, clock: Callable[[], float]) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._states: dict[str, CooldownState] = {}
        self._generation = b""
        self._is_empty = False
        self._read_at = float("-inf")

    async def admit(self, scopes: Sequence[Scope]) -> Admission:
        """See coordination.base.Coordination."""
        scopes = _distinct(scopes)
        admission, _ = decide(scopes, await self._current(scopes), self._clock())
        if not admission.trials:
            return admission
        return await self._worker.run_or_undo(self._give_back, self._store.take_trials, scopes)

    async def cooldown(self, scope: Scope) -> CooldownState | None:
        """See coordination.base.Coordination."""
        (state,) = await self._current([scope])
        return None if state is CLEAR or expires_at(state) <= self._clock() else state

    async def record_failure(self, scope: Scope, rule: CooldownRule, reason: str) -> CooldownState:
        """See coordination.base.Coordination."""
        return await self._worker.run(self._store.fail, scope, rule, reason)

    async def record_success(self, scopes: Sequence[Scope]) -> None:
        """See coordination.base.Coordination."""
        scopes = _distinct(scopes)
        states = await self._current(scopes)
        failed = [scope for scope, state in zip(scopes, states, strict=True) if state is not CLEAR]
        if failed:
            await self._worker.run(self._store.forget, failed)

    async def end_trials(self, scopes: Sequence[Scope]) -> None:
        """See coordination.base.Coordination."""
        if scopes:
            await self._worker.run(self._store.end_trials, _distinct(scopes))

    async def cooldowns(self) -> list[tuple[Scope, CooldownState]]:
        """See coordination.base.Coordination."""
        return await self._worker.run(self._store.listed)

    async def clear(self, scopes: Sequence[Scope] | None) -> int:
        """See coordination.base.Coordination."""
        return await self._worker.run(self._store.forget, scopes)

    def _give_back(self, admission: Admission) -> None:
        self._store.end_trials(admission.trials)

    async def _current(self, scopes: Sequence[Scope]) -> list[CooldownState]:
        if self._is_fresh():
            if self._is_empty:
                return [CLEAR] * len(scopes)
            known = [self._states.get(scope.key) for scope in scopes]
            if None not in known:
                return [state for state in known if state is not None]
        found = await self._worker.run(self._store.read, scopes)
        self._learn(scopes, found)
        return found.states

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < FRESH_SECONDS and self._generation == self._store.generation.current()

    def _learn(self, scopes: Sequence[Scope], found: Known) -> None:
        """Keep what was read. Answers of the one thread come in their order, so the last is the newest."""
        if found.generation != self._generation or not self._is_fresh() or len(self._states) >= MAX_KNOWN:
            self._states = {}
            self._generation = found.generation
            self._read_at = time.monotonic()
        self._is_empty = found.is_empty
        self._states.update((scope.key, state) for scope, state in zip(scopes, found.states, strict=True))


def _distinct(scopes: Sequence[Scope]) -> list[Scope]:
    return list({scope.key: scope for scope in scopes}.values())
