"""P7: a disk that is full or can't be written costs the storing, never the delivery, which is as verified as ever."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Flip, Stall, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import Answer, ask, ask_many, ask_raw, asking
from tests.scenarios.processes import limit_file_size, small_disk
from tests.scenarios.slow_device import SlowDevice, slow_device
from tests.scenarios.stage import PATIENT, fresh, staged, until, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
SIZE = 16 * MIB + 5
WINDOW_SIZE = 6 * MIB  # what the kernel keeps for a slow device must not let it overtake the others
TAIL = 64 * KIB
NO_SPACE = "fwd=miss; detail=no-space"


@dataclass
class World:
    """A proxy whose quota no body fits in: ``reg``, ``strict`` and ``first``, all of one registry, and ``files``."""

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote

    def blob(self, content: Synthetic, *, of: str = "reg") -> str:
        """Hold a blob; its URL."""
        return f"{self.proxy.url}/v2/{of}/app/blobs/{self.registry.push_blob('app', content)}"

    def path(self, content: Synthetic) -> str:
        """Where the registry has a blob."""
        return f"/v2/app/blobs/{digest_of(content)}"

    def file(self, content: Synthetic) -> str:
        """Hold a file without a digest; its URL."""
        self.files.put(f"f{content.seed}", content)
        return f"{self.proxy.url}/pulp/content/files/f{content.seed}"

    async def total(self, name: str, **labels: str) -> float:
        """A metric of now."""
        return (await self.proxy.metrics()).total(f"contentapp_{name}", **labels)

    async def is_idle(self) -> bool:
        """Whether no flight is under way and no space is reserved."""
        scrape = await self.proxy.metrics()
        return not scrape.total("contentapp_transfers") and not scrape.total("contentapp_storage_reserved_bytes")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with RegistryRemote() as registry, FileRemote(manifest=False) as files:
        urls = {"r": registry.url}
        async with staged(
            tmp_path_factory.mktemp("full"),
            pull_through("container", "reg", urls, remote=PATIENT),
            pull_through("container", "strict", urls, remote=PATIENT, distribution={"cold_range": "strict"}),
            pull_through("container", "first", urls, remote=PATIENT, distribution={"verify_first_bytes": "unlimited"}),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            cache={"max_size": "1 MiB"},
            window_size=WINDOW_SIZE,
        ) as proxy:
            yield World(proxy, registry, files)
        assert sum(path.stat().st_size for path in proxy.artifacts()) <= MIB
        assert "Traceback" not in proxy.output()


def is_right(answer: Answer, content: Synthetic) -> bool:
    """Whether a device got all of it."""
    return answer.is_complete and answer.body == read_all(content)


async def test_one_device_gets_it_unstored(world: World) -> None:
    content = fresh(SIZE)
    degraded = await world.total("degraded_flights_total", reason="no_space")
    answer = await ask(world.blob(content))
    assert is_right(answer, content)
    assert answer.cache == NO_SPACE
    assert answer.headers["Content-Length"] == str(SIZE)
    assert await world.total("degraded_flights_total", reason="no_space") == degraded + 1
    assert "delivering unstored" in world.proxy.output()
    assert (await ask(f"{world.proxy.url}/readyz")).status == 200
    again = await ask(world.blob(content))
    assert is_right(again, content)
    assert again.cache == NO_SPACE


async def test_upstream_goes_at_the_pace_of_the_device(world: World) -> None:
    """What a device does not take is not read either: one that pauses has everything from one transfer."""
    content = fresh(2 * SIZE)
    url, path = world.blob(content), world.path(content)
    async with slow_device(url) as device:
        await device.read(1000)

        async def is_ahead() -> bool:
            return world.registry.sent(path, method="GET") >= WINDOW_SIZE

        await until(is_ahead)
        await asyncio.sleep(0.2)  # time to go on, for one that does not wait
        assert world.registry.sent(path, method="GET") < content.size
        assert await device.finish()
        assert device.body == read_all(content)
    assert world.registry.count(path, method="GET") == 1


async def test_manifests_and_small_bodies_too(world: World) -> None:
    """The quota has room for a small image, so it is filled first."""
    filler = fresh(900 * KIB)
    assert is_right(await until_hit(world.blob(filler)), filler)
    image = make_image(layers=1, layer_size=200 * KIB, seed=5)
    world.registry.push("app", "v1", image)
    assert (await ask(f"{world.proxy.url}/v2/reg/app/manifests/v1")).sha256 == image.digest
    for blob in image.blobs:
        assert (await ask(f"{world.proxy.url}/v2/reg/app/blobs/{blob.digest}")).sha256 == blob.digest


async def test_the_tail_is_held_back_all_the_same(world: World) -> None:
    content = fresh(SIZE)
    stall = Stall(SIZE - 1)
    world.registry.script(world.path(content), stall, method="GET")
    async with asking(world.blob(content)) as response:
        await stall.gate.reached()
        await response.content.readexactly(SIZE - TAIL)
        assert response.content.total_bytes == SIZE - TAIL
        stall.gate.release()
        assert await response.content.read() == read_all(content)[-TAIL:]


@pytest.mark.parametrize("at", [0, SIZE - 1])
async def test_wrong_bytes_are_never_completed(world: World, at: int) -> None:
    content = fresh(SIZE)
    url = world.blob(content)
    failures = await world.total("digest_failures_total")
    world.registry.script(world.path(content), Flip(at), method="GET")
    answer = await ask(url)
    assert (answer.status, answer.is_complete) == (200, False)
    assert len(answer.body) <= SIZE - TAIL
    await until(world.is_idle)
    assert await world.total("digest_failures_total") == failures + 1


@asynccontextmanager
async def left_behind(remote: ScriptedRemote, path: str, url: str, content: Synthetic) -> AsyncIterator[SlowDevice]:
    """A slow device whose flight has gone on to its end, at the pace of a fast one that came at the same time."""
    stall = Stall(MIB)
    remote.script(path, stall, method="GET", times=1)
    async with slow_device(url) as slow, asking(url) as fast:
        await slow.read(1000)
        head = await fast.content.readexactly(1000)
        stall.gate.release()
        assert head + await fast.content.read() == read_all(content)
        yield slow


async def test_ten_devices_one_of_them_slow(world: World) -> None:
    """The slow one falls behind the window and gets the rest by a ranged request of its own, verified all the same."""
    content = fresh(SIZE)
    url, path = world.blob(content), world.path(content)
    async with left_behind(world.registry, path, url, content) as slow:
        ranges = await world.total("range_requests_total")
        assert await slow.finish()
        assert slow.body == read_all(content)
        assert await world.total("range_requests_total") == ranges + 1
    assert all(is_right(answer, content) for answer in await ask_many(url, 9))
    await until(world.is_idle)


@pytest.mark.parametrize("at", [12 * MIB, SIZE - 1])
async def test_slow_device_gets_no_wrong_rest(world: World, at: int) -> None:
    """Its own ranged request brings a wrong byte."""
    content = fresh(SIZE)
    url, path = world.blob(content), world.path(content)
    async with left_behind(world.registry, path, url, content) as slow:
        world.registry.script(path, Flip(at), method="GET", ranged=True)
        assert not await slow.finish()
        assert len(slow.body) <= SIZE - TAIL


@pytest.mark.parametrize("is_ranged", [False, True])
async def test_late_device(world: World, is_ranged: bool) -> None:
    """The window has passed the first byte when it comes; a range with the last byte is verified from the first one."""
    content = fresh(SIZE)
    url, start = world.blob(content), MIB if is_ranged else 0
    stall = Stall(14 * MIB)
    world.registry.script(world.path(content), stall, method="GET", times=1)
    async with asking(url) as first:
        await first.content.readexactly(14 * MIB)
        late = await ask(url, headers={"Range": f"bytes={start}-"} if is_ranged else {})
        assert late.is_complete
        assert late.body == read_all(content)[start:]
        stall.gate.release()
        assert await first.content.read() == read_all(content)[14 * MIB :]


@pytest.mark.parametrize("of", ["reg", "strict", "first"])
@pytest.mark.parametrize(("start", "end"), [(0, 100), (9 * MIB, 14 * MIB), (9 * MIB, SIZE), (SIZE - 10, SIZE)])
async def test_range_of_what_is_not_stored(world: World, start: int, end: int, of: str) -> None:
    """Nobody waits for a window that does not move."""
    content = fresh(SIZE)
    answer = await asyncio.wait_for(ask(world.blob(content, of=of), headers={"Range": f"bytes={start}-{end - 1}"}), 10)
    assert (answer.status, answer.is_complete) == (206, True)
    assert answer.body == read_all(content)[start:end]
    await until(world.is_idle)


@pytest.mark.parametrize("of", ["reg", "strict"])
@pytest.mark.parametrize("at", [9 * MIB + 7, SIZE - 1])
async def test_range_of_wrong_bytes(world: World, at: int, of: str) -> None:
    """One with the last byte, and a strict one, are never completed."""
    content = fresh(SIZE)
    url = world.blob(content, of=of)
    world.registry.script(world.path(content), Flip(at), method="GET")
    last = SIZE - 1 if of == "reg" else 10 * MIB - 1
    assert not (await ask(url, headers={"Range": f"bytes={9 * MIB}-{last}"})).is_complete


async def test_verify_first_streams_what_memory_can_not_hold(world: World) -> None:
    content = fresh(SIZE)
    answer = await asyncio.wait_for(ask(world.blob(content, of="first")), 4)  # verify_first_seconds is 5
    assert is_right(answer, content)


@pytest.mark.parametrize("is_sized", [True, False])
async def test_undigested_files(world: World, is_sized: bool) -> None:
    content = fresh(SIZE)
    url = world.file(content)
    world.files.script(f"/f{content.seed}", *([] if is_sized else [Unsized()]))
    assert all(is_right(answer, content) for answer in await ask_many(url, 3))


@pytest.mark.parametrize("has_changed", [False, True])
async def test_undigested_file_of_a_slow_device(world: World, has_changed: bool) -> None:
    """Nothing but the validator says that the rest belongs to what it has: a changed one breaks the answer."""
    content = fresh(SIZE)
    url, path = world.file(content), f"/f{content.seed}"
    async with left_behind(world.files, path, url, content) as slow:
        if has_changed:
            world.files.put(path[1:], fresh(SIZE))
        assert await slow.finish() != has_changed
        assert has_changed or slow.body == read_all(content)


async def test_old_http_of_unknown_size_is_refused(world: World) -> None:
    """It can't be told from a broken one unless it is verified whole first, and there is no room for that."""
    content = fresh(SIZE)
    path = world.file(content).removeprefix(world.proxy.url)
    world.files.script(f"/f{content.seed}", Unsized())
    request = f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode()
    answer = await asyncio.wait_for(ask_raw(world.proxy.url, request), 10)
    assert b" 404 " in answer.splitlines()[0]
    assert b"no room" in answer
    assert read_all(content)[:100] not in answer


