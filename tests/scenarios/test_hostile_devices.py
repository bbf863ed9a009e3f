"""Hostile devices: whatever is sent gets a definite answer or a closed connection, and the next request is served."""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.clients.servers import Nginx
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.authority import Authority
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import Flip, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import OCI_MANIFEST, Image, Part, make_image, manifest_body
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, ask_raw
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import PATIENT, staged

KIB = 1024
MIB = 1024 * KIB
HEAD_SECONDS = 1.5
WRITE_SECONDS = 1.0
SECRET = "aHVudGVyMjpzZWNyZXQ"
LARGE = Synthetic(24 * MIB, seed=41)
module_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass
class World:
    """A registry ``reg`` and files ``files``; heads must come within HEAD_SECONDS, slow readers go after
    WRITE_SECONDS.
    """

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote
    image: Image

    async def still_serves(self) -> None:
        """A good device is served at once."""
        async with asyncio.timeout(5):
            assert (await ask(f"{self.proxy.url}/v2/reg/app/manifests/v1")).sha256 == self.image.digest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with RegistryRemote() as registry, FileRemote({"f": b"0123456789"}, manifest=False) as files:
        image = make_image()
        registry.push("app", "v1", image)
        registry.push_manifest("app", big_manifest(3 * MIB), tag="big")
        registry.push_blob("app", LARGE)
        async with staged(
            tmp_path_factory.mktemp("devices"),
            pull_through("container", "reg", {"r": registry.url}, remote=PATIENT),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            request_head_timeout_seconds=HEAD_SECONDS,
            device_write_timeout_seconds=WRITE_SECONDS,
            min_device_rate="64MiB/s",
            log={"format": "json"},
        ) as proxy:
            yield World(proxy, registry, files, image)


def big_manifest(size: int) -> Part:
    """A manifest of about this size, for its annotation."""
    config = make_image().config.descriptor()
    return Part(OCI_MANIFEST, manifest_body(OCI_MANIFEST, config=config, layers=[], annotations={"a": "x" * size}))


# -- what stands in a request

CLOSE = b"Host: x\r\nConnection: close\r\n\r\n"
PING = b"GET /v2/ HTTP/1.1\r\n"
MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"A" * 100,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /v2/ HTTP/9.9\r\n" + CLOSE,
    "garbage": bytes(range(256)) * 4,
    "no Host": PING + b"Connection: close\r\n\r\n",
    "two Hosts": PING + b"Host: a\r\n" + CLOSE,
    "CL and TE": PING + b"Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two CL": PING + b"Host: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "list CL": PING + b"Host: x\r\nContent-Length: 3, 3\r\n\r\nabcd",
    "negative CL": PING + b"Host: x\r\nContent-Length: -3\r\n\r\n",
    "huge CL": PING + b"Host: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
    "bad chunk": b"POST /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"zz\r\nabc",
    "unknown TE": PING + b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "folded header": PING + b"X: a\r\n b\r\n" + CLOSE,
    "bare LF": b"GET /v2/ HTTP/1.1\nHost: x\n\n",
    "NUL in path": b"GET /v2/\0 HTTP/1.1\r\n" + CLOSE,
    "NUL in header": PING + b"X: a\0b\r\n" + CLOSE,
    "space before colon": PING + b"Authorization Basic: " + SECRET.encode() + b"\r\n" + CLOSE,
    "control in header": PING + b"Authorization: Token " + SECRET.encode() + b"\x01\r\n" + CLOSE,
    "huge line": b"GET /v2/" + b"a" * 100_000 + b" HTTP/1.1\r\n" + CLOSE,
    "huge method": b"A" * 100_000 + b" /v2/ HTTP/1.1\r\n" + CLOSE,
    "huge header": PING + b"X: " + b"a" * 100_000 + b"\r\n" + CLOSE,
    "huge name": PING + b"X" * 100_000 + b": a\r\n" + CLOSE,
    "many headers": PING + b"".join(b"X%d: y\r\n" % number for number in range(5000)) + CLOSE,
    "path of *": b"GET * HTTP/1.1\r\n" + CLOSE,
    "no path": b"GET  HTTP/1.1\r\n" + CLOSE,
    "relative path": b"GET v2/ HTTP/1.1\r\n" + CLOSE,
    "bytes in path": b"GET /pulp/content/files/\xff\xfe HTTP/1.1\r\n" + CLOSE,
    "bad absolute form": b"GET http://[::1/v2/ HTTP/1.1\r\n" + CLOSE,
    "bad port": b"GET http://a:99999/v2/ HTTP/1.1\r\n" + CLOSE,
    "lower-case method": b"get /v2/ HTTP/1.1\r\n" + CLOSE,
}


