"""P4: devices that ask for the same content at the same time cost one upstream transfer, over all worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import Flip, Stall, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, ask_many, asking

KIB = 1024
MIB = 1024 * KIB
LARGE = Synthetic(8 * MIB + 13)
DEVICES = 20


def config(remotes: dict[str, str], *, workers: int = 2, kind: str = "container", **settings: Any) -> dict[str, Any]:
    return {**pull_through(kind, "d", remotes, **settings), "content": {"workers": workers}}


class Herd:
    """Devices that have asked for one body, each of which has its first byte when the block begins."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._begun = asyncio.Semaphore(0)
        self._tasks = [asyncio.create_task(self._pull()) for _ in range(count)]

    async def __aenter__(self) -> Herd:
        async with asyncio.timeout(30):
            for _ in self._tasks:
                await self._begun.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pull(self) -> tuple[bytes, bool]:
        async with asking(self._url) as response:
            assert response.status == 200
            body = await response.content.readexactly(1)
            self._begun.release()
            try:
                return body + await response.content.read(), True
            except aiohttp.ClientError:
                return body, False

    async def ends(self) -> list[tuple[bytes, bool]]:
        """Each device's body, and whether it ended properly."""
        async with asyncio.timeout(30):
            return await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("policy", ["on_demand", "streamed"])
async def test_thundering_herd_on_a_cold_blob(tmp_path: Path, workers: int, policy: str) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        path = f"/v2/app/blobs/{digest}"
        stall = Stall(MIB)
        remote.script(path, stall, method="GET")
        async with running_proxy(
            tmp_path, config({"r": remote.url}, workers=workers, remote={"policy": policy})
        ) as proxy:
            async with Herd(f"{proxy.url}/v2/d/app/blobs/{digest}", DEVICES) as herd:
                stall.gate.release()
                assert set(await herd.ends()) == {(read_all(LARGE), True)}
            assert remote.count(path, method="GET") == 1
            assert remote.sent(path, method="GET") == LARGE.size
            outcome = "streamed" if policy == "streamed" else "collapsed"
            metrics = await proxy.metrics()
            assert metrics.total("contentapp_requests_total", outcome=outcome) >= DEVICES - 1
            if policy == "streamed":
                assert proxy.artifacts() == []
                assert list((proxy.data_dir / "partials").iterdir()) == []


async def test_slow_device_delays_nobody(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        async with running_proxy(tmp_path, config({"r": remote.url})) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            async with asking(url) as slow:
                await slow.content.readexactly(1)
                fast = await asyncio.wait_for(ask_many(url, 4), 20)
                assert {answer.sha256 for answer in fast} == {digest}
                assert (b"" if slow.content.at_eof() else read_all(LARGE)[:1] + await slow.content.read()) == read_all(
                    LARGE
                )


async def test_device_that_leaves_aborts_nothing(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        path = f"/v2/app/blobs/{digest}"
        stall = Stall(MIB)
        remote.script(path, stall, method="GET")
        async with running_proxy(tmp_path, config({"r": remote.url}, workers=1)) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            async with asking(url) as leaving:
                await leaving.content.readexactly(100)
            await stall.gate.reached()
            stall.gate.release()
            await remote.idle(path)
            assert (await ask(url)).sha256 == digest
            assert remote.count(path, method="GET") == 1


async def test_streamed_transfer_stops_with_its_last_device(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        path = f"/v2/app/blobs/{digest}"
        remote.script(path, Stall(MIB), method="GET")
        async with running_proxy(tmp_path, config({"r": remote.url}, remote={"policy": "streamed"})) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            async with asking(url) as one, asking(url) as two:
                await one.content.readexactly(100)
                await two.content.readexactly(100)
            async with asyncio.timeout(10):
                while (await proxy.admin("/pulp/api/v3/transfers/"))["count"]:
                    pass
            remote.clear()
            assert (await ask(url)).sha256 == digest


async def test_nobody_waits_without_an_outcome(tmp_path: Path) -> None:
    """Those who have bytes are reset; those who have none go on with the next source."""
    async with RegistryRemote() as bad, RegistryRemote() as good:
        digest = bad.push_blob("app", LARGE)
        good.push_blob("app", LARGE)
        stall = Stall(MIB)
        bad.script(f"/v2/app/blobs/{digest}", stall, Flip(7 * MIB), method="GET")
        async with running_proxy(tmp_path, config({"bad": bad.url, "good": good.url})) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            strict = {"Range": f"bytes={5 * MIB}-"}
            waiting = [asyncio.create_task(ask(url, headers=strict)) for _ in range(4)]
            async with Herd(url, 4) as herd:
                stall.gate.release()
                assert not any(is_complete for _, is_complete in await herd.ends())
            ranged = await asyncio.wait_for(asyncio.gather(*waiting), 30)
            for answer in ranged:
                if answer.is_complete:
                    assert answer.body == read_all(LARGE)[5 * MIB :]
            assert (await ask(url)).sha256 == digest
            assert good.count(f"/v2/app/blobs/{digest}", method="GET") == 1


async def test_undigested_files_collapse_too(tmp_path: Path) -> None:
    async with FileRemote({"f": LARGE}, manifest=False) as remote:
        stall = Stall(MIB)
        remote.script("/f", stall, Unsized(), method="GET")
        async with running_proxy(tmp_path, config({"r": f"{remote.url}/"}, kind="file")) as proxy:
            async with Herd(f"{proxy.url}/pulp/content/d/f", 10) as herd:
                stall.gate.release()
                assert set(await herd.ends()) == {(read_all(LARGE), True)}
            assert remote.count("/f", method="GET") == 1


async def test_cold_tag_is_asked_once(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "v1", image)
        gate = remote.hold("/v2/app/manifests/v1")
        async with running_proxy(tmp_path, config({"r": remote.url})) as proxy:
            asked = asyncio.create_task(ask_many(f"{proxy.url}/v2/d/app/manifests/v1", DEVICES))
            await gate.reached()
            gate.release()
            answers = await asked
            assert {answer.sha256 for answer in answers} == {image.digest}
            assert remote.count("/v2/app/manifests/v1") == 1


async def test_killed_leader_leaves_nobody_hanging(tmp_path: Path) -> None:
    """A worker that dies takes its devices along; the other worker's get an outcome, and the next request is served."""
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        path = f"/v2/app/blobs/{digest}"
        stall = Stall(MIB)
        remote.script(path, stall, method="GET", times=1)
        async with running_proxy(tmp_path, config({"r": remote.url})) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            async with Herd(url, DEVICES) as herd:
                os.kill(leading_process(proxy), signal.SIGKILL)
                await herd.ends()
            async with asyncio.timeout(30):
                while True:
                    try:
                        answer = await ask(url)
                        break
                    except OSError:
                        continue
            assert answer.sha256 == digest


def leading_process(proxy: Proxy) -> int:
    """The worker that has the partial open for writing."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                target = str(descriptor.readlink())
                if target.startswith(str(proxy.data_dir / "partials")):
                    flags = (process / "fdinfo" / descriptor.name).read_text().splitlines()[1].split()[1]
                    if int(flags, 8) & 0o3:
                        return int(process.name)
        except OSError:
            continue
    raise AssertionError("nobody leads")