async def test_last_device_that_leaves_ends_it(world: World) -> None:
    content = fresh(SIZE)
    async with asking(world.blob(content)) as response:
        await response.content.readexactly(100)
    await until(world.is_idle)


# -- full in the middle


@pytest.mark.parametrize("workers", [1, 2])
async def test_disk_that_is_full_in_the_middle(tmp_path: Path, workers: int) -> None:
    """It goes on in memory, in the same answers, also those of another worker; with nobody there it ends."""
    async with RegistryRemote() as remote:
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        proxy = Proxy(tmp_path, {**config, "content": {"workers": workers}, "window_size": WINDOW_SIZE})
        limit_file_size(proxy, 6 * MIB)
        await proxy.start()
        try:
            await full_in_the_middle(proxy, remote)
            await nobody_left(proxy, remote)
        finally:
            await proxy.stop()


async def full_in_the_middle(proxy: Proxy, remote: RegistryRemote) -> None:
    content = fresh(SIZE)
    digest = remote.push_blob("app", content)
    url, stall = f"{proxy.url}/v2/reg/app/blobs/{digest}", Stall(2 * MIB)
    remote.script(f"/v2/app/blobs/{digest}", stall, method="GET", times=1)

    async def pull() -> bool:
        async with slow_device(url) as device:
            await device.read(1000)
            begun.release()
            return await device.finish() and device.body == read_all(content)

    begun = asyncio.Semaphore(0)
    pulls = [asyncio.create_task(pull()) for _ in range(10)]
    for _ in pulls:
        await begun.acquire()
    stall.gate.release()
    assert all(await asyncio.gather(*pulls))
    scrape = await proxy.metrics()
    assert scrape.total("contentapp_degraded_flights_total", reason="no_space") >= 1
    assert scrape.total("contentapp_storage_errors_total", operation="write") >= 1
    assert proxy.artifacts() == []
    assert list((proxy.data_dir / "partials").iterdir()) == []


