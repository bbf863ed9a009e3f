"""Connections that fail, limits on them, and who is named."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from contentapp.core.errors import ConnectError, UpstreamError, UpstreamProtocolError, UpstreamTimeout
from contentapp.core.origin import describe_origin
from contentapp.upstream.base import RemoteBusy
from contentapp.upstream.failure import head_failure
from contentapp.upstream.http import HttpUpstream
from tests.unit.upstream.asking import get, http_upstream, make_remote, make_request
from tests.unit.upstream.scripted import Answer, Asked, reply, scripted


async def failing(upstream: HttpUpstream, url: str, **values: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await get(upstream, make_request(make_remote(url, **values), "/f?sig=SECRET"))
    assert caught.value.host == describe_origin(url)
    assert "SECRET" not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.__suppress_context__
    return caught.value


async def test_nobody_listens(upstream: HttpUpstream) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = await failing(upstream, f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert isinstance(error, ConnectError)
    assert error.phrase == "connection refused"
    assert not error.is_permanent


@pytest.mark.parametrize(("number", "phrase"), [(socket.EAI_NONAME, "no such host"), (socket.EAI_AGAIN, "i/o timeout")])
async def test_names_that_do_not_resolve(number: int, phrase: str) -> None:
    def lookup(host: str, port: int, family: int) -> Sequence[str]:
        raise socket.gaierror(number, "failed")

    async with http_upstream(lookup=lookup) as upstream:
        error = await failing(upstream, "http://nowhere.test:1")
    assert isinstance(error, ConnectError)
    assert error.phrase == phrase


@pytest.mark.parametrize("then", ["close", "abort"])
async def test_a_connection_that_ends_before_the_head(upstream: HttpUpstream, then: str) -> None:
    async with scripted(lambda asked: Answer(b"HTTP/1.1 200", then)) as server:
        error = await failing(upstream, server.url)
        assert isinstance(error, ConnectError | UpstreamProtocolError)
        assert error.phrase == "unexpected EOF"


async def test_an_old_connection_that_was_closed_meanwhile_is_replaced(upstream: HttpUpstream) -> None:
    def handler(asked: Asked) -> Answer:
        is_second = asked.connection == 1 and len(server.asked) == 2
        return Answer(b"", "close") if is_second else Answer(reply(200, b"x"))

    async with scripted(handler) as server:
        for _ in range(3):
            assert (await get(upstream, make_request(make_remote(server.url)))).body == b"x"
        assert server.connections == 2


async def test_a_head_that_does_not_come(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(b"HTTP/1.1 200 OK\r\n", "stall")) as server:
        error = await failing(upstream, server.url, sock_read_timeout=0.2)
        assert isinstance(error, UpstreamTimeout)
        assert error.phrase == "i/o timeout"
        assert await asyncio.wait_for(server.ended.get(), 5) == 1


@pytest.mark.parametrize("bound", ["deadline", "total"])
async def test_the_requests_own_bounds_on_the_head(upstream: HttpUpstream, bound: str) -> None:
    async with scripted(lambda asked: Answer(b"", "stall")) as server:
        now = asyncio.get_running_loop().time()
        remote = make_remote(server.url, total_timeout=0.2 if bound == "total" else None)
        request = make_request(remote, deadline=now + 0.2 if bound == "deadline" else None)
        with pytest.raises(UpstreamTimeout) as caught:
            await get(upstream, request)
        assert caught.value.host == server.host
        assert asyncio.get_running_loop().time() - now < 2
        assert await asyncio.wait_for(server.ended.get(), 5) == 1


async def test_cancelling_leaves_nothing_open(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(b"", "stall")) as server:
        task = asyncio.create_task(get(upstream, make_request(make_remote(server.url, download_concurrency=1))))
        while not server.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(server.ended.get(), 5) == 1


async def test_download_concurrency_bounds_open_exchanges(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, b"body")) as server:
        remote = make_remote(server.url, download_concurrency=1, connect_timeout=0.2)
        async with upstream.open(make_request(remote)):
            with pytest.raises(RemoteBusy) as caught:
                await get(upstream, make_request(remote))
            assert caught.value.host == ""  # nobody's failure
            assert len(server.asked) == 1
        assert (await get(upstream, make_request(remote))).body == b"body"


async def test_a_place_is_given_back_after_every_ending(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(500) if asked.path == "/bad" else reply(200, b"body")) as server:
        remote = make_remote(server.url, download_concurrency=1, connect_timeout=1)
        for path in ("/bad", "/f", "/bad", "/f"):
            with_error = path == "/bad"
            try:
                await get(upstream, make_request(remote, path))
            except UpstreamError:
                assert with_error


async def test_a_new_revision_gets_new_connections_and_the_old_ones_go(upstream: HttpUpstream) -> None:
    body = b"body" * (4 << 20)
    async with scripted(lambda asked: reply(200, body)) as server:
        old = make_remote(server.url, revision=1, headers=(("X-V", "1"),))
        new = make_remote(server.url, revision=2, headers=(("X-V", "2"),))
        await get(upstream, make_request(old))
        async with upstream.open(make_request(old)) as response:
            await get(upstream, make_request(new))
            assert await response.read(len(body)) == body  # an open exchange is not cut
        assert await asyncio.wait_for(server.ended.get(), 5) == 1
        await get(upstream, make_request(new))
        assert server.connections == 2
        assert [asked.headers["x-v"] for asked in server.asked] == ["1", "1", "2", "2"]


async def test_remotes_do_not_share_connections(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, b"body")) as server:
        await get(upstream, make_request(make_remote(server.url, id=1)))
        await get(upstream, make_request(make_remote(server.url, id=2)))
        assert server.connections == 2


async def test_a_source_without_a_usable_url(upstream: HttpUpstream) -> None:
    with pytest.raises(UpstreamProtocolError):
        await get(upstream, make_request(make_remote("http://127.0.0.1:1"), "ftp://127.0.0.1/"))


async def test_after_close_nothing_is_opened() -> None:
    async with http_upstream() as upstream:
        await upstream.close()
        with pytest.raises(ConnectError):
            await get(upstream, make_request(make_remote("http://127.0.0.1:1")))


KEY = aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "kind", "phrase"),
    [
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ENETUNREACH, "x")), ConnectError, "network is unreachable"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "x")), ConnectError, "network is unreachable"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ETIMEDOUT, "x")), ConnectError, "i/o timeout"),
        (aiohttp.ClientConnectorError(KEY, OSError("several")), ConnectError, "connection refused"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EMFILE, "x")), RemoteBusy, "i/o timeout"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "x"), ConnectError, "unexpected EOF"),
        (aiohttp.ServerDisconnectedError(), ConnectError, "unexpected EOF"),
        (aiohttp.ConnectionTimeoutError(), UpstreamTimeout, "i/o timeout"),
    ],
)
def test_phrases(error: Exception, kind: type[UpstreamError], phrase: str) -> None:
    mapped = head_failure(error, "h:1")
    assert type(mapped) is kind
    assert mapped.phrase == phrase
