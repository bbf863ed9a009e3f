"""P7: remotes fail, files vanish or break: what is cached goes on being served, and all recovers by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Delay, Drop, Fault, Flip, Stall, Status, challenge, too_many
from tests.remotes.files import FileRemote
from tests.remotes.images import Image, make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, ask_many, asking
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import PATIENT, fresh, merged, until, until_hit

KIB = 1024
MIB = 1024 * KIB
SIZE = 3 * MIB + 3
IMMEDIATELY = 2.0
"""Seconds that an answer from the cache may take on a busy machine."""


@dataclass
class Cached:
    """What a registry and two file remotes have, and what a proxy has of it."""

    image: Image
    layer: Synthetic
    plain: Synthetic
    listed: Synthetic

    @classmethod
    def held_by(cls, registry: RegistryRemote, plain: FileRemote, listed: FileRemote) -> Cached:
        """New content, held by the remotes."""
        layer = fresh(SIZE)
        cached = cls(make_image(layers=1, seed=layer.seed), layer, fresh(SIZE), fresh(SIZE))
        registry.push("app", "v1", cached.image)
        registry.push_blob("app", layer)
        plain.put("f", cached.plain)
        listed.put("f", cached.listed)
        return cached

    def urls(self, proxy: Proxy) -> dict[str, str]:
        """Where a device finds them."""
        return {
            "tag": f"{proxy.url}/v2/reg/app/manifests/v1",
            "digest": f"{proxy.url}/v2/reg/app/manifests/{self.image.digest}",
            "config": f"{proxy.url}/v2/reg/app/blobs/{self.image.config.digest}",
            "blob": f"{proxy.url}/v2/reg/app/blobs/{digest_of(self.layer)}",
            "plain": f"{proxy.url}/pulp/content/plain/f",
            "listed": f"{proxy.url}/pulp/content/listed/f",
        }

    @property
    def bodies(self) -> dict[str, bytes]:
        """What a device gets there."""
        return {
            "tag": self.image.manifest.body,
            "digest": self.image.manifest.body,
            "config": self.image.config.body,
            "blob": read_all(self.layer),
            "plain": read_all(self.plain),
            "listed": read_all(self.listed),
        }

    async def pull(self, proxy: Proxy) -> dict[str, Answer]:
        """All of it, until all of it is stored."""
        for url in self.urls(proxy).values():
            await until_stored(url)
        return await self.ask(proxy)

    async def ask(self, proxy: Proxy) -> dict[str, Answer]:
        """Everything, which must be right."""
        answers = {name: await ask(url) for name, url in self.urls(proxy).items()}
        for name, answer in answers.items():
            assert (answer.status, answer.is_complete) == (200, True), (name, answer.status, answer.body[:200])
            assert answer.body == self.bodies[name], name
        return answers


async def until_stored(url: str) -> None:
    """Return when an answer comes from the storage, asked upstream or not."""
    async with asyncio.timeout(20):
        while (await ask(url)).cache not in {"hit", "fwd=stale; fwd-status=200"}:
            await asyncio.sleep(0.02)


def config(registry: RegistryRemote, plain: FileRemote, listed: FileRemote, **more: Any) -> dict[str, Any]:
    """Everything that has a TTL is out of date at once."""
    quick = {**PATIENT, "sock_read_timeout": 0.5, "metadata_ttl_seconds": 0}
    return merged(
        pull_through("container", "reg", {"reg": registry.url}, remote=quick, distribution={"tag_ttl_seconds": 0}),
        pull_through("file", "plain", {"p": f"{plain.url}/"}, remote=quick, distribution={"content_ttl_seconds": 0}),
        pull_through("file", "listed", {"l": f"{listed.url}/"}, remote=quick),
        **more,
    )


def same(answer: Answer, other: Answer) -> bool:
    """Whether a device can't tell them apart but by how they came about."""
    told = ("Cache-Status", "Date")
    return {k: v for k, v in answer.headers.items() if k not in told} == {
        k: v for k, v in other.headers.items() if k not in told
    }


AILMENTS: dict[str, Fault | None] = {
    "down": None,
    "reset": Drop(),
    "slow": Delay(30),
    "401": challenge('Bearer realm="http://127.0.0.1:9/token",service="s"'),
    "403": Status(403),
    "429": too_many("30"),
    "500": Status(500),
    "503": Status(503),
}