@pytest.mark.asyncio(loop_scope="module")
async def test_malformed_requests_are_refused(world: World) -> None:
    """One plain 400 in our own words, a closed connection, and one line in the log that repeats nothing of it."""
    before = (await world.proxy.metrics()).total("contentapp_requests_total", status="4xx")
    for name, sent in MALFORMED.items():
        answer = await ask_raw(world.proxy.url, sent)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.[01] 400 ", head), (name, answer[:200])
        assert head.count(b"HTTP/1.") == 1, name
        assert body == b"400 Bad Request: malformed request\n", (name, body[:200])
        assert b"Server: contentapp\r\n" in head, name
        assert b"Cache-Control: no-store" in head, name
    await world.still_serves()
    async with asyncio.timeout(5):
        while len(re.findall('"event":"request".*"status":400', output := world.proxy.output())) < len(MALFORMED):
            await asyncio.sleep(0.05)
    assert "Traceback" not in output
    assert SECRET not in output
    after = (await world.proxy.metrics()).total("contentapp_requests_total", status="4xx")
    assert after - before == len(MALFORMED)


@module_loop
async def test_malformed_requests_to_the_admin_listener(world: World) -> None:
    """They are nobody's secret in the log either."""
    for name, sent in MALFORMED.items():
        answer = await ask_raw(world.proxy.admin_url, sent)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), (name, answer[:200])
    assert (await world.proxy.admin("/pulp/api/v3/status/"))["versions"]
    await asyncio.sleep(0.5)  # the log is written a quarter of a second later
    output = world.proxy.output()
    assert "Traceback" not in output
    assert SECRET not in output


STATUS = {
    "HTTP/0.9": (b"GET /v2/\r\n\r\n", 400),
    "HTTP/1.0 ping": (b"GET /v2/ HTTP/1.0\r\n\r\n", 200),
    "absolute form": (b"GET http://evil.example/v2/ HTTP/1.1\r\n" + CLOSE, 200),
    "absolute form, other scheme": (b"GET ftp://evil.example/v2/ HTTP/1.1\r\n" + CLOSE, 404),
    "absolute form without a path": (b"GET http://evil.example HTTP/1.1\r\n" + CLOSE, 404),
    "two slashes": (b"GET //evil.example/v2/ HTTP/1.1\r\n" + CLOSE, 404),
    "fragment": (b"GET /v2/#x HTTP/1.1\r\n" + CLOSE, 400),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + CLOSE, 405),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + CLOSE, 405),
    "TRACE": (b"TRACE /v2/ HTTP/1.1\r\nX-Own: 1\r\n" + CLOSE, 405),
    "PUT": (b"PUT /v2/reg/app/manifests/v1 HTTP/1.1\r\nContent-Length: 3\r\n" + CLOSE + b"abc", 405),
    "POST": (b"POST /v2/reg/app/blobs/uploads/ HTTP/1.1\r\nContent-Length: 0\r\n" + CLOSE, 405),
    "DELETE": (b"DELETE /pulp/content/files/f HTTP/1.1\r\n" + CLOSE, 405),
    "unknown method": (b"PROPFIND /v2/ HTTP/1.1\r\n" + CLOSE, 405),
    "chunked body": (b"POST /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"3\r\nabc\r\n0\r\n\r\n", 405),
    "Expect and no body": (b"POST /v2/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n" + CLOSE, 405),
    "GET with a body": (b"GET /v2/ HTTP/1.1\r\nContent-Length: 3\r\n" + CLOSE + b"abc", 200),
    "Upgrade: h2c": (
        PING + b"Upgrade: h2c\r\nHTTP2-Settings: AAA\r\nHost: x\r\nConnection: Upgrade, close\r\n\r\n",
        200,
    ),
    "Upgrade: websocket": (
        PING + b"Upgrade: websocket\r\nHost: x\r\nConnection: Upgrade, close\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n\x81\x85junk",
        200,
    ),
}


@module_loop
async def test_odd_but_well_formed_requests(world: World) -> None:
    for name, (sent, status) in STATUS.items():
        answer = await ask_raw(world.proxy.url, sent)
        assert answer.split(b" ", 2)[1] == str(status).encode(), (name, answer[:300])
        assert answer.count(b"HTTP/") == 1, (name, answer)
        if status == 405:
            assert b"\r\nAllow: GET, HEAD\r\n" in answer, name
        assert b"X-Own" not in answer
    await world.still_serves()


