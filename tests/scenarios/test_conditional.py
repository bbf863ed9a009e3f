"""Conditional requests: 304 before any range, by every tag that names the bytes, and by date."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Flip, Gate, Stall
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, asking
from tests.scenarios.stage import PATIENT, fresh, staged, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
LARGE_SIZE = 2 * MIB + 3
LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"
BEFORE = "Sun, 31 Dec 2023 23:59:59 GMT"
LATER = "Tue, 02 Jan 2024 00:00:00 GMT"


@dataclass
class World:
    """``reg`` over a registry, ``files`` over a plain file server, ``weak`` over one with weak tags."""

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote
    weak: FileRemote

    def blob(self, content: Synthetic) -> str:
        return f"{self.proxy.url}/v2/reg/app/blobs/{self.registry.push_blob('app', content)}"

    def file(self, content: Synthetic, *, to: str = "files") -> str:
        (self.files if to == "files" else self.weak).put(f"f{content.seed}", content)
        return f"{self.proxy.url}/pulp/content/{to}/f{content.seed}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with (
        RegistryRemote() as registry,
        FileRemote(manifest=False) as files,
        FileRemote(manifest=False, etag="weak") as weak,
        staged(
            tmp_path_factory.mktemp("conditional"),
            pull_through("container", "reg", {"r": registry.url}, remote=PATIENT),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            pull_through("file", "weak", {"w": f"{weak.url}/"}, remote=PATIENT),
        ) as proxy,
    ):
        yield World(proxy, registry, files, weak)


def check_not_modified(answer: Answer, whole: Answer) -> None:
    """A 304 has the validators and cache headers of the 200, and nothing about a body (RFC 9110, 15.4.5)."""
    assert (answer.status, answer.body) == (304, b"")
    for name in ("ETag", "Last-Modified", "Cache-Control"):
        assert answer.headers.get(name) == whole.headers.get(name)
    assert {"Content-Length", "Content-Type", "Content-Range", "Transfer-Encoding"}.isdisjoint(answer.headers)


async def check_conditions(url: str, whole: Answer) -> None:
    """All conditions on something that answers 200 with an ETag and the Last-Modified LONG_AGO."""
    tag, date = whole.headers["ETag"], whole.headers["Last-Modified"]
    fulfilled: list[dict[str, str]] = [
        {"If-None-Match": tag},
        {"If-None-Match": f"W/{tag}"},
        {"If-None-Match": f'"a", W/"b" , {tag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": date},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If-None-Match": tag, "If-Modified-Since": BEFORE},
        {"If-None-Match": tag, "Range": "bytes=0-1"},
        {"If-None-Match": tag, "Range": "bytes=99999999-"},
        {"If-Modified-Since": date, "Range": "bytes=0-1"},
        {"If-None-Match": tag, "Range": "bytes=0-1", "If-Range": '"other"'},
    ]
    for headers in fulfilled:
        for method in ("GET", "HEAD"):
            check_not_modified(await ask(url, method=method, headers=headers), whole)
    unfulfilled: list[dict[str, str]] = [
        {"If-None-Match": '"other"'},
        {"If-None-Match": tag.strip('"')},
        {"If-None-Match": '"other"', "If-Modified-Since": date},
        {"If-Modified-Since": BEFORE},
        {"If-Modified-Since": "nonsense"},
        {"If-Match": '"other"'},
        {"If-Unmodified-Since": BEFORE},
    ]
    for headers in unfulfilled:
        answer = await ask(url, headers=headers)
        assert (answer.status, answer.body) == (200, whole.body), headers
        partial = await ask(url, headers={**headers, "Range": "bytes=0-1"})
        assert (partial.status, partial.body) == (206, whole.body[:2]), headers


async def test_blob(world: World) -> None:
    url = world.blob(fresh(2000))
    await check_conditions(url, await until_hit(url))


async def test_file_without_a_digest(world: World) -> None:
    url = world.file(fresh(2000))
    whole = await until_hit(url)
    assert whole.headers["Last-Modified"] == LONG_AGO
    await check_conditions(url, whole)


async def test_manifest_by_tag_and_digest(world: World) -> None:
    image = make_image(layers=1, layer_size=10, seed=1)
    world.registry.push("manifest", "v1", image)
    for reference in ("v1", image.digest):
        url = f"{world.proxy.url}/v2/reg/manifest/manifests/{reference}"
        whole = await ask(url)
        assert whole.headers["ETag"] == f'"{image.digest}"'
        await check_conditions(url, whole)


async def test_date_alone_where_there_is_no_strong_tag(world: World) -> None:
    url = world.file(fresh(2000), to="weak")
    whole = await until_hit(url)
    assert "ETag" not in whole.headers
    for headers, status in (
        ({"If-Modified-Since": LONG_AGO}, 304),
        ({"If-Modified-Since": BEFORE}, 200),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '""'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": LATER}, 200),
    ):
        assert (await ask(url, headers=headers)).status == status, headers


async def test_cold_content_is_answered_with_304_too(world: World) -> None:
    """The device has it already; the proxy fetches it all the same, once."""
    content, file = fresh(LARGE_SIZE), fresh(LARGE_SIZE)
    for url, headers in (
        (world.blob(content), {"If-None-Match": f'"{digest_of(content)}"', "Range": "bytes=1-2"}),
        (world.file(file), {"If-Modified-Since": LATER}),
    ):
        answer = await ask(url, headers=headers)
        assert (answer.status, answer.body) == (304, b"")
        assert (await until_hit(url)).status == 200
    assert world.registry.count(f"*/{digest_of(content)}", method="GET") == 1
    cold = world.blob(fresh(LARGE_SIZE))
    for headers in ({"If-None-Match": '"other"'}, {"If-Modified-Since": BEFORE}):
        assert (await ask(cold, headers=headers)).status == 200


async def test_tag_of_a_body_that_is_not_verified_yet(world: World) -> None:
    """It names its flight, and goes on to name the bytes once that flight has verified them."""
    content, gate = fresh(LARGE_SIZE), Gate()
    url, digest = world.blob(content), digest_of(content)
    world.registry.script(f"*/{digest}", Stall(MIB, gate), method="GET")
    async with asking(url) as response:
        tag = response.headers["ETag"]
        assert tag.startswith(f'"{digest}-')
        assert "Repr-Digest" not in response.headers
        for given, status in {tag: 304, f'"{digest}"': 304, f'{tag[:-1]}x"': 200}.items():
            async with asking(url, headers={"If-None-Match": given}) as answer:
                assert answer.status == status, given
                assert answer.headers["ETag"] == tag
        gate.release()
        assert await response.content.read() == read_all(content)
    for given, status in {tag: 304, f'"{digest}"': 304, f'{tag[:-1]}x"': 200}.items():
        await until_hit(url)
        answer = await ask(url, headers={"If-None-Match": given})  # type: ignore[assignment]
        assert answer.status == status, given
        assert answer.headers["ETag"] == f'"{digest}"'


async def test_tag_of_a_flight_that_failed_names_nothing(world: World) -> None:
    content, gate = fresh(LARGE_SIZE), Gate()
    url, digest = world.blob(content), digest_of(content)
    world.registry.script(f"*/{digest}", Flip(LARGE_SIZE - 1), Stall(MIB, gate), method="GET", times=1)
    async with asking(url) as response:
        tag = response.headers["ETag"]
        assert (await ask(url, headers={"If-None-Match": tag})).status == 304
        gate.release()
    await until_hit(url)
    answer = await ask(url, headers={"If-None-Match": tag})
    assert (answer.status, answer.sha256) == (200, digest)