async def test_started_and_serving_without_any_remote(tmp_path: Path) -> None:
    """Killed, started while nothing answers: ready as ever, and what was cached is served, with the same headers."""
    async with RegistryRemote() as registry, FileRemote(manifest=False) as plain, FileRemote() as listed:
        cached = Cached.held_by(registry, plain, listed)
        async with running_proxy(tmp_path, config(registry, plain, listed)) as proxy:
            before = await cached.pull(proxy)
            await proxy.kill()
            for remote in (registry, plain, listed):
                await remote.refuse()
            await proxy.start()
            answers = await cached.ask(proxy)
            for name, answer in answers.items():
                assert same(answer, before[name]), (name, answer.headers, before[name].headers)
            stale = {name for name, answer in answers.items() if answer.cache.endswith("detail=stale-if-error")}
            assert stale == {"tag", "plain"}
            assert answers["tag"].cache.startswith("hit; ttl=-")
            assert {answers[name].cache for name in ("digest", "config", "blob", "listed")} == {"hit"}
            await heads_and_ranges(cached, proxy)
            assert (await proxy.metrics()).total("contentapp_requests_total", outcome="stale") >= 2
            unknown = await ask(f"{proxy.url}/v2/reg/app/manifests/v2")
            assert (unknown.status, unknown.reason) == (503, "connection refused")
            assert int(unknown.headers["Retry-After"]) <= 60
            assert (await ask(f"{proxy.url}/pulp/content/plain/unknown")).status == 404
            for remote in (registry, plain, listed):
                await remote.listen()
            assert (await cached.ask(proxy))["tag"].cache == "fwd=stale; fwd-status=200"


async def heads_and_ranges(cached: Cached, proxy: Proxy) -> None:
    for name, url in cached.urls(proxy).items():
        body = cached.bodies[name]
        head = await ask(url, method="HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(body))), name
        if name in {"blob", "plain", "listed"}:
            part = await ask(url, headers={"Range": "bytes=1000-1999"})
            assert (part.status, part.body) == (206, body[1000:2000]), name
            etag = head.headers["ETag"]
            assert (await ask(url, headers={"If-None-Match": etag})).status == 304, name


async def test_ailing_remotes(tmp_path: Path) -> None:
    """Whatever a remote does, what is cached is served, and at once: only its own timeout may be waited for."""
    async with RegistryRemote() as registry, FileRemote(manifest=False) as plain, FileRemote() as listed:
        cached = Cached.held_by(registry, plain, listed)
        remotes = (registry, plain, listed)
        async with running_proxy(tmp_path, config(registry, plain, listed)) as proxy:
            await cached.pull(proxy)
            for name, fault in AILMENTS.items():
                for remote in remotes:
                    await (remote.refuse() if fault is None else remote.listen())
                    remote.clear()
                    if fault is not None:
                        remote.script("*", fault)
                answers = await asyncio.wait_for(cached.ask(proxy), 10)
                assert answers["tag"].cache.endswith("detail=stale-if-error"), name
                assert answers["plain"].cache.endswith("detail=stale-if-error"), name
                for hit in ("digest", "config", "blob", "listed"):
                    assert answers[hit].cache == "hit", name
                    assert answers[hit].first_byte_seconds < IMMEDIATELY, name
                assert (await ask(f"{proxy.url}/readyz")).status == 200
                await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})


# -- artifacts


def unlink(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    os.truncate(path, 2 * SIZE)


def replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"something else")


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


async def test_damaged_artifacts_are_fetched_again(tmp_path: Path) -> None:
    """In the same request, once for all who ask; and stored again."""
    damages: list[Callable[[Path], None]] = [unlink, truncate, empty, lengthen, replace, link]
    async with RegistryRemote() as remote:
        settings = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, {**settings, "content": {"workers": 2}}) as proxy:
            for damage in damages:
                content = fresh(SIZE)
                digest = remote.push_blob("app", content)
                url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
                await until_hit(url)
                damage(artifact(proxy, digest))
                remote.forget()
                answers = await ask_many(url, 6)
                assert all(answer.sha256 == digest for answer in answers), damage
                assert remote.count(method="GET") == 1, damage
                assert (await until_hit(url)).sha256 == digest
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_damaged_artifacts_total") >= len(damages)


def artifact(proxy: Proxy, digest: str) -> Path:
    """The file of an artifact."""
    algorithm, encoded = digest.split(":")
    return proxy.data_dir / "artifacts" / algorithm / encoded[:2] / encoded[2:]


async def test_artifact_that_breaks_while_it_is_sent(tmp_path: Path) -> None:
    """All go on at their offset, from one transfer; one that finds out late goes on with what that has stored."""
    async with RegistryRemote() as remote:
        settings = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, settings) as proxy:
            content = fresh(16 * MIB)
            digest = remote.push_blob("app", content)
            url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
            await until_hit(url)
            remote.forget()
            async with slow_device(url) as one, slow_device(url) as other, slow_device(url) as late:
                for device in (one, other, late):
                    await device.read(1000)
                os.truncate(artifact(proxy, digest), 8 * MIB)
                assert all(await asyncio.gather(one.finish(), other.finish()))
                await until_hit(url)
                stored = artifact(proxy, digest).stat().st_ino
                assert await late.finish()
                assert one.body == other.body == late.body == read_all(content)
            assert artifact(proxy, digest).stat().st_ino == stored
            assert remote.count(method="GET") == 1
            assert (await proxy.metrics()).total("contentapp_damaged_artifacts_total") <= 2, "the late one found none"


