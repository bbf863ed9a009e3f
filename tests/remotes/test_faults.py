"""The scripted remotes do what their scripts say, as a plain HTTP client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.remotes.authority import Authority
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import (
    Cut,
    Delay,
    Drop,
    Endless,
    Fault,
    Flip,
    Gzip,
    Headers,
    IgnoreIfRange,
    IgnoreRange,
    LoginPage,
    Portion,
    Redirect,
    Replace,
    Shorten,
    Slow,
    Status,
    Surplus,
    Unsized,
    WrongRange,
    challenge,
    changed_etag,
    oversized_headers,
    too_many,
    wrong_type,
)
from tests.remotes.files import FileRemote
from tests.remotes.raw import RawRemote

SIZE = 300_000
CONTENT = Synthetic(SIZE)
BODY = read_all(CONTENT)


@pytest.fixture
async def remote() -> AsyncIterator[FileRemote]:
    async with FileRemote({"a": CONTENT, "b": b"bee"}) as started:
        yield started


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def get(client: aiohttp.ClientSession, url: str, **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
    async with client.get(url, headers=headers, allow_redirects=False) as answer:
        return answer, await answer.read()


async def received(client: aiohttp.ClientSession, url: str) -> tuple[bytes, Exception | None]:
    """What arrived before the connection failed, and how it failed."""
    body = b""
    try:
        async with client.get(url) as answer:
            async for piece in answer.content.iter_any():
                body += piece
    except aiohttp.ClientError as error:
        return body, error
    return body, None


async def test_serves_whole_and_ranges(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    answer, body = await get(client, f"{remote.url}/a")
    assert (answer.status, body) == (200, BODY)
    for spec, start, end in (
        ("0-9", 0, 10),
        ("131000-131100", 131000, 131101),
        ("299999-", 299999, SIZE),
        ("-5", SIZE - 5, SIZE),
    ):
        answer, body = await get(client, f"{remote.url}/a", Range=f"bytes={spec}")
        assert (answer.status, body) == (206, BODY[start:end])
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    answer, _ = await get(client, f"{remote.url}/a", Range=f"bytes={SIZE}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert [exchange.sent for exchange in remote.requests] == [SIZE, 10, 101, 1, 5, 0]
    assert all(exchange.is_complete for exchange in remote.requests)
    assert remote.asked_ranges("/a") == [
        None,
        "bytes=0-9",
        "bytes=131000-131100",
        "bytes=299999-",
        "bytes=-5",
        "bytes=300000-",
    ]


async def test_conditions(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    answer, _ = await get(client, f"{remote.url}/a")
    etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
    for name, value, status in (
        ("If-None-Match", etag, 304),
        ("If-None-Match", '"x"', 200),
        ("If-Modified-Since", modified, 304),
    ):
        assert (await get(client, f"{remote.url}/a", **{name: value}))[0].status == status
    for value, status in ((etag, 206), (modified, 206), ('"x"', 200)):
        answer, _ = await get(client, f"{remote.url}/a", **{"Range": "bytes=1-", "If-Range": value})
        assert answer.status == status


async def test_head_and_manifest(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    async with client.head(f"{remote.url}/a") as answer:
        assert (answer.status, answer.content_length) == (200, SIZE)
    _, manifest = await get(client, f"{remote.url}/PULP_MANIFEST")
    name, digest, size = manifest.decode().splitlines()[1].split(",")
    assert (name, len(digest), size) == ("b", 64, "3")
    assert (await get(client, f"{remote.url}/missing"))[0].status == 404


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("at", [0, 1, 1000, 200_000])
async def test_cut(remote: FileRemote, client: aiohttp.ClientSession, at: int, reset: bool) -> None:
    remote.script("/a", Cut(at=at, reset=reset), times=1)
    body, error = await received(client, f"{remote.url}/a")
    assert error is not None and body == BODY[: len(body)]
    assert len(body) == at if not reset else len(body) <= at
    await remote.idle()
    assert (remote.requests[0].sent, remote.requests[0].is_complete) == (at, False)
    assert await received(client, f"{remote.url}/a") == (BODY, None)


@pytest.mark.parametrize("reset", [True, False])
async def test_cut_under_tls(authority: Authority, client: aiohttp.ClientSession, reset: bool) -> None:
    async with FileRemote({"a": CONTENT}, tls=authority.issue("cut").server_context()) as remote:
        remote.script("/a", Cut(at=200_000, reset=reset), times=1)
        context = authority.client_context()
        with pytest.raises(aiohttp.ClientError):
            async with client.get(f"{remote.url}/a", ssl=context) as answer:
                await answer.read()
        await remote.idle()
        async with client.get(f"{remote.url}/a", ssl=context) as answer:
            assert await answer.read() == BODY


async def test_drop_and_refuse(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", Drop(), times=2)  # aiohttp tries an idempotent request once more by itself
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(client, f"{remote.url}/a")
    await remote.refuse()
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(client, f"{remote.url}/a")
    await remote.listen()
    assert (await get(client, f"{remote.url}/a"))[1] == BODY


async def test_refuse_ends_answers_under_way(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    gate = remote.hold("/a", at=1000)
    pull = asyncio.create_task(received(client, f"{remote.url}/a"))
    await gate.reached()
    await remote.refuse()
    assert (await pull)[1] is not None
    assert not remote.requests[0].is_complete


async def test_hold_head_and_body(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    for at in (-1, 0, 150_000):
        remote.clear()
        remote.forget()
        gate = remote.hold("/a", at=at)
        pull = asyncio.create_task(get(client, f"{remote.url}/a"))
        await gate.reached()
        assert not pull.done() and remote.requests[0].sent == max(at, 0)
        gate.release()
        assert (await pull)[1] == BODY


async def test_device_that_leaves_ends_the_exchange(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    gate = remote.hold("/a", at=10)
    pull = asyncio.create_task(get(client, f"{remote.url}/a"))
    await gate.reached()
    pull.cancel()
    await remote.idle()
    assert not remote.requests[0].is_complete


CHANGES: list[tuple[Fault, int, bytes, dict[str, str]]] = [
    (Flip(at=5), 200, BODY[:5] + bytes([BODY[5] ^ 1]) + BODY[6:], {}),
    (Shorten(to=7), 200, BODY[:7], {"Content-Length": "7"}),
    (Replace(b"other"), 200, b"other", {"Content-Length": "5"}),
    (Unsized(), 200, BODY, {"Transfer-Encoding": "chunked"}),
    (changed_etag('"new"'), 200, BODY, {"ETag": '"new"'}),
    (wrong_type("x/y"), 200, BODY, {"Content-Type": "x/y"}),
    (Headers({"X": "y", "ETag": None}), 200, BODY, {"X": "y"}),
    (Status(503), 503, b"no", {}),
    (too_many("7"), 429, b"no", {"Retry-After": "7"}),
    (challenge("Bearer realm=, x"), 401, b"no", {"WWW-Authenticate": "Bearer realm=, x"}),
    (Redirect("http://169.254.0.1{path}"), 307, b"elsewhere", {"Location": "http://169.254.0.1/a"}),
    (Redirect("{path}", status=302), 302, b"elsewhere", {"Location": "/a"}),
    (Delay(0.01), 200, BODY, {}),
    (Slow(rate=10 * SIZE), 200, BODY, {}),
]


@pytest.mark.parametrize(
    ("fault", "status", "body", "headers"),
    CHANGES,
    ids=[f"{type(change[0]).__name__}-{change[1]}" for change in CHANGES],
)
async def test_changes(
    remote: FileRemote,
    client: aiohttp.ClientSession,
    fault: Fault,
    status: int,
    body: bytes,
    headers: dict[str, str],
) -> None:
    remote.script("/a", fault=fault, times=1)
    answer, got = await get(client, f"{remote.url}/a")
    assert (answer.status, got) == (status, body)
    assert {name: answer.headers.get(name) for name in headers} == headers
    assert (await get(client, f"{remote.url}/a"))[1] == BODY


async def test_range_faults(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", IgnoreRange(), times=1)
    remote.script("/a", WrongRange(shift=3), times=1)
    remote.script("/a", WrongRange(total="*"), times=1)
    seen = [(await get(client, f"{remote.url}/a", Range="bytes=10-19"))[0] for _ in range(4)]
    assert [answer.status for answer in seen] == [200, 206, 206, 206]
    assert [answer.headers.get("Content-Range") for answer in seen] == [
        None,
        f"bytes 13-22/{SIZE}",
        "bytes 10-19/*",
        f"bytes 10-19/{SIZE}",
    ]


async def test_range_of_something_else(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    asked = {"Range": "bytes=10-19", "If-Range": '"before"'}
    remote.script("/a", IgnoreIfRange(), times=1)
    answer, body = await get(client, f"{remote.url}/a", **asked)
    assert (answer.status, body) == (206, BODY[10:20])
    assert (await get(client, f"{remote.url}/a", **asked))[0].status == 200


async def test_portion_of_a_range(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", Portion(4))
    answer, body = await get(client, f"{remote.url}/a", Range="bytes=10-")
    assert (answer.status, body, answer.headers["Content-Range"]) == (206, BODY[10:14], f"bytes 10-13/{SIZE}")
    answer, body = await get(client, f"{remote.url}/a", Range="bytes=10-11")
    assert (body, answer.headers["Content-Range"]) == (BODY[10:12], f"bytes 10-11/{SIZE}")
    assert (await get(client, f"{remote.url}/a"))[1] == BODY


async def test_gzip_and_login_page(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", Gzip(), times=1)
    remote.script("/a", LoginPage(), times=1)
    answer, body = await get(client, f"{remote.url}/a")
    assert (answer.headers["Content-Encoding"], body[:2]) == ("gzip", b"\x1f\x8b")
    answer, body = await get(client, f"{remote.url}/a")
    assert (answer.status, answer.content_type, body[:9]) == (200, "text/html", b"<!DOCTYPE")


async def raw_answer(remote: FileRemote, path: str) -> bytes:
    """All that comes over the wire until the connection ends; ConnectionResetError if it is reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(remote.address.rpartition(":")[2]))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_cuts_end_in_reset_or_not(remote: FileRemote) -> None:
    remote.script("/b", Cut(at=2), times=1)
    remote.script("/b", Cut(at=2, reset=False), times=1)
    remote.script("/b", Unsized(), Cut(at=2, reset=False), times=1)
    with pytest.raises(ConnectionResetError):
        await raw_answer(remote, "/b")
    assert (await raw_answer(remote, "/b")).endswith(b"\r\n\r\nbe")
    assert (await raw_answer(remote, "/b")).endswith(b"\r\n\r\n2\r\nbe\r\n")


