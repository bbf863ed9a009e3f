"""P9: memory does not grow with sizes or devices, the disk stays under its quota, and everything is given back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Stall, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, ask_many
from tests.scenarios.processes import (
    connections,
    content_worker,
    folder_size,
    memory,
    open_files,
    unnamed_size,
    watched,
)
from tests.scenarios.slow_device import SlowDevice, slow_device
from tests.scenarios.stage import PATIENT, fresh, merged, until

KIB = 1024
MIB = 1024 * KIB
GROWTH = 64 * MIB
"""What a worker may take for hundreds of devices; the bodies are many times that."""


def registry(remote: RegistryRemote, **more: Any) -> dict[str, Any]:
    """One distribution ``reg``."""
    return merged(pull_through("container", "reg", {"r": remote.url}, remote=PATIENT), **more)


def blob(proxy: Proxy, remote: RegistryRemote, content: Synthetic) -> str:
    """Hold a blob; its URL."""
    return f"{proxy.url}/v2/reg/app/blobs/{remote.push_blob('app', content)}"


async def is_idle(proxy: Proxy) -> bool:
    """Whether no flight is under way, and nothing reserved."""
    scrape = await proxy.metrics()
    return not scrape.total("contentapp_transfers") and not scrape.total("contentapp_storage_reserved_bytes")


async def warm_up(proxy: Proxy, remote: RegistryRemote) -> None:
    """Use every part once, so that what is made once is there."""
    image = make_image(layers=1, seed=99)
    remote.push("app", "warm", image)
    await ask_many(f"{proxy.url}/v2/reg/app/manifests/warm", 4)
    assert all(answer.is_complete for answer in await ask_many(blob(proxy, remote, fresh(4 * MIB)), 4))
    await until(lambda: is_idle(proxy))


async def all_given_back(proxy: Proxy) -> None:
    """No flight, no reservation, no connection of a device, no file of content is left of what was going on."""
    await until(lambda: is_idle(proxy))
    content = tuple(str(proxy.data_dir / name) for name in ("artifacts", "partials"))

    async def is_closed() -> bool:
        files = open_files(content_worker(proxy))
        return not connections(proxy.port) and not any(file.startswith(content) for file in files)

    await until(is_closed)


@asynccontextmanager
async def slow_devices(urls: list[str], *, size: int) -> AsyncIterator[list[SlowDevice]]:
    """Devices that have read `size` bytes each and stand still."""
    async with AsyncExitStack() as stack:
        entered = [stack.enter_async_context(slow_device(url)) for url in urls]
        devices = await asyncio.gather(*entered)
        await asyncio.gather(*(device.read(size) for device in devices))
        yield list(devices)


# -- memory


@pytest.mark.parametrize(("quota", "size"), [("300 MiB", 256 * MIB), ("1 MiB", 96 * MIB)], ids=["spooled", "windowed"])
async def test_memory_with_many_slow_devices_on_a_large_body(tmp_path: Path, quota: str, size: int) -> None:
    async with RegistryRemote() as remote:
        config = registry(remote, cache={"max_size": quota})
        async with running_proxy(tmp_path, config) as proxy:
            await warm_up(proxy, remote)
            worker = content_worker(proxy)
            before = memory(worker)
            content, stall = fresh(size), Stall(MIB)
            url = blob(proxy, remote, content)
            remote.script(f"*{digest_of(content)}", stall, method="GET", times=1)
            async with (
                watched(lambda: memory(worker)) as seen,
                slow_device(url) as fast,
                slow_devices([url] * 200, size=64 * KIB) as devices,
            ):
                assert all(device.body == next(content.pieces(0, 64 * KIB)) for device in devices)
                stall.gate.release()
                await asyncio.wait_for(swallow(fast, content), 60)
            assert max(seen) - before < GROWTH, f"{max(seen) / MIB:.0f} MiB, {before / MIB:.0f} MiB before"
            await all_given_back(proxy)


async def swallow(device: SlowDevice, content: Synthetic) -> None:
    """Read all, look at it, and keep none of it."""
    for piece in content.pieces(0, content.size):
        await device.read(len(piece))
        assert device.body == piece
        device.body.clear()


async def test_memory_with_many_different_bodies(tmp_path: Path) -> None:
    """All of them cold and half way at the same time, with and without room; small things are cached within bounds."""
    async with RegistryRemote() as remote:
        config = registry(remote, cache={"max_size": "200 MiB"}, memory_cache_size="1 MiB", download_concurrency=100)
        async with running_proxy(tmp_path, config) as proxy:
            await warm_up(proxy, remote)
            worker = content_worker(proxy)
            before = memory(worker)
            async with watched(lambda: memory(worker)) as seen:
                stall = Stall(3 * MIB)
                remote.script("/v2/app/blobs/*", stall, method="GET")
                contents = [fresh(6 * MIB) for _ in range(60)]
                devices = [asyncio.create_task(ask(blob(proxy, remote, content))) for content in contents]
                await stall.gate.reached(len(contents))
                stall.gate.release()
                for content, device in zip(contents, devices, strict=True):
                    assert (await device).sha256 == digest_of(content)
                remote.clear()
                for number in range(60):
                    image = make_image(layers=1, layer_size=1, seed=1000 + number)
                    remote.push("app", f"v{number}", image)
                    assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v{number}")).sha256 == image.digest
            assert max(seen) - before < 2.5 * GROWTH, f"{max(seen) / MIB:.0f} MiB, {before / MIB:.0f} MiB before"
            assert (await proxy.metrics()).total("contentapp_degraded_flights_total", reason="no_space") >= 1
            await all_given_back(proxy)


# -- the disk

QUOTA = 24 * MIB


@pytest.mark.parametrize("workers", [1, 2])
async def test_disk_stays_under_its_quota(tmp_path: Path, workers: int) -> None:
    """Whatever is pulled in whatever order, of known size and unknown: artifacts and partials together never exceed it,
    while it is evicted beside the requests; and everybody gets the right bytes.
    """
    chance = random.Random(workers)
    async with RegistryRemote() as remote, FileRemote(manifest=False) as plain:
        config = merged(
            pull_through("container", "reg", {"r": remote.url}, remote=PATIENT),
            pull_through("file", "plain", {"p": f"{plain.url}/"}, remote=PATIENT),
            cache={"max_size": QUOTA},
            content={"workers": workers},
        )
        contents = [fresh(chance.randrange(1, 6 * MIB)) for _ in range(40)]
        for content in contents:
            plain.put(f"f{content.seed}", content)
        plain.script("/*0", Unsized(), method="GET")  # each tenth or so has no room for a step
        async with running_proxy(tmp_path, config) as proxy:
            kept = [proxy.data_dir / "artifacts", proxy.data_dir / "partials"]
            places = ["/v2/reg/app/blobs/{digest}", "/pulp/content/plain/f{seed}"]

            async def device(number: int) -> None:
                own = random.Random(f"{workers}-{number}")
                for _ in range(12):
                    content = own.choice(contents)
                    path = own.choice(places).format(digest=remote.push_blob("app", content), seed=content.seed)
                    answer = await ask(proxy.url + path)
                    assert (answer.status, answer.is_complete) == (200, True)
                    assert answer.sha256 == digest_of(content)

            async with (
                watched(lambda: sum(folder_size(folder) for folder in kept)) as seen,
                asyncio.TaskGroup() as group,
            ):
                for number in range(5):
                    group.create_task(device(number))
            assert max(seen) <= QUOTA
            assert max(seen) > QUOTA // 2
            await until(lambda: is_idle(proxy))
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_evictions_total") > 0
            assert scrape.total("contentapp_evicted_bytes_total") > 0
            assert scrape.total("contentapp_storage_used_bytes") == folder_size(kept[0]) <= QUOTA
            assert folder_size(kept[1]) == 0
            assert proxy.output().count("Traceback") == 0


async def test_least_recently_used_goes_first_and_never_what_is_in_use(tmp_path: Path) -> None:
    """A use counts from the time it is written down, which a stop does too."""
    size = 6 * MIB  # more than the kernel takes from the proxy for a slow device
    async with RegistryRemote() as remote:
        config = registry(remote, cache={"max_size": 36 * MIB, "high_watermark": 0.95, "low_watermark": 0.85})
        async with running_proxy(tmp_path, config) as proxy:
            old, used, read = fresh(size), fresh(size), fresh(size)
            for content in (used, read, old):
                assert (await ask(blob(proxy, remote, content))).is_complete
                await until(lambda: is_idle(proxy))
            assert (await ask(blob(proxy, remote, used))).cache == "hit"
            await proxy.restart()
            async with slow_device(blob(proxy, remote, read)) as device:
                await device.read(1)
                newer = [fresh(size) for _ in range(3)]  # the last one makes one too many
                for content in newer:
                    assert (await ask(blob(proxy, remote, content))).is_complete
                    await until(lambda: is_idle(proxy))
                await until(lambda: is_evicted(proxy, old))
                assert has(proxy, read), "it is in use"
                assert has(proxy, used), "it was used after the others"
                assert has(proxy, newer[-1])
                assert await device.finish()
                assert device.body == read_all(read)
            remote.forget()
            assert (await ask(blob(proxy, remote, used))).cache == "hit"
            assert (await ask(blob(proxy, remote, old))).sha256 == digest_of(old)
            assert remote.count(method="GET") == 1


def has(proxy: Proxy, content: Synthetic) -> bool:
    """Whether it is stored."""
    encoded = digest_of(content).removeprefix("sha256:")
    return (proxy.data_dir / "artifacts" / "sha256" / encoded[:2] / encoded[2:]).exists()


async def is_evicted(proxy: Proxy, content: Synthetic) -> bool:
    """Whether it is not."""
    return not has(proxy, content)


async def test_streamed_counts_while_it_is_there_and_is_gone_after(tmp_path: Path) -> None:
    """Two bodies that do not fit together: the second one goes by memory, and both spaces are free at the end."""
    async with RegistryRemote() as remote:
        policy = {**PATIENT, "policy": "streamed"}
        config = merged(
            pull_through("container", "reg", {"r": remote.url}, remote=policy), cache={"max_size": 10 * MIB}
        )
        async with running_proxy(tmp_path, config) as proxy:
            await warm_up(proxy, remote)
            first, second = fresh(6 * MIB), fresh(6 * MIB)
            stall = Stall(5 * MIB)
            remote.script(f"*{digest_of(first)}", stall, method="GET")
            async with slow_device(blob(proxy, remote, first)) as device:
                await stall.gate.reached()
                assert (await proxy.metrics()).total("contentapp_storage_reserved_bytes") == first.size
                assert unnamed_size(content_worker(proxy), proxy.data_dir) <= first.size
                answer = await ask(blob(proxy, remote, second))
                assert (answer.cache, answer.sha256) == ("fwd=miss; detail=no-space", digest_of(second))
                stall.gate.release()
                assert await device.finish()
            await all_given_back(proxy)
            async with slow_device(blob(proxy, remote, second)) as device:
                await device.read(1)
            await all_given_back(proxy)
            assert [*proxy.artifacts(), *(proxy.data_dir / "partials").iterdir()] == []