PATHS = {
    "/": 404,
    "/etc/passwd": 404,
    "/../etc/passwd": 404,
    "/v2": 200,
    "/v2/..": 400,
    "/v2/../admin-password": 400,
    "/v2/reg/../app/manifests/v1": 400,
    "/v2/reg/app/manifests/..": 400,
    "/v2/reg/app/manifests/%2e%2e": 400,
    "/v2/reg/app/manifests/v1/": 400,
    "/v2/reg//app/manifests/v1": 400,
    "/v2/reg/APP/manifests/v1": 400,
    "/v2/reg/app/manifests/": 400,
    "/v2/reg/app/manifests/v1%00": 400,
    "/v2/reg/app/manifests/v1%0d%0aX-A:%20b": 400,
    "/v2/reg/app/manifests/" + "a" * 129: 400,
    "/v2/reg/app/blobs/sha256:abc": 400,
    "/v2/reg/app/blobs/sha256:" + "G" * 64: 400,
    "/v2/reg/app/blobs/sha256:" + "A" * 64: 400,
    "/v2/reg/app/blobs/sha256:" + "a" * 65: 400,
    "/v2/reg/app/blobs/md5:" + "a" * 32: 400,
    "/v2/reg/app/blobs/sha256:../../../../etc/passwd": 400,
    "/v2/reg/app/blobs/" + "a" * 64: 400,
    "/v2/reg/app/blobs/sha512:" + "a" * 64: 400,
    "/v2/reg/app/manifests/sha256:" + "a" * 63: 400,
    "/v2/reg/app/referrers/v1": 400,
    "/v2/reg/app/tags/list?n=-1": 400,
    "/v2/reg/app/tags/list?n=1e9": 400,
    "/v2/reg/app/tags/list?n=1&n=2": 400,
    "/v2/reg/app/tags/list?last=../..": 400,
    "/v2/reg/app/tags/list?" + "&".join(f"a{number}=1" for number in range(50)): 400,
    "/v2/reg/app/tags/list?x=%0d%0a": 400,
    "/v2/_catalog": 400,
    "/v2/reg/app/blobs/uploads": 400,
    "/v2/none/app/manifests/v1": 404,
    "/v2/" + "a/" * 200 + "manifests/v1": 404,
    "/v2/reg/" + "a/" * 200 + "manifests/v1": 400,
    "/v2/reg/" + "a/" * 3000 + "manifests/v1": 400,
    "/pulp/content/files/f": 200,
    "/pulp/content/files/%66": 200,
    "/pulp/content/files/../files/f": 400,
    "/pulp/content/files/x/../f": 400,
    "/pulp/content/files/./f": 400,
    "/pulp/content/files//f": 400,
    "/pulp/content/files/%2e%2e/f": 400,
    "/pulp/content/files/%2E%2E%2Ff": 400,
    "/pulp/content/files/..%2f..%2fetc%2fpasswd": 400,
    "/pulp/content/files/x%2ff": 400,
    "/v2/reg%2fapp/manifests/v1": 400,
    "/pulp/content/files/%252e%252e%252ff": 404,
    "/pulp/content/files/..%5cf": 400,
    "/pulp/content/files/f%00": 400,
    "/pulp/content/files/f%0a": 400,
    "/pulp/content/files/%c0%ae%c0%ae/f": 400,
    "/pulp/content/files/%ff%fe": 400,
    "/pulp/content/files/%ed%a0%80": 400,
    "/pulp/content/files/%e2%80%ae": 404,
    "/pulp/content/files/%": 400,
    "/pulp/content/files/%4": 400,
    "/pulp/content/files/%zz": 400,
    "/pulp/content/files/%u002e": 400,
    "/pulp/content/files/f;x=y": 404,
    "/pulp/content/files/" + "a" * 5000: 400,
    "/pulp/content/none/f": 404,
    "/pulp/content/../content/files/f": 400,
    "/pulp/content": 200,
    "/pulp/": 400,
    "/pulp/api/v3/status/": 400,
    "/metrics": 404,
}


