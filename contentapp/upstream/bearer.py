"""Bearer tokens: asked for at a realm (distribution's token spec), kept by realm, service and scope."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from cachetools import LRUCache
from yarl import URL

from contentapp.core.errors import ConnectError, UpstreamProtocolError
from contentapp.upstream.target import parse_target

MAX_TOKENS = 1024  # a remote; scopes hold names that devices ask for
MAX_TOKEN = 14 * 1024  # what still fits a header line of most servers
MAX_ANSWER = 256 * 1024
DEFAULT_SECONDS = 60.0
MAX_SECONDS = 86400.0
MARGIN = 0.2  # of its time, or at most …
MAX_MARGIN_SECONDS = 30.0  # … this, a token is renewed before it ends
VALUE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What a token is good for."""

    realm: URL
    service: str
    scope: str

    def parameters(self) -> list[tuple[str, str]]:
        """service and scope, as in a query or a form; several scopes are several parameters."""
        named = [("service", self.service)] if self.service else []
        return named + [("scope", scope) for scope in self.scope.split()]

    def url(self) -> URL:
        """Where to GET it: the realm with the parameters added to its own. ValueError when that gets too long."""
        query = "&".join(part for part in (self.realm.raw_query_string, urlencode(self.parameters())) if part)
        base = str(self.realm).partition("?")[0]
        return parse_target(f"{base}?{query}" if query else base)


@dataclass(frozen=True, slots=True)
class Token:
    """`lifetime_seconds` from when it was asked for. `has_credentials`: it was given to somebody, not to anybody."""

    value: str = field(repr=False)
    lifetime_seconds: float
    has_credentials: bool

    @property
    def useful_seconds(self) -> float:
        """How long it is used before it is renewed."""
        return self.lifetime_seconds - min(self.lifetime_seconds * MARGIN, MAX_MARGIN_SECONDS)


def parse_token(body: bytes, *, has_credentials: bool) -> Token:
    """Read a token server's JSON; UpstreamProtocolError when there is no usable token in it."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise UpstreamProtocolError("the token server's answer is no JSON object")
    value = answer.get("token") or answer.get("access_token")
    if not isinstance(value, str) or len(value) > MAX_TOKEN or not VALUE.fullmatch(value):
        raise UpstreamProtocolError("the token server's answer holds no usable token")
    return Token(value, _lifetime(answer.get("expires_in")), has_credentials)


def _lifetime(given: object) -> float:
    if not isinstance(given, int | float) or isinstance(given, bool) or not given > 0:
        return DEFAULT_SECONDS
    return min(given, MAX_SECONDS)


class TokenCache:
    """Tokens of one remote; N requests that miss the same one cost one fetch."""

    def __init__(self, fetch: Callable[[TokenKey], Awaitable[Token]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._kept: LRUCache[TokenKey, tuple[Token, float]] = LRUCache(MAX_TOKENS)
        self._fetching: dict[TokenKey, asyncio.Task[Token]] = {}

    def find(self, key: TokenKey) -> Token | None:
        """A token that is still good for a while."""
        kept = self._kept.get(key)
        return kept[0] if kept is not None and self._clock() < kept[1] else None

    async def get(self, key: TokenKey) -> Token:
        """A kept token or a new one. A waiter that leaves does not end the fetch for the others."""
        if (token := self.find(key)) is not None:
            return token
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.create_task(self._renew(key))
            task.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(task)

    async def _renew(self, key: TokenKey) -> Token:
        asked_at = self._clock()
        try:
            token = await self._fetch(key)
        except asyncio.CancelledError:
            # Only `close` cancels it; to those who wait it is an error, not a cancellation of their own.
            raise ConnectError("closed while asking for a token") from None
        self._kept[key] = (token, asked_at + token.useful_seconds)
        return token

    def _fetched(self, key: TokenKey, task: asyncio.Task[Token]) -> None:
        self._fetching.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, since all who waited may have left

    def drop(self, key: TokenKey, value: str) -> None:
        """This token was refused; a newer one of the same key stays."""
        kept = self._kept.get(key)
        if kept is not None and kept[0].value == value:
            del self._kept[key]

    async def close(self) -> None:
        """End what is being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
