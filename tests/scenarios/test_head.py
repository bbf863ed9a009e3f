"""HEAD agrees with GET in all that can be known, and never starts the transfer of a body."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Fault, Gate, Headers, LoginPage, Stall, Status, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, asking
from tests.scenarios.stage import PATIENT, fresh, staged, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
LARGE_SIZE = 2 * MIB + 3
LISTED = Synthetic(LARGE_SIZE, seed=1)
UNKNOWABLE = {"date", "cache-status", "etag", "repr-digest", "transfer-encoding"}
"""What only a GET that has begun can say: whether it is stored, and which flight verifies it; and the framing."""


@dataclass
class World:
    """``reg`` over a registry, ``flow`` streamed from it, ``files`` over a file server without digests."""

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote
    listed: FileRemote

    def blob(self, content: Synthetic, *, to: str = "reg") -> str:
        return f"{self.proxy.url}/v2/{to}/app/blobs/{self.registry.push_blob('app', content)}"

    def file(self, content: Synthetic, suffix: str = "") -> str:
        self.files.put(f"f{content.seed}{suffix}", content)
        return f"{self.proxy.url}/pulp/content/files/f{content.seed}{suffix}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with (
        RegistryRemote() as registry,
        FileRemote(manifest=False) as files,
        FileRemote({"f": LISTED}) as listed,
        staged(
            tmp_path_factory.mktemp("head"),
            pull_through("container", "reg", {"r": registry.url}, remote=PATIENT),
            pull_through("container", "flow", {"s": registry.url}, remote={**PATIENT, "policy": "streamed"}),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            pull_through("file", "listed", {"l": f"{listed.url}/"}, remote=PATIENT),
        ) as proxy,
    ):
        yield World(proxy, registry, files, listed)


def known(answer: Answer, *without: str) -> dict[str, str]:
    """The headers that HEAD and GET must agree in."""
    hidden = {*UNKNOWABLE, *without}
    return {name: value for name, value in answer.headers.items() if name.lower() not in hidden}


async def check_agreement(url: str, *without: str) -> tuple[Answer, Answer]:
    """HEAD, then GET: the same head."""
    head = await ask(url, method="HEAD")
    get = await ask(url)
    assert (head.status, head.body) == (get.status, b"")
    assert known(head, *without) == known(get, *without)
    return head, get


async def check_warm_agreement(url: str) -> None:
    """Of what is stored, everything can be known."""
    await until_hit(url)
    head, get = await ask(url, method="HEAD"), await ask(url)
    assert head.body == b""
    assert {**head.headers, "Date": ""} == {**get.headers, "Date": ""}


@pytest.mark.parametrize("size", [1000, LARGE_SIZE])
async def test_blob(world: World, size: int) -> None:
    """Last-Modified is excepted on cold content whose remote does not tell it: it is when the bytes are first seen."""
    content = fresh(size)
    url, path = world.blob(content), f"*/{digest_of(content)}"
    head = await ask(url, method="HEAD")
    assert head.status == 200
    assert head.headers["ETag"] == f'"{digest_of(content)}"'
    assert head.headers["Docker-Content-Digest"] == digest_of(content)
    assert head.headers["Cache-Status"] == "contentapp; fwd=miss"
    assert world.registry.count(path, method="GET") == 0
    await check_agreement(url, "last-modified")
    await check_warm_agreement(url)
    assert world.registry.count(path, method="GET") == 1


async def test_blob_that_is_streamed(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, path = world.blob(content, to="flow"), f"*/{digest_of(content)}"
    head, get = await check_agreement(url, "last-modified")
    assert head.cache == get.cache == "fwd=bypass"
    assert world.registry.count(path, method="GET") == 1


async def test_blob_while_it_arrives(world: World) -> None:
    """The flight's own facts, without another word to the remote."""
    content, gate = fresh(LARGE_SIZE), Gate()
    url, path = world.blob(content), f"*/{digest_of(content)}"
    world.registry.script(path, Stall(MIB, gate), method="GET")
    async with asking(url) as response:
        await gate.reached()
        head = await ask(url, method="HEAD")
        for name in ("ETag", "Content-Length", "Last-Modified", "Accept-Ranges", "Docker-Content-Digest"):
            assert head.headers[name] == response.headers[name]
        gate.release()
        assert await response.content.read() == read_all(content)
    assert world.registry.count(path, method="GET") == 1


