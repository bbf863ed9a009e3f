"""The cases that the reviewers of EVE's downloader want tested, as far as they concern a proxy that stays up.

EVE resumes only if an answer says ``Accept-Ranges: bytes``, wants exactly 206, and takes another Last-Modified for
another file; a 206 without ``Accept-Ranges: bytes`` makes it corrupt the file.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import Cut, Delay, Stall, Status
from tests.remotes.files import LONG_AGO, FileRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.slow_device import SlowDevice, slow_device
from tests.scenarios.stage import PATIENT, fresh, staged, until, until_hit
from tests.scenarios.test_p2_inside import at_rest, transfers

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
SIZE = 2 * MIB + 5
MIDDLE = SIZE // 2
GONE_SECONDS = 0.8
REST = f"bytes={MIDDLE}-"
TRYING = {**PATIENT, "max_retries": 20, "retry_backoff_max_seconds": 0.2}


@dataclass(frozen=True)
class Kind:
    """Distributions of one kind: how many, over how many remotes, with which settings."""

    count: int
    remotes: int = 1
    resume_deadline_seconds: float = 20
    sock_read_timeout: float = 30


KINDS = {
    "steady": Kind(3),
    "watchful": Kind(2, sock_read_timeout=0.5),
    "hasty": Kind(4, resume_deadline_seconds=1),
    "double": Kind(2, remotes=2, resume_deadline_seconds=1),
}


@dataclass
class Site:
    """A distribution that no test has used yet; its remotes have one file, of which the proxy knows nothing."""

    name: str
    content: Synthetic
    remotes: list[FileRemote]

    def config(self, kind: Kind) -> dict[str, Any]:
        """As it stands in contentapp.yaml."""
        return pull_through(
            "file",
            self.name,
            {f"{self.name}-{number}": f"{remote.url}/" for number, remote in enumerate(self.remotes)},
            remote={**TRYING, "sock_read_timeout": kind.sock_read_timeout},
            distribution={
                "resume_deadline_seconds": kind.resume_deadline_seconds,
                "first_byte_deadline_seconds": 2,
            },
        )


@dataclass
class World:
    """A proxy with many sites, by kind and by whether a manifest has the digest."""

    proxy: Proxy
    sites: dict[tuple[str, bool], list[Site]]

    def site(self, kind: str, *, is_digested: bool) -> tuple[str, Synthetic, list[FileRemote]]:
        """An unused one: where devices find its file, what it is, and who has it."""
        site = self.sites[kind, is_digested].pop()
        return f"{self.proxy.url}/pulp/content/{site.name}/f", site.content, site.remotes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    sites: dict[tuple[str, bool], list[Site]] = {}
    configs = []
    async with AsyncExitStack() as stack:
        for (name, kind), is_digested in itertools.product(KINDS.items(), (True, False)):
            for number in range(kind.count):
                content = fresh(SIZE)
                remotes = [FileRemote({"f": content}, manifest=is_digested) for _ in range(kind.remotes)]
                for remote in remotes:
                    remote.keeps_alive = False
                    await stack.enter_async_context(remote)
                site = Site(f"{name}-{'listed' if is_digested else 'bare'}-{number}", content, remotes)
                sites.setdefault((name, is_digested), []).append(site)
                configs.append(site.config(kind))
        proxy = await stack.enter_async_context(staged(tmp_path_factory.mktemp("eve"), *configs))
        yield World(proxy, sites)
    assert "Traceback" not in proxy.output()


def resumes(answer: Answer, content: Synthetic, start: int, first: Mapping[str, str]) -> bool:
    """Whether EVE can put an answer behind what it has: of which `first` are the headers, in lower case."""
    assert answer.status == 206
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Range"] == f"bytes {start}-{content.size - 1}/{content.size}"
    assert answer.headers["Last-Modified"] == first["last-modified"]
    return answer.is_complete and answer.body == read_all(content)[start:]


# The network is gone for a while


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
async def test_network_gone_until_the_transfer_times_out_and_back(
    world: World, is_digested: bool, is_silent: bool
) -> None:
    """Within `resume_deadline_seconds`, so the device sees nothing of it but a pause."""
    url, content, (remote,) = world.site("watchful", is_digested=is_digested)
    remote.script("/f", Stall(MIDDLE), method="GET", times=1)
    async with slow_device(url) as device:
        await device.read(MIDDLE)
        if is_silent:
            silence = remote.script("/f", Delay(60), method="GET", ranged=True)
            await remote.seen("/f", 2)
            await asyncio.sleep(GONE_SECONDS)
            silence.times = 0
        else:
            await remote.refuse()
            await asyncio.sleep(GONE_SECONDS)
            await remote.listen()
        assert await device.finish()
        assert device.body == read_all(content)
    whole, *ranges = remote.asked_ranges("/f")
    assert whole is None
    assert set(ranges) == {REST}
    await at_rest(world.proxy)
    remote.forget()
    assert (await ask(url)).cache == "hit"
    assert remote.count("/f") == 0


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
async def test_network_gone_for_longer_than_anybody_waits(world: World, is_digested: bool) -> None:
    """The device is reset, tries again as EVE does, and has the file once the network is back."""
    url, content, (remote,) = world.site("hasty", is_digested=is_digested)
    remote.script("/f", Stall(MIDDLE), method="GET", times=1)
    async with slow_device(url) as device:
        await device.read(MIDDLE)
        await remote.refuse()
        assert not await device.finish()
        assert read_all(content).startswith(device.body)
    resume = {"Range": f"bytes={len(device.body)}-"}
    assert (await ask(url, headers=resume)).status == 404
    await remote.listen()

    async def is_back() -> bool:
        return (await ask(url, method="HEAD")).status == 200

    await until(is_back)
    rest = await ask(url, headers=resume)
    assert (rest.status, rest.headers["Accept-Ranges"], rest.is_complete) == (206, "bytes", True)
    assert bytes(device.body) + rest.body == read_all(content)


# The remote file changes or vanishes between the two halves


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
@pytest.mark.parametrize("is_longer", [False, True], ids=["same size", "longer"])
async def test_file_changed_between_the_two_halves(world: World, is_digested: bool, is_longer: bool) -> None:
    """The manifest as well, if there is one. A fresh start by itself: no device gets one half of each."""
    url, old, (remote,) = world.site("hasty", is_digested=is_digested)
    new = fresh(SIZE + 1000 * is_longer)
    remote.script("/f", Stall(MIDDLE), method="GET", times=1)
    async with slow_device(url) as device:
        await device.read(MIDDLE)
        remote.put("f", new)
        remote.last_modified = LONG_AGO + timedelta(days=1)
        await remote.refuse()
        await remote.listen()
        assert not await device.finish()
        assert read_all(old)[:MIDDLE] == device.body[:MIDDLE]
    await at_rest(world.proxy)
    answer = await until_hit(url)
    assert (answer.status, answer.is_complete, answer.body) == (200, True, read_all(new))
    assert answer.headers["ETag"] != device.headers["etag"]
    cooling = (await world.proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
    assert not [item for item in cooling if item["scope"] in ("artifact", "remote")], "nobody is to blame"


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
async def test_file_vanished_between_the_two_halves(world: World, is_digested: bool) -> None:
    """The device is reset; while the file is away it is told so, and once it is back it has it."""
    url, content, (remote,) = world.site("hasty", is_digested=is_digested)
    stall = Stall(MIDDLE)
    remote.script("/f", stall, Cut(MIDDLE, reset=False), method="GET", times=1)
    async with slow_device(url) as device:
        await device.read(MIDDLE)
        away = remote.script("/f", Status(404))
        stall.gate.release()
        assert not await device.finish()
        assert read_all(content).startswith(device.body)
    await at_rest(world.proxy)
    assert (await ask(url)).status == 404
    away.times = 0
    answer = await until_hit(url)
    assert (answer.status, answer.body) == (200, read_all(content))


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
async def test_file_vanished_from_one_of_two_remotes(world: World, is_digested: bool) -> None:
    """With a digest the other one ends what the first began; without, nobody may."""
    url, content, (one, two) = world.site("double", is_digested=is_digested)
    stall = Stall(MIDDLE)
    one.script("/f", stall, Cut(MIDDLE, reset=False), method="GET", times=1)
    async with slow_device(url) as device:
        await device.read(MIDDLE)
        one.script("/f", Status(404))
        stall.gate.release()
        assert await device.finish() == is_digested
        assert read_all(content).startswith(device.body)
    await at_rest(world.proxy)
    assert (await ask(url)).body == read_all(content)
    assert set(two.asked_ranges("/f")) == ({REST} if is_digested else {None})


# A device resumes


async def own_cut(url: str) -> SlowDevice:
    """A device that has lost its connection after the first half."""
    async with slow_device(url) as device:
        await device.read(MIDDLE)
    assert (device.status, device.headers["accept-ranges"]) == (200, "bytes")
    return device


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
async def test_device_resumes_what_is_stored(world: World, is_digested: bool) -> None:
    """Accept-Ranges is on the 206 too, and Last-Modified what it was on the cold answer, whatever is said by now."""
    url, content, (remote,) = world.site("steady", is_digested=is_digested)
    device = await own_cut(url)
    await at_rest(world.proxy)
    remote.last_modified = LONG_AGO + timedelta(days=1)
    answer = await ask(url, headers={"Range": REST})
    assert resumes(answer, content, MIDDLE, device.headers)
    assert remote.asked_ranges("/f") == [None]


@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
@pytest.mark.parametrize("is_broken", [False, True], ids=["steady", "broken upstream"])
async def test_device_resumes_cold_content_while_the_flight_goes_on(
    world: World, is_digested: bool, is_broken: bool
) -> None:
    """As ``curl -C -`` does after its own cut. The remote is asked for each byte once."""
    url, content, (remote,) = world.site("steady", is_digested=is_digested)
    stall = Stall(MIDDLE)
    remote.script("/f", stall, *([Cut(MIDDLE, reset=False)] if is_broken else []), method="GET", times=1)
    device = await own_cut(url)
    resuming = asyncio.create_task(ask(url, headers={"Range": REST}))
    again = asyncio.create_task(ask(url, headers={"Range": f"bytes={MIDDLE - 1000}-"}))

    async def have_joined() -> bool:
        return [item["followers"] for item in await transfers(world.proxy)] == [2]

    await until(have_joined)
    stall.gate.release()
    assert resumes(await resuming, content, MIDDLE, device.headers)
    assert resumes(await again, content, MIDDLE - 1000, device.headers)
    assert remote.asked_ranges("/f") == ([None, REST] if is_broken else [None])
    assert remote.sent("/f", method="GET") == SIZE


async def test_device_resumes_behind_a_change_of_remotes(world: World) -> None:
    """The rest comes from a remote with another ETag and Last-Modified: for the device it is the same file."""
    url, content, (one, two) = world.site("double", is_digested=True)
    two.etag, two.last_modified = None, LONG_AGO + timedelta(days=1)
    stall = Stall(MIDDLE)
    one.script("/f", stall, Cut(MIDDLE, reset=False), method="GET", times=1)
    one.script("/f", Status(404))
    device = await own_cut(url)
    stall.gate.release()
    resume = {"Range": REST, "If-Range": device.headers["etag"]}
    assert resumes(await ask(url, headers=resume), content, MIDDLE, device.headers)
    await at_rest(world.proxy)
    assert resumes(await ask(url, headers=resume), content, MIDDLE, device.headers)
    assert two.asked_ranges("/f") == [REST]