async def nobody_left(proxy: Proxy, remote: RegistryRemote) -> None:
    """A transfer that would have been kept has no device any more when it turns out that it can't be."""
    content = fresh(SIZE)
    digest = remote.push_blob("app", content)
    stall = Stall(2 * MIB)
    remote.script(f"/v2/app/blobs/{digest}", stall, method="GET", times=1)
    async with asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") as response:
        await response.content.readexactly(100)
        await stall.gate.reached()
    stall.gate.release()

    async def is_idle() -> bool:
        return not (await proxy.metrics()).total("contentapp_transfers")

    await until(is_idle)
    await remote.idle()


async def test_unknown_size_that_outgrows_the_quota(tmp_path: Path) -> None:
    """Space for it is reserved in steps, and there is none for the second."""
    async with FileRemote(manifest=False) as remote:
        content = fresh(70 * MIB)
        remote.put("f", content)
        remote.script("/f", Unsized())
        config = pull_through("file", "files", {"r": f"{remote.url}/"})
        async with running_proxy(tmp_path, {**config, "cache": {"max_size": "66 MiB"}}) as proxy:
            answers = await ask_many(f"{proxy.url}/pulp/content/files/f", 2)
            assert all(is_right(answer, content) for answer in answers)
            assert (await proxy.metrics()).total("contentapp_degraded_flights_total", reason="no_space") >= 1
            assert proxy.artifacts() == []


