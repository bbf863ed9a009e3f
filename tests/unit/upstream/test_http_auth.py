"""Challenges, tokens, Basic, and where credentials may go (P8)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest

from contentapp.core.errors import AddressRefused, ChallengeInvalid, HostCooling, UpstreamError, UpstreamStatusError
from contentapp.core.secret import Secret, SecretUnavailable
from contentapp.upstream.auth import may_hold_credentials
from contentapp.upstream.http import HttpUpstream
from contentapp.upstream.target import parse_target
from tests.unit.upstream.asking import Clock, get, http_upstream, make_remote, make_request
from tests.unit.upstream.scripted import Answer, Asked, Scripted, reply, scripted

SCOPE = "repository:library/busybox:pull"
BASIC = "Basic " + base64.b64encode(b"u:SECRET").decode()


@dataclass
class TokenServer:
    """Gives out t1, t2, …; what it answers can be set."""

    given: int = 0
    expires_in: int = 300
    answer: Answer | bytes | None = None
    wants: str | None = None  # Authorization without which it answers 401
    asked: list[Asked] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer | bytes:
        self.asked.append(asked)
        if self.answer is not None:
            return self.answer
        if self.wants is not None and asked.headers.get("authorization") != self.wants:
            return reply(401, b"no")
        self.given += 1
        return reply(200, json.dumps({"token": f"t{self.given}", "expires_in": self.expires_in}).encode())


@dataclass
class Registry:
    """Wants a token that is among `good`; None: whatever the token server gave last."""

    tokens: TokenServer
    realm: str = ""
    scope: str = SCOPE
    good: set[str] | None = None
    status: int = 200

    def __call__(self, asked: Asked) -> bytes:
        good = {f"t{self.tokens.given}"} if self.good is None else self.good
        if asked.headers.get("authorization", "").removeprefix("Bearer ") in good:
            return reply(self.status, b"content")
        challenge = f'Bearer realm="{self.realm}",service="registry",scope="{self.scope}"'
        return reply(401, b'{"errors":[]}', ("WWW-Authenticate", challenge))


@dataclass
class Pair:
    """A registry and its token server, running."""

    registry: Scripted
    auth: Scripted
    behaviour: Registry
    tokens: TokenServer

    def remote(self, **values: Any) -> Any:
        return make_remote(self.registry.url, **values)

    def queries(self) -> list[dict[str, list[str]]]:
        return [parse_qs(asked.target.partition("?")[2]) for asked in self.auth.asked]


@asynccontextmanager
async def pair(**values: Any) -> AsyncIterator[Pair]:
    tokens = TokenServer()
    behaviour = Registry(tokens, **values)
    async with scripted(tokens) as auth, scripted(behaviour) as registry:
        behaviour.realm = behaviour.realm or f"{auth.url}/token?x=1"
        yield Pair(registry, auth, behaviour, tokens)


async def test_a_token_is_asked_for_once_and_then_sent_unasked(upstream: HttpUpstream) -> None:
    async with pair() as there:
        for _ in range(3):
            assert (await get(upstream, make_request(there.remote(), scope=SCOPE))).body == b"content"
        sent = [asked.headers.get("authorization") for asked in there.registry.asked]
        assert sent == [None, "Bearer t1", "Bearer t1", "Bearer t1"]
        assert there.queries() == [{"x": ["1"], "service": ["registry"], "scope": [SCOPE]}]
        assert "authorization" not in there.auth.asked[0].headers
        assert there.auth.asked[0].headers["accept-encoding"] == "identity"
        assert (there.registry.connections, there.auth.connections) == (1, 1)


async def test_another_scope_gets_its_own_token_without_a_401(upstream: HttpUpstream) -> None:
    async with pair(good={"t1", "t2"}) as there:
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        await get(upstream, make_request(there.remote(), scope="repository:other:pull"))
        sent = [asked.headers.get("authorization") for asked in there.registry.asked]
        assert sent == [None, "Bearer t1", "Bearer t2"]
        assert there.queries()[1]["scope"] == ["repository:other:pull"]


async def test_a_challenge_can_not_widen_the_scope(upstream: HttpUpstream) -> None:
    async with pair(scope="repository:library/busybox:pull,push,delete registry:catalog:*") as there:
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        assert there.queries()[0]["scope"] == [SCOPE]


async def test_without_a_scope_of_its_own_a_request_takes_the_challenges(upstream: HttpUpstream) -> None:
    async with pair(scope="a b") as there:
        await get(upstream, make_request(there.remote()))
        await get(upstream, make_request(there.remote()))
        assert there.queries() == [{"x": ["1"], "service": ["registry"], "scope": ["a", "b"]}]


async def test_many_at_once_cost_one_token(upstream: HttpUpstream) -> None:
    async with pair() as there:
        await asyncio.gather(*(get(upstream, make_request(there.remote(), scope=SCOPE)) for _ in range(20)))
        assert len(there.auth.asked) == 1


async def test_a_token_is_renewed_before_it_ends(upstream: HttpUpstream, clock: Clock) -> None:
    async with pair() as there:
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        clock.now += 271
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        sent = [asked.headers.get("authorization") for asked in there.registry.asked]
        assert sent == [None, "Bearer t1", "Bearer t2"]


async def test_a_refused_token_is_dropped_and_asked_for_once_more(upstream: HttpUpstream) -> None:
    async with pair(good={"t1"}) as there:
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        there.behaviour.good = {"t2"}
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        sent = [asked.headers.get("authorization") for asked in there.registry.asked]
        assert sent == [None, "Bearer t1", "Bearer t1", "Bearer t2"]


async def test_a_fresh_token_that_is_refused_is_a_401_and_not_kept(upstream: HttpUpstream) -> None:
    async with pair(good=set()) as there:
        for number in (1, 2):
            with pytest.raises(UpstreamStatusError) as caught:
                await get(upstream, make_request(there.remote(), scope=SCOPE))
            assert (caught.value.status, caught.value.host) == (401, there.registry.host)
            assert not caught.value.credentials_refused
            assert len(there.auth.asked) == 2 * number - 1


@pytest.mark.parametrize("status", [403, 404, 429, 503])
async def test_other_statuses_after_a_token(upstream: HttpUpstream, status: int) -> None:
    async with pair(status=status) as there:
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(there.remote(), scope=SCOPE))
        assert (caught.value.status, caught.value.host) == (status, there.registry.host)


async def test_credentials_go_to_a_realm_on_the_same_host(upstream: HttpUpstream) -> None:
    async with pair() as there:
        there.tokens.wants = BASIC
        remote = there.remote(username="u", password=Secret("SECRET"))
        assert (await get(upstream, make_request(remote, scope=SCOPE))).body == b"content"
        assert all("Basic" not in asked.headers.get("authorization", "") for asked in there.registry.asked)


async def test_credentials_do_not_go_to_a_realm_on_another_host(clock: Clock) -> None:
    names = {"registry.test": ["127.0.0.1"]}
    async with http_upstream(clock=clock, lookup=lambda host, port, family: names[host]) as upstream, pair() as there:
        url = f"http://registry.test:{there.registry.port}"
        for auth_hosts in ((), ("127.0.0.1",)):  # http, so that even a named one is not trusted
            remote = make_remote(
                url, username="u", password=Secret("SECRET"), auth_hosts=auth_hosts, id=len(auth_hosts)
            )
            await get(upstream, make_request(remote, scope=SCOPE))
        assert len(there.auth.asked) == 2
        assert all("authorization" not in asked.headers for asked in there.auth.asked)


@pytest.mark.parametrize(
    ("remote", "auth_hosts", "realm", "permitted"),
    [
        ("https://quay.io", (), "https://quay.io/v2/auth", True),
        ("https://quay.io", (), "https://quay.io:8443/v2/auth", True),
        ("https://quay.io", (), "http://quay.io/v2/auth", False),
        ("https://quay.io", (), "https://evil.example/auth", False),
        ("https://quay.io", (), "https://quay.io.evil.example/auth", False),
        ("https://quay.io", (), "https://auth.docker.io/token", False),
        ("https://quay.io", ("auth.example",), "https://auth.example/", True),
        ("https://quay.io", ("AUTH.example",), "https://auth.EXAMPLE/", True),
        ("https://quay.io", ("auth.example:8443",), "https://auth.example:8443/", True),
        ("https://quay.io", ("auth.example:8443",), "https://auth.example/", False),
        ("https://quay.io", ("auth.example",), "http://auth.example/", False),
        ("http://reg:5000", (), "http://reg:5001/auth", True),
        ("http://reg:5000", (), "https://reg/auth", True),
        ("http://reg:5000", ("auth",), "http://auth/", False),
        ("http://reg:5000", ("auth",), "https://auth/", True),
        ("https://registry-1.docker.io", (), "https://auth.docker.io/token", True),
        ("https://docker.io", (), "https://auth.docker.io/token", True),
        ("https://registry-1.docker.io", (), "http://auth.docker.io/token", False),
        ("https://registry-1.docker.io", (), "https://gitlab.com/jwt/auth", False),
        ("https://registry.gitlab.com", (), "https://gitlab.com/jwt/auth", True),
    ],
)
def test_where_credentials_may_go(remote: str, auth_hosts: tuple[str, ...], realm: str, *, permitted: bool) -> None:
    assert may_hold_credentials(make_remote(remote, auth_hosts=auth_hosts), parse_target(realm)) is permitted


async def test_refused_credentials_are_told_apart(upstream: HttpUpstream) -> None:
    async with pair() as there:
        there.tokens.wants = "Basic other"
        remote = there.remote(username="u", password=Secret("SECRET"))
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(remote, scope=SCOPE))
        error = caught.value
        assert (error.status, error.host, error.credentials_refused) == (401, there.auth.host, True)
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(there.remote(id=2), scope=SCOPE))
        assert (caught.value.status, caught.value.credentials_refused) == (401, False)  # anonymous: nothing refused


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (reply(403), UpstreamStatusError, 403),
        (reply(429, b"", ("Retry-After", "9")), UpstreamStatusError, 429),
        (reply(503), UpstreamStatusError, 503),
        (reply(404), ChallengeInvalid, None),
        (reply(302, b"", ("Location", "/other")), ChallengeInvalid, None),
        (reply(200, b"<html>"), UpstreamError, None),
        (reply(200, b'{"token":"t"}', ("Content-Encoding", "gzip")), UpstreamError, None),
        (Answer(reply(200, b"x" * 65536, length=1 << 40), repeat=1000), UpstreamError, None),
        (Answer(reply(200, b"{", length=100), "close"), UpstreamError, None),
        (Answer(b"", "close"), UpstreamError, None),
    ],
)
async def test_token_servers_that_fail(
    upstream: HttpUpstream, answer: Answer | bytes, kind: type[UpstreamError], status: int | None
) -> None:
    async with pair() as there:
        there.tokens.answer = answer
        remote = there.remote(username="u", password=Secret("SECRET"))
        with pytest.raises(kind) as caught:
            await get(upstream, make_request(remote, scope=SCOPE))
        error = caught.value
        assert error.host == there.auth.host
        assert getattr(error, "status", None) == status
        assert not getattr(error, "credentials_refused", False)
        assert len(there.auth.asked) == (2 if answer == Answer(b"", "close") else 1)  # a GET may be sent again
        assert "SECRET" not in str(error)


async def test_a_token_server_on_an_internal_address_is_not_dialled(upstream: HttpUpstream) -> None:
    async with pair(realm="http://10.0.0.1:1/token") as there:
        with pytest.raises(AddressRefused) as caught:
            await get(upstream, make_request(there.remote(), scope=SCOPE))
        assert caught.value.host == "10.0.0.1:1"


async def test_the_gate_is_asked_for_the_token_server_too(upstream: HttpUpstream) -> None:
    async with pair() as there:

        async def gate(host: str) -> None:
            if host == there.auth.host:
                raise HostCooling("cooling", host=host, retry_after_seconds=3)

        with pytest.raises(HostCooling):
            await get(upstream, make_request(there.remote(), scope=SCOPE, gate=gate))
        assert there.auth.connections == 0
        await get(upstream, make_request(there.remote(), scope=SCOPE))
        # a token that is held needs no token server
        await get(upstream, make_request(there.remote(), scope=SCOPE, gate=gate))


@pytest.mark.parametrize(
    "challenge",
    ['Bearer realm="', 'Bearer service="x"', 'Bearer realm="ftp://h/"', "Bearer", 'Bearer realm="http://u:p@h/"'],
)
async def test_malformed_challenges(upstream: HttpUpstream, challenge: str) -> None:
    async with scripted(lambda asked: reply(401, b"", ("WWW-Authenticate", challenge))) as server:
        with pytest.raises(ChallengeInvalid):
            await get(upstream, make_request(make_remote(server.url), scope=SCOPE))
        assert len(server.asked) == 1


@pytest.mark.parametrize("headers", [[], [("WWW-Authenticate", "Negotiate")], [("WWW-Authenticate", "Basic realm=x")]])
async def test_a_401_that_can_not_be_answered(upstream: HttpUpstream, headers: list[tuple[str, str]]) -> None:
    async with scripted(lambda asked: reply(401, b"", *headers)) as server:
        for number, path in enumerate(("/v2/", "/v2/a/tags/list"), 1):
            with pytest.raises(UpstreamStatusError) as caught:
                await get(upstream, make_request(make_remote(server.url), path))
            assert (caught.value.status, caught.value.credentials_refused) == (401, False)
            assert len(server.asked) == number


def basic_only(wanted: str = BASIC) -> Any:
    def handler(asked: Asked) -> bytes:
        if asked.headers.get("authorization") == wanted:
            return reply(200, b"content")
        return reply(401, b"", ("WWW-Authenticate", 'Basic realm="x"'))

    return handler


async def test_basic_is_learned_and_then_sent_unasked(upstream: HttpUpstream) -> None:
    async with scripted(basic_only()) as server:
        remote = make_remote(server.url, username="u", password=Secret("SECRET"))
        for _ in range(2):
            assert (await get(upstream, make_request(remote))).body == b"content"
        assert [asked.headers.get("authorization") for asked in server.asked] == [None, BASIC, BASIC]


async def test_wrong_basic_credentials_are_tried_once_and_refused_at_v2_cool_the_remote(
    upstream: HttpUpstream,
) -> None:
    async with scripted(basic_only("other")) as server:
        remote = make_remote(server.url, username="u", password=Secret("SECRET"))
        for path, is_refusal in (("/v2/", True), ("/v2/a/manifests/b", False)):
            with pytest.raises(UpstreamStatusError) as caught:
                await get(upstream, make_request(remote, path))
            assert caught.value.credentials_refused is is_refusal
        assert len(server.asked) == 3  # learned by the first, and sent once by the second


async def test_a_rotated_password_is_read_again(upstream: HttpUpstream, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("old")
    async with scripted(basic_only()) as server:
        remote = make_remote(server.url, username="u", password=Secret(file=str(secret)))
        with pytest.raises(UpstreamStatusError):
            await get(upstream, make_request(remote))
        secret.write_text("SECRET\n")
        assert (await get(upstream, make_request(remote))).body == b"content"


async def test_a_secret_that_is_not_there(upstream: HttpUpstream) -> None:
    async with scripted(basic_only()) as server:
        remote = make_remote(server.url, username="u", password=Secret(env="NOT_SET_ANYWHERE"))
        with pytest.raises(SecretUnavailable):
            await get(upstream, make_request(remote))


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    path = folder / "docker-credential-test"
    path.write_text(f"#!/bin/sh\ncat >> {folder}/hosts\necho >> {folder}/runs\n{output}\n")
    path.chmod(0o755)


async def test_a_helpers_credentials_are_renewed_on_401(
    upstream: HttpUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(
        tmp_path,
        monkeypatch,
        f"""if [ $(wc -l < {tmp_path}/runs) = 1 ]; then p=old; else p=SECRET; fi
        echo '{{"Username":"u","Secret":"'$p'"}}'""",
    )
    first = "Basic " + base64.b64encode(b"u:old").decode()
    good = {first}

    def handler(asked: Asked) -> bytes:
        if asked.headers.get("authorization") in good:
            return reply(200, b"content")
        return reply(401, b"", ("WWW-Authenticate", 'Basic realm="x"'))

    async with scripted(handler) as server:
        remote = make_remote(server.url, credential_helper="test")
        await get(upstream, make_request(remote))
        good.clear()
        good.add(BASIC)
        assert (await get(upstream, make_request(remote))).body == b"content"
        assert [asked.headers.get("authorization") for asked in server.asked] == [None, first, first, BASIC]
        assert (tmp_path / "hosts").read_text() == f"{server.host}\n" * 2


async def test_an_identity_token_is_a_refresh_token(
    upstream: HttpUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username":"<token>","Secret":"REFRESH+/="}'""")
    async with pair() as there:
        there.tokens.answer = reply(200, b'{"access_token":"t1","expires_in":60}')
        there.behaviour.good = {"t1"}
        remote = there.remote(credential_helper="docker-credential-test")
        assert (await get(upstream, make_request(remote, scope=SCOPE))).body == b"content"
        asked = there.auth.asked[0]
        assert (asked.method, asked.path) == ("POST", "/token")
        form = dict(parse_qsl(asked.body.decode()))
        assert form == {
            "grant_type": "refresh_token",
            "service": "registry",
            "client_id": "contentapp",
            "scope": SCOPE,
            "refresh_token": "REFRESH+/=",
        }
        assert "REFRESH" not in asked.target and "authorization" not in asked.headers


