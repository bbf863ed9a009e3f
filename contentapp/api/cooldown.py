"""``/pulp/api/v3/cooldowns/``: which sources are not asked now, why, and for how long (P3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from contentapp.api.resource import (
    API_ROOT,
    InvalidField,
    body_of,
    href,
    identity,
    not_found,
    page,
    timestamp,
)
from contentapp.coordination.base import Coordination
from contentapp.core.cooldown import CooldownState, Scope, ScopeKind, admitted, remaining_seconds

NOUN = "cooldowns"
FILTERS = ("remote", "scope")
MAX_KEY = 16 * 1024

Cooldown = tuple[Scope, CooldownState]


class Cooldowns:
    """What cools down can be seen and cleared; what is remembered as absent (404) is not shown, but cleared too."""

    def __init__(self, coordination: Coordination, clock: Callable[[], float] = time.time) -> None:
        self._coordination = coordination
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """Where they are found."""
        root = f"{API_ROOT}{NOUN}/"
        return [
            web.get(root, self.index),
            web.post(f"{root}clear/", self.clear),
            web.get(f"{root}{{id}}/", self.read),
            web.delete(f"{root}{{id}}/", self.delete),
        ]

    async def index(self, request: web.Request) -> web.Response:
        """All, or those of a ``remote`` or of a kind of ``scope``; the longest first."""
        remote, kind = request.query.get("remote"), request.query.get("scope")
        found = [
            (scope, state)
            for scope, state in await self._coordination.cooldowns()
            if remote in {None, scope.remote_name} and kind in {None, str(scope.kind)}
        ]
        found.sort(key=lambda item: (-item[1].until, item[0].key))
        return page(request, found, self.show, FILTERS)

    async def read(self, request: web.Request) -> web.Response:
        """One."""
        found = await self._find(request.match_info["id"])
        return not_found() if found is None else web.json_response(self.show(found))

    async def delete(self, request: web.Request) -> web.Response:
        """Clear one."""
        found = await self._find(request.match_info["id"])
        if found is None:
            return not_found()
        await self._coordination.clear_cooldowns([found[0]])
        return web.Response(status=204)

    async def clear(self, request: web.Request) -> web.Response:
        """Clear all, those of one ``remote``, or the one whose ``scope`` has this key; how many were shown before."""
        body = await body_of(request, {"remote": str, "scope": str})
        if len(body) > 1:
            raise InvalidField("scope", "can't stand beside remote")
        return web.json_response({"cleared": await self._coordination.clear_cooldowns(await self._scopes(body))})

    async def _scopes(self, body: dict[str, str]) -> list[Scope] | None:
        if "scope" in body:
            return [scope_of(body["scope"])]
        if "remote" not in body:
            return None
        return [scope for scope, _ in await self._coordination.cooldowns() if scope.remote_name == body["remote"]]

    async def _find(self, wanted: str) -> Cooldown | None:
        for scope, state in await self._coordination.cooldowns():
            if identity(NOUN, scope.key) == wanted:
                return scope, state
        return None

    def show(self, cooldown: Cooldown) -> dict[str, Any]:
        """As JSON. retry_after: seconds until somebody may ask, 0 when the next request is the trial."""
        scope, state = cooldown
        now = self._clock()
        is_cooling = remaining_seconds(state, now) > 0
        _, _, wait = admitted(state, now)
        id = identity(NOUN, scope.key)  # noqa: A001 - Pulp's word
        return {
            "pulp_href": href(NOUN, id),
            "prn": f"prn:contentapp.cooldown:{id}",
            "remote": scope.remote_name,
            "scope": str(scope.kind),
            "key": scope.key,
            "subject": scope.subject,
            "reason": state.reason,
            "since": timestamp(state.since),
            "until": timestamp(state.until),
            "retry_after": math.ceil(wait),
            "level": state.level,
            "trial": not is_cooling and wait > 0,
        }


def scope_of(key: str) -> Scope:
    """The scope with this key; a 400 for what can't be one."""
    kind, _, rest = key.partition(":")
    remote_id, separator, subject = rest.partition(":")
    if kind not in tuple(ScopeKind) or not separator or not _is_number(remote_id) or len(key) > MAX_KEY:
        raise InvalidField("scope", "is not the key of a cooldown")
    return Scope(ScopeKind(kind), int(remote_id), "", subject)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