async def test_manifest_may_be_fetched_whole(world: World) -> None:
    image = make_image(layers=1, layer_size=10, seed=2)
    world.registry.push("manifest", "v1", image)
    for reference in ("v1", image.digest):
        url = f"{world.proxy.url}/v2/reg/manifest/manifests/{reference}"
        head = await ask(url, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(image.manifest.body))
        assert head.headers["Docker-Content-Digest"] == image.digest
        assert head.headers["Content-Type"] == image.manifest.media_type
        assert {**known(head), "ETag": head.headers["ETag"]} == {
            **known(get := await ask(url)),
            "ETag": get.headers["ETag"],
        }
    assert world.registry.count("/v2/manifest/blobs/*") == 0


async def test_lists(world: World) -> None:
    world.registry.push("lists", "v1", make_image(layers=1, layer_size=10, seed=3))
    await check_agreement(f"{world.proxy.url}/v2/reg/lists/tags/list")
    await check_agreement(f"{world.proxy.url}/v2/reg/lists/referrers/{make_image().digest}")
    await check_agreement(f"{world.proxy.url}/pulp/content/listed/")
    await check_agreement(f"{world.proxy.url}/v2/")


async def test_file_with_a_digest(world: World) -> None:
    url = f"{world.proxy.url}/pulp/content/listed/f"
    head = await ask(url, method="HEAD")
    assert head.headers["ETag"] == f'"{digest_of(LISTED)}"'
    assert world.listed.count("/f", method="GET") == 0
    await check_agreement(url)
    await check_warm_agreement(url)


async def test_file_without_a_digest(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url = world.file(content)
    head, get = await check_agreement(url)
    assert head.headers["ETag"] == get.headers["ETag"]
    assert head.headers["Last-Modified"] == "Mon, 01 Jan 2024 00:00:00 GMT"
    assert [exchange.method for exchange in world.files.asked(f"/f{content.seed}")] == ["HEAD", "GET"]
    await check_warm_agreement(url)


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_where_head_is_refused_one_byte_is_got(world: World, status: int) -> None:
    file, blob = fresh(LARGE_SIZE), fresh(LARGE_SIZE)
    for remote, url, path in (
        (world.files, world.file(file), f"/f{file.seed}"),
        (world.registry, world.blob(blob), f"*/{digest_of(blob)}"),
    ):
        remote.script(path, Status(status), method="HEAD")
        head = await ask(url, method="HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(LARGE_SIZE))
        assert {exchange.headers.get("Range") for exchange in remote.asked(path, method="GET")} == {"bytes=0-0"}
        assert remote.sent(path, method="GET") <= 2
        await check_agreement(url, "last-modified")


async def test_size_that_the_remote_does_not_tell(world: World) -> None:
    content = fresh(LARGE_SIZE)
    world.files.script(f"/f{content.seed}", Unsized())
    head, _ = await check_agreement(world.file(content))
    assert {"Content-Length", "Accept-Ranges", "ETag"}.isdisjoint(head.headers)


@pytest.mark.parametrize(
    "fault", [Status(404), Status(403), Status(500), LoginPage()], ids=["404", "403", "500", "html"]
)
async def test_errors(world: World, fault: Fault) -> None:
    """The same status, reason and headers as GET, and no body."""
    content = fresh(1000)
    file, blob = world.file(content), world.blob(content)
    world.files.script(f"/f{content.seed}", fault)
    world.registry.script(f"*/{digest_of(content)}", fault)
    for url in (file, blob):
        if url is blob and isinstance(fault, LoginPage):
            continue  # a registry's blobs have a digest, so that no type is held against them
        head, get = await ask(url, method="HEAD"), await ask(url)
        assert head.status >= 400
        assert (head.status, head.reason, head.body) == (get.status, get.reason, b"")
        assert {**known(head), "Content-Length": ""} == {**known(get), "Content-Length": ""}


async def test_missing_blob_of_a_served_manifest(world: World) -> None:
    """It is unavailable, not missing, to HEAD as to GET: pullers ask by HEAD whether they need to go on."""
    image = make_image(layers=1, layer_size=10, seed=4)
    world.registry.push("holes", "v1", image)
    assert (await ask(f"{world.proxy.url}/v2/reg/holes/manifests/v1")).status == 200
    world.registry.script("/v2/holes/blobs/*", Status(404))
    for method in ("HEAD", "GET"):
        answer = await ask(f"{world.proxy.url}/v2/reg/holes/blobs/{image.config.digest}", method=method)
        assert answer.status == 503


async def test_html_may_be_asked_for_by_name(world: World) -> None:
    content = fresh(1000)
    url = world.file(content, ".html")
    world.files.script(f"/f{content.seed}.html", Headers({"Content-Type": "text/html"}))
    head, get = await check_agreement(url)
    assert (head.status, get.body) == (200, read_all(content))
