"""Limits of rate and bandwidth that the processes of one host share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from contentapp.coordination.database import Database, transaction
from contentapp.core import gcra

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS limits"
    " (name TEXT PRIMARY KEY, tat REAL NOT NULL, reserved_at REAL NOT NULL) WITHOUT ROWID",
)
VERSION = 1
CLOCK_STEP_SECONDS = 1.0
KEEP_SECONDS = 86400.0


class Limits:
    """Reservations by name, in a file that nobody misses after a power loss. Blocking: used from one thread."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._database = Database(path, SCHEMA, version=VERSION, is_durable=False)
        self._clock = clock

    def start(self) -> None:
        """Forget limits that nobody has used for a day."""
        oldest = self._clock() - KEEP_SECONDS
        self._database.run(lambda connection: _forget(connection, oldest))

    def close(self) -> None:
        """Idempotent."""
        self._database.close()

    def reserve(self, name: str, amount: float, rate: float, burst: float) -> float:
        """See coordination.base.Coordination."""
        now = self._clock()

        def take(connection: sqlite3.Connection) -> float:
            with transaction(connection):
                tat, wait = gcra.reserve(_find_tat(connection, name, now), now, amount=amount, rate=rate, burst=burst)
                connection.execute("REPLACE INTO limits VALUES (?, ?, ?)", (name, tat, now))
            return wait

        return self._database.run(take)


def _find_tat(connection: sqlite3.Connection, name: str, now: float) -> float:
    """What the last reservation left, unless the clock has been set back since: then it may lie years ahead."""
    row = connection.execute("SELECT tat, reserved_at FROM limits WHERE name = ?", (name,)).fetchone()
    if row is None or row[1] > now + CLOCK_STEP_SECONDS:
        return 0.0
    return float(row[0])


def _forget(connection: sqlite3.Connection, oldest: float) -> None:
    with transaction(connection):
        connection.execute("DELETE FROM limits WHERE reserved_at < ?", (oldest,))
