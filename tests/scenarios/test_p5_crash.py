"""P5: a kill at any moment leaves no file that is not what its name says, and loses nothing that was there.

CONTENTAPP_CRASH_POINTS: how many moments are tried in the random part.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contentapp.core.digest import Digest
from tests.proxy import Proxy, pull_through, running_proxy, start_proxy
from tests.remotes.content import Flipped, Synthetic, digest_of, read_all
from tests.remotes.faults import Flip, Stall
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, asking
from tests.scenarios.processes import children, content_worker, unnamed_size
from tests.scenarios.stage import PATIENT, fresh, merged, until, until_hit

KIB = 1024
MIB = 1024 * KIB
SIZE = 2 * MIB + 11
POINTS = int(os.environ.get("CONTENTAPP_CRASH_POINTS", "10"))
BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError, asyncio.IncompleteReadError)


def sound(proxy: Proxy) -> set[str]:
    """The digests of what is under artifacts/, each file of which must be what its name says."""
    root, found = proxy.data_dir / "artifacts", set()
    for path in proxy.artifacts():
        algorithm, *encoded = path.relative_to(root).parts
        name = f"{algorithm}:{''.join(encoded)}"
        hasher = Digest.parse(name).hasher()
        hasher.update(path.read_bytes())
        assert hasher.hexdigest() == "".join(encoded), f"{path} is not what its name says"
        found.add(name)
    return found


def recorded(proxy: Proxy) -> set[str]:
    """The digests that the catalog says are stored; it must be in order."""
    connection = sqlite3.connect(proxy.data_dir / "catalog.sqlite3")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row[0] for row in connection.execute("SELECT digest FROM artifacts WHERE is_stored")}
    finally:
        connection.close()


def partials(proxy: Proxy) -> list[Path]:
    """What is being written."""
    return list((proxy.data_dir / "partials").iterdir())


@asynccontextmanager
async def killed_proxy(folder: Path, config: dict[str, Any]) -> AsyncIterator[Proxy]:
    """A proxy that the test kills and starts as it likes; killed in the end."""
    proxy = await start_proxy(folder, config)
    try:
        yield proxy
    finally:
        if proxy.service.is_running:
            await proxy.kill()


async def pull_anyhow(url: str) -> None:
    """Ask, and take what comes."""
    with suppress(*BROKEN):
        await ask(url)


async def is_idle(proxy: Proxy) -> bool:
    """Whether no flight is under way: all that came is stored and recorded."""
    return not (await proxy.metrics()).total("contentapp_transfers")


# Where the remote stops, in bytes of the body sent; and the milliseconds until the kill.
MOMENTS = {
    "before the head": (-1, 0),
    "before the first byte": (0, 0),
    "in the middle": (SIZE // 2, 0),
    "before the last byte": (SIZE - 1, 0),
    "after the last byte": (SIZE, 0),
    "while it is stored": (SIZE, 3),
    "while it is recorded": (SIZE, 8),
    "thereafter": (SIZE, 30),
}


async def test_killed_at_chosen_moments(tmp_path: Path) -> None:
    """The program comes up again, without a trace of the half, and pulls; what was stored before is there."""
    async with RegistryRemote() as remote:
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        stored: set[str] = set()
        async with killed_proxy(tmp_path, {**config, "content": {"workers": 2}}) as proxy:
            for name, (at, milliseconds) in MOMENTS.items():
                content = fresh(SIZE)
                digest = remote.push_blob("app", content)
                url, stall = f"{proxy.url}/v2/reg/app/blobs/{digest}", Stall(at)
                remote.script(f"*{digest}", stall, method="GET", times=1)
                devices = [asyncio.create_task(pull_anyhow(url)) for _ in range(3)]
                await stall.gate.reached()
                await asyncio.sleep(milliseconds / 1000)
                await proxy.kill()
                await asyncio.gather(*devices)
                stall.gate.release()
                assert stored <= recorded(proxy) <= sound(proxy), name
                await proxy.start()
                assert partials(proxy) == [], name
                answer = await ask(url)
                assert answer.sha256 == digest, name
                stored |= await still_hits(proxy, remote, stored, url)
            assert (await proxy.admin("/pulp/api/v3/transfers/"))["count"] == 0


async def still_hits(proxy: Proxy, remote: RegistryRemote, stored: set[str], url: str) -> set[str]:
    """What was stored before is served without asking; the digest of the new one, once it is a hit too."""
    await until(lambda: is_idle(proxy))
    remote.forget()
    for digest in stored:
        hit = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
        assert (hit.cache, hit.sha256) == ("hit", digest)
    assert remote.count() == 0
    return {(await until_hit(url)).sha256}


@pytest.mark.timeout(60 + 5 * POINTS)
async def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Many bodies of all sizes, manifests and undigested files under way, killed again and again."""
    chance = random.Random(POINTS)
    async with RegistryRemote() as remote, FileRemote(manifest=False) as files:
        config = merged(
            pull_through("container", "reg", {"r": remote.url}, remote=PATIENT),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            content={"workers": 2},
        )
        async with killed_proxy(tmp_path, config) as proxy:
            known: set[str] = set()
            for point in range(POINTS):
                urls = more_content(proxy, remote, files, point)
                pulls = [asyncio.create_task(pull_anyhow(url)) for url in urls]
                await asyncio.sleep(chance.uniform(0.01, 0.35))  # the moment
                await proxy.kill()
                await asyncio.gather(*pulls)
                before, known = known, recorded(proxy)
                assert before <= known <= sound(proxy)
                await proxy.start()
                assert partials(proxy) == []
            for url in urls:
                assert (await ask(url)).status == 200
            await all_adopted(proxy)


