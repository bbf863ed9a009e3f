"""P2 with chunk lists: a wrong chunk is found before it is sent, and fetched from the next source, it alone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contentapp.core.chunks import DEFAULT_CHUNK_SIZE, ChunkHasher, dump_chunk_list
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Content, Synthetic, digest_of, read_all
from tests.remotes.faults import Cut, Flip, IgnoreRange, Stall, Status
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, asking
from tests.scenarios.stage import PATIENT, at_rest, forget_stored, fresh, merged, until, until_hit

MIB = 1024 * 1024
CHUNK = 2 * MIB
SIZE = 9 * MIB + 1000
COLD = {**PATIENT, "cooldown_seconds": 300}


def list_of(content: Synthetic, chunk_size: int = CHUNK) -> bytes:
    hasher = ChunkHasher(chunk_size)
    hasher.update(read_all(content))
    return dump_chunk_list(hasher.finish())


@asynccontextmanager
async def world(
    folder: Path, content: Synthetic, *, document: bytes, is_listed: bool, **distribution: Any
) -> AsyncIterator[tuple[Proxy, list[FileRemote]]]:
    """A proxy over file remotes that all have the content and its chunk list, listed in their metadata or not."""
    files: dict[str, bytes | Content] = {"f": content, "f.chunks.json": document}
    listed = None if is_listed else {"f"}
    remotes = [FileRemote(files, listed=listed) for _ in range(2)]
    async with remotes[0], remotes[-1]:
        urls = {f"r{index}": f"{remote.url}/" for index, remote in enumerate(remotes)}
        config = pull_through("file", "files", urls, remote=COLD, distribution=distribution)
        async with running_proxy(folder, merged(config, chunk_learning_rate=0)) as proxy:
            yield proxy, remotes


@asynccontextmanager
async def learned(folder: Path, content: Synthetic) -> AsyncIterator[tuple[Proxy, RegistryRemote, RegistryRemote]]:
    """A proxy that has learned the list of a blob, and has it no more; and the two registries that have it."""
    async with RegistryRemote() as one, RegistryRemote() as two:
        for remote in (one, two):
            remote.push_blob("app", content)
        config = pull_through("container", "reg", {"one": one.url, "two": two.url}, remote=COLD)
        async with running_proxy(folder, config) as proxy:
            await until_hit(f"{proxy.url}/v2/reg/app/blobs/{digest_of(content)}")
            await until(lambda: _is_learned(proxy, digest_of(content)))
            await forget_stored(proxy, SIZE)
            yield proxy, one, two


def gets(remote: FileRemote) -> list[str]:
    asked = [each for each in remote.requests if (each.method, each.path) == ("GET", "/f")]
    return [each.headers.get("Range", "") for each in asked]


@pytest.mark.parametrize(
    "at", [0, CHUNK - 1, CHUNK, 4 * MIB + 17, SIZE - 1], ids=["first", "end", "border", "middle", "last"]
)
async def test_a_wrong_chunk_is_replaced_in_the_same_response(tmp_path: Path, at: int) -> None:
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=True) as (proxy, (bad, good)):
        bad.script("/f", Flip(at), method="GET")
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.status, answer.is_complete, answer.sha256) == (200, True, digest_of(content))
        start = at // CHUNK * CHUNK
        assert gets(bad) == [""]
        assert gets(good) == [f"bytes={start}-{min(start + CHUNK, SIZE) - 1}"]
        metrics = await proxy.metrics()
        assert metrics.total("contentapp_wrong_chunks_total", remote="r0") == 1
        assert metrics.total("contentapp_digest_failures_total", remote="r0") == 1
        cooling = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
        assert [(each["remote"], each["scope"]) for each in cooling] == [("r0", "artifact")]
        assert (await until_hit(f"{proxy.url}/pulp/content/files/f")).sha256 == digest_of(content)


async def test_every_chunk_wrong_at_another_source(tmp_path: Path) -> None:
    """Each byte was right at one source: the device gets the whole."""
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=True) as (proxy, (one, two)):
        one.script("/f", Flip(CHUNK + 1), method="GET")
        two.script("/f", Flip(1), method="GET")
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))


async def test_wrong_at_every_source_is_never_complete(tmp_path: Path) -> None:
    """The list may be wrong, as no source agrees with it: the digest of the whole tells, and nobody cools before."""
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=True) as (proxy, remotes):
        for remote in remotes:
            remote.script("/f", Flip(2 * CHUNK + 5), method="GET")
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.status, answer.is_complete) == (200, False)
        await at_rest(proxy)  # the second source is tried whole, though the device is gone
        assert proxy.artifacts() == []
        assert (await proxy.metrics()).total("contentapp_digest_failures_total") == 2


async def test_a_right_hint_repairs_without_cooling(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=False) as (proxy, (bad, good)):
        bad.script("/f", Flip(CHUNK + 1), method="GET")
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
        assert gets(good) == [f"bytes={CHUNK}-{2 * CHUNK - 1}"]
        assert (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"] == []


async def test_a_wrong_hint_changes_nothing(tmp_path: Path) -> None:
    content = fresh(SIZE)
    lying = json.loads(list_of(content))
    lying["chunks"][1] = "0" * 64
    async with world(tmp_path, content, document=json.dumps(lying).encode(), is_listed=False) as (proxy, (_, two)):
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
        assert (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"] == []
        assert len(gets(two)) == 1


@pytest.mark.parametrize("document", [b"", b"{}", b"[" * 1000, b"x" * 100_000], ids=["empty", "none", "deep", "long"])
@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "beside"])
async def test_what_is_no_list_changes_nothing(tmp_path: Path, document: bytes, is_listed: bool) -> None:
    content = fresh(SIZE)
    async with world(tmp_path, content, document=document, is_listed=is_listed) as (proxy, (one, two)):
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256, gets(one), gets(two)) == (True, digest_of(content), [""], [])


async def test_a_list_of_another_file_changes_nothing(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(fresh(SIZE)), is_listed=True) as (proxy, (one, two)):
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256, gets(one), gets(two)) == (True, digest_of(content), [""], [])


async def test_a_broken_transfer_goes_on_within_a_chunk(tmp_path: Path) -> None:
    content, cut = fresh(SIZE), 3 * MIB + 1
    async with world(tmp_path, content, document=list_of(content), is_listed=True) as (proxy, (one, _)):
        one.script("/f", Cut(cut), method="GET", times=1)
        one.script("/f", IgnoreRange(), method="GET")
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
        assert gets(one) == ["", f"bytes={cut}-"]


async def test_a_wrong_chunk_that_two_had_given_convicts_nobody(tmp_path: Path) -> None:
    """Nothing tells whose part of it was wrong, and the one that it came from last may well be innocent."""
    content, cut = fresh(SIZE), 3 * MIB + 1
    async with world(tmp_path, content, document=list_of(content), is_listed=True) as (proxy, (bad, good)):
        bad.script("/f", Flip(CHUNK + 5), Cut(cut), method="GET", times=1)
        bad.script("/f", Status(503), method="GET", times=1)
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
        assert gets(good) == [f"bytes={cut}-"]
        assert gets(bad) == ["", f"bytes={cut}-", f"bytes={CHUNK}-{2 * CHUNK - 1}"]
        cooling = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
        assert [each for each in cooling if each["scope"] == "artifact"] == []


async def test_a_range_of_proven_chunks_does_not_wait_for_the_whole(tmp_path: Path) -> None:
    """Not even one that holds the last byte of what has come, or is strict."""
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=True, cold_range="strict") as (
        proxy,
        (one, _),
    ):
        stall = Stall(3 * CHUNK + 5)
        one.script("/f", stall, method="GET", times=1)
        url = f"{proxy.url}/pulp/content/files/f"
        whole = asyncio.create_task(ask(url))
        async with asking(url, headers={"Range": f"bytes=100-{3 * CHUNK - 1}"}) as response:
            async with asyncio.timeout(10):
                assert response.status == 206
                assert await response.content.read() == read_all(content)[100 : 3 * CHUNK]
        assert not whole.done()
        stall.gate.release()
        assert (await whole).sha256 == digest_of(content)


async def test_lists_are_learned_from_the_first_copy_and_kept(tmp_path: Path) -> None:
    content = fresh(SIZE)
    digest = digest_of(content)
    async with learned(tmp_path, content) as (proxy, bad, good):
        url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
        bad.script(f"*{digest}", Flip(5 * MIB), method="GET")
        answer = await ask(url)
        assert (answer.is_complete, answer.sha256) == (True, digest)
        asked = [each.headers.get("Range", "") for each in good.requests if each.method == "GET"]
        assert asked == [f"bytes={4 * MIB}-{8 * MIB - 1}"]


async def test_a_far_range_needs_only_the_chunks_it_touches(tmp_path: Path) -> None:
    """A request of its own, of whole chunks; a wrong one is replaced there too, and nothing waits for the whole."""
    content = fresh(SIZE)
    async with world(tmp_path, content, document=list_of(content), is_listed=True, range_wait_size="1MiB") as (
        proxy,
        (bad, good),
    ):
        stall = Stall(CHUNK)
        bad.script("/f", stall, method="GET", times=1)
        bad.script("/f", Flip(SIZE - 1), method="GET")
        url = f"{proxy.url}/pulp/content/files/f"
        whole = asyncio.create_task(ask(url))
        await stall.gate.reached()
        async with asyncio.timeout(10):
            answer = await ask(url, headers={"Range": f"bytes={SIZE - 1500}-"})
        assert (answer.status, answer.is_complete, answer.body) == (206, True, read_all(content)[-1500:])
        last = SIZE // CHUNK * CHUNK
        assert gets(bad)[1:] == [f"bytes={last}-{SIZE - 1}"]
        assert gets(good) == [f"bytes={last}-{SIZE - 1}"]
        assert not whole.done()
        stall.gate.release()
        assert (await whole).sha256 == digest_of(content)


async def test_the_list_of_what_it_holds_is_served(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with FileRemote({"f": content, "small": b"x"}, manifest=True) as remote:
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=COLD)
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/pulp/content/files/f"
            assert (await ask(f"{url}.chunks.json")).status == 404
            await until_hit(url)
            await until(lambda: _is_learned(proxy, digest_of(content)))
            answer = await ask(f"{url}.chunks.json")
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
            assert answer.body == list_of(content, DEFAULT_CHUNK_SIZE)
            head = await ask(f"{url}.chunks.json", method="HEAD")
            assert (head.status, head.headers["Content-Length"]) == (200, str(len(answer.body)))
            etag = {"If-None-Match": answer.headers["ETag"]}
            assert (await ask(f"{url}.chunks.json", headers=etag)).status == 304
            assert (await ask(f"{proxy.url}/pulp/content/files/small.chunks.json")).status == 404
            remote.put("f.chunks.json", b"a real one")
            remote.listed = None
            await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
            await until(lambda: _says(f"{url}.chunks.json", b"a real one"))


async def _says(url: str, body: bytes) -> bool:
    return (await ask(url)).body == body


async def _is_learned(proxy: Proxy, digest: str) -> bool:
    connection = sqlite3.connect(proxy.data_dir / "catalog.sqlite3")
    try:
        return bool(connection.execute("SELECT 1 FROM chunk_lists WHERE digest = ?", [digest]).fetchall())
    finally:
        connection.close()


async def test_wrong_at_every_source_cuts_before_the_wrong_byte_if_the_list_was_learned(tmp_path: Path) -> None:
    content = fresh(SIZE)
    digest = digest_of(content)
    async with learned(tmp_path, content) as (proxy, one, two):
        url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
        for remote in (one, two):
            remote.script(f"*{digest}", Flip(5 * MIB), method="GET")
        answer = await ask(url)
        assert (answer.status, answer.is_complete) == (200, False)
        assert answer.body == read_all(content)[: len(answer.body)]
        assert len(answer.body) <= 4 * MIB
        assert (await proxy.metrics()).total("contentapp_digest_failures_total") == 2


async def test_a_source_without_the_list_costs_nothing(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with world(tmp_path, content, document=b"", is_listed=False) as (proxy, (one, _)):
        one.script("/f.chunks.json", Status(404))
        answer = await ask(f"{proxy.url}/pulp/content/files/f")
        assert (answer.is_complete, answer.sha256, gets(one)) == (True, digest_of(content), [""])