async def test_surplus(remote: FileRemote) -> None:
    remote.script("/b", Surplus(4))
    head, _, body = (await raw_answer(remote, "/b")).partition(b"\r\n\r\n")
    assert b"Content-Length: 3\r\n" in head and body == b"beeXXXX"


async def test_endless(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", Endless())
    async with client.get(f"{remote.url}/a") as answer:
        assert answer.content_length is None
        assert len(await answer.content.readexactly(10 * SIZE)) == 10 * SIZE
        answer.close()
    await remote.idle()


async def test_oversized_headers(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", oversized_headers(100_000))
    with pytest.raises(aiohttp.ClientResponseError):
        await get(client, f"{remote.url}/a")


async def test_rules_take_turns(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    remote.script("/a", Status(500), times=1)
    remote.script("/a", Status(502), first=2, times=1)
    remote.script("/a", Status(503), method="HEAD")
    remote.script("/a", Status(504), ranged=True)
    statuses = [(await get(client, f"{remote.url}/a"))[0].status for _ in range(4)]
    assert statuses == [500, 200, 502, 200]
    async with client.head(f"{remote.url}/a") as answer:
        assert answer.status == 503
    assert (await get(client, f"{remote.url}/a", Range="bytes=0-1"))[0].status == 504
    assert (remote.count("/a"), remote.count("/a", method="HEAD"), remote.count("/b")) == (6, 1, 0)


@pytest.mark.parametrize("keeps_alive", [True, False])
async def test_keeps_connections_alive_or_not(
    remote: FileRemote, client: aiohttp.ClientSession, keeps_alive: bool
) -> None:
    remote.keeps_alive = keeps_alive
    answer, body = await get(client, f"{remote.url}/a")
    assert body == BODY
    assert (answer.headers.get("Connection") == "close") is not keeps_alive


async def test_seen_waits_for_requests(remote: FileRemote, client: aiohttp.ClientSession) -> None:
    waiting = asyncio.create_task(remote.seen("/b", 2))
    await get(client, f"{remote.url}/b")
    assert not waiting.done()
    await get(client, f"{remote.url}/b")
    assert len(await waiting) == 2
    with pytest.raises(TimeoutError):
        await remote.seen("/b", 3, timeout=0.01)


async def test_raw_remote(client: aiohttp.ClientSession) -> None:
    async with RawRemote(b"SSH-2.0-surprise\r\n\r\n") as raw:
        with pytest.raises(aiohttp.ClientError):
            await get(client, raw.url)
    async with RawRemote(reads=False) as raw:
        with pytest.raises(aiohttp.ClientError):
            await get(client, raw.url)
        assert raw.connections >= 1
