"""Cooldown states that the processes of one host share, and that survive a restart."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

from contentapp.coordination.base import Admission
from contentapp.coordination.database import Database, transaction
from contentapp.coordination.generation import Generation
from contentapp.core import cooldown as rules
from contentapp.core.cooldown import CLEAR, CooldownRule, CooldownState, Scope, ScopeKind

T = TypeVar("T")

VERSION = 1
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS cooldowns (
         key TEXT PRIMARY KEY, kind TEXT NOT NULL, remote_id INTEGER NOT NULL, scope TEXT NOT NULL, state TEXT NOT NULL,
         level INTEGER NOT NULL, failed_at REAL NOT NULL, expires_at REAL NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS cooldowns_by_expiry ON cooldowns (expires_at)",
)
MAX_ROWS = 100_000
WRITES_BETWEEN_PRUNINGS = 256
# What devices can fill at will goes first, lest they push out what protects a remote.
DELETE_LEAST = """DELETE FROM cooldowns WHERE key IN (SELECT key FROM cooldowns ORDER BY
  CASE kind WHEN 'absent' THEN 0 WHEN 'path' THEN 1 WHEN 'artifact' THEN 2 ELSE 3 END, failed_at LIMIT ?)"""


class Known(NamedTuple):
    """What was read at once: the generation before, whether nothing at all was known, the states in the order asked."""

    generation: bytes
    is_empty: bool
    states: list[CooldownState]


class CooldownStore:
    """The states by scope. Blocking: used from one thread, but for `generation.current`."""

    def __init__(self, run_dir: Path, clock: Callable[[], float], *, max_rows: int = MAX_ROWS) -> None:
        self._database = Database(run_dir / "coordination.sqlite3", SCHEMA, version=VERSION, is_durable=True)
        self._clock = clock
        self._max_rows = max_rows
        self._writes = 0
        self._trials: dict[str, float] = {}  # by key: the end of a trial that this process took
        self.generation = Generation(run_dir / "coordination.generation")

    def start(self) -> None:
        """Forget what has expired."""
        self._run(self._prune)

    def close(self) -> None:
        """Idempotent."""
        self._database.close()
        self.generation.close()

    def read(self, scopes: Sequence[Scope]) -> Known:
        """The states of scopes, CLEAR for those of which nothing is known."""
        generation = self.generation.current()
        now = self._clock()

        def look(connection: sqlite3.Connection) -> Known:
            states = [_find(connection, scope, now) for scope in scopes]
            is_empty = connection.execute("SELECT 1 FROM cooldowns LIMIT 1").fetchone() is None
            return Known(generation, is_empty, states)

        return self._database.run(look)

    def take_trials(self, scopes: Sequence[Scope]) -> Admission:
        """Decide on all scopes in one transaction; no trial is taken if one of them refuses."""
        now = self._clock()

        def take(connection: sqlite3.Connection) -> tuple[Admission, list[CooldownState]]:
            with transaction(connection):
                states = [_find(connection, scope, now) for scope in scopes]
                admission, after = decide(scopes, states, now)
                for scope, state in zip(scopes, after, strict=True):
                    if scope in admission.trials:
                        _write(connection, scope, state)
            return admission, after

        admission, after = self._database.run(take)
        if admission.trials:
            self.generation.change()
        for scope, state in zip(scopes, after, strict=True):
            if scope in admission.trials:
                self._remember_trial(scope, state, now)
        return admission

    def end_trials(self, scopes: Sequence[Scope]) -> None:
        """Give back the trials of these scopes that this process took, unless another has taken one since."""
        own = {scope: self._trials.pop(scope.key) for scope in scopes if scope.key in self._trials}
        if not own:
            return
        now = self._clock()

        def end(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                for scope, until in own.items():
                    state = _find(connection, scope, now)
                    if state.trial_until == until:
                        _write(connection, scope, rules.trial_ended(state))

        self._run(end)

    def fail(self, scope: Scope, rule: CooldownRule, reason: str) -> CooldownState:
        """Count one failure; the new state."""
        now = self._clock()

        def count(connection: sqlite3.Connection) -> CooldownState:
            with transaction(connection):
                state = rules.failed(_find(connection, scope, now), rule, now, reason)
                _write(connection, scope, state)
            return state

        state = self._run(count)
        self._trials.pop(scope.key, None)
        self._count_write()
        return state

    def forget(self, scopes: Sequence[Scope] | None) -> int:
        """Forget these scopes, or all; the number of those that were listed."""
        now = self._clock()
        for key in [scope.key for scope in scopes] if scopes is not None else list(self._trials):
            self._trials.pop(key, None)

        def delete(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return sum(_delete(connection, row, now) for row in _rows(connection, scopes))

        return self._run(delete)

    def listed(self) -> list[tuple[Scope, CooldownState]]:
        """All that cool down or wait for their trial."""
        now = self._clock()
        found = self._database.run(
            lambda connection: connection.execute(
                "SELECT scope, state FROM cooldowns WHERE level > 0 AND kind != 'absent' AND expires_at > ?", (now,)
            ).fetchall()
        )
        return [(_scope(scope), _state(state)) for scope, state in found]

    def _run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run what changes something, and tell the others."""
        try:
            return self._database.run(operation)
        finally:
            self.generation.change()

    def _remember_trial(self, scope: Scope, state: CooldownState, now: float) -> None:
        if len(self._trials) >= 1024:
            self._trials = {key: until for key, until in self._trials.items() if until > now}
        self._trials[scope.key] = state.trial_until

    def _count_write(self) -> None:
        self._writes += 1
        if self._writes % WRITES_BETWEEN_PRUNINGS == 0:
            self._run(self._prune)

    def _prune(self, connection: sqlite3.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM cooldowns WHERE expires_at <= ?", (self._clock(),))
            (rows,) = connection.execute("SELECT count(*) FROM cooldowns").fetchone()
            if rows > self._max_rows:
                connection.execute(DELETE_LEAST, (rows - self._max_rows + self._max_rows // 10,))


def decide(
    scopes: Sequence[Scope], states: Sequence[CooldownState], now: float
) -> tuple[Admission, list[CooldownState]]:
    """Whether all scopes let a request through, and their states if it goes. The longest wait is the one told."""
    refused: list[tuple[float, Scope, CooldownState]] = []
    trials: list[Scope] = []
    after: list[CooldownState] = []
    for scope, state in zip(scopes, states, strict=True):
        is_admitted, then, wait = rules.admitted(state, now)
        after.append(then)
        if not is_admitted:
            refused.append((wait, scope, state))
        elif then is not state:
            trials.append(scope)
    if not refused:
        return Admission(True, trials=tuple(trials)), after
    wait, scope, state = max(refused, key=lambda item: item[0])
    return Admission(False, wait, state.reason, scope), list(states)


def _key(scope: Scope) -> str:
    return hashlib.sha256(scope.key.encode("utf-8", "surrogatepass")).hexdigest()


def _find(connection: sqlite3.Connection, scope: Scope, now: float) -> CooldownState:
    row = connection.execute("SELECT state FROM cooldowns WHERE key = ?", (_key(scope),)).fetchone()
    if row is None:
        return CLEAR
    state = _state(row[0])
    return CLEAR if rules.expires_at(state) <= now else state


def _write(connection: sqlite3.Connection, scope: Scope, state: CooldownState) -> None:
    values = (
        _key(scope),
        str(scope.kind),
        scope.remote_id,
        json.dumps(asdict(scope)),
        json.dumps(asdict(state)),
        state.level,
        state.failed_at,
        rules.expires_at(state),
    )
    connection.execute("REPLACE INTO cooldowns VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def _rows(connection: sqlite3.Connection, scopes: Sequence[Scope] | None) -> list[tuple[str, str, int, float]]:
    columns = "SELECT key, kind, level, expires_at FROM cooldowns"
    if scopes is None:
        return connection.execute(columns).fetchall()
    keys = {_key(scope) for scope in scopes}
    found = [connection.execute(f"{columns} WHERE key = ?", (key,)).fetchone() for key in keys]
    return [row for row in found if row is not None]


def _delete(connection: sqlite3.Connection, row: tuple[str, str, int, float], now: float) -> bool:
    """Delete one; whether it was one that is listed."""
    key, kind, level, expires_at = row
    connection.execute("DELETE FROM cooldowns WHERE key = ?", (key,))
    return level > 0 and kind != ScopeKind.ABSENT and expires_at > now


def _scope(text: str) -> Scope:
    values = json.loads(text)
    return Scope(**{**values, "kind": ScopeKind(values["kind"])})


def _state(text: str) -> CooldownState:
    values = json.loads(text)
    return CooldownState(**{**values, "recent": tuple(values["recent"])})