def more_content(proxy: Proxy, remote: RegistryRemote, files: FileRemote, point: int) -> list[str]:
    """What devices ask for in one round."""
    image = make_image(layers=2, layer_size=20 * KIB, seed=point)
    remote.push("app", f"v{point}", image)
    blobs = [fresh(size) for size in (1, 1000, 70 * KIB, 300 * KIB, 300 * KIB, MIB, SIZE)]
    digests = [*(remote.push_blob("app", blob) for blob in blobs), *(blob.digest for blob in image.blobs)]
    for number in range(3):
        files.put(f"{point}/{number}", fresh(200 * KIB))
    return [
        f"{proxy.url}/v2/reg/app/manifests/v{point}",
        *(f"{proxy.url}/v2/reg/app/blobs/{digest}" for digest in digests),
        *(f"{proxy.url}/pulp/content/files/{point}/{number}" for number in range(3)),
    ]


async def all_adopted(proxy: Proxy) -> None:
    """Return when all that is on disk is recorded, and counted."""

    async def is_recorded() -> bool:
        found = sound(proxy)
        size = sum(path.stat().st_size for path in proxy.artifacts())
        counted = (await proxy.metrics()).total("contentapp_storage_used_bytes")
        return recorded(proxy) == found and counted == size

    await until(is_recorded)


