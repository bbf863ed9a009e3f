"""A token server, as registries send their clients to (distribution, "Token Authentication Specification")."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable

from aiohttp import web
from multidict import CIMultiDict

from tests.remotes.content import content_of
from tests.remotes.faults import Answer
from tests.remotes.scripted import ScriptedRemote


class TokenServer(ScriptedRemote):
    """Issues bearer tokens at ``/token`` for the scopes asked for, to anybody or to `credentials` alone.

    lifetime_seconds: told as `expires_in`, and kept by `accepts` on `clock`. realm: what the challenge names (default:
    this server). field: "token" or "access_token".
    """

    def __init__(
        self,
        *,
        service: str = "registry.test",
        credentials: tuple[str, str] | None = None,
        lifetime_seconds: float | None = 300,
        realm: str | None = None,
        field: str = "token",
        clock: Callable[[], float] = time.monotonic,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls=tls)
        self.service, self.credentials, self.lifetime_seconds = service, credentials, lifetime_seconds
        self.realm, self.field = realm or f"{self.url}/token", field
        self._clock = clock
        self._issued: dict[str, tuple[set[str], float]] = {}

    def challenge(self, scope: str) -> str:
        """The WWW-Authenticate that sends a client here."""
        wanted = f',scope="{scope}"' if scope else ""
        return f'Bearer realm="{self.realm}",service="{self.service}"{wanted}'

    def accepts(self, authorization: str, scope: str) -> bool:
        """Whether this is a token of ours, still valid, for that scope ("" is any)."""
        scheme, _, token = authorization.partition(" ")
        scopes, expiry = self._issued.get(token, (set(), 0.0))
        return scheme.lower() == "bearer" and self._clock() < expiry and (not scope or scope in scopes)

    def expire(self) -> None:
        """No token issued so far is valid any more."""
        self._issued.clear()

    @property
    def issued(self) -> int:
        """How many tokens that have not been expired by `expire` were issued."""
        return len(self._issued)

    async def answer(self, request: web.BaseRequest) -> Answer:
        if request.path != "/token":
            return Answer(path=request.path, status=404)
        expected = f"{self.credentials[0]}:{self.credentials[1]}" if self.credentials else None
        if expected is not None and given_credentials(request) != expected:
            return Answer(path=request.path, status=401, content=content_of(b'{"details":"incorrect credentials"}'))
        token = f"token-{self.address.rpartition(':')[2]}-{len(self.requests)}"
        lifetime = 60.0 if self.lifetime_seconds is None else self.lifetime_seconds
        scopes = {scope for value in request.query.getall("scope", []) for scope in value.split()}
        self._issued[token] = (scopes, self._clock() + lifetime)
        told = {} if self.lifetime_seconds is None else {"expires_in": int(self.lifetime_seconds)}
        headers = CIMultiDict({"Content-Type": "application/json"})
        return Answer(
            path=request.path, headers=headers, content=content_of(json.dumps({self.field: token, **told}).encode())
        )


def given_credentials(request: web.BaseRequest) -> str:
    """``user:password`` of a Basic header, "" if there is none."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return base64.b64decode(value).decode() if scheme.lower() == "basic" else ""