@module_loop
async def test_odd_paths(world: World) -> None:
    """Decoded once, and refused unless they can only mean one thing; none reaches a remote in another shape."""
    world.files.forget()
    for path, status in PATHS.items():
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await ask_raw(world.proxy.url, head.encode("latin-1"))
        assert int(answer.split(b" ", 2)[1]) == status, (path[:100], answer[:300])
        assert b"\r\nX-A" not in answer
        if path.startswith("/v2/") and status >= 400:
            assert b'{"errors":[{"code":"' in answer, path
    asked = {exchange.raw_path for exchange in world.files.requests}
    assert asked == {"/PULP_MANIFEST", "/f", "/%252e%252e%252ff", "/%E2%80%AE", "/f%3Bx%3Dy"} - {"/PULP_MANIFEST"} | (
        asked & {"/PULP_MANIFEST"}
    )
    await world.still_serves()


RANGES = {
    "bytes=0-0": 206,
    "bytes=-1": 206,
    "bytes=0-" + "9" * 200: 206,
    "bytes=" + "9" * 200 + "-": 416,
    "bytes=-" + "9" * 200: 206,
    "bytes=-0": 416,
    "bytes=10-": 416,
    "bytes=--1": 200,
    "bytes=-1-": 200,
    "bytes=5-4": 200,
    "bytes=0x1-2": 200,
    "bytes=1e1-": 200,
    "bytes=\u0661-".encode().decode("latin-1"): 200,
    "bytes= 0-1": 200,
    "bytes=0-1;x": 200,
    "bytes=" + "9" * 7000 + "-": 200,
    "bytes=" + ",".join(f"{number}-{number}" for number in range(900)): 200,
    "bytes=" + "0-," * 2000: 200,
    "bytes=0-0,0-0": 200,
    "lines=0-1": 200,
    "bytes": 200,
    "": 200,
}


@module_loop
async def test_odd_ranges_and_conditions(world: World) -> None:
    url = f"{world.proxy.url}/pulp/content/files/f"
    for wanted, status in RANGES.items():
        for target in (url, f"{world.proxy.url}/v2/reg/app/manifests/v1"):
            answer = await ask(target, headers={"Range": wanted})
            size = 10 if target is url else world.image.manifest.size
            expected = 206 if wanted == "bytes=10-" and target is not url else status
            assert (answer.status, answer.is_complete) == (expected, True), (wanted[:60], target)
            if expected == 200:
                assert len(answer.body) == size, wanted[:60]
    conditions = {
        "If-None-Match": ['"' * 4000, ",".join(['"a"'] * 1900), "W/" * 3000, "*" * 8000, " " * 8000 + "x", "\xff" * 99],
        "If-Modified-Since": ["x" * 8000, "Thu, 01 Jan 99999 00:00:00 GMT", "Thu, 99 Jan 1970 99:99:99 GMT"],
        "If-Range": ['"x', "W/" + '"x"', "x" * 8000, "Thu, 01 Jan 1970 00:00:00 GMT"],
    }
    for name, values in conditions.items():
        for value in values:
            answer = await ask(url, headers={name: value, "Range": "bytes=0-1"})
            assert answer.status in (200, 206), (name, value[:40])
            assert (len(answer.body) == 10) == (answer.status == 200)
    assert answer.status == 200
    doubled = b"GET /pulp/content/files/f HTTP/1.1\r\nRange: bytes=0-1\r\nRange: bytes=2-3\r\n" + CLOSE
    raw = await ask_raw(world.proxy.url, doubled)
    assert raw.endswith((b"0123456789", b"01")), raw
    await world.still_serves()


# -- how it is sent


@module_loop
async def test_pipelining_and_smuggling(world: World) -> None:
    """Answers come in order, a body is no request, and nothing after a refused framing is looked at."""
    pings = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    raw = await ask_raw(world.proxy.url, pings + b"GET /pulp/content/files/f HTTP/1.1\r\n" + CLOSE)
    assert raw.count(b"HTTP/1.1 200 OK") == 201
    assert raw.endswith(b"0123456789")
    smuggled = b"GET /v2/smuggled/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n"
    for framing in (
        b"Content-Length: %d\r\n" % len(smuggled),
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
    ):
        raw = await ask_raw(world.proxy.url, b"POST /v2/ HTTP/1.1\r\n" + framing + CLOSE + smuggled)
        assert raw.count(b"HTTP/1.") == 1, (framing, raw)
    assert "/v2/smuggled" not in world.proxy.output()
    await world.still_serves()


