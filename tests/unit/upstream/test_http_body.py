"""Heads and bodies: framing, ranges, lengths, codings, interruption, reuse."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from contentapp.core.errors import TransferInterrupted, UpstreamProtocolError, UpstreamStatusError, UpstreamTimeout
from contentapp.upstream.http import HttpUpstream
from tests.unit.upstream.asking import get, http_upstream, make_remote, make_request
from tests.unit.upstream.scripted import MANY, Answer, Asked, Scripted, reply, scripted

BODY = bytes(range(256)) * 1024


def part(start: int, end: int, size: int | str = len(BODY), **values: int) -> bytes:
    """A right 206 for the half-open range."""
    return reply(206, BODY[start:end], ("Content-Range", f"bytes {start}-{end - 1}/{size}"), **values)


async def ask(upstream: HttpUpstream, answer: Answer | bytes, **values: Any) -> tuple[Scripted, object]:
    """Ask a server that always answers so; what came, an error included."""
    async with scripted(lambda asked: answer) as server:
        try:
            return server, await get(upstream, make_request(make_remote(server.url), **values))
        except Exception as error:
            return server, error


async def test_a_whole_body_with_its_facts(upstream: HttpUpstream) -> None:
    headers = (
        ("ETag", '"e"'),
        ("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT"),
        ("Docker-Content-Digest", "sha256:x"),
    )
    async with scripted(lambda asked: reply(200, BODY, *headers)) as server:
        got = await get(upstream, make_request(make_remote(server.url), "/v2/a?secret=1"))
        response = got.response
        assert got.body == BODY
        assert (response.status, response.offset, response.size, response.length) == (200, 0, len(BODY), len(BODY))
        assert (response.etag, response.last_modified) == ('"e"', "Wed, 01 Jan 2025 00:00:00 GMT")
        assert response.headers["docker-content-digest"] == "sha256:x"
        assert response.host == server.host
        assert response.url == f"{server.url}/v2/a"
        sent = server.asked[0].headers
        assert sent["accept-encoding"] == "identity"
        assert sent["user-agent"] == "contentapp-test"
        assert "range" not in sent and "cookie" not in sent


async def test_the_same_connection_is_used_again_after_a_whole_body(upstream: HttpUpstream) -> None:
    headers = [("Set-Cookie", "a=b")]
    async with scripted(lambda asked: reply(200, BODY, *headers)) as server:
        for _ in range(3):
            await get(upstream, make_request(make_remote(server.url)))
        assert server.connections == 1
        assert "cookie" not in server.asked[2].headers


async def test_a_body_that_was_left_is_cut_at_once_and_not_drained(upstream: HttpUpstream) -> None:
    endless = Answer(b"x" * 65536, repeat=MANY)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n"

    def handler(asked: Asked) -> Answer:
        return Answer(head + endless.data, repeat=MANY) if asked.path == "/big" else Answer(reply(200, b"small"))

    async with scripted(handler) as server:
        remote = make_remote(server.url)
        async with upstream.open(make_request(remote, "/big")) as response:
            async for _ in response.chunks():
                break
        assert await asyncio.wait_for(server.ended.get(), 5) == 1
        assert (await get(upstream, make_request(remote))).body == b"small"
        assert server.connections == 2


async def test_chunked_body_of_unknown_size(upstream: HttpUpstream) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    async with scripted(lambda asked: data) as server:
        got = await get(upstream, make_request(make_remote(server.url)))
        assert got.body == b"hello world"
        assert (got.response.size, got.response.length) == (None, None)


async def test_body_until_the_connection_ends(upstream: HttpUpstream) -> None:
    answer = Answer(b"HTTP/1.0 200 OK\r\n\r\nall of it", then="close")
    async with scripted(lambda asked: answer) as server:
        got = await get(upstream, make_request(make_remote(server.url)))
        assert (got.body, got.response.length) == (b"all of it", None)


async def test_head_has_a_size_and_no_body(upstream: HttpUpstream) -> None:
    head = reply(200, b"", ("ETag", '"x"'), length=12345)
    async with scripted(lambda asked: head) as server:
        for _ in range(2):
            got = await get(upstream, make_request(make_remote(server.url), method="HEAD", offset=5))
            assert (got.body, got.response.size, got.response.length) == (b"", 12345, 12345)
        assert [asked.method for asked in server.asked] == ["HEAD", "HEAD"]
        assert "range" not in server.asked[0].headers
        assert server.connections == 1


@pytest.mark.parametrize(
    ("offset", "end", "sent"),
    [(0, None, None), (1, None, "bytes=1-"), (0, 1, "bytes=0-0"), (100, 200, "bytes=100-199")],
)
async def test_ranges_are_half_open_inside_and_inclusive_on_the_wire(
    upstream: HttpUpstream, offset: int, end: int | None, sent: str | None
) -> None:
    stop = len(BODY) if end is None else end
    answer = part(offset, stop) if sent else reply(200, BODY)
    async with scripted(lambda asked: answer) as server:
        request = make_request(make_remote(server.url), offset=offset, end=end, if_range='"v"')
        got = await get(upstream, request)
        assert server.asked[0].headers.get("range") == sent
        assert server.asked[0].headers.get("if-range") == ('"v"' if sent else None)
        assert got.body == BODY[offset:stop]
        assert (got.response.offset, got.response.size, got.response.length) == (offset, len(BODY), stop - offset)


async def test_a_remote_that_ignores_range_starts_at_zero(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, BODY)) as server:
        got = await get(upstream, make_request(make_remote(server.url), offset=1000))
        assert (got.response.status, got.response.offset, len(got.body)) == (200, 0, len(BODY))


async def test_a_part_of_an_unknown_whole(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: part(10, 20, "*")) as server:
        got = await get(upstream, make_request(make_remote(server.url), offset=10, end=20))
        assert (got.response.size, got.response.length) == (None, 10)


async def test_a_range_that_is_clipped_at_the_end(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: part(len(BODY) - 5, len(BODY))) as server:
        got = await get(upstream, make_request(make_remote(server.url), offset=len(BODY) - 5, end=len(BODY) + 100))
        assert got.body == BODY[-5:]


def with_range(value: str, body: bytes = b"0123456789") -> bytes:
    return reply(206, body, ("Content-Range", value))


CHUNKED_PART = b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\nContent-Range: bytes 10-19/30\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        reply(206, b"0123456789"),
        with_range("bytes 0-9/30"),
        with_range("bytes 11-20/30"),
        with_range("bytes 10-20/30"),
        with_range("bytes 10-9/30"),
        with_range("bytes 10-19/19"),
        with_range("bytes 10-19"),
        with_range("bytes 10-/30"),
        with_range("bytes */30"),
        with_range("items 10-19/30"),
        with_range("bytes -10-19/30"),
        with_range("bytes 10-19/30", b"012345678"),
        with_range("bytes 10-1" + "9" * 30 + "/*"),
        reply(206, b"0123456789", ("Content-Range", "bytes 10-19/30"), ("Content-Range", "bytes 10-19/30")),
        reply(206, b"0123456789", ("Content-Range", "bytes 10-19/30"), ("Content-Type", "multipart/byteranges; b=x")),
        CHUNKED_PART + b"b\r\n0123456789X\r\n0\r\n\r\n",
    ],
)
async def test_parts_that_contradict_the_request(upstream: HttpUpstream, answer: bytes) -> None:
    server, got = await ask(upstream, answer, offset=10, end=20)
    assert isinstance(got, UpstreamProtocolError)
    assert got.host == server.host


async def test_a_chunked_part_that_ends_early_is_interrupted(upstream: HttpUpstream) -> None:
    _, got = await ask(upstream, CHUNKED_PART + b"9\r\n012345678\r\n0\r\n\r\n", offset=10, end=20)
    assert isinstance(got, TransferInterrupted)


async def test_a_part_nobody_asked_for(upstream: HttpUpstream) -> None:
    _, got = await ask(upstream, with_range("bytes 0-9/30"))
    assert isinstance(got, UpstreamProtocolError)


BAD_HEADS: Iterable[bytes] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: x-unknown\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000 + b"\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"Content-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 " + b"O" * 20000 + b"\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent Length: 5\r\n\r\nhello",
    b"\x16\x03\x01garbage" * 10,
]


@pytest.mark.parametrize("head", BAD_HEADS)
async def test_heads_that_break_http(upstream: HttpUpstream, head: bytes) -> None:
    server, got = await ask(upstream, Answer(head, then="close"))
    assert isinstance(got, UpstreamProtocolError), got
    assert got.host == server.host


async def test_identity_as_a_content_coding_is_none(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, b"x", ("Content-Encoding", "Identity"))) as server:
        assert (await get(upstream, make_request(make_remote(server.url)))).body == b"x"


async def test_an_endless_head_ends_in_an_error(upstream: HttpUpstream) -> None:
    _, got = await ask(upstream, Answer(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, repeat=MANY))
    assert isinstance(got, UpstreamProtocolError)


async def test_interim_answers_without_end_are_a_timeout(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(b"HTTP/1.1 100 Continue\r\n\r\n", repeat=MANY * 100)) as server:
        remote = make_remote(server.url, connect_timeout=0.1, sock_read_timeout=0.2)
        with pytest.raises(UpstreamTimeout):
            await get(upstream, make_request(remote))


async def test_interim_answers_are_skipped(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + reply(200, b"x")) as server:
        assert (await get(upstream, make_request(make_remote(server.url)))).body == b"x"


@pytest.mark.parametrize("then", ["close", "abort"])
async def test_a_body_cut_before_its_announced_end(upstream: HttpUpstream, then: str) -> None:
    async with scripted(lambda asked: Answer(reply(200, BODY, length=len(BODY) + 1), then)) as server:
        received = b""
        async with upstream.open(make_request(make_remote(server.url))) as response:
            with pytest.raises(TransferInterrupted, match="unexpected EOF") as caught:
                async for chunk in response.chunks():
                    received += chunk
        assert BODY.startswith(received)
        assert caught.value.host == server.host
        assert not caught.value.is_permanent


@pytest.mark.parametrize("tail", [b"", b"5\r\nhel", b"zz\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n"])
async def test_a_chunked_body_cut_or_broken(upstream: HttpUpstream, tail: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    _, got = await ask(upstream, Answer(head + tail, then="close"))
    assert isinstance(got, TransferInterrupted | UpstreamProtocolError), got


async def test_a_stalled_body_is_a_timeout(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(reply(200, b"begin", length=100), "stall")) as server:
        request = make_request(make_remote(server.url, sock_read_timeout=0.2))
        async with upstream.open(request) as response:
            with pytest.raises(UpstreamTimeout, match="i/o timeout"):
                [chunk async for chunk in response.chunks()]


async def test_a_slow_reader_is_no_timeout_of_the_remote(upstream: HttpUpstream) -> None:
    body = b"x" * (16 << 20)
    async with scripted(lambda asked: reply(200, body)) as server:
        request = make_request(make_remote(server.url, sock_read_timeout=0.2))
        async with upstream.open(request) as response:
            received = 0
            async for chunk in response.chunks():
                if received == 0:
                    await asyncio.sleep(0.5)
                received += len(chunk)
        assert received == len(body)


async def test_total_timeout_holds_for_the_body_too(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(reply(200, b"begin", length=100), "stall")) as server:
        request = make_request(make_remote(server.url, total_timeout=0.3))
        async with upstream.open(request) as response:
            with pytest.raises(UpstreamTimeout):
                [chunk async for chunk in response.chunks()]


async def test_read_is_bounded_before_and_while_reading(upstream: HttpUpstream) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 3 + b"0\r\n\r\n"

    def handler(asked: Asked) -> bytes:
        return chunked if asked.path == "/chunked" else reply(200, b"hello" * 3)

    async with scripted(handler) as server:
        for path in ("/chunked", "/length"):
            async with upstream.open(make_request(make_remote(server.url), path)) as response:
                assert await response.read(15) == b"hello" * 3
            async with upstream.open(make_request(make_remote(server.url), path)) as response:
                with pytest.raises(UpstreamProtocolError):
                    await response.read(14)


async def test_an_endless_body_is_cut_by_read(upstream: HttpUpstream) -> None:
    data = b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 65536
    async with scripted(lambda asked: Answer(data, repeat=MANY)) as server:
        async with upstream.open(make_request(make_remote(server.url))) as response:
            with pytest.raises(UpstreamProtocolError):
                await response.read(1 << 20)
        assert await asyncio.wait_for(server.ended.get(), 5) == 1


@pytest.mark.parametrize("path", ["/length", "/chunked"])
async def test_max_body_size_bounds_chunks(upstream: HttpUpstream, path: str) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    async with scripted(lambda asked: chunked if asked.path == "/chunked" else reply(200, b"hello")) as server:
        remote = make_remote(server.url)
        assert (await get(upstream, make_request(remote, path, max_body_size=5))).body == b"hello"
        with pytest.raises(UpstreamProtocolError):
            await get(upstream, make_request(remote, path, max_body_size=4))


async def test_conditional_requests(upstream: HttpUpstream) -> None:
    not_modified = b'HTTP/1.1 304 Not Modified\r\nETag: "e"\r\n\r\n'
    async with scripted(lambda asked: not_modified) as server:
        remote = make_remote(server.url)
        date = "Wed, 01 Jan 2025 00:00:00 GMT"
        request = make_request(remote, if_none_match='"e"', if_modified_since=date)
        got = await get(upstream, request)
        assert (got.response.status, got.body, got.response.etag) == (304, b"", '"e"')
        assert server.asked[0].headers["if-none-match"] == '"e"'
        assert server.asked[0].headers["if-modified-since"] == date
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(remote))
        assert caught.value.status == 304


STATUSES = [(204, True), (300, True), (400, True), (401, True), (403, True), (404, True), (405, True), (416, True)]
STATUSES += [
    (408, False),
    (429, False),
    (500, True),
    (502, False),
    (503, False),
    (504, False),
    (599, True),
    (203, True),
]


@pytest.mark.parametrize(("status", "is_permanent"), STATUSES)
async def test_statuses_that_are_not_the_content(upstream: HttpUpstream, status: int, *, is_permanent: bool) -> None:
    body = b"" if status == 204 else b'{"errors":[{"code":"DENIED","message":"token abc123 is bad"}]}'
    answer = reply(status, body) if status != 204 else b"HTTP/1.1 204 No Content\r\n\r\n"
    async with scripted(lambda asked: answer) as server:
        for _ in range(2):
            with pytest.raises(UpstreamStatusError) as caught:
                await get(upstream, make_request(make_remote(server.url), "/v2/x?sig=SECRET", offset=3))
        assert caught.value.status == status
        assert caught.value.is_permanent is is_permanent
        assert caught.value.host == server.host
        assert "abc123" not in str(caught.value) and "SECRET" not in str(caught.value)
        assert server.connections == 1  # a small error body does not cost the connection


async def test_a_big_error_body_is_not_drained(upstream: HttpUpstream) -> None:
    answer = Answer(reply(500, b"x" * 65536, length=1 << 40), repeat=MANY)
    async with scripted(lambda asked: answer) as server:
        with pytest.raises(UpstreamStatusError):
            await asyncio.wait_for(get(upstream, make_request(make_remote(server.url))), 5)
        assert await asyncio.wait_for(server.ended.get(), 5) == 1


async def test_an_error_body_that_stalls_is_not_waited_for(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(reply(404, b"x", length=100), "stall")) as server:
        with pytest.raises(UpstreamStatusError):
            await asyncio.wait_for(get(upstream, make_request(make_remote(server.url))), 3)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([("Retry-After", "120")], 120.0),
        ([("Retry-After", "999999999")], 86400.0),
        ([("Retry-After", "-5")], None),
        ([("Retry-After", "soon")], None),
        ([("Retry-After", "1.5")], None),
        ([], None),
        ([("Date", "Wed, 01 Jan 2025 00:00:00 GMT"), ("Retry-After", "Wed, 01 Jan 2025 00:01:30 GMT")], 90.0),
        ([("Date", "Wed, 01 Jan 2025 00:00:00 GMT"), ("Retry-After", "Tue, 31 Dec 2024 00:00:00 GMT")], 0.0),
    ],
)
async def test_retry_after(upstream: HttpUpstream, headers: list[tuple[str, str]], seconds: float | None) -> None:
    _, got = await ask(upstream, reply(429, b"", *headers))
    assert isinstance(got, UpstreamStatusError)
    assert got.retry_after_seconds == seconds


async def test_headers_of_source_and_request_go_out_but_framing_is_ours(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(200, b"x")) as server:
        headers = (("X-Configured", "yes"), ("Accept-Encoding", "gzip"), ("Host", "evil"), ("Range", "bytes=5-"))
        remote = make_remote(server.url, headers=headers)
        await get(upstream, make_request(remote, headers={"Accept": "application/json"}))
        sent = server.asked[0].headers
        assert (sent["x-configured"], sent["accept"]) == ("yes", "application/json")
        assert (sent["accept-encoding"], sent["host"]) == ("identity", server.host)
        assert "range" not in sent


async def test_a_header_that_can_not_be_sent_is_refused(upstream: HttpUpstream) -> None:
    _, got = await ask(upstream, reply(200), if_none_match='"x"\r\nX-Evil: 1')
    assert isinstance(got, UpstreamProtocolError)


async def test_close_cuts_open_exchanges() -> None:
    async with scripted(lambda asked: Answer(reply(200, b"begin", length=100), "stall")) as server:
        async with http_upstream() as upstream, upstream.open(make_request(make_remote(server.url))) as response:
            chunks = response.chunks()
            assert await anext(chunks) == b"begin"
            await upstream.close()
            with pytest.raises(TransferInterrupted):
                await anext(chunks)
        assert await asyncio.wait_for(server.ended.get(), 5) == 1
