"""Answers to 401: which credential goes where (P8), learned once and then sent without being asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from aiohttp import ClientResponse
from multidict import CIMultiDictProxy
from yarl import URL

from contentapp.core.errors import ChallengeInvalid, HostCooling, UpstreamError, UpstreamProtocolError
from contentapp.core.origin import Origin
from contentapp.core.records import Remote
from contentapp.upstream.answer import status_error
from contentapp.upstream.base import HostGate
from contentapp.upstream.bearer import MAX_ANSWER, Token, TokenCache, TokenKey, parse_token
from contentapp.upstream.body import patience_seconds, read_bounded, settle
from contentapp.upstream.challenge import BasicChallenge, BearerChallenge, choose_challenge
from contentapp.upstream.credentials import Credentials, CredentialSource
from contentapp.upstream.target import own_origin, target_origin

TOKEN_HOSTS = {("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")}
CLIENT_ID = "contentapp"


class Sender(Protocol):
    """What the token request needs of the remote's client."""

    async def send(
        self, method: str, url: URL, headers: Mapping[str, str], *, is_own: bool, body: bytes | None = None
    ) -> ClientResponse: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """An Authorization header. `has_credentials`: configured credentials stand behind it. `key`: of a token."""

    value: str = field(repr=False)
    has_credentials: bool
    key: TokenKey | None = None
    credentials: Credentials | None = field(default=None, repr=False)


def may_hold_credentials(remote: Remote, realm: URL) -> bool:
    """Whether Basic credentials may go to this token realm (P8)."""
    own, there = own_origin(remote.url), target_origin(realm)
    is_same_host = there.host == own.host
    if there.scheme != "https" and not (is_same_host and there.scheme == own.scheme):
        return False
    named = {host.lower() for host in remote.auth_hosts}
    return is_same_host or there.host in named or str(there) in named or (own.host, there.host) in TOKEN_HOSTS


class Authorizer:
    """The authorization of requests to one remote's own host."""

    def __init__(
        self, remote: Remote, client: Sender, credentials: CredentialSource, clock: Callable[[], float]
    ) -> None:
        self._remote = remote
        self._own: Origin = own_origin(remote.url)
        self._client = client
        self._credentials = credentials
        self._tokens = TokenCache(self._fetch, clock)
        self._learned: BearerChallenge | BasicChallenge | None = None

    async def prepare(self, scope: str, gate: HostGate) -> Grant | None:
        """What to send without having been asked, from what an earlier 401 has taught."""
        if isinstance(self._learned, BearerChallenge):
            try:
                return await self._bearer(self._learned, scope, gate)
            except HostCooling:
                raise
            except UpstreamError:
                self._learned = None  # the realm may have moved: the next request asks the remote where it is
                raise
        return await self._basic() if self._learned is not None else None

    async def answer(
        self, headers: CIMultiDictProxy[str], scope: str, used: Grant | None, gate: HostGate
    ) -> Grant | None:
        """What to send after a 401 to `used`; None when there is nothing better."""
        challenge = choose_challenge(headers.getall("WWW-Authenticate", []))
        if used is not None:
            self._drop(used)
        if challenge is None:
            return None
        if isinstance(challenge, BearerChallenge):
            self._check_realm(challenge.realm)
            bearer = await self._bearer(challenge, scope, gate)
            self._learned = challenge
            return bearer
        grant = await self._basic()
        if grant is None or (used is not None and grant.value == used.value):
            return None
        self._learned = challenge
        return grant

    def refused(self, grant: Grant) -> None:
        """A grant that had just been made was answered by 401: keep nothing of it."""
        self._drop(grant)

    async def close(self) -> None:
        """End token requests that are under way."""
        await self._tokens.close()

    def _drop(self, used: Grant) -> None:
        if used.key is not None:
            self._tokens.drop(used.key, used.value.removeprefix("Bearer "))
        if used.credentials is not None:
            self._credentials.forget(used.credentials)

    async def _basic(self) -> Grant | None:
        credentials = await self._credentials.find()
        if credentials is None or credentials.is_identity_token:
            return None
        return Grant(credentials.basic(), has_credentials=True, credentials=credentials)

    def _check_realm(self, realm: URL) -> None:
        """A token that came in the clear can't protect an encrypted registry."""
        if self._own.scheme == "https" and realm.scheme != "https":
            raise ChallengeInvalid("an https remote names a token realm without TLS", host=str(self._own))

    async def _bearer(self, challenge: BearerChallenge, scope: str, gate: HostGate) -> Grant:
        # Our own scope, where there is one: the remote's could ask for more than this request needs.
        key = TokenKey(challenge.realm, challenge.service, scope or challenge.scope)
        token = self._tokens.find(key)
        if token is None:
            await gate(str(target_origin(challenge.realm)))
            token = await self._tokens.get(key)
        return Grant(f"Bearer {token.value}", token.has_credentials, key)

    async def _fetch(self, key: TokenKey) -> Token:
        """One exchange with the token server; redirects are not followed."""
        credentials = await self._credentials.find() if may_hold_credentials(self._remote, key.realm) else None
        response = await self._ask(key, credentials)
        host = str(target_origin(key.realm))
        if response.status != 200:
            await settle(response)
            raise self._failure(response, host, credentials)
        try:
            body = await read_bounded(response, MAX_ANSWER, host, patience_seconds(self._remote))
            return parse_token(body, has_credentials=credentials is not None)
        except UpstreamProtocolError as error:
            error.host = host
            raise

    async def _ask(self, key: TokenKey, credentials: Credentials | None) -> ClientResponse:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        is_own = target_origin(key.realm) == self._own
        if credentials is not None and credentials.is_identity_token:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            form = _refresh_form(key, credentials)
            return await self._client.send("POST", key.realm, headers, is_own=is_own, body=form)
        if credentials is not None:
            headers["Authorization"] = credentials.basic()
        try:
            url = key.url()
        except ValueError:
            raise ChallengeInvalid("the token request gets too long") from None
        return await self._client.send("GET", url, headers, is_own=is_own)

    def _failure(self, response: ClientResponse, host: str, credentials: Credentials | None) -> Exception:
        status = response.status
        if credentials is not None and status in {400, 401, 403}:
            self._credentials.forget(credentials)
        # 403 is what some say of a scope that these credentials do not open; it must not cool the whole remote.
        refusals = {400, 401} if credentials is not None and credentials.is_identity_token else {401}
        if credentials is not None and status in refusals:
            return status_error(status, response.headers, host, credentials_refused=True)
        if status in {401, 403, 408, 429} or status >= 500:
            return status_error(status, response.headers, host)
        # A token server's 404 must not be taken for one of the content.
        return ChallengeInvalid(f"token server {host} answered {status}", host=host)


def _refresh_form(key: TokenKey, credentials: Credentials) -> bytes:
    """distribution's oauth2 grant: scopes in one parameter, separated by spaces."""
    form = {
        "grant_type": "refresh_token",
        "service": key.service,
        "client_id": CLIENT_ID,
        "scope": key.scope,
        "refresh_token": credentials.password,
    }
    return urlencode(form).encode()
