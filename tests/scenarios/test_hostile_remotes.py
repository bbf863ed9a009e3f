"""Hostile and broken remotes: each has a definite answer for the device, costs a bounded amount, and breaks nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.ports import Port
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Stored, Synthetic, content_of, digest_of
from tests.remotes.faults import (
    Cut,
    Drop,
    Endless,
    Fault,
    Flip,
    Gzip,
    Headers,
    IgnoreRange,
    LoginPage,
    Replace,
    Shorten,
    Stall,
    Status,
    Surplus,
    Unsized,
    WrongRange,
    oversized_headers,
)
from tests.remotes.files import FileRemote
from tests.remotes.images import OCI_INDEX, OCI_MANIFEST, Part, make_image, manifest_body
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, at_rest, fresh, merged, staged, until

KIB = 1024
MIB = 1024 * KIB
module_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass
class World:
    """A registry ``reg``, and files ``files`` (undigested), each from a bad remote before a good one in ``two``."""

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote
    good: RegistryRemote

    async def still_serves(self) -> None:
        """The remote itself, and our process, go on."""
        image = make_image(seed=next(SEEDS), layers=1)
        self.good.push("well", f"t{next(SEEDS)}", image)
        async with asyncio.timeout(10):
            answer = await ask(f"{self.proxy.url}/v2/good/well/manifests/{image.digest}")
        assert answer.sha256 == image.digest
        assert "Traceback" not in self.proxy.output()


SEEDS = iter(range(100, 10_000))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with RegistryRemote() as registry, RegistryRemote() as good, FileRemote(manifest=False) as files:
        quick = {**PATIENT, "sock_read_timeout": 2, "connect_timeout": 2}
        async with staged(
            tmp_path_factory.mktemp("remotes"),
            pull_through("container", "reg", {"bad": registry.url}, remote=quick),
            pull_through("container", "two", {"bad": registry.url, "good": good.url}, remote=quick),
            pull_through(
                "container", "far", {"bad": registry.url}, remote=quick, distribution={"range_wait_size": MIB}
            ),
            pull_through("container", "good", {"good": good.url}, remote=quick),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=quick),
            first_byte_deadline_seconds=8,
            cache={"max_size": "1GiB"},
            log={"format": "json"},
        ) as proxy:
            yield World(proxy, registry, files, good)


def rss(proxy: Proxy) -> int:
    """The largest resident memory of its processes, in bytes."""
    pid = proxy.service.process.pid
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    sizes = [re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text()) for child in pids]
    return max(int(size[1]) * KIB for size in sizes if size)


# -- heads and framing, below HTTP


class ByPath:
    """Sends the bytes that belong to the path asked for as they are, then closes; `endless` ones are repeated.

    step_seconds: CR, LF and what stands between are sent apart, with so much time between.
    """

    def __init__(self, *, step_seconds: float = 0) -> None:
        self.step_seconds = step_seconds
        self.answers: dict[str, tuple[bytes, bytes]] = {}
        self.sent: dict[str, int] = {}
        self._port = Port()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port.number}"

    async def __aenter__(self) -> ByPath:
        self._server = await asyncio.start_server(self._serve, sock=self._port.open())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            answer, endless = self.answers.get(path, (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", b""))
            for part in re.split(rb"(?<=\n)|(?=\r)", answer) if self.step_seconds else [answer]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(self.step_seconds)
            while endless:
                writer.write(endless)
                await writer.drain()
                self.sent[path] = self.sent.get(path, 0) + len(endless)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)


OK = b"HTTP/1.1 200 OK\r\n"
REFUSED_HEADS: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "garbage": (b"\x00\xff" * 300 + b"\r\n\r\n", b""),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x28", b""),
    "HTTP/0.9": (b"<html>hello</html>", b""),
    "HTTP/2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", b""),
    "no status": (b"HTTP/1.1\r\n\r\n", b""),
    "bad status": (b"HTTP/1.1 2OO OK\r\n\r\n", b""),
    "status 99999": (b"HTTP/1.1 99999 OK\r\nContent-Length: 1\r\n\r\nx", b""),
    "two lengths": (OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", b""),
    "list of lengths": (OK + b"Content-Length: 4, 4\r\n\r\nabcd", b""),
    "negative length": (OK + b"Content-Length: -4\r\n\r\nabcd", b""),
    "hex length": (OK + b"Content-Length: 0x4\r\n\r\nabcd", b""),
    "huge length": (OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nabcd", b""),
    "length and chunked": (OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", b""),
    "gzip transfer coding": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", b""),
    "unknown transfer coding": (OK + b"Transfer-Encoding: magic\r\n\r\nabcd", b""),
    "content coding": (OK + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nabcd", b""),
    "short": (OK + b"Content-Length: 10\r\n\r\nabcd", b""),
    "bad chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabcd\r\n", b""),
    "huge chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabcd\r\n", b""),
    "unended chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n", b""),
    "cut chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n8\r\nabcd", b""),
    "CR in header": (OK + b"X-A: b\rSet-Cookie: c\r\nContent-Length: 4\r\n\r\nabcd", b""),
    "NUL in header": (OK + b"X-A: \0\r\nContent-Length: 4\r\n\r\nabcd", b""),
    "206 unasked": (b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-3/4\r\nContent-Length: 4\r\n\r\nabcd", b""),
    "304 unasked": (b"HTTP/1.1 304 N\r\n\r\n", b""),
    "204": (b"HTTP/1.1 204 N\r\n\r\n", b""),
    "status 999": (b"HTTP/1.1 999 N\r\nContent-Length: 0\r\n\r\n", b""),
    "redirect to nowhere": (b"HTTP/1.1 302 F\r\nContent-Length: 0\r\n\r\n", b""),
    "300": (b"HTTP/1.1 300 M\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n", b""),
    "HTML": (OK + b"Content-Type: TEXT/HTML; x=y\r\nContent-Length: 6\r\n\r\n<html>", b""),
    "upgrade": (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nabcd", b""),
    "long line": (OK + b"X-A: " + b"a" * 100_000 + b"\r\nContent-Length: 4\r\n\r\nabcd", b""),
    "many headers": (OK + b"".join(b"X%d: a\r\n" % n for n in range(5000)) + b"Content-Length: 4\r\n\r\nabcd", b""),
    "endless line": (OK, b"X-A: " + b"a" * 65536),
    "endless headers": (OK, b"X-A: a\r\n" * 8192),
    "endless 100s": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    "endless status": (b"HTTP/1.1 200 ", b"a" * 65536),
}


async def test_broken_heads_and_framing(tmp_path: Path) -> None:
    """Whatever comes instead of an answer is a failure of the source: told in our words, stored nowhere."""
    async with ByPath() as remote:
        paths = {name: f"/f{number}" for number, name in enumerate(REFUSED_HEADS)}
        for name, sent in REFUSED_HEADS.items():
            remote.answers[paths[name]] = sent
        remote.answers["/ok"] = (OK + b"Content-Length: 4\r\n\r\ngood", b"")
        quick = {**PATIENT, "sock_read_timeout": 0.8, "connect_timeout": 0.8}
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=quick)
        async with running_proxy(tmp_path, config) as proxy:
            names = list(REFUSED_HEADS)
            urls = [f"{proxy.url}/pulp/content/files{paths[name]}" for name in names]
            results = dict(zip(names, await asyncio.gather(*map(ask, urls)), strict=True))
            for name, answer in results.items():
                assert (answer.status, answer.is_complete) == (404, True) or not answer.is_complete, (name, answer)
                if answer.is_complete:
                    assert answer.body.startswith(b"404 Not Found: remote r: "), (name, answer.body)
                assert {"X-A", "Set-Cookie"}.isdisjoint(answer.headers), name
            assert {name for name, answer in results.items() if not answer.is_complete} <= {
                "unended chunks",
                "bad chunk",
                "huge chunk",
                "cut chunk",
            }
            assert (await ask(f"{proxy.url}/pulp/content/files/ok")).body == b"good"
            await until(lambda: is_count(proxy, 1))
            assert rss(proxy) < 200 * MIB
            assert "Traceback" not in proxy.output()
            assert sum(remote.sent.values()) < 100 * MIB


async def test_chunks_that_come_in_parts(tmp_path: Path) -> None:
    """Where a chunk ends without bytes of its own is not where the body ends."""
    async with ByPath(step_seconds=0.02) as remote:
        remote.answers["/f"] = (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"")
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=PATIENT)
        async with running_proxy(tmp_path, config) as proxy:
            for _ in range(2):
                answer = await ask(f"{proxy.url}/pulp/content/files/f")
                assert (answer.status, answer.is_complete, answer.body) == (200, True, b"hello world")


async def test_chunk_that_breaks_late(tmp_path: Path) -> None:
    """A broken chunk far behind the head ends the body, and nobody waits for what will not come."""
    async with FileRemote({"f": fresh(3 * MIB)}, manifest=False) as remote:
        remote.script("/f", Unsized(), Surplus(5), method="GET")
        impatient = {**PATIENT, "sock_read_timeout": 0.5}
        given_up = {"resume_deadline_seconds": 0.5}
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=impatient, distribution=given_up)
        async with running_proxy(tmp_path, config) as proxy:
            async with asyncio.timeout(6):
                answer = await ask(f"{proxy.url}/pulp/content/files/f")
            assert (answer.status, answer.is_complete) == (200, False)
            await at_rest(proxy)
            assert proxy.artifacts() == []


# -- bodies


WRONG_BLOBS: dict[str, tuple[Fault, ...]] = {
    "flipped": (Flip(1),),
    "short": (Shorten(100),),
    "short, chunked": (Shorten(100), Unsized()),
    "empty": (Shorten(0),),
    "long": (Replace(b"x" * 40_000), Unsized()),
    "surplus": (Surplus(10),),
    "gzip": (Gzip(),),
    "gzip, not said": (Gzip(), Headers({"Content-Encoding": None})),
    "deflate in vain": (Headers({"Content-Encoding": "deflate"}),),
    "login page": (LoginPage(),),
    "JSON error with 200": (Replace(b'{"errors":[]}'), Headers({"Content-Type": "application/json"})),
    "206": (Status(206, {"Content-Range": "bytes 0-1/2"}, b"no"),),
    "multipart": (Status(206, {"Content-Type": "multipart/byteranges; boundary=x"}, b"--x--"),),
    "head too big": (oversized_headers(),),
}


@module_loop
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
async def test_wrong_blobs(world: World, is_large: bool) -> None:
    """From one remote: 503 or a broken answer. With a good one behind it: the right bytes, or a broken answer."""
    for name, faults in WRONG_BLOBS.items():
        content = fresh(1500 * KIB if is_large else 20_000)
        digest = world.registry.push_blob("app", content)
        world.good.push_blob("app", content)
        world.registry.script(f"/v2/app/blobs/{digest}", *faults, method="GET")
        async with asyncio.timeout(20):
            alone = await ask(f"{world.proxy.url}/v2/reg/app/blobs/{digest}")
        if not is_large and name != "surplus":
            assert alone.status == 503, name
        assert alone.sha256 == digest or not alone.is_complete or alone.status == 503, name
        await world.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
        async with asyncio.timeout(20):
            both = await ask(f"{world.proxy.url}/v2/two/app/blobs/{digest}")
        assert not both.is_complete or both.sha256 == digest, name
        await world.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
        world.registry.clear()
        assert (await ask(f"{world.proxy.url}/v2/reg/app/blobs/{digest}")).sha256 == digest, name
    await world.still_serves()


@module_loop
async def test_wrong_ranges(world: World) -> None:
    """A far range of a cold blob comes from its own request: whatever is wrong with that, no wrong byte is sent."""
    faults: dict[str, tuple[Fault, ...]] = {
        "ignored": (IgnoreRange(),),
        "shifted": (WrongRange(shift=1),),
        "shifted back": (WrongRange(shift=-1000),),
        "other total": (WrongRange(total="999"),),
        "broken total": (WrongRange(total="x"),),
        "no Content-Range": (Headers({"Content-Range": None}), Status(206, body=b"x" * 100)),
        "gzip": (Gzip(),),
        "endless": (Endless(),),
        "416": (Status(416),),
        "login": (LoginPage(),),
    }
    for name, wrong in faults.items():
        content = fresh(6 * MIB)
        digest = world.registry.push_blob("far", content)
        path = f"/v2/far/blobs/{digest}"
        gate = world.registry.hold(path, at=MIB, method="GET", times=1)
        rule = world.registry.script(path, *wrong, method="GET", ranged=True)
        start = 5 * MIB
        expected = b"".join(content.pieces(start, start + 1000))
        url = f"{world.proxy.url}/v2/far/far/blobs/{digest}"
        whole = asyncio.create_task(ask(url))
        await gate.reached()
        ranged = asyncio.create_task(ask(url, headers={"Range": f"bytes={start}-{start + 999}"}))
        await world.registry.seen(path, 2, method="GET")
        gate.release()
        async with asyncio.timeout(15):
            answer = await ranged
            assert (await whole).sha256 == digest, name
        if answer.is_complete and answer.status == 206:
            assert answer.body == expected, name
        else:
            assert expected.startswith(answer.body) or answer.status == 503, name
        assert 1 <= rule.seen <= 4, name
        world.registry.clear()
    await world.still_serves()


async def test_endless_body_is_bounded(tmp_path: Path) -> None:
    """Of unknown size and without a digest: never more than the quota on disk, and no memory; devices may leave it."""
    async with FileRemote({"f": b""}, manifest=False) as remote:
        remote.script("/f", Endless(), method="GET")
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=PATIENT)
        limits = {"cache": {"max_size": "80MiB"}, "space_wait_seconds": 0}
        async with running_proxy(tmp_path, {**config, **limits}) as proxy:
            device = asyncio.create_task(ask(f"{proxy.url}/pulp/content/files/f"))
            await until(lambda: has_sent(remote, 300 * MIB))
            used = sum(path.stat().st_size for path in proxy.data_dir.rglob("*") if path.is_file())
            assert used < 85 * MIB
            assert rss(proxy) < 250 * MIB
            device.cancel()
            await asyncio.gather(device, return_exceptions=True)
            await remote.idle("/f")
            await until(lambda: is_unused(proxy))


async def is_count(proxy: Proxy, count: int) -> bool:
    return len(proxy.artifacts()) == count


async def has_sent(remote: Any, size: int) -> bool:
    return bool(remote.sent() >= size)


async def is_unused(proxy: Proxy) -> bool:
    return (await proxy.metrics()).total("contentapp_storage_used_bytes") == 0


# -- manifests and lists


def manifest_of(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **fields}).encode()


CONFIG = make_image().config.descriptor()
EVIL_TYPES = ["a/b\r\nX-Evil: 1", "text/html", "a/b; c=\x00", "é/ü", "a" * 5000 + "/b", "", "no-slash"]
BAD_MANIFESTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", OCI_MANIFEST),
    "not JSON": (b"{", OCI_MANIFEST),
    "not UTF-8": (b"\xff{}", OCI_MANIFEST),
    "list": (b"[]", OCI_MANIFEST),
    "deep": (b"[" * 300_000 + b"]" * 300_000, OCI_MANIFEST),
    "deep inside": (b'{"schemaVersion":2,"config":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, OCI_MANIFEST),
    "huge number": (
        manifest_of(config={**CONFIG, "size": 1}, layers=[]).replace(b'"size": 1', b'"size": 1' + b"0" * 6000),
        OCI_MANIFEST,
    ),
    "infinite": (manifest_of(config={**CONFIG, "size": float("inf")}, layers=[]), OCI_MANIFEST),
    "negative size": (manifest_of(config={**CONFIG, "size": -1}, layers=[]), OCI_MANIFEST),
    "float size": (manifest_of(config={**CONFIG, "size": 1.5}, layers=[]), OCI_MANIFEST),
    "schema1": (b'{"schemaVersion":1,"fsLayers":[]}', "application/vnd.docker.distribution.manifest.v1+json"),
    "no schema": (b"{}", OCI_MANIFEST),
    "two kinds": (manifest_of(config=CONFIG, layers=[], manifests=[]), OCI_MANIFEST),
    "other type": (manifest_of(config=CONFIG, layers=[]), OCI_INDEX),
    "HTML": (b"<html></html>", "text/html"),
    "bad digest": (manifest_of(config={**CONFIG, "digest": "sha256:../../x"}, layers=[]), OCI_MANIFEST),
    "md5": (manifest_of(config={**CONFIG, "digest": "md5:" + "a" * 32}, layers=[]), OCI_MANIFEST),
    "100k entries": (
        manifest_body(
            OCI_INDEX, manifests=[{"mediaType": "a/b", "digest": f"sha256:{n:064x}", "size": 1} for n in range(22_000)]
        ),
        OCI_INDEX,
    ),
    "layers are text": (manifest_of(config=CONFIG, layers="x"), OCI_MANIFEST),
    "two sizes": (manifest_of(config=CONFIG, layers=[{**CONFIG, "size": CONFIG["size"] + 1}]), OCI_MANIFEST),
    **{
        f"type {n}": (manifest_of(config={**CONFIG, "mediaType": value}, layers=[]), OCI_MANIFEST)
        for n, value in enumerate(EVIL_TYPES)
        if value != "text/html"
    },
}


@module_loop
async def test_bad_manifests(world: World) -> None:
    """Refused by tag and by digest with a plain 503, whatever the remote calls them; nobody waits for the reading."""
    for number, (name, (body, media_type)) in enumerate(BAD_MANIFESTS.items()):
        part = Part(media_type, body)
        tag = f"t{number}"
        world.registry.push_manifest(f"bad{number}", part, tag=tag)
        for reference in (tag, part.digest):
            async with asyncio.timeout(10):
                pulled, other = await asyncio.gather(
                    ask(f"{world.proxy.url}/v2/reg/bad{number}/manifests/{reference}"), timed_ping(world.proxy)
                )
            assert pulled.status == 503, (name, pulled.body[:200])
            assert b'"code":"UNAVAILABLE"' in pulled.body
            assert "X-Evil" not in pulled.headers
            assert other < 1.0, name
    large = Part(
        OCI_MANIFEST, manifest_body(OCI_MANIFEST, config=CONFIG, layers=[], annotations={"a": "x" * (5 * MIB)})
    )
    world.registry.push_manifest("large", large, tag="v1")
    assert (await ask(f"{world.proxy.url}/v2/reg/large/manifests/v1")).status == 503
    world.registry.push("endless", "v1", make_image())
    world.registry.script("/v2/endless/manifests/*", Endless())
    assert (await ask(f"{world.proxy.url}/v2/reg/endless/manifests/v1")).status == 503
    assert world.registry.sent("/v2/endless/*") < 40 * MIB
    await world.still_serves()


async def timed_ping(proxy: Proxy) -> float:
    started = time.monotonic()
    assert (await ask(f"{proxy.url}/v2/")).status == 200
    return time.monotonic() - started


@module_loop
async def test_manifest_headers_that_lie(world: World) -> None:
    """Digest, type and validators come from the bytes, or are refused; nothing is passed on as it was sent."""
    image = make_image(seed=900)
    lies: dict[str, tuple[dict[str, str | None], int]] = {
        "other digest": ({"Docker-Content-Digest": f"sha256:{'0' * 64}"}, 503),
        "broken digest": ({"Docker-Content-Digest": "sha256:x"}, 200),
        "injected digest": ({"Docker-Content-Digest": f"{image.digest}\tX-Evil: 1"}, 200),
        "no type": ({"Content-Type": None}, 200),
        "vague type": ({"Content-Type": "text/plain; charset=utf-8"}, 200),
        "HTML type": ({"Content-Type": "text/html"}, 503),
        "odd type": ({"Content-Type": "application/vnd.evil"}, 503),
        "odd ETag": ({"ETag": '"a\x80b', "Last-Modified": "yesterday\x81"}, 200),
        "far future": ({"Last-Modified": "Fri, 31 Dec 9999 23:59:59 GMT"}, 200),
        "long ago": ({"Last-Modified": "Mon, 01 Jan 0001 00:00:00 GMT"}, 200),
    }
    for number, (name, (headers, status)) in enumerate(lies.items()):
        repository = f"lies{number}"
        world.registry.push(repository, "v1", image)
        world.registry.script(f"/v2/{repository}/*", Headers(headers))
        answer = await ask(f"{world.proxy.url}/v2/reg/{repository}/manifests/v1")
        assert answer.status == status, (name, answer.body)
        if status == 200:
            assert answer.headers["Docker-Content-Digest"] == answer.sha256 == image.digest
            assert answer.headers["Content-Type"] == OCI_MANIFEST
            assert answer.headers["ETag"] == f'"{image.digest}"'
            assert_clean(answer)
        await world.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
    await world.still_serves()


def assert_clean(answer: Answer) -> None:
    """ASCII headers that we know by name, without anything of the remote's."""
    known = {
        *("Content-Type", "Cache-Control", "Cache-Status", "X-Content-Type-Options", "ETag", "Last-Modified"),
        *("Docker-Content-Digest", "Repr-Digest", "Accept-Ranges", "Content-Length", "Server", "Date", "Connection"),
        *("Transfer-Encoding", "Link", "Content-Range", "OCI-Filters-Applied", "Keep-Alive"),
    }
    odd = {name.lower() for name in answer.headers} - {name.lower() for name in known}
    assert not odd
    for name, value in answer.headers.items():
        assert value.isascii(), (name, value)
        assert "evil" not in value.lower(), (name, value)
        if name == "Last-Modified":
            assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", value), value


