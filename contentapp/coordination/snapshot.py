"""Which snapshots of a flight a slow follower may miss, and the descriptor of a spool while several need it."""

from __future__ import annotations

import os

from contentapp.coordination.base import FlightProgress


def supersedes(new: FlightProgress, old: FlightProgress) -> bool:
    """Whether a follower that sees `new` need not see `old`: a later moment of one attempt that was not over."""
    return new.attempt == old.attempt and not old.state.is_final


def is_turn(new: FlightProgress, old: FlightProgress | None) -> bool:
    """Whether `new` says more than how far an attempt has come, so that followers should know at once."""
    return (
        old is None
        or new.state is not old.state
        or new.attempt != old.attempt
        or new.size != old.size
        or new.is_windowed != old.is_windowed
        or new.detail != old.detail
    )


class Spool:
    """A copy of a spool's descriptor, closed when the last who keeps it drops it."""

    def __init__(self, fileno: int) -> None:
        self.fileno = os.dup(fileno)
        self._users = 1

    def keep(self) -> Spool:
        """One more user."""
        self._users += 1
        return self

    def drop(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            os.close(self.fileno)
