"""Who may use the REST API: Basic authentication (RFC 7617) of the one admin, with wrong passwords slowed down."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from contentapp.api.password import USER

MAX_ADDRESSES = 10_000
MAX_WAITING = 8
FORGET_SECONDS = 900.0
FIRST_DELAY_SECONDS = 0.1
LAST_DELAY_SECONDS = 5.0


class Verdict(Enum):
    """What became of a login."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    BUSY = "busy"  # so many wrong ones of this address are being slowed down that no more are looked at


@dataclass(slots=True)
class _Address:
    """What is known of where wrong logins came from."""

    failures: int = 0
    failed_at: float = 0.0
    waiting: int = 0


class Login:
    """Compares in constant time. A wrong login waits for its answer, longer each time; a right one never does.

    Of one address at most MAX_WAITING wrong ones wait: while they do, nothing more of it is looked at, else guessing
    in parallel would make the wait meaningless. Other addresses notice nothing.
    """

    def __init__(
        self,
        password: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
        last_delay_seconds: float = LAST_DELAY_SECONDS,
    ) -> None:
        self._expected = f"{USER}:{password}".encode("utf-8", "surrogateescape")
        self._clock = clock
        self._first_delay_seconds = first_delay_seconds
        self._last_delay_seconds = last_delay_seconds
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def __repr__(self) -> str:
        return "Login(***)"

    async def check(self, address: str, authorization: str | None) -> Verdict:
        """Judge the value of an Authorization field, None for none, from a peer's address."""
        if authorization is None:
            return Verdict.REFUSED
        known = self._known(address)
        if known is not None and known.waiting >= MAX_WAITING:
            return Verdict.BUSY
        if hmac.compare_digest(_credentials(authorization), self._expected):
            if known is not None and not known.waiting:
                del self._addresses[address]
            return Verdict.ADMITTED
        await self._slow_down(known or self._learn(address))
        return Verdict.REFUSED

    async def _slow_down(self, known: _Address) -> None:
        known.failures += 1
        known.failed_at = self._clock()
        known.waiting += 1
        try:
            delay = self._first_delay_seconds * 2 ** min(known.failures - 1, 16)
            await asyncio.sleep(min(delay, self._last_delay_seconds))
        finally:
            known.waiting -= 1

    def _known(self, address: str) -> _Address | None:
        known = self._addresses.get(address)
        if known is not None and not known.waiting and self._clock() - known.failed_at > FORGET_SECONDS:
            del self._addresses[address]
            return None
        return known

    def _learn(self, address: str) -> _Address:
        if len(self._addresses) >= MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        known = self._addresses[address] = _Address()
        return known


def _credentials(authorization: str) -> bytes:
    """``user:password`` of a Basic login; b"" for anything else."""
    scheme, _, encoded = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