async def test_manifest_that_names_itself(tmp_path: Path) -> None:
    """A digest can't name itself but through a server that lies: the body is then not what its digest says."""
    async with RegistryRemote() as remote:
        digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
        body = manifest_body(OCI_INDEX, manifests=[{"mediaType": OCI_INDEX, "digest": digest, "size": 1}])
        part = Part(OCI_INDEX, body)
        remote.push_manifest("app", part, tag="v1")
        remote.repositories["app"].manifests[digest] = part
        remote.script("/v2/app/manifests/*", Headers({"Docker-Content-Digest": digest}))
        own = Part(OCI_MANIFEST, manifest_of(config=CONFIG, layers=[], subject={**CONFIG, "mediaType": OCI_MANIFEST}))
        remote.push_manifest("sub", own, tag="v1")
        async with running_proxy(
            tmp_path, pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        ) as proxy:
            for reference in ("v1", digest):
                assert (await ask(f"{proxy.url}/v2/reg/app/manifests/{reference}")).status == 503
            assert (await ask(f"{proxy.url}/v2/reg/sub/manifests/v1")).status == 200
            assert proxy.artifacts() != []


@module_loop
async def test_lists_that_lie(world: World) -> None:
    """Tag lists and referrers are read, bounded, and written anew; a Link leads to us or nowhere."""
    evil = ["ok", "../x", "a b", "x" * 200, "é", "a\r\nX-Evil: 1", "<script>", ""]
    lists: dict[str, tuple[bytes, int]] = {
        "odd tags": (json.dumps({"name": "evil", "tags": evil}).encode(), 200),
        "null": (b'{"name":"x","tags":null}', 200),
        "text": (b'{"name":"x","tags":"abc"}', 503),
        "numbers": (b'{"name":"x","tags":[1]}', 503),
        "not JSON": (b"<html>", 503),
        "list": (b"[]", 503),
        "deep": (b'{"tags":' + b"[" * 200_000, 503),
        "many": (json.dumps({"tags": [f"t{n}" for n in range(250_000)]}).encode(), 503),
        "huge": (b'{"tags":["' + b"a" * (17 * MIB) + b'"]}', 503),
        "endless": (b"", 503),
    }
    image = make_image(seed=901)
    for number, (name, (body, status)) in enumerate(lists.items()):
        repository = f"lists{number}"
        world.registry.push(repository, "ok", image)
        fault: Fault = Endless() if name == "endless" else Replace(body)
        world.registry.script(f"/v2/{repository}/tags/list", fault)
        answer = await ask(f"{world.proxy.url}/v2/reg/{repository}/tags/list")
        assert answer.status == status, (name, answer.body[:100])
        if status == 200:
            shown = json.loads(answer.body)
            assert shown["name"] == f"reg/{repository}"
            assert shown["tags"] in (["ok"], [])
    links = [
        ("<http://169.254.169.254/latest?n=1>; rel=next", False),
        ('</v2/other/tags/list?n=1&last=a>; rel="next"', True),
        ('<https://evil.example/v2/links/tags/list?n=1&last=a>; rel="next"', True),
        ('</v2/links/tags/list?n=1&last=a\tX-Evil>; rel="next"', False),
        ('</v2/links/tags/list?n=1&last=%0d%0aX-Evil:1>; rel="next"', False),
        ("</v2/links/tags/list?" + "a" * 7000 + '>; rel="next"', False),
        ("<" * 7000, False),
        ("<a>;" + " " * 7000 + "rel=next", False),
        ('<a>; x="' + "; rel=" * 1000 + '"; rel="next"', False),
        ("</v2/links/tags/list>; rel=next", False),
    ]
    world.registry.push("links", "ok", image)
    for link, is_kept in links:
        world.registry.script("/v2/links/*", Headers({"Link": link}))
        for path in ("tags/list", f"referrers/{image.digest}"):
            async with asyncio.timeout(5):
                answer = await ask(f"{world.proxy.url}/v2/reg/links/{path}")
            assert answer.status == 200
            assert_clean(answer)
            shown_link = answer.headers.get("Link", "")
            if path == "tags/list":
                assert shown_link == ('</v2/reg/links/tags/list?n=1&last=a>; rel="next"' if is_kept else ""), link[:60]
        world.registry.clear()
    await world.still_serves()