async def test_a_refused_identity_token(
    upstream: HttpUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username":"<token>","Secret":"REFRESH"}'""")
    async with pair() as there:
        there.tokens.answer = reply(400, b'{"error":"invalid_grant"}')
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(there.remote(credential_helper="test"), scope=SCOPE))
        assert caught.value.credentials_refused


async def test_an_identity_token_is_never_basic(
    upstream: HttpUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, """echo '{"Username":"<token>","Secret":"REFRESH"}'""")
    async with scripted(basic_only()) as server:
        with pytest.raises(UpstreamStatusError):
            await get(upstream, make_request(make_remote(server.url, credential_helper="test")))
        assert all("authorization" not in asked.headers for asked in server.asked)


async def test_tokens_belong_to_one_remote(upstream: HttpUpstream) -> None:
    async with pair(good={"t1", "t2"}) as there:
        await get(upstream, make_request(there.remote(id=1), scope=SCOPE))
        await get(upstream, make_request(there.remote(id=2), scope=SCOPE))
        assert len(there.auth.asked) == 2


async def test_a_token_does_not_cross_a_redirect(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, b"blob")) as cdn, pair() as there:
        behaviour = there.behaviour

        def handler(asked: Asked) -> bytes:
            answer = behaviour(asked)
            return reply(307, b"", ("Location", f"{cdn.url}/blob")) if b"content" in answer else answer

        async with scripted(handler) as registry:
            remote = make_remote(registry.url)
            for _ in range(2):
                assert (await get(upstream, make_request(remote, scope=SCOPE))).body == b"blob"
            assert registry.asked[-1].headers["authorization"] == "Bearer t1"
        assert all("authorization" not in asked.headers for asked in cdn.asked)


async def test_head_and_range_go_through_a_challenge(upstream: HttpUpstream) -> None:
    async with pair() as there:
        got = await get(upstream, make_request(there.remote(), scope=SCOPE, offset=3, if_none_match='"e"'))
        assert got.response.offset == 0
        assert {asked.headers["range"] for asked in there.registry.asked} == {"bytes=3-"}
        assert {asked.headers["if-none-match"] for asked in there.registry.asked} == {'"e"'}


async def test_a_configured_authorization_is_final(upstream: HttpUpstream) -> None:
    async with pair() as there:
        remote = there.remote(headers=(("authorization", "Bearer mine"),), username="u", password=Secret("SECRET"))
        with pytest.raises(UpstreamStatusError):
            await get(upstream, make_request(remote, scope=SCOPE))
        assert [asked.headers["authorization"] for asked in there.registry.asked] == ["Bearer mine"]
        assert there.auth.asked == []
