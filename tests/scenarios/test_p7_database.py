"""P7: the database is removed, locked or overwritten while the program runs: what is in the caches is served on."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import digest_of, read_all
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, fresh, merged, until, until_hit

KIB = 1024
SIZE = 1500 * KIB
RECORD_SECONDS = 0.3
PAGE_SIZE = 4096
LOCK_SECONDS = 5.0
"""How long a write of the program waits for a locked database."""


@contextmanager
def removed(database: Path) -> Iterator[None]:
    """Its files are gone; then they come back."""
    files = list(database.parent.glob(f"{database.name}*"))
    for file in files:
        shutil.move(file, f"{file}.away")
    yield
    for file in database.parent.glob(f"{database.name}*"):
        if not file.name.endswith(".away"):
            file.unlink()
    for file in files:
        shutil.move(f"{file}.away", file)


@contextmanager
def headless(database: Path) -> Iterator[None]:
    """The first page is overwritten; then it is restored."""
    with database.open("r+b") as file:
        saved = file.read(PAGE_SIZE)
        file.seek(0)
        file.write(b"\xff" * PAGE_SIZE)
    yield
    with database.open("r+b") as file:
        file.write(saved)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process writes, and takes its time."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


async def timed(url: str) -> tuple[Answer, float]:
    """An answer, and how long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    answer = await ask(url)
    return answer, loop.time() - started


@pytest.mark.parametrize("damage", [removed, headless, locked])
async def test_database_that_fails_while_running(tmp_path: Path, damage: object) -> None:
    """With remotes and without: tags, manifests, blobs, files. Afterwards all works by itself, also what is new."""
    async with RegistryRemote() as registry, FileRemote(manifest=False) as plain, FileRemote() as listed:
        config = merged(
            pull_through(
                "container", "reg", {"r": registry.url}, remote=PATIENT, distribution={"tag_ttl_seconds": 0.5}
            ),
            pull_through(
                "file", "plain", {"p": f"{plain.url}/"}, remote=PATIENT, distribution={"content_ttl_seconds": 0.5}
            ),
            pull_through("file", "listed", {"l": f"{listed.url}/"}, remote=PATIENT),
            record_ttl_seconds=RECORD_SECONDS,
        )
        image, layer, file, known = make_image(layers=1), fresh(SIZE), fresh(SIZE), fresh(SIZE)
        registry.push("app", "v1", image)
        plain.put("f", file)
        listed.put("f", known)
        async with running_proxy(tmp_path, config) as proxy:
            bodies = {
                f"{proxy.url}/v2/reg/app/manifests/v1": image.manifest.body,
                f"{proxy.url}/v2/reg/app/manifests/{image.digest}": image.manifest.body,
                f"{proxy.url}/v2/reg/app/blobs/{image.config.digest}": image.config.body,
                f"{proxy.url}/v2/reg/app/blobs/{registry.push_blob('app', layer)}": read_all(layer),
                f"{proxy.url}/pulp/content/plain/f": read_all(file),
                f"{proxy.url}/pulp/content/listed/f": read_all(known),
            }
            for url in bodies:
                await until_hit(url)
            await until(lambda: is_idle(proxy))
            with damage(proxy.data_dir / "catalog.sqlite3"):  # type: ignore[operator]
                await served(bodies, remotes_work=True)
                for remote in (registry, plain, listed):
                    await remote.refuse()
                await served(bodies, remotes_work=False)
                assert (await ask(f"{proxy.url}/readyz")).status == 200
                assert (await ask(f"{proxy.admin_url}/livez")).status == 200
            for remote in (registry, plain, listed):
                await remote.listen()
            await recovered(proxy, registry, bodies)


async def served(bodies: dict[str, bytes], *, remotes_work: bool) -> None:
    """Everything, before and after its record and its TTL are out of date; only one write may wait for a lock."""
    slow = 0
    for _ in range(2):
        for url, body in bodies.items():
            answer, seconds = await timed(url)
            assert (answer.status, answer.is_complete) == (200, True), (url, answer.body[:200])
            assert answer.body == body, url
            assert remotes_work or "hit" in answer.cache, url
            assert seconds < LOCK_SECONDS + 3, url
            slow += seconds > LOCK_SECONDS / 2
        await asyncio.sleep(2 * RECORD_SECONDS)
    assert slow <= 2, "the database was waited for again and again"


async def is_idle(proxy: Proxy) -> bool:
    """Whether no flight is under way: all that came is recorded."""
    return not (await proxy.metrics()).total("contentapp_transfers")


def is_recorded(proxy: Proxy, digest: str) -> bool:
    """Whether the database says that it is stored."""
    connection = sqlite3.connect(proxy.data_dir / "catalog.sqlite3")
    try:
        found = connection.execute("SELECT 1 FROM artifacts WHERE digest = ? AND is_stored", [digest]).fetchone()
    finally:
        connection.close()
    return found is not None


async def recovered(proxy: Proxy, registry: RegistryRemote, bodies: dict[str, bytes]) -> None:
    """New content is recorded: it is a hit, and stays one after a restart."""
    content, image = fresh(SIZE), make_image(layers=1, seed=7)
    url = f"{proxy.url}/v2/reg/app/blobs/{registry.push_blob('app', content)}"
    async with asyncio.timeout(20):
        while not is_recorded(proxy, digest_of(content)):
            assert (await ask(url)).sha256 == digest_of(content)
            await asyncio.sleep(0.1)
        while (await ask(f"{proxy.admin_url}/readyz")).status != 200:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2 * RECORD_SECONDS)  # what was only remembered is forgotten, and asked for and recorded again
    assert (await ask(url)).cache == "hit"
    registry.push("app", "v2", image)
    assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v2")).status == 200
    await proxy.kill()
    await proxy.start()
    await registry.refuse()
    assert (await ask(url)).sha256 == digest_of(content)
    answer = await ask(f"{proxy.url}/v2/reg/app/manifests/v2")
    assert answer.body == image.manifest.body, answer.body
    await registry.listen()
    for old, body in bodies.items():
        assert (await ask(old)).body == body