@module_loop
async def test_headers_of_files_that_lie(world: World) -> None:
    """Type by name, validators of our own making, and none that could be taken for another's."""
    values = ['W/"weak"', '"a" X-Evil', '"' + "a" * 7000 + '"', "bare", '""', '"\x80\xff"', "*"]
    for number, etag in enumerate(values):
        path = f"lie{number}.html" if number % 2 else f"lie{number}.bin"
        world.files.put(path, b"body %d" % number)
        lies = {"ETag": etag, "Last-Modified": "evil, now\x80", "Content-Type": "text/html\x80; evil=1"}
        if not number % 2:
            lies["Content-Type"] = "evil/type; a=\xff"
        world.files.script(f"/{path}", Headers(dict(lies)))
        for _ in range(2):
            answer = await ask(f"{world.proxy.url}/pulp/content/files/{path}")
            assert answer.status == 200, etag
            assert_clean(answer)
            assert answer.headers["Content-Type"] == ("text/html" if number % 2 else "application/octet-stream")
            assert re.fullmatch(r'("u-[0-9a-f]{32}")?', answer.headers.get("ETag", "")), etag
    await world.still_serves()


# -- PULP_MANIFEST


async def test_listings_that_lie(tmp_path: Path) -> None:
    """A broken, endless or hostile PULP_MANIFEST is none: files are served undigested."""
    good = f"f,{hashlib.sha256(b'good').hexdigest()},4\n".encode()
    bodies: dict[str, bytes] = {
        "html": b"<html>" + good,
        "binary": b"\x00\xff" * 100,
        "paths": good + f"../../etc/passwd,{'a' * 64},4\n".encode(),
        "absolute": f"/etc/passwd,{'a' * 64},4\n".encode(),
        "negative": f"f,{'a' * 64},-4\n".encode(),
        "huge": f"f,{'a' * 64},{'9' * 30}\n".encode(),
        "long line": b"f" * 100_000,
        "no digest": b"f,,4\n",
    }
    remotes = {name.replace(" ", "-"): FileRemote({"f": b"good"}, manifest=True) for name in bodies}
    twice = FileRemote({"f": b"good"}, manifest=True)
    endless = FileRemote({"f": b"good"}, manifest=True)
    async with open_all([*remotes.values(), twice, endless]):
        for remote, body in zip(remotes.values(), bodies.values(), strict=True):
            remote.put("PULP_MANIFEST", body)
        twice.put("PULP_MANIFEST", good + f"f,{'b' * 64},9\n".encode())
        endless.script("/PULP_MANIFEST", Endless())
        settings = {**PATIENT, "metadata_max_size": "1MiB", "metadata_wait_seconds": 3}
        urls = {**{name: remote.url for name, remote in remotes.items()}, "twice": twice.url, "endless": endless.url}
        configs = [pull_through("file", name, {name: f"{url}/"}, remote=settings) for name, url in urls.items()]
        async with staged(tmp_path, *configs) as proxy:
            async with asyncio.timeout(20):
                for name in urls:
                    answer = await ask(f"{proxy.url}/pulp/content/{name}/f")
                    if name != "twice":
                        assert (answer.status, answer.body) == (200, b"good"), name
                    assert (await ask(f"{proxy.url}/pulp/content/{name}/etc/passwd")).status == 404
            assert endless.sent("/PULP_MANIFEST") < 40 * MIB
            assert "Traceback" not in proxy.output()