async def test_unrecorded_artifacts_are_verified_and_adopted(tmp_path: Path) -> None:
    """A right one is a hit from then on; a wrong one of the right size goes, and so do partials. Others are left."""
    async with RegistryRemote() as remote:
        right, wrong, other = fresh(SIZE), fresh(SIZE), fresh(SIZE)
        for content in (right, wrong, other):
            remote.push_blob("app", content)
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, config) as proxy:
            await proxy.kill()
            place(proxy, right, read_all(right))
            place(proxy, wrong, read_all(Flipped(wrong, SIZE - 1)))
            half = proxy.data_dir / "partials" / f"{hashlib.sha256(b'x').hexdigest()}-1-0123456789abcdef.part"
            half.write_bytes(read_all(other))
            foreign = proxy.data_dir / "artifacts" / "notes.txt"
            foreign.write_text("not ours")
            await proxy.start()
            assert not half.exists()
            assert foreign.exists()

            async def is_done() -> bool:
                return "adopted" in proxy.output() and not path_of(proxy, wrong).exists()

            await until(is_done)
            hit = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest_of(right)}")
            assert (hit.cache, hit.sha256) == ("hit", digest_of(right))
            assert remote.count(method="GET") == 0
            for content in (wrong, other):
                answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest_of(content)}")
                assert answer.sha256 == digest_of(content)
                assert answer.cache.startswith("fwd=miss")
            await until(lambda: is_idle(proxy))
            foreign.unlink()
            assert sound(proxy) == {digest_of(content) for content in (right, wrong, other)}
            await all_adopted(proxy)


async def test_wrong_file_under_an_unrecorded_name_is_replaced(tmp_path: Path) -> None:
    """Nobody has verified what lies there: the bytes that were take its place, whatever its size."""
    async with RegistryRemote() as remote:
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, config) as proxy:
            for lying in (SIZE, 100):
                content = fresh(SIZE)
                digest = remote.push_blob("app", content)
                place(proxy, content, b"x" * lying)
                url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
                assert (await ask(url)).sha256 == digest
                await until(lambda: is_idle(proxy))
                assert (await ask(url)).sha256 == digest
            assert len(sound(proxy)) == 2


def path_of(proxy: Proxy, content: Synthetic) -> Path:
    """Where an artifact lies."""
    encoded = digest_of(content).removeprefix("sha256:")
    return proxy.data_dir / "artifacts" / "sha256" / encoded[:2] / encoded[2:]