@module_loop
async def test_endless_pipelining_without_reading_is_bounded(world: World) -> None:
    """A device that asks on and on and reads nothing fills its own connection, not our memory."""
    async with raw_connection(world.proxy) as (reader, writer):
        request = b"GET /pulp/content/files/f HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(2):
                for _ in range(2000):
                    writer.write(request)
                    await writer.drain()
        await world.still_serves()
        assert rss(world.proxy) < 200 * MIB
        writer.transport.abort()
        del reader


@module_loop
async def test_slow_loris_and_idle_connections(world: World) -> None:
    """Hundreds that send nothing, half a head, or one byte now and then: gone in their time, others served
    meanwhile.
    """
    async with AsyncExitStack() as stack:
        loris = [await stack.enter_async_context(raw_connection(world.proxy)) for _ in range(300)]
        started = time.monotonic()
        for number, (_, writer) in enumerate(loris):
            writer.write((b"", b"GET /v2/ HT", b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A: ")[number % 3])
        ends = [asyncio.create_task(reader.read()) for reader, _ in loris]
        writers = [writer for _, writer in loris[2::3]]
        feeding = asyncio.create_task(trickle(writers))
        stack.callback(feeding.cancel)
        while any(not end.done() for end in ends):
            await world.still_serves()
            assert time.monotonic() - started < 4 * HEAD_SECONDS + 2
            await asyncio.sleep(0.1)
        assert {end.result() if end.exception() is None else b"" for end in ends} == {b""}
        assert time.monotonic() - started >= HEAD_SECONDS * 0.9
    # After an answer the next head has as long, and no longer.
    async with raw_connection(world.proxy) as (reader, writer):
        writer.write(PING + b"Host: x\r\n\r\nGET /v2/ HT")
        async with asyncio.timeout(4 * HEAD_SECONDS):
            assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 1
    await world.still_serves()


async def trickle(writers: list[asyncio.StreamWriter]) -> None:
    """One byte of a header each, again and again."""
    while True:
        for writer in writers:
            with suppress(ConnectionError):
                writer.write(b"a")
        await asyncio.sleep(0.1)


@module_loop
async def test_slow_readers_are_dropped(world: World) -> None:
    """Of a blob, cold and warm, and of a manifest: no device holds memory or a connection longer than it may."""
    digest = digest_of(LARGE)
    blob = f"{world.proxy.url}/v2/reg/app/blobs/{digest}"
    assert (await ask(f"{world.proxy.url}/v2/reg/app/manifests/big")).is_complete
    before = connections(world.proxy)
    async with AsyncExitStack() as stack:
        urls = [blob, f"{world.proxy.url}/v2/reg/app/manifests/big"]
        started = time.monotonic()
        stalled = [await stack.enter_async_context(slow_device(url)) for url in urls * 4]
        assert {device.status for device in stalled} == {200}
        assert (await ask(blob)).sha256 == digest, "slow ones delay nobody"
        while connections(world.proxy) > before:
            await asyncio.sleep(0.05)
            assert time.monotonic() - started < 10 * WRITE_SECONDS
        for device in stalled:
            assert not await device.finish()
    await world.still_serves()


@module_loop
async def test_devices_that_leave_at_any_point(world: World) -> None:
    """With RST or FIN, within the head, after it, within the body: nothing breaks, nothing is left."""
    path = f"/v2/reg/app/blobs/{digest_of(LARGE)}"
    before = connections(world.proxy)
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for reset in (True, False):
        for size in (0, 5, len(request) - 1, len(request)):
            for read in (0, 1, 200_000):
                async with raw_connection(world.proxy) as (reader, writer):
                    writer.write(request[:size])
                    if size == len(request) and read:
                        await reader.readexactly(read)
                    if reset:
                        writer.transport.abort()
                    else:
                        writer.write_eof()
    async with asyncio.timeout(10):
        while connections(world.proxy) > before:
            await asyncio.sleep(0.05)
    await world.still_serves()
    assert "Traceback" not in world.proxy.output()
    assert (await ask(world.proxy.url + path)).sha256 == digest_of(LARGE)


@module_loop
async def test_half_open_device_still_gets_its_answer(world: World) -> None:
    """FIN after the request is no reason not to answer it (RFC 9112, 9.6), as netcat does it."""
    async with raw_connection(world.proxy) as (reader, writer):
        writer.write(b"GET /pulp/content/files/f HTTP/1.0\r\n\r\n")
        writer.write_eof()
        async with asyncio.timeout(5):
            raw = await reader.read()
        assert raw == b"" or raw.endswith(b"0123456789")


@asynccontextmanager
async def raw_connection(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def workers(proxy: Proxy) -> list[int]:
    """The process ids of its children."""
    return [
        int(pid)
        for pid in Path(f"/proc/{proxy.service.process.pid}/task/{proxy.service.process.pid}/children")
        .read_text()
        .split()
    ]


def rss(proxy: Proxy) -> int:
    """The largest resident memory of its processes, in bytes."""
    sizes = [re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in workers(proxy)]
    return max(int(size[1]) * KIB for size in sizes if size)


def connections(proxy: Proxy) -> int:
    """Connections of devices that its kernel still holds, in whatever state but listening."""
    port = f":{proxy.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in {"01", "08", "04", "05", "09"} for row in rows)


# -- P1 on every way


@pytest.mark.parametrize("at", [0, 3 * MIB - 1])
async def test_corrupt_body_is_never_completed_on_any_way(tmp_path: Path, authority: Authority, at: int) -> None:
    """Content-Length, chunked, HTTP/1.0, TLS, and all of them through nginx with either protocol upstream."""
    authority.issue("nginx-origin")
    tls = {"certificate": str(authority.folder / "nginx-origin.crt"), "key": str(authority.folder / "nginx-origin.key")}
    async with RegistryRemote(head="refused") as remote:
        settings = {**PATIENT, "cooldown_seconds": 0.1, "cooldown_max_seconds": 0.1}
        config = pull_through("container", "reg", {"r": remote.url}, remote=settings)
        config["request_head_timeout_seconds"] = 2
        async with AsyncExitStack() as stack:
            plain = await stack.enter_async_context(running_proxy(sub(tmp_path, "plain"), config))
            secure = await stack.enter_async_context(
                running_proxy(sub(tmp_path, "tls"), {**config, "content": {"tls": tls}})
            )
            fronts = {"plain": plain.url, "tls": secure.url}
            for name, upstream, protocol in (
                ("nginx 1.0", plain.url, "proxy_http_version 1.0;"),
                ("nginx 1.1", plain.url, "proxy_http_version 1.1; proxy_set_header Connection '';"),
                ("nginx unbuffered", plain.url, "proxy_http_version 1.1; proxy_buffering off;"),
                ("nginx tls", secure.url, "proxy_http_version 1.1; proxy_ssl_verify off;"),
            ):
                nginx = Nginx(sub(tmp_path, name.replace(" ", "-")), upstream, settings=protocol)
                await nginx.start()
                stack.push_async_callback(nginx.stop)
                fronts[name] = nginx.url
            await check_handshake_ends(secure)
            cases = itertools.product((True, False), fronts.items(), ("1.1", "1.0"))
            for seed, (is_sized, (front, url), version) in enumerate(cases):
                if not is_sized and version == "1.0" and front.startswith("nginx") and front != "nginx 1.0":
                    # nginx makes our broken chunks an end by closing: to an HTTP/1.0 device that is a whole body.
                    continue
                content = Synthetic(3 * MIB, seed=seed)
                digest = remote.push_blob("app", content)
                remote.clear()
                remote.script("*", Flip(at), *([] if is_sized else [Unsized()]), method="GET", ranged=False)
                raw = await pull_raw(url, f"/v2/reg/app/blobs/{digest}", version)
                status = int(raw.split(b" ", 2)[1])
                assert not is_complete(raw), (is_sized, front, version)
                is_old = version == "1.0" or front == "nginx 1.0"
                assert status == (503 if is_old and not is_sized else 200), (is_sized, front, version, raw[:200])
                for proxy in (plain, secure):
                    await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
            assert plain.artifacts() == secure.artifacts() == []


async def check_handshake_ends(proxy: Proxy) -> None:
    """A device that begins TLS and goes no further is let go in the time that a head has."""
    async with raw_connection(proxy) as (reader, writer):
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        async with asyncio.timeout(6):
            assert await reader.read() == b""


def sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


async def pull_raw(url: str, path: str, version: str) -> bytes:
    """All that comes before the connection ends, however it ends."""
    context = None
    if url.startswith("https"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    received = bytearray()
    try:
        writer.write(f"GET {path} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while piece := await reader.read(1 << 16):
                received += piece
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.transport.abort()
    return bytes(received)


def is_complete(raw: bytes) -> bool:
    """Whether a device would take this for a whole 200: by its length, by its last chunk, or (1.0) by its end."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator or head.split(b" ", 2)[1] != b"200":
        return False
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length:
        return len(body) >= int(length[1])
    if b"chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    return True