@asynccontextmanager
async def open_all(remotes: list[Any]) -> AsyncIterator[None]:
    for remote in remotes:
        await remote.__aenter__()
    try:
        yield
    finally:
        for remote in remotes:
            await remote.__aexit__()


# -- one remote against another, one name against another


@pytest.mark.parametrize("fault", [Status(403), Status(404), Status(503), Flip(0)], ids=["403", "404", "503", "flip"])
async def test_one_distribution_does_not_suffer_from_another_ones_remote(tmp_path: Path, fault: Fault) -> None:
    """They share the flight of a digest, not its sources: where A's fail, B's devices are served by B's."""
    async with RegistryRemote() as broken, RegistryRemote() as works:
        config = merged(
            pull_through("container", "a", {"broken": broken.url}, remote=PATIENT),
            pull_through("container", "b", {"works": works.url}, remote=PATIENT),
            content={"workers": 2},
        )
        async with running_proxy(tmp_path, config) as proxy:
            for size in (300 * KIB, 3 * MIB):
                content = fresh(size)
                digest = broken.push_blob("app", content)
                works.push_blob("app", content)
                stall, path = Stall(-1), f"/v2/app/blobs/{digest}"
                broken.script(path, fault, stall, method="GET")
                first = asyncio.create_task(ask(f"{proxy.url}/v2/a/app/blobs/{digest}"))
                await stall.gate.reached()
                others = [asyncio.create_task(ask(f"{proxy.url}/v2/b/app/blobs/{digest}")) for _ in range(6)]
                await works.seen(path, method="HEAD")
                stall.gate.release()
                is_streamed_wrong = isinstance(fault, Flip) and size > MIB
                for other in await asyncio.gather(*others):
                    assert is_streamed_wrong or (other.status, other.sha256) == (200, digest), other.body[:200]
                    assert not other.is_complete or other.sha256 == digest
                answer = await first
                assert answer.sha256 == digest or not answer.is_complete or answer.status >= 400
                assert (await ask(f"{proxy.url}/v2/b/app/blobs/{digest}")).sha256 == digest


