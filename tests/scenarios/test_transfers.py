"""Transfers as an admin sees them: under way or suspended, and cancelled, while devices follow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Completed, run
from tests.proxy import PROGRAM, Proxy, clean_environment, pull_through, running_proxy
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.files import FileRemote
from tests.scenarios.device import WAIT_SECONDS, ask
from tests.scenarios.slow_device import SlowDevice, slow_device
from tests.scenarios.stage import until

API = "/pulp/api/v3/transfers/"
MIB = 1024 * 1024
LARGE = Synthetic(8 * MIB + 13)
DIGEST = digest_of(LARGE)
HELD_AT = 3 * MIB
LEAST_ARRIVED = 2 * MIB

Cancel = Callable[[Proxy, dict[str, Any]], Awaitable[None]]


def config(remote: FileRemote, *, workers: int = 1, **settings: Any) -> dict[str, Any]:
    return {**pull_through("file", "f", {"origin": f"{remote.url}/"}), "content": {"workers": workers}, **settings}


def url(proxy: Proxy) -> str:
    return f"{proxy.url}/pulp/content/f/a"


async def command(proxy: Proxy, *words: str) -> Completed:
    """``contentapp transfer …``."""
    return await run(
        PROGRAM, "transfer", *words, "--config", proxy.config_file, env=clean_environment(), cwd=proxy.folder
    )


async def listed(proxy: Proxy) -> list[Any]:
    """What the command says; that is what the REST API says."""
    return list(json.loads((await command(proxy, "list", "--format", "json")).check().output))


def partials(proxy: Proxy) -> list[Path]:
    return list((proxy.data_dir / "partials").iterdir())


async def by_command(proxy: Proxy, transfer: dict[str, Any]) -> None:
    beginning = transfer["key"][:15]
    assert (await command(proxy, "cancel", beginning)).check().output == b"cancelled 1 transfer\n"


async def by_address(proxy: Proxy, transfer: dict[str, Any]) -> None:
    await proxy.admin(transfer["pulp_href"], method="DELETE")


async def by_key(proxy: Proxy, transfer: dict[str, Any]) -> None:
    assert await proxy.admin(f"{API}cancel/", method="POST", json={"key": transfer["key"]}) == {"cancelled": 1}


async def arrived(proxy: Proxy) -> dict[str, Any]:
    """The one transfer, once enough of it has come."""
    found: list[Any] = []

    async def has_come() -> bool:
        found[:] = (await proxy.admin(API))["results"]
        return bool(found) and found[0]["arrived"] >= LEAST_ARRIVED

    await until(has_come)
    (transfer,) = found
    return dict(transfer)


async def is_reset(device: SlowDevice) -> bool:
    """Whether its connection ends so, and not as if that were all."""
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            await device.reader.read()
        except ConnectionResetError:
            return True
        return False


async def begins_anew(proxy: Proxy, remote: FileRemote) -> None:
    """The next device gets all of it, and from upstream."""
    remote.clear()
    remote.forget()
    answer = await ask(url(proxy))
    assert (answer.status, answer.sha256, answer.cache) == (200, DIGEST, "fwd=miss; stored")
    assert remote.asked_ranges("/a") == [None]


@pytest.mark.parametrize("cancel", [by_command, by_address, by_key])
@pytest.mark.parametrize(("workers", "devices"), [(1, 2), (2, 8)])
async def test_a_slow_transfer_is_cancelled(tmp_path: Path, workers: int, devices: int, cancel: Cancel) -> None:
    async with (
        FileRemote({"a": LARGE}) as remote,
        running_proxy(tmp_path, config(remote, workers=workers)) as proxy,
        AsyncExitStack() as stack,
    ):
        remote.hold("/a", at=HELD_AT, method="GET")
        following = [await stack.enter_async_context(slow_device(url(proxy))) for _ in range(devices)]
        for device in following:
            await device.read(1000)
        transfer = await arrived(proxy)
        (shown,) = await listed(proxy)
        assert (shown["key"], shown["pulp_href"]) == (DIGEST, transfer["pulp_href"])
        assert (shown["state"], shown["remote"], shown["size"]) == ("running", "origin", LARGE.size)
        assert LEAST_ARRIVED <= shown["arrived"] <= HELD_AT
        # Of another worker's devices the one that leads knows only that there are some.
        assert 2 <= shown["followers"] <= devices
        assert (shown["keep"], shown["windowed"]) == (True, False)
        assert 0 < shown["age"] < WAIT_SECONDS
        await cancel(proxy, transfer)
        assert partials(proxy) == []
        assert await listed(proxy) == []
        assert await asyncio.gather(*map(is_reset, following)) == [True] * devices
        assert remote.count("/a", method="GET") == 1
        await begins_anew(proxy, remote)


@pytest.mark.parametrize("cancel", [by_command, by_address, by_key])
async def test_a_suspended_transfer_is_listed_and_cancelled(tmp_path: Path, cancel: Cancel) -> None:
    async with (
        FileRemote({"a": LARGE}) as remote,
        running_proxy(tmp_path, config(remote, grace_seconds=0.1, resume_concurrency=0)) as proxy,
    ):
        remote.hold("/a", at=HELD_AT, method="GET")
        async with slow_device(url(proxy)) as device:
            await device.read(1000)
            running = await arrived(proxy)
            await proxy.restart()
        (shown,) = await listed(proxy)
        assert (shown["key"], shown["pulp_href"]) == (DIGEST, running["pulp_href"])
        assert (shown["state"], shown["remote"], shown["size"]) == ("suspended", "origin", LARGE.size)
        assert running["arrived"] <= shown["arrived"] <= HELD_AT
        assert (shown["followers"], shown["attempt"], shown["started_at"]) == (0, "", None)
        assert 0 <= shown["age"] < WAIT_SECONDS
        table = (await command(proxy, "list")).check().output.decode()
        assert "suspended" in table
        await cancel(proxy, shown)
        assert partials(proxy) == []
        assert await listed(proxy) == []
        await begins_anew(proxy, remote)


async def test_a_key_that_nothing_has_is_an_error(tmp_path: Path) -> None:
    async with FileRemote({"a": LARGE}) as remote, running_proxy(tmp_path, config(remote)) as proxy:
        ended = await command(proxy, "cancel", "sha256:00")
        assert (ended.status, ended.output) == (1, b"")
        assert ended.messages == "error: no transfer has a key that begins with sha256:00\n"
