"""What may be released before the whole is verified (P1)."""

from __future__ import annotations

from contentapp.coordination.base import FlightState
from contentapp.core.settings import KIB, UNLIMITED
from contentapp.pipeline.progress import Attempt

HOLD_BACK_SIZE = 64 * KIB
"""The tail of every streamed body that waits for the verdict."""


def releasable(attempt: Attempt, end: int | None, *, is_strict: bool = False, is_part: bool = False) -> int:
    """How far (absolute offset) the bytes of an attempt may go to a device that wants them up to `end` (None: all).

    Verified: to the end. Before: everything that has arrived, but for the last HOLD_BACK_SIZE bytes of the whole if the
    device wants the last byte. If the size is unknown: but for the last read, and, where the device was promised an end
    all the same, but for the last HOLD_BACK_SIZE bytes before it. Strict: nothing. Of a part, all that has been held
    against proven chunk digests.
    """
    if attempt.state is FlightState.VERIFIED:
        return attempt.arrived
    if is_part and attempt.is_proven and attempt.state is FlightState.RUNNING:
        return attempt.arrived
    if is_strict or attempt.state is not FlightState.RUNNING:
        return 0
    if attempt.size is None:
        held_back = attempt.arrived - max(attempt.last_read, 1)
        return max(0, held_back if end is None else min(held_back, end - HOLD_BACK_SIZE))
    if end is None or end >= attempt.size:
        return min(attempt.arrived, max(0, attempt.size - HOLD_BACK_SIZE))
    return attempt.arrived


def is_verified_first(size: int | None, verify_first_bytes: int) -> bool:
    """Whether a body of this size is verified before its first byte; an unknown size only when everything is."""
    return (UNLIMITED if size is None else size) <= verify_first_bytes
