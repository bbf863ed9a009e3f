"""The generic cell rate algorithm (ITU-T I.371, annex A) as a pure rule, for limits that are waited for."""

from __future__ import annotations

import math


def reserve(tat: float, now: float, *, amount: float, rate: float, burst: float) -> tuple[float, float]:
    """Take `amount` units from a limit of `rate` units a second that lets `burst` units through at once.

    tat: the theoretical arrival time that the last reservation left (0: none). Returns the new one and the seconds to
    wait before the amount may be used. Nothing is ever refused; an amount above the burst waits for what is above it.
    ValueError: a rate that is not positive, or an amount or burst that is negative or not finite.
    """
    if not (rate > 0 and 0 <= amount < math.inf and 0 <= burst < math.inf):
        raise ValueError(f"no such limit: {amount=} {rate=} {burst=}")
    tat = max(tat, now) + amount / rate
    return tat, max(0.0, tat - burst / rate - now)