def place(proxy: Proxy, content: Synthetic, body: bytes) -> None:
    """Put a file where the artifact belongs, as a crash between the rename and the record leaves it."""
    path = path_of(proxy, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


async def test_metadata_survives(tmp_path: Path) -> None:
    """Tags, permissions, undigested files and cooldowns, over a kill; the remotes then are no help."""
    async with RegistryRemote() as good, RegistryRemote() as corrupt, FileRemote(manifest=False) as files:
        image, layer, bad, file = make_image(layers=1), fresh(SIZE), fresh(SIZE), fresh(SIZE)
        good.push("app", "v1", image)
        blob = good.push_blob("app", layer)
        wrong = corrupt.push_blob("app", bad)
        corrupt.script("*", Flip(SIZE // 2), method="GET")
        files.put("f", file)
        config = merged(
            pull_through("container", "reg", {"good": good.url}),
            pull_through("container", "two", {"corrupt": corrupt.url, "good": good.url}),
            pull_through("file", "files", {"files": f"{files.url}/"}, distribution={"content_ttl_seconds": 0}),
        )
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).sha256 == image.digest
            for digest in (blob, image.config.digest):
                await until_hit(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            assert not (await ask(f"{proxy.url}/v2/two/app/blobs/{wrong}")).is_complete
            known = await ask(f"{proxy.url}/pulp/content/files/f")
            await until(lambda: is_idle(proxy))
            cooling = await proxy.admin("/pulp/api/v3/cooldowns/")
            await proxy.kill()
            for remote in (good, files):
                await remote.refuse()
            corrupt.forget()
            await proxy.start()
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).cache == "hit"
            for digest in (blob, image.config.digest):
                hit = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
                assert (hit.cache, hit.sha256) == ("hit", digest)
            stale = await ask(f"{proxy.url}/pulp/content/files/f")
            assert stale.body == read_all(file)
            assert stale.headers["Last-Modified"] == known.headers["Last-Modified"]
            assert cooling["count"] == 1
            after = await proxy.admin("/pulp/api/v3/cooldowns/")
            assert [item["until"] for item in after["results"]] == [item["until"] for item in cooling["results"]]
            assert (await ask(f"{proxy.url}/v2/two/app/blobs/{wrong}")).status == 503
            assert corrupt.count(method="GET") == 0


async def test_worker_killed_alone(tmp_path: Path) -> None:
    """The supervisor starts another one: it serves, and nothing stays of what the dead one was doing."""
    async with RegistryRemote() as remote:
        content, known = fresh(SIZE), fresh(SIZE)
        digest, hit = remote.push_blob("app", content), remote.push_blob("app", known)
        stall = Stall(SIZE // 2)
        remote.script(f"*{digest}", stall, method="GET", times=1)
        async with running_proxy(tmp_path, pull_through("container", "reg", {"r": remote.url})) as proxy:
            url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
            await until_hit(f"{proxy.url}/v2/reg/app/blobs/{hit}")
            requests = (await proxy.metrics()).total("contentapp_requests_total")
            async with asking(url) as response:
                await response.content.readexactly(1000)
                os.kill(content_worker(proxy), signal.SIGKILL)
                with pytest.raises(aiohttp.ClientError):
                    await response.content.read()
            started = asyncio.get_running_loop().time()
            while not await serves(f"{proxy.url}/v2/reg/app/blobs/{hit}", hit):
                assert asyncio.get_running_loop().time() - started < 10
                await asyncio.sleep(0.05)
            assert '"process died"' in proxy.output()
            assert partials(proxy) == []
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_transfers") == 0
            assert scrape.total("contentapp_storage_reserved_bytes") == 0
            assert scrape.total("contentapp_requests_total") > requests, "what the dead one counted is lost"
            stall.gate.release()
            assert (await ask(url)).sha256 == digest
            await admin_killed_alone(proxy, url)


async def serves(url: str, digest: str) -> bool:
    """Whether it is there, and right."""
    try:
        return (await ask(url)).sha256 == digest
    except BROKEN:
        return False


async def admin_killed_alone(proxy: Proxy, url: str) -> None:
    """Devices don't notice; it is started again."""
    worker = content_worker(proxy)
    (admin,) = (pid for pid in children(proxy) if pid != worker)
    os.kill(admin, signal.SIGKILL)
    assert (await ask(url)).status == 200
    await proxy.ready()
    assert content_worker(proxy) == worker


async def test_streamed_leaves_nothing_whatever_happens(tmp_path: Path) -> None:
    """Not on disk while devices read, nor after the last one has left, nor after a kill; its space is given back."""
    async with RegistryRemote() as remote:
        config = pull_through("container", "reg", {"r": remote.url}, remote={**PATIENT, "policy": "streamed"})
        async with running_proxy(tmp_path, config) as proxy:

            async def is_free() -> bool:
                scrape = await proxy.metrics()
                names = ("contentapp_transfers", "contentapp_storage_reserved_bytes", "contentapp_storage_used_bytes")
                return not any(scrape.total(name) for name in names) and not held(proxy)

            for ending in ("whole", "left", "killed"):
                content = fresh(SIZE)
                digest = remote.push_blob("app", content)
                stall = Stall(SIZE // 2)
                remote.script(f"*{digest}", stall, method="GET")
                async with asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") as response:
                    head = await response.content.readexactly(1000)
                    assert named(proxy) == []
                    scrape = await proxy.metrics()
                    assert scrape.total("contentapp_storage_reserved_bytes") == SIZE
                    if ending == "whole":
                        stall.gate.release()
                        assert head + await response.content.read() == read_all(content)
                    elif ending == "killed":
                        await proxy.kill()
                        assert named(proxy) == []
                        await proxy.start()
                await until(is_free)
                assert named(proxy) == []


def named(proxy: Proxy) -> list[Path]:
    """Files that keep content."""
    return [*proxy.artifacts(), *partials(proxy)]


def held(proxy: Proxy) -> int:
    """Bytes of files without a name that the worker has open."""
    return unnamed_size(content_worker(proxy), proxy.data_dir)
