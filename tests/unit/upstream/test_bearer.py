from __future__ import annotations

import asyncio
import json

import pytest

from contentapp.core.errors import ConnectError, UpstreamProtocolError
from contentapp.upstream.bearer import MAX_TOKENS, Token, TokenCache, TokenKey, parse_token
from contentapp.upstream.target import parse_target
from tests.unit.upstream.asking import Clock

KEY = TokenKey(parse_target("https://auth/token?a=%2F"), "reg istry", "repository:a/b:pull")


def test_the_token_url_adds_to_the_realms_own_query() -> None:
    assert str(KEY.url()) == "https://auth/token?a=%2F&service=reg+istry&scope=repository%3Aa%2Fb%3Apull"


def test_several_scopes_are_several_parameters_and_none_is_none() -> None:
    realm = parse_target("https://auth/token")
    assert str(TokenKey(realm, "", "a b").url()) == "https://auth/token?scope=a&scope=b"
    assert str(TokenKey(realm, "", "").url()) == "https://auth/token"


@pytest.mark.parametrize(
    ("answer", "value", "lifetime"),
    [
        ({"token": "t"}, "t", 60),
        ({"access_token": "a"}, "a", 60),
        ({"token": "t", "access_token": "a", "expires_in": 300}, "t", 300),
        ({"token": "", "access_token": "a"}, "a", 60),
        ({"token": "t", "expires_in": 0}, "t", 60),
        ({"token": "t", "expires_in": -1}, "t", 60),
        ({"token": "t", "expires_in": "300"}, "t", 60),
        ({"token": "t", "expires_in": True}, "t", 60),
        ({"token": "t", "expires_in": None}, "t", 60),
        ({"token": "t", "expires_in": 10**9}, "t", 86400),
        ({"token": "t", "expires_in": 10**400}, "t", 86400),
        ({"token": "t", "expires_in": float("nan")}, "t", 60),
    ],
)
def test_token_answers(answer: dict[str, object], value: str, lifetime: float) -> None:
    token = parse_token(json.dumps(answer).encode(), has_credentials=True)
    assert (token.value, token.lifetime_seconds, token.has_credentials) == (value, lifetime, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b'{"token": 5}',
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "\\u00e4"}',
        b'{"token": "' + b"x" * 20000 + b'"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"token": "t", "expires_in": NaN',
    ],
)
def test_answers_without_a_usable_token(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        parse_token(body, has_credentials=False)


def test_a_token_does_not_show_itself() -> None:
    assert "SECRET" not in repr(Token("SECRET", 60, has_credentials=False))


class Server:
    """Gives tokens t1, t2, … when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.lifetime = 100.0
        self.go = asyncio.Event()
        self.go.set()

    async def fetch(self, key: TokenKey) -> Token:
        self.asked += 1
        number = self.asked
        await self.go.wait()
        if key.scope == "fails":
            raise UpstreamProtocolError("no")
        return Token(f"t{number}", self.lifetime, has_credentials=False)


async def test_a_token_is_kept_until_shortly_before_its_end(clock: Clock) -> None:
    server = Server()
    cache = TokenCache(server.fetch, clock)
    assert (await cache.get(KEY)).value == "t1"
    clock.now += 79
    assert (await cache.get(KEY)).value == "t1"
    clock.now += 2
    assert cache.find(KEY) is None
    assert (await cache.get(KEY)).value == "t2"


async def test_a_long_lived_token_is_renewed_half_a_minute_before(clock: Clock) -> None:
    server = Server()
    server.lifetime = 3600
    cache = TokenCache(server.fetch, clock)
    await cache.get(KEY)
    clock.now += 3569
    assert cache.find(KEY) is not None
    clock.now += 2
    assert cache.find(KEY) is None


async def test_the_time_of_the_fetch_counts(clock: Clock) -> None:
    server = Server()
    server.go.clear()
    cache = TokenCache(server.fetch, clock)
    task = asyncio.create_task(cache.get(KEY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now += 81
    server.go.set()
    await task
    assert cache.find(KEY) is None


async def test_many_waiters_cost_one_fetch_and_one_that_leaves_ends_nothing(clock: Clock) -> None:
    server = Server()
    server.go.clear()
    cache = TokenCache(server.fetch, clock)
    tasks = [asyncio.create_task(cache.get(KEY)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    server.go.set()
    values = {token.value for token in await asyncio.gather(*tasks[1:])}
    assert (values, server.asked, tasks[0].cancelled()) == ({"t1"}, 1, True)


async def test_a_failed_fetch_fails_all_waiters_and_is_not_kept(clock: Clock) -> None:
    server = Server()
    cache = TokenCache(server.fetch, clock)
    key = TokenKey(KEY.realm, "", "fails")
    for expected in (1, 2):
        outcomes = await asyncio.gather(cache.get(key), cache.get(key), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UpstreamProtocolError] * 2
        assert server.asked == expected


async def test_keys_do_not_share_tokens(clock: Clock) -> None:
    cache = TokenCache(Server().fetch, clock)
    keys = [
        KEY,
        TokenKey(KEY.realm, KEY.service, "other"),
        TokenKey(KEY.realm, "other", KEY.scope),
        TokenKey(parse_target("https://other/"), KEY.service, KEY.scope),
    ]
    assert len({(await cache.get(key)).value for key in keys}) == 4


async def test_drop_forgets_the_refused_token_and_no_newer_one(clock: Clock) -> None:
    cache = TokenCache(Server().fetch, clock)
    await cache.get(KEY)
    cache.drop(KEY, "other")
    assert cache.find(KEY) is not None
    cache.drop(KEY, "t1")
    assert cache.find(KEY) is None


async def test_the_cache_is_bounded(clock: Clock) -> None:
    cache = TokenCache(Server().fetch, clock)
    keys = [TokenKey(KEY.realm, "", str(number)) for number in range(MAX_TOKENS + 10)]
    for key in keys:
        await cache.get(key)
    assert cache.find(keys[0]) is None
    assert cache.find(keys[-1]) is not None


async def test_close_ends_a_fetch_with_an_error_for_its_waiters(clock: Clock) -> None:
    server = Server()
    server.go.clear()
    cache = TokenCache(server.fetch, clock)
    task = asyncio.create_task(cache.get(KEY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(ConnectError):
        await task