@pytest.mark.parametrize("is_stored_before", [False, True])
async def test_wrong_size_in_a_manifest_harms_its_own_name_alone(tmp_path: Path, is_stored_before: bool) -> None:
    """Who may push one image must not be able to cool a digest, or the remote, for all the others."""
    async with RegistryRemote() as remote:
        contents = [Synthetic(200 * KIB, seed=500 + number) for number in range(4)]
        digests = [remote.push_blob("popular", content) for content in contents]
        lying = [{**CONFIG, "digest": digest, "size": 7} for digest in digests]
        remote.push_manifest("evil", Part(OCI_MANIFEST, manifest_of(config=CONFIG, layers=lying)), tag="v1")
        remote.repositories["evil"].blobs.update(
            {digest: remote.repositories["popular"].blobs[digest] for digest in digests}
        )
        patient = {"max_retries": 0}
        config = pull_through("container", "reg", {"r": remote.url}, remote=patient)
        async with running_proxy(tmp_path, config) as proxy:
            if is_stored_before:
                assert (await ask(f"{proxy.url}/v2/reg/popular/blobs/{digests[0]}")).status == 200
            assert (await ask(f"{proxy.url}/v2/reg/evil/manifests/v1")).status == 200
            for digest in digests:
                answer = await ask(f"{proxy.url}/v2/reg/evil/blobs/{digest}")
                assert answer.status == 503 or answer.sha256 == digest
            for digest in digests:
                assert (await ask(f"{proxy.url}/v2/reg/popular/blobs/{digest}")).sha256 == digest