async def test_filesystem_that_others_fill(tmp_path: Path) -> None:
    """The real ENOSPC in the middle of a body that had its room, where a filesystem may be mounted; else a limit."""
    disk, size = tmp_path / "disk", 6 * MIB
    async with RegistryRemote() as remote, small_disk(disk, 12 * MIB) as is_mounted:
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        proxy = Proxy(tmp_path, {**config, "data_dir": str(disk / "data"), "cache": {"max_size": "1 GiB"}})
        if not is_mounted:
            limit_file_size(proxy, 4 * MIB)
        await proxy.start()
        try:
            content = fresh(size)
            digest = remote.push_blob("app", content)
            stall = Stall(2 * MIB)
            remote.script(f"/v2/app/blobs/{digest}", stall, method="GET", times=1)
            async with asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") as response:
                head = await response.content.readexactly(MIB)
                fill(disk / "filler")
                stall.gate.release()
                assert head + await response.content.read() == read_all(content)
            # Not a byte is left, neither for the catalog: what has to be written isn't, what is asked for is served.
            assert is_right(await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}"), content)
            other = fresh(size)
            assert is_right(await ask(f"{proxy.url}/v2/reg/app/blobs/{remote.push_blob('app', other)}"), other)
            assert (await ask(f"{proxy.url}/readyz")).status == 200
            for path in ("/v2/nowhere/manifests/v1", "/pulp/content/nowhere", "/v2/", "/v2/reg/app/manifests/v0"):
                await ask(f"{proxy.url}{path}")  # each is counted under a name of its own, which needs room too
            scrape = await proxy.metrics()
            assert scrape.total("contentapp_storage_errors_total", operation="write") >= 1
            assert "process died" not in proxy.output()
            (disk / "filler").unlink()
            small = fresh(2 * MIB)
            assert is_right(await until_hit(f"{proxy.url}/v2/reg/app/blobs/{remote.push_blob('app', small)}"), small)
        finally:
            await proxy.stop()


def fill(path: Path) -> None:
    """Take what is left of a small filesystem."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        for _ in range(16 * MIB // 4096):
            file.write(bytes(4096))


@pytest.mark.parametrize("folders", [["artifacts"], ["partials"], ["artifacts", "partials"]], ids=" ".join)
async def test_folder_that_can_not_be_written(tmp_path: Path, folders: list[str]) -> None:
    """Replaced by a file, since root may write anywhere. It comes back, and all is as before, without a restart."""
    async with RegistryRemote() as remote:
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, config) as proxy:
            known, content = fresh(SIZE), fresh(SIZE)
            urls = [f"{proxy.url}/v2/reg/app/blobs/{remote.push_blob('app', body)}" for body in (known, content)]
            await until_hit(urls[0])
            for name in folders:
                shutil.move(proxy.data_dir / name, tmp_path / name)
                (proxy.data_dir / name).write_text("")
            for _ in range(2):
                for url, body in zip(urls, (known, content), strict=True):
                    assert all(is_right(answer, body) for answer in await ask_many(url, 2))
            scrape = await proxy.metrics()
            errors = scrape.total("contentapp_storage_errors_total", operation="commit")
            assert errors + scrape.total("contentapp_degraded_flights_total", reason="storage") >= 1
            assert '"level": "warning"' in proxy.output()
            for name in folders:
                (proxy.data_dir / name).unlink()
                shutil.move(tmp_path / name, proxy.data_dir / name)
            remote.forget()
            assert is_right(await until_hit(urls[0]), known)
            assert remote.count() == 0
            assert is_right(await until_hit(urls[1]), content)
