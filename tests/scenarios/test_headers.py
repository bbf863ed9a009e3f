"""Exactly which headers a device gets, in each situation: nothing less, nothing more, nothing of the remote's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from contentapp.core.httpdate import parse_http_date
from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Gate, Headers, Stall, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, asking
from tests.scenarios.stage import PATIENT, forget_stored, fresh, staged, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
LARGE_SIZE = 2 * MIB + 3
QUOTA = 68 * MIB
LISTED = Synthetic(5000, seed=2)
IMMUTABLE = "max-age=31536000, immutable"
NOISE = Headers(
    {
        "Cache-Control": "private, max-age=1",
        "Set-Cookie": "session=1",
        "Vary": "Accept",
        "Expires": "0",
        "Server": "someone",
        "Content-Disposition": "attachment",
        "X-Amz-Id": "7",
        "Age": "1000",
    }
)


@dataclass
class World:
    """``reg``, ``private`` (with a password), ``flow`` (streamed); ``files``, and ``listed`` with a PULP_MANIFEST."""

    proxy: Proxy
    registry: RegistryRemote
    secret: RegistryRemote
    files: FileRemote

    def blob(self, content: Synthetic, *, to: str = "reg") -> str:
        for remote in (self.registry, self.secret):
            digest = remote.push_blob("app", content)
            remote.script(f"*/{digest}", NOISE)
        return f"{self.proxy.url}/v2/{to}/app/blobs/{digest}"

    def file(self, content: Synthetic, suffix: str = "") -> str:
        path = f"f{content.seed}{suffix}"
        self.files.put(path, content)
        self.files.script(f"/{path}", NOISE)
        return f"{self.proxy.url}/pulp/content/files/{path}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    login = {"username": "user", "password": "secret"}
    async with (
        RegistryRemote() as registry,
        RegistryRemote(credentials=("user", "secret")) as secret,
        FileRemote(manifest=False) as files,
        FileRemote({"sub/f.tar.gz": LISTED}) as listed,
        staged(
            tmp_path_factory.mktemp("headers"),
            pull_through("container", "reg", {"r": registry.url}, remote=PATIENT),
            pull_through("container", "flow", {"s": registry.url}, remote={**PATIENT, "policy": "streamed"}),
            pull_through("container", "private", {"p": secret.url}, remote={**PATIENT, **login}),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            pull_through("file", "listed", {"l": f"{listed.url}/"}, remote=PATIENT),
            cache={"max_size": f"{QUOTA // MIB}MiB"},
        ) as proxy,
    ):
        listed.script("*", NOISE)
        yield World(proxy, registry, secret, files)


def shown(answer: Answer) -> dict[str, str]:
    """All headers by lower-case name, but those of the connection."""
    connection = {"date", "connection", "server"}
    assert answer.headers["Server"] == "contentapp"
    assert len(answer.headers) == len({name.lower() for name in answer.headers}), "one of each"
    return {name.lower(): value for name, value in answer.headers.items() if name.lower() not in connection}


def repr_digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


async def test_small_blob_is_verified_at_head_time(world: World) -> None:
    content = fresh(5000)
    url, digest = world.blob(content), digest_of(content)
    cold, warm = await ask(url), await until_hit(url)
    expected = {
        "content-type": "application/octet-stream",
        "content-length": "5000",
        "accept-ranges": "bytes",
        "etag": f'"{digest}"',
        "docker-content-digest": digest,
        "repr-digest": repr_digest(read_all(content)),
        "cache-control": IMMUTABLE,
        "x-content-type-options": "nosniff",
        "last-modified": cold.headers["Last-Modified"],
    }
    assert shown(cold) == {**expected, "cache-status": "contentapp; fwd=miss; stored"}
    assert shown(warm) == {**expected, "cache-status": "contentapp; hit"}
    part = await ask(url, headers={"Range": "bytes=1-2"})
    assert shown(part) == {
        **expected,
        "content-length": "2",
        "content-range": "bytes 1-2/5000",
        "cache-status": "contentapp; hit",
    }


async def test_large_blob_is_not_verified_at_head_time(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, digest, gate = world.blob(content), digest_of(content), Gate()
    world.registry.clear()
    world.registry.script(f"*/{digest}", NOISE, Stall(MIB, gate), method="GET")
    asked = asyncio.create_task(ask(url))
    await gate.reached()
    async with asking(url) as collapsed:
        assert collapsed.headers["Cache-Status"] == "contentapp; fwd=miss; collapsed"
        gate.release()
        await collapsed.read()
    cold, warm = await asked, await until_hit(url)
    assert cold.headers["ETag"].startswith(f'"{digest}-')
    assert collapsed.headers["ETag"] == cold.headers["ETag"]
    assert shown(cold) == {
        "content-type": "application/octet-stream",
        "content-length": str(LARGE_SIZE),
        "accept-ranges": "bytes",
        "etag": cold.headers["ETag"],
        "docker-content-digest": digest,
        "cache-control": IMMUTABLE,
        "x-content-type-options": "nosniff",
        "last-modified": cold.headers["Last-Modified"],
        "cache-status": "contentapp; fwd=miss; stored",
    }
    assert shown(warm) == {
        **shown(cold),
        "etag": f'"{digest}"',
        "repr-digest": repr_digest(read_all(content)),
        "cache-status": "contentapp; hit",
    }


async def test_manifest(world: World) -> None:
    image = make_image(layers=1, layer_size=10, seed=5)
    world.registry.push("manifest", "v1", image)
    world.registry.script("/v2/manifest/*", NOISE)
    url = f"{world.proxy.url}/v2/reg/manifest/manifests"
    cold, warm, by_digest = await ask(f"{url}/v1"), await ask(f"{url}/v1"), await ask(f"{url}/{image.digest}")
    expected = {
        "content-type": image.manifest.media_type,
        "content-length": str(len(image.manifest.body)),
        "accept-ranges": "bytes",
        "etag": f'"{image.digest}"',
        "docker-content-digest": image.digest,
        "repr-digest": repr_digest(image.manifest.body),
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "last-modified": cold.headers["Last-Modified"],
    }
    assert shown(cold) == {**expected, "cache-status": "contentapp; fwd=miss; stored"}
    assert shown(warm) == {**expected, "cache-status": "contentapp; hit"}
    assert shown(by_digest) == {**expected, "cache-control": IMMUTABLE, "cache-status": "contentapp; hit"}


async def test_file_without_a_digest(world: World) -> None:
    content = fresh(5000)
    cold = await ask(url := world.file(content, ".txt"))
    warm = await until_hit(url)
    tag = cold.headers["ETag"]
    assert tag.startswith('"u-')
    assert digest_of(content)[7:] not in tag
    expected = {
        "content-type": "text/plain",
        "content-length": "5000",
        "accept-ranges": "bytes",
        "etag": tag,
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT",
    }
    assert shown(cold) == {**expected, "cache-status": "contentapp; fwd=miss; stored"}
    assert shown(warm) == {**expected, "cache-status": "contentapp; hit"}


async def test_file_of_unknown_size(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url = world.file(content)
    world.files.clear()
    world.files.script(f"/f{content.seed}", Unsized(), NOISE)
    cold = await ask(url)
    assert shown(cold) == {
        "content-type": "application/octet-stream",
        "transfer-encoding": "chunked",
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        "cache-status": "contentapp; fwd=miss; stored",
    }


async def test_file_with_a_digest(world: World) -> None:
    url, digest = f"{world.proxy.url}/pulp/content/listed/sub/f.tar.gz", digest_of(LISTED)
    cold = await ask(url)
    expected = {
        "content-type": "application/gzip",
        "content-length": "5000",
        "accept-ranges": "bytes",
        "etag": f'"{digest}"',
        "repr-digest": repr_digest(read_all(LISTED)),
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT",
    }
    assert shown(cold) == {**expected, "cache-status": "contentapp; fwd=miss; stored"}
    assert shown(await until_hit(url)) == {**expected, "cache-status": "contentapp; hit"}


async def test_private_where_credentials_stand_behind_it(world: World) -> None:
    image = make_image(layers=1, layer_size=10, seed=6)
    world.secret.push("app", "v1", image)
    base = f"{world.proxy.url}/v2/private/app"
    for reference, expected in (
        ("manifests/v1", "private, no-cache"),
        (f"manifests/{image.digest}", f"private, {IMMUTABLE}"),
        (f"blobs/{image.config.digest}", f"private, {IMMUTABLE}"),
    ):
        for method in ("HEAD", "GET", "GET"):
            answer = await ask(f"{base}/{reference}", method=method)
            assert (answer.status, answer.headers["Cache-Control"]) == (200, expected), reference
    error = await ask(f"{base}/manifests/none")
    assert (error.status, error.headers["Cache-Control"]) == (404, "no-store")


async def test_streamed_bypasses_the_cache(world: World) -> None:
    image = make_image(layers=1, layer_size=10, seed=7)
    world.registry.push("stream", "v1", image)
    content = fresh(LARGE_SIZE)
    urls = [world.blob(content, to="flow"), f"{world.proxy.url}/v2/flow/stream/manifests/v1"]
    for url in urls:
        for _ in range(2):
            assert (await ask(url)).cache == "fwd=bypass", url


async def test_what_does_not_fit_is_told(world: World) -> None:
    content = Synthetic(QUOTA + MIB, seed=8)
    answer = await ask(world.blob(content))
    assert (answer.cache, answer.sha256) == ("fwd=miss; detail=no-space", digest_of(content))
    assert answer.headers["Content-Length"] == str(content.size)


async def test_cache_control_of_a_device_is_ignored(world: World) -> None:
    content = fresh(5000)
    url = world.blob(content)
    await until_hit(url)
    asked = world.registry.count()
    for name, value in {"Cache-Control": "no-cache, no-store, max-age=0", "Pragma": "no-cache"}.items():
        assert (await ask(url, headers={name: value})).cache == "hit"
    assert world.registry.count() == asked


async def test_last_modified_is_the_first_one_seen(world: World) -> None:
    """Also after the artifact is gone and the remote tells another time, and where the remote tells none."""
    content = fresh(7001)
    url, path = world.blob(content), f"*/{digest_of(content)}"
    world.registry.clear()
    world.registry.script(path, Headers({"Last-Modified": "Wed, 05 Jun 2019 10:11:12 GMT"}))
    assert (await ask(url)).headers["Last-Modified"] == "Wed, 05 Jun 2019 10:11:12 GMT"
    await until_hit(url)
    world.registry.clear()
    world.registry.script(path, Headers({"Last-Modified": "Thu, 06 Jun 2019 10:11:12 GMT"}))
    await forget_stored(world.proxy, content.size)
    head, again = await ask(url, method="HEAD"), await ask(url)
    assert again.cache == "fwd=miss; stored"
    for answer in (head, again, await until_hit(url)):
        assert answer.headers["Last-Modified"] == "Wed, 05 Jun 2019 10:11:12 GMT"
    assert world.registry.count(path, method="GET") == 2


async def test_last_modified_of_a_remote_that_tells_none(world: World) -> None:
    content = fresh(7002)
    url = world.blob(content)
    first = await ask(url)
    seen = parse_http_date(first.headers["Last-Modified"], now := datetime.now(UTC))
    assert seen is not None
    assert abs(seen - now) < timedelta(seconds=30)
    await until_hit(url)
    await forget_stored(world.proxy, content.size)
    await asyncio.sleep(1.01)  # HTTP's dates have whole seconds
    assert (await ask(url)).headers["Last-Modified"] == first.headers["Last-Modified"]


async def test_same_bytes_by_another_name_have_the_same_date(world: World) -> None:
    """What is kept by digest has one Last-Modified, whoever asks and wherever it came from."""
    content = fresh(7003)
    first = await ask(world.blob(content))
    await until_hit(world.blob(content))
    world.registry.clear()
    world.registry.push_blob("other", content)
    world.registry.script("/v2/other/*", Headers({"Last-Modified": "Thu, 06 Jun 2019 10:11:12 GMT"}))
    answer = await ask(f"{world.proxy.url}/v2/reg/other/blobs/{digest_of(content)}")
    assert answer.headers["Last-Modified"] == first.headers["Last-Modified"]


async def test_unsatisfiable_range(world: World) -> None:
    content = fresh(5000)
    url = world.blob(content)
    for _ in range(2):
        answer = await ask(url, headers={"Range": "bytes=5000-"})
        assert shown(answer) == {
            "content-range": "bytes */5000",
            "content-length": "0",
            "accept-ranges": "bytes",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        await until_hit(url)


async def test_http_1_0_gets_its_length_and_an_end(world: World) -> None:
    content = fresh(5000)
    url = world.blob(content)
    await until_hit(url)
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.proxy.port)
        path = url.removeprefix(world.proxy.url)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert body == read_all(content)
    assert b"Content-Length: 5000" in head