async def test_wrong_length_in_a_head_is_no_lasting_harm(tmp_path: Path) -> None:
    """Some servers answer HEAD with Content-Length: 0, or another wrong one: the digest has the last word."""
    async with RegistryRemote() as remote:
        content = Synthetic(200 * KIB, seed=600)
        digest = remote.push_blob("app", content)
        remote.script("/v2/app/*", Replace(Stored(b"")), method="HEAD")
        config = pull_through("container", "reg", {"r": remote.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            first = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            assert (first.status, first.sha256) == (200, digest)
            other = remote.push_blob("app", Synthetic(3 * MIB, seed=601))
            assert (await ask(f"{proxy.url}/v2/reg/app/blobs/{other}")).sha256 == other
            assert content_of(b"").size == 0


async def test_equal_etags_of_two_remotes_mix_nothing(tmp_path: Path) -> None:
    """One remote's ETag says nothing of another one's bytes: a device never resumes one's file with the other's."""
    one, two = Synthetic(3 * MIB, seed=610), Synthetic(3 * MIB, seed=611)
    async with FileRemote({"f": one}, manifest=False) as first, FileRemote({"f": two}, manifest=False) as second:
        first.script("/f", Headers({"ETag": '"v1"'}), Cut(2 * MIB), method="GET", times=1)
        first.script("/f", Drop(), method="GET")
        for remote in (first, second):
            remote.script("/f", Headers({"ETag": '"v1"'}))
        urls = {"one": f"{first.url}/", "two": f"{second.url}/"}
        given_up = {"resume_deadline_seconds": 0.5}
        config = pull_through("file", "files", urls, remote=PATIENT, distribution=given_up)
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/pulp/content/files/f"
            broken = await ask(url)
            assert (broken.status, broken.is_complete) == (200, False)
            await first.refuse()
            resume = {"Range": f"bytes={len(broken.body)}-", "If-Range": broken.headers["ETag"]}
            answers = [await ask(url, headers=resume) for _ in range(3)]
            assert {answer.status for answer in answers} == {200}
            assert answers[-1].sha256 == digest_of(two)


@pytest.mark.parametrize("policy", ["on_demand", "streamed"])
async def test_empty_body_is_not_let_out_by_its_head(tmp_path: Path, policy: str) -> None:
    """``Content-Length: 0`` is a complete answer without one byte that could be held back."""
    async with RegistryRemote() as remote:
        digests = [remote.push_blob("app", Synthetic(size, seed=620)) for size in (1, 1000, 3 * MIB)]
        remote.script("/v2/app/blobs/*", Shorten(0), method="GET")
        at_once = {"verify_first_seconds": 0, "verify_first_bytes": 0}
        config = pull_through(
            "container", "reg", {"r": remote.url}, remote={**PATIENT, "policy": policy}, distribution=at_once
        )
        async with running_proxy(tmp_path, config) as proxy:
            for digest in digests * 4:
                answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
                assert not answer.is_complete or answer.status == 503, answer
                await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})


async def test_refused_list_does_not_cool_the_pulls(tmp_path: Path) -> None:
    """Who may ask for a list, or for something odd, must not be able to stop a repository's pulls."""
    async with RegistryRemote() as remote:
        image = make_image(seed=630)
        remote.push("app", "v1", image)
        remote.script("/v2/app/tags/list", Status(403))
        remote.script("/v2/app/referrers/*", Status(500))
        remote.script("/v2/app/manifests/odd", Status(400))
        remote.script(f"/v2/app/blobs/{image.layers[0].digest}", Status(418), times=2)
        config = pull_through("container", "reg", {"r": remote.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/reg/app"
            for path, status in {
                "tags/list": 403,
                f"referrers/{image.digest}": 503,
                "manifests/odd": 503,
                f"blobs/{image.layers[0].digest}": 503,
            }.items():
                assert (await ask(f"{url}/{path}")).status == status, path
            assert (await ask(f"{url}/manifests/v1")).sha256 == image.digest
            assert (await ask(f"{url}/blobs/{image.layers[1].digest}")).sha256 == image.layers[1].digest