async def test_artifact_that_breaks_while_no_remote_can_give_it(tmp_path: Path) -> None:
    """Wrong bytes from upstream, or none at all, never complete what was begun; and nothing wrong is stored."""
    async with RegistryRemote() as remote:
        settings = pull_through("container", "reg", {"r": remote.url}, remote={**PATIENT, "cooldown_seconds": 0.1})
        async with running_proxy(tmp_path, settings) as proxy:
            for fault in (Flip(8 * MIB), Status(503)):
                content = fresh(16 * MIB)
                digest = remote.push_blob("app", content)
                url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
                await until_hit(url)
                remote.script(f"*{digest}", fault, method="GET")
                async with slow_device(url) as device:
                    await device.read(1000)
                    os.truncate(artifact(proxy, digest), 8 * MIB)
                    assert not await device.finish()
                    assert len(device.body) < content.size
                assert not artifact(proxy, digest).exists()
                refused = await ask(url)
                assert refused.status == 503 or not refused.is_complete
                remote.clear()
                async with asyncio.timeout(20):
                    while (answer := await ask(url)).status == 503:
                        await asyncio.sleep(0.1)
                assert answer.sha256 == digest


# -- the files of the running program


@pytest.mark.parametrize("is_folder", [False, True], ids=["files", "folder"])
async def test_files_of_run_removed(tmp_path: Path, is_folder: bool) -> None:
    """A cleaner of old files took locks, sockets, counters. The workers know less of each other, and serve on."""
    async with RegistryRemote() as registry, FileRemote(manifest=False) as plain, FileRemote() as listed:
        cached = Cached.held_by(registry, plain, listed)
        settings = config(registry, plain, listed, content={"workers": 2}, cache={"max_size": "30 MiB"})
        async with running_proxy(tmp_path, settings) as proxy:
            await cached.pull(proxy)
            used = (await proxy.metrics()).total("contentapp_storage_used_bytes")
            run = proxy.data_dir / "run"
            if is_folder:
                shutil.rmtree(run)
            else:
                for path in run.rglob("*"):
                    if not path.is_dir():
                        path.unlink()
            await cached.ask(proxy)
            content = fresh(SIZE)
            digest = registry.push_blob("app", content)
            for _ in range(8):  # of both workers
                answers = await ask_many(f"{proxy.url}/v2/reg/app/blobs/{digest}", 2)
                assert all(answer.sha256 == digest for answer in answers)
            assert registry.count(f"*{digest}", method="GET") <= 2
            assert (await ask(f"{proxy.url}/readyz")).status == 200
            assert (await ask(f"{proxy.admin_url}/readyz")).status == 200
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_storage_used_bytes") == used + SIZE  # it has not begun to count anew
            assert not scrape.total("contentapp_degraded_flights_total")
            assert "Traceback" not in proxy.output()


async def test_device_of_a_flight_when_the_remote_dies(tmp_path: Path) -> None:
    """It is told by a broken connection; what has come is kept, and only the rest asked for when the remote is back."""
    async with RegistryRemote() as remote:
        content = fresh(SIZE)
        digest = remote.push_blob("app", content)
        stall = Stall(MIB)
        remote.script(f"*{digest}", stall, method="GET", times=1)
        settings = pull_through(
            "container", "reg", {"r": remote.url}, remote=PATIENT, distribution={"resume_deadline_seconds": 0.5}
        )
        async with running_proxy(tmp_path, {**settings, "resume_concurrency": 0}) as proxy:
            url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
            async with asking(url) as response:
                await response.content.readexactly(1000)
                await remote.refuse()
                assert not await ends_properly(response.content.read())
            assert proxy.artifacts() == []

            async def is_idle() -> bool:
                return not (await proxy.metrics()).total("contentapp_transfers")

            await until(is_idle)
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_storage_reserved_bytes") == MIB
            await remote.listen()
            assert (await ask(url)).sha256 == digest
            asked = [each.headers.get("Range", "") for each in remote.requests if each.method == "GET"]
            assert asked[-1] == f"bytes={MIB}-"


async def ends_properly(reading: Any) -> bool:
    """Whether a body came whole."""
    try:
        await asyncio.wait_for(reading, 10)
    except (OSError, ValueError):
        return False
    except Exception as error:
        assert type(error).__module__.startswith("aiohttp"), error
        return False
    return True
