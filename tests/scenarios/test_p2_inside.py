"""P2, after the first byte, digest known: what breaks goes on at its offset, within the same response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Stored, Synthetic, digest_of, read_all
from tests.remotes.faults import (
    Cut,
    Drop,
    Fault,
    Flip,
    Gate,
    Gzip,
    IgnoreRange,
    LoginPage,
    Portion,
    Replace,
    Shorten,
    Slow,
    Stall,
    Status,
    Unsized,
    WrongRange,
    changed_etag,
)
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import Answer, ask, ask_many
from tests.scenarios.processes import limit_file_size
from tests.scenarios.slow_device import SlowDevice, slow_device
from tests.scenarios.stage import PATIENT, fresh, merged, staged, until, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
SIZE = 2 * MIB + 5  # more than is verified before its first byte
SMALL_SIZE = 300 * KIB
TAIL = 64 * KIB
MIDDLE = SIZE // 2
LATE = SIZE - 1000
PLACES = [1, 65536, MIDDLE, SIZE - 1]
DEVICES = 20
REMOTES = ("one", "mid", "two")

TRYING = {**PATIENT, "max_retries": 1}
QUICK = {**TRYING, "sock_read_timeout": 0.8}
COOLING = {**TRYING, "failure_threshold": 1, "cooldown_initial_seconds": 30, "cooldown_seconds": 60}
KINDS = ["registry", "files"]
POLICIES = ["on_demand", "streamed"]
FILES = {f"f{seed}": Synthetic(SIZE, seed=seed) for seed in range(160)}
SMALL_FILES = {f"s{seed}": Synthetic(SMALL_SIZE, seed=seed) for seed in range(8)}
"""Manifests are read once, so what they list is known before; a registry gets its blobs as they are wanted."""


def over(base: str, *remotes: str, settings: dict[str, Any], **distribution: Any) -> list[dict[str, Any]]:
    """A distribution of each kind over these remotes, which are remotes of its own with the same servers."""
    return [
        pull_through(
            {"registry": "container", "files": "file"}[kind],
            f"{kind}-{base}",
            {f"{kind}-{base}-{name}": f"{{{kind}-{name}}}" for name in remotes},
            remote=settings,
            distribution={"resume_deadline_seconds": 5, **distribution},
        )
        for kind in KINDS
    ]


CONFIGS = [
    *over("on_demand", "one", "two", settings=TRYING),
    *over("streamed", "one", "two", settings={**TRYING, "policy": "streamed"}),
    *over("quick", "one", "two", settings=QUICK),
    *over("alone", "one", settings=TRYING),
    *over("hasty", "one", settings={**QUICK, "max_retries": 20}, resume_deadline_seconds=0.8),
    *over("brief", "one", "two", settings=TRYING, resume_deadline_seconds=0.5),
    *over("fleeting", "one", "two", settings={**TRYING, "policy": "streamed"}, resume_deadline_seconds=0.5),
    *over("three", "one", "mid", "two", settings=COOLING),
    *over("suspect", "one", "two", settings={**TRYING, "cooldown_seconds": 300}),
    *over("passing", "one", "two", settings={**TRYING, "cooldown_seconds": 300, "policy": "streamed"}),
    *over("strict", "one", "two", settings={**TRYING, "cooldown_seconds": 300}, cold_range="strict"),
]


@dataclass(frozen=True)
class Case:
    """One body that nothing has asked for yet, where devices and remotes have it, and the servers in their order."""

    content: Synthetic
    url: str
    path: str
    one: ScriptedRemote
    mid: ScriptedRemote
    two: ScriptedRemote

    def is_right(self, answer: Answer) -> bool:
        """Whether a device saw one complete, correct response."""
        length = int(answer.headers.get("Content-Length", 0))
        got = (answer.status, answer.is_complete, length, answer.body)
        return got == (200, True, self.content.size, read_all(self.content))

    def is_broken(self, answer: Answer) -> bool:
        """Whether a device saw a response begin, with no wrong byte in it, and break."""
        begun = len(answer.body) > 0 and read_all(self.content).startswith(answer.body)
        return answer.status == 200 and begun and not answer.is_complete


@dataclass
class World:
    """A proxy over three registries and three file servers with manifests that all hold the same."""

    proxy: Proxy
    servers: dict[str, ScriptedRemote]
    files: Iterator[tuple[str, Synthetic]]
    small_files: Iterator[tuple[str, Synthetic]]

    def case(self, kind: str, base: str = "on_demand", *, is_small: bool = False) -> Case:
        """Another body, held by all servers, as a distribution of this kind has it."""
        one, mid, two = (self.servers[f"{kind}-{server}"] for server in REMOTES)
        if kind == "files":
            name, content = next(self.small_files if is_small else self.files)
            return Case(content, f"{self.proxy.url}/pulp/content/files-{base}/{name}", f"/{name}", one, mid, two)
        content = fresh(SMALL_SIZE if is_small else SIZE)
        for server in (one, mid, two):
            assert isinstance(server, RegistryRemote)
            digest = server.push_blob("app", content)
        path = f"app/blobs/{digest}"
        return Case(content, f"{self.proxy.url}/v2/registry-{base}/{path}", f"/v2/{path}", one, mid, two)

    async def until_arrived(self, size: int) -> None:
        """Return when the one transfer under way has so many bytes."""
        await until_arrived(self.proxy, size)

    async def until_followed(self, count: int) -> None:
        """Return when so many devices follow the transfers under way."""

        async def is_followed() -> bool:
            return sum(int(item["followers"]) for item in await transfers(self.proxy)) >= count

        await until(is_followed)

    async def cooled(self) -> set[str]:
        """The names of the remotes with a pair that cools down for wrong bytes."""
        results = (await self.proxy.admin("/pulp/api/v3/cooldowns/?scope=artifact"))["results"]
        return {item["remote"] for item in results if item["retry_after"] > 0}

    async def forgive(self) -> None:
        """Nothing is held against anybody any more."""
        await at_rest(self.proxy)
        await self.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})


async def transfers(proxy: Proxy) -> list[dict[str, Any]]:
    """What is under way: not what has been left for the next request to go on with."""
    results: list[dict[str, Any]] = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
    return [item for item in results if item["state"] != "suspended"]


async def at_rest(proxy: Proxy) -> None:
    """Return when nothing is under way any more."""

    async def is_at_rest() -> bool:
        return not await transfers(proxy)

    await until(is_at_rest)


async def until_arrived(proxy: Proxy, size: int) -> None:
    """Return when a transfer that runs has so many bytes."""

    async def has_arrived() -> bool:
        return any(item["state"] == "running" and item["arrived"] >= size for item in await transfers(proxy))

    await until(has_arrived)


@asynccontextmanager
async def a_world(folder: Path, **more: Any) -> AsyncIterator[World]:
    """The servers, and the proxy in front of them."""
    files = {**FILES, **SMALL_FILES}
    servers: dict[str, ScriptedRemote] = {f"files-{name}": FileRemote(files) for name in REMOTES}
    servers.update((f"registry-{name}", RegistryRemote()) for name in REMOTES)
    async with AsyncExitStack() as stack:
        for server in servers.values():
            server.keeps_alive = False
            await stack.enter_async_context(server)
        urls = {name: f"{server.url}/" if name.startswith("files") else server.url for name, server in servers.items()}
        config = merged(*CONFIGS)
        remotes = [{**remote, "url": urls[remote["url"].strip("{}")]} for remote in config["remotes"]]
        proxy = await stack.enter_async_context(staged(folder, {**config, "remotes": remotes}, **more))
        for distribution in config["distributions"]:
            if distribution["type"] == "file":
                await ask(f"{proxy.url}/pulp/content/{distribution['base_path']}/none")  # so that manifests are known
        yield World(proxy, servers, iter(FILES.items()), iter(SMALL_FILES.items()))
    assert "Traceback" not in proxy.output()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_disk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(tmp_path_factory.mktemp("inside")) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def in_memory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One whose quota no body fits in, so that each flight has a window in memory."""
    async with a_world(tmp_path_factory.mktemp("full"), cache={"max_size": "1 MiB"}, window_size=MIB) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def world(on_disk: World) -> World:
    await on_disk.forgive()
    return on_disk


@pytest_asyncio.fixture(loop_scope="module")
async def full(in_memory: World) -> World:
    await in_memory.forgive()
    return in_memory


@pytest.fixture(params=["disk", "memory"])
def either(request: pytest.FixtureRequest, world: World, full: World) -> World:
    return {"disk": world, "memory": full}[request.param]


def rest_of(start: int) -> str:
    """The Range that gets what comes from here on."""
    return f"bytes={start}-"


def break_off(case: Case, at: int, *more: Fault, is_reset: bool = False) -> Gate:
    """The first server's next answer to a GET of the whole breaks at `at`, once the gate is released."""
    stall = Stall(at)
    case.one.script(case.path, *more, stall, Cut(at, reset=is_reset), method="GET", times=1, ranged=False)
    return stall.gate


async def pull(world: World, case: Case, at: int, *more: Fault, is_reset: bool = False) -> Answer:
    """What a device gets whose transfer breaks when exactly `at` bytes are there."""
    gate = break_off(case, at, *more, is_reset=is_reset)
    pulling = asyncio.create_task(ask(case.url))
    await gate.reached()
    await world.until_arrived(at)
    gate.release()
    return await pulling


# On the same remote


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("at", PLACES)
async def test_cut(world: World, kind: str, policy: str, at: int, is_reset: bool) -> None:
    case = world.case(kind, policy)
    assert case.is_right(await pull(world, case, at, is_reset=is_reset))
    assert case.one.asked_ranges(case.path) == [None, rest_of(at)]
    assert case.one.sent(case.path, method="GET") == SIZE
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [Cut(0), Cut(0, reset=False), Stall(0)], ids=["RST", "FIN", "stall"])
async def test_break_before_the_first_byte(either: World, kind: str, how: Fault) -> None:
    """There is nothing to go on with, so it begins anew, with whichever source."""
    case = either.case(kind, "quick")
    case.one.script(case.path, how, method="GET", times=1)
    assert case.is_right(await ask(case.url))
    asked = (case.one.asked_ranges(case.path), case.two.asked_ranges(case.path))
    assert asked in (([None, None], []), ([None], [None]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", PLACES)
async def test_stall(world: World, kind: str, at: int) -> None:
    case = world.case(kind, "quick")
    case.one.script(case.path, Stall(at), method="GET", times=1)
    assert case.is_right(await ask(case.url))
    assert case.one.asked_ranges(case.path) == [None, rest_of(at)]
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("at", [1, 65536, MIDDLE, SIZE - 1])
async def test_short(world: World, at: int) -> None:
    """A body that ends properly, but before the end that the manifest names."""
    case = world.case("files")
    case.one.script(case.path, Shorten(at), Unsized(), method="GET", times=1)
    assert case.is_right(await ask(case.url))
    assert case.one.asked_ranges(case.path) == [None, rest_of(at)]
    assert case.two.asked_ranges(case.path) == []


async def test_short_layer_of_a_served_manifest(world: World) -> None:
    image = make_image(layers=1, layer_size=SIZE, seed=77)
    layer = image.layers[0]
    for server in (world.servers["registry-one"], world.servers["registry-two"]):
        assert isinstance(server, RegistryRemote)
        server.push("image", "v1", image)
    path, one = f"image/blobs/{layer.digest}", world.servers["registry-one"]
    one.script(f"/v2/{path}", Shorten(MIDDLE), Unsized(), method="GET", times=1)
    assert (await ask(f"{world.proxy.url}/v2/registry-on_demand/image/manifests/v1")).status == 200
    answer = await ask(f"{world.proxy.url}/v2/registry-on_demand/{path}")
    assert (answer.sha256, answer.is_complete) == (layer.digest, True)
    assert one.asked_ranges(f"/v2/{path}") == [None, rest_of(MIDDLE)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_sized_later", [True, False])
async def test_chunked(world: World, kind: str, is_sized_later: bool) -> None:
    """For a blob the size is not known before the answer to the range tells it."""
    case = world.case(kind)
    if not is_sized_later:
        case.one.script(case.path, Unsized(), method="GET", ranged=True)
    answer = await pull(world, case, MIDDLE, Unsized())
    assert (answer.status, answer.is_complete, answer.body) == (200, True, read_all(case.content))
    assert case.one.asked_ranges(case.path) == [None, rest_of(MIDDLE)]


async def test_chunked_without_its_end(world: World) -> None:
    """All that the manifest names has come, and is right: the connection may end as it likes."""
    case = world.case("files")
    case.one.script(case.path, Unsized(), Cut(SIZE, reset=False), method="GET")
    assert case.is_right(await ask(case.url))
    assert case.one.asked_ranges(case.path) == [None]
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_again_and_again(world: World, kind: str) -> None:
    """As long as each answer brings something, the only remote is asked on."""
    case, portion = world.case(kind, "alone"), 300 * KIB
    case.one.script(case.path, Slow(6 * MIB), Cut(portion, reset=False), method="GET")
    assert case.is_right(await ask(case.url))
    whole, *ranges = case.one.asked_ranges(case.path)
    starts = [int((asked or "").removeprefix("bytes=").removesuffix("-")) for asked in ranges]
    assert whole is None
    assert all(0 < after - before <= portion for before, after in zip([0, *starts], starts, strict=False))
    assert starts[-1] >= SIZE - portion


@pytest.mark.parametrize("kind", KINDS)
async def test_portions_of_a_range(world: World, kind: str) -> None:
    """A 206 may give less than was asked for; what it gives is taken."""
    case, portion = world.case(kind, "alone"), 400 * KIB
    case.one.script(case.path, Portion(portion), method="GET", ranged=True)
    assert case.is_right(await pull(world, case, MIDDLE))
    starts = range(MIDDLE, SIZE, portion)
    assert case.one.asked_ranges(case.path) == [None, *(rest_of(start) for start in starts)]


@pytest.mark.parametrize("kind", KINDS)
async def test_slow_is_not_broken(world: World, kind: str) -> None:
    """It takes longer than `resume_deadline_seconds`, but there is always a new byte."""
    case = world.case(kind, "hasty")
    case.one.script(case.path, Slow(SIZE / 1.6), method="GET")
    assert case.is_right(await ask(case.url))
    assert case.one.asked_ranges(case.path) == [None]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_put_together_is_stored(world: World, kind: str) -> None:
    case = world.case(kind)
    assert case.is_right(await pull(world, case, MIDDLE))
    asked = case.one.count(case.path) + case.two.count(case.path)
    assert case.is_right(await until_hit(case.url))
    assert case.one.count(case.path) + case.two.count(case.path) == asked
    await at_rest(world.proxy)
    left = (await world.proxy.admin("/pulp/api/v3/transfers/"))["results"]
    assert digest_of(case.content) not in {item["key"] for item in left}


# On the next remote

REFUSALS: dict[str, Fault] = {
    "503": Status(503),
    "404": Status(404),
    "403": Status(403),
    "416": Status(416),
    "dropped": Drop(),
    "no answer": Stall(-1),
    "HTML": LoginPage(),
    "compressed": Gzip(),
    "another start": WrongRange(shift=3),
    "another start before": WrongRange(shift=-3),
    "another total": WrongRange(total=str(SIZE + 1)),
    "smaller total": WrongRange(total=str(SIZE - 1)),
    "nothing": Cut(0, reset=False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_next_remote_when_the_first_does_not_go_on(world: World, kind: str, refusal: Fault) -> None:
    case = world.case(kind, "quick")
    case.one.script(case.path, refusal, method="GET", ranged=True)
    assert case.is_right(await pull(world, case, MIDDLE))
    whole, *ranges = case.one.asked_ranges(case.path)
    assert whole is None
    assert set(ranges) == {rest_of(MIDDLE)}
    assert len(ranges) <= 1 + TRYING["max_retries"]
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE)]
    assert case.two.sent(case.path, method="GET") == SIZE - MIDDLE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [1, 65536, SIZE - 1])
async def test_next_remote_at_any_offset(world: World, kind: str, policy: str, at: int) -> None:
    case = world.case(kind, policy)
    case.one.script(case.path, Status(503), method="GET", ranged=True)
    assert case.is_right(await pull(world, case, at, is_reset=True))
    assert case.two.asked_ranges(case.path) == [rest_of(at)]
    assert case.two.sent(case.path, method="GET") == SIZE - at


@pytest.mark.parametrize("kind", KINDS)
async def test_etags_never_matter(world: World, kind: str) -> None:
    """The digest says whether the bytes are the right ones: nothing else is asked, or looked at."""
    case = world.case(kind)
    case.one.script(case.path, Status(503), method="GET", ranged=True)
    case.two.script(case.path, changed_etag(), method="GET")
    assert case.is_right(await pull(world, case, MIDDLE))
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE)]
    resumed = [*case.one.asked(case.path, method="GET")[1:], *case.two.asked(case.path, method="GET")]
    assert not [exchange for exchange in resumed if "If-Range" in exchange.headers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["absent", "denied", "refusing", "cooling"])
async def test_remotes_in_between(world: World, kind: str, state: str) -> None:
    """good, useless, good: what can't deliver is passed over, what cools down is not even asked."""
    case = world.case(kind, "three")
    if state == "cooling":
        before = world.case(kind, "three")
        before.one.script(before.path, Status(404), method="GET")
        await case.mid.refuse()
        assert before.is_right(await ask(before.url))
        await case.mid.listen()
    elif state == "refusing":
        await case.mid.refuse()
    else:
        case.mid.script(case.path, Status({"absent": 404, "denied": 403}[state]))
    case.one.script(case.path, Status(500), method="GET", ranged=True)
    try:
        assert case.is_right(await pull(world, case, MIDDLE))
    finally:
        await case.mid.listen()
    assert case.mid.asked_ranges(case.path) == ([rest_of(MIDDLE)] if state in ("absent", "denied") else [])
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE)]


@pytest.mark.parametrize("kind", KINDS)
async def test_next_remote_breaks_too(world: World, kind: str) -> None:
    """Each brings a part."""
    case = world.case(kind, "three")
    case.one.script(case.path, Status(503), method="GET", ranged=True)
    case.mid.script(case.path, Portion(300 * KIB), method="GET", times=1)
    case.mid.script(case.path, Status(503), method="GET")
    assert case.is_right(await pull(world, case, 700 * KIB))
    assert case.mid.asked_ranges(case.path)[0] == rest_of(700 * KIB)
    assert case.two.asked_ranges(case.path) == [rest_of(1000 * KIB)]


# What a device sees


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_next", [False, True], ids=["same remote", "next remote"])
async def test_twenty_devices_one_of_them_slow(world: World, kind: str, policy: str, is_next: bool) -> None:
    case = world.case(kind, policy)
    gate = break_off(case, MIDDLE)
    if is_next:
        case.one.script(case.path, Status(503), method="GET", ranged=True)
    async with slow_device(case.url) as slow:
        await slow.read(1000)
        fast = [asyncio.create_task(ask(case.url)) for _ in range(DEVICES - 1)]
        await world.until_followed(DEVICES)
        await world.until_arrived(MIDDLE)
        gate.release()
        assert all(case.is_right(answer) for answer in await asyncio.gather(*fast))
        assert await slow.finish()
        assert slow.body == read_all(case.content)
    assert case.one.asked_ranges(case.path)[:2] == [None, rest_of(MIDDLE)]
    assert case.one.sent(case.path, method="GET") + case.two.sent(case.path, method="GET") <= SIZE + 2 * len(b"no")
    assert case.two.asked_ranges(case.path) == ([rest_of(MIDDLE)] if is_next else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("start", "end"), [(0, 100), (MIDDLE - 1000, MIDDLE + 1000), (1000, SIZE), (MIDDLE + 1000, SIZE), (SIZE - 10, SIZE)]
)
async def test_devices_that_want_a_part(world: World, kind: str, start: int, end: int) -> None:
    case = world.case(kind)
    gate = break_off(case, MIDDLE)
    pulling = asyncio.create_task(ask(case.url, headers={"Range": f"bytes={start}-{end - 1}"}))
    await world.until_arrived(MIDDLE)
    gate.release()
    answer = await pulling
    assert (answer.status, answer.is_complete) == (206, True)
    assert answer.body == read_all(case.content)[start:end]
    await at_rest(world.proxy)
    assert case.one.asked_ranges(case.path) == [None, rest_of(MIDDLE)]
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_small_body_is_whole_before_its_first_byte(world: World, kind: str) -> None:
    case = world.case(kind, is_small=True)
    assert case.is_right(await pull(world, case, 100_000))
    assert case.one.asked_ranges(case.path) == [None, rest_of(100_000)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
async def test_device_that_leaves_while_the_remote_is_gone(world: World, kind: str, policy: str) -> None:
    """What is kept goes on without it; what is not ends."""
    case, gate = world.case(kind, policy), Gate()
    broken = break_off(case, MIDDLE)
    case.one.script(case.path, Stall(-1, gate), method="GET", ranged=True)
    async with slow_device(case.url) as device:
        await device.read(MIDDLE)
        broken.release()
        await gate.reached()
    if policy == "streamed":
        await case.one.idle(case.path)
        assert case.one.asked_ranges(case.path) == [None, rest_of(MIDDLE)]
        return
    gate.release()
    assert case.is_right(await until_hit(case.url))
    assert case.one.asked_ranges(case.path) == [None, rest_of(MIDDLE)]
    assert case.two.asked_ranges(case.path) == []


# A remote that ignores the range


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [1, 65536, MIDDLE, SIZE - 1])
async def test_whole_instead_of_the_range(either: World, kind: str, policy: str, at: int) -> None:
    """What the device has is not sent to it again, if it begins the same."""
    case = either.case(kind, policy)
    case.one.script(case.path, IgnoreRange(), method="GET", ranged=True)
    assert case.is_right(await pull(either, case, at))
    assert case.one.asked_ranges(case.path) == [None, rest_of(at)]
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [0, 65535, MIDDLE - 1])
async def test_whole_that_begins_otherwise(either: World, kind: str, wrong: int) -> None:
    """It is left for the next source, however right its rest is."""
    case = either.case(kind)
    case.one.script(case.path, IgnoreRange(), Flip(wrong), method="GET", ranged=True)
    assert case.is_right(await pull(either, case, MIDDLE))
    assert set(case.one.asked_ranges(case.path)) == {None, rest_of(MIDDLE)}
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE)]


@pytest.mark.parametrize("kind", KINDS)
async def test_whole_that_begins_otherwise_of_the_only_source(world: World, kind: str) -> None:
    case = world.case(kind, "hasty")
    case.one.script(case.path, IgnoreRange(), Flip(5), method="GET", ranged=True)
    answer = await pull(world, case, MIDDLE)
    assert case.is_broken(answer)
    assert len(answer.body) <= MIDDLE
    assert case.one.asked_ranges(case.path).count(rest_of(MIDDLE)) == 1, "it would be the same again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [100, MIDDLE - 1, MIDDLE, SIZE - 1, SIZE + 10])
async def test_whole_of_another_size(world: World, kind: str, size: int) -> None:
    """Instead of the range comes less, or more, and its Content-Length says so: it can't be the right one."""
    case = world.case(kind)
    body = (read_all(case.content) + bytes(10))[:size]
    case.one.script(case.path, IgnoreRange(), Replace(body), method="GET", ranged=True)
    assert case.is_right(await pull(world, case, MIDDLE))
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE)]


@pytest.mark.parametrize("kind", KINDS)
async def test_longer_than_its_size(world: World, kind: str) -> None:
    """The right bytes and then some, with no length announced: wrong, and never completed as if it were right."""
    case = world.case(kind, "suspect")
    longer = Replace(Stored(read_all(case.content) + b"x"))
    case.one.script(case.path, IgnoreRange(), longer, Unsized(), method="GET", ranged=True)
    answer = await pull(world, case, MIDDLE)
    assert case.is_broken(answer) or case.is_right(answer)
    await at_rest(world.proxy)
    assert case.is_right(await ask(case.url))


# No source goes on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("base", "refusal"),
    [("brief", Status(404)), ("brief", Drop()), ("fleeting", Status(503)), ("fleeting", Cut(0, reset=False))],
    ids=["404", "dropped", "streamed 503", "streamed nothing"],
)
async def test_reset_when_no_source_goes_on(either: World, kind: str, base: str, refusal: Fault) -> None:
    case = either.case(kind, base)
    rules = [server.script(case.path, refusal, method="GET", ranged=True) for server in (case.one, case.two)]
    answer = await pull(either, case, MIDDLE)
    assert case.is_broken(answer)
    assert len(answer.body) <= MIDDLE
    assert answer.headers["Content-Length"] == str(SIZE)
    for rule in rules:
        assert rule.hits >= 1
        rule.times = rule.hits  # they are well again
    await at_rest(either.proxy)
    assert case.is_right(await ask(case.url))


@asynccontextmanager
async def begun(case: Case, count: int) -> AsyncIterator[list[SlowDevice]]:
    """So many devices, each of which has some bytes."""
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(slow_device(case.url)) for _ in range(count)]
        for device in devices:
            await device.read(1000)
        yield devices


@pytest.mark.parametrize("kind", KINDS)
async def test_every_device_is_reset_when_no_source_goes_on(world: World, kind: str) -> None:
    case = world.case(kind, "brief")
    for server in (case.one, case.two):
        server.script(case.path, Status(503), method="GET", ranged=True)
    gate = break_off(case, MIDDLE)
    async with begun(case, DEVICES) as devices:
        gate.release()
        assert not any(await asyncio.gather(*(device.finish() for device in devices)))


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_there_already_is_no_new_byte(world: World, kind: str) -> None:
    """A remote that begins at 0 each time, and never comes further."""
    case = world.case(kind, "hasty")
    never = (IgnoreRange(), Slow(3 * MIB), Cut(MIDDLE, reset=False))
    case.one.script(case.path, *never, method="GET", ranged=True, times=20)
    async with asyncio.timeout(6):
        assert case.is_broken(await pull(world, case, MIDDLE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refusal", [Status(503), Stall(-1)], ids=["503", "no answer"])
async def test_given_up_after_the_deadline(world: World, kind: str, refusal: Fault) -> None:
    """Retries would go on far longer than `resume_deadline_seconds` without a new byte."""
    case = world.case(kind, "hasty")
    case.one.script(case.path, refusal, method="GET", ranged=True)
    async with asyncio.timeout(6):
        assert case.is_broken(await pull(world, case, MIDDLE))


# Wrong wholes of several remotes


def split(case: Case, *, bad: str) -> Gate:
    """The first server brings one half, the second the other, and `bad` one of them a wrong byte, whenever asked."""
    gate = Stall(MIDDLE)
    flip = [Flip(10 if bad == "one" else LATE)]
    first, second = (flip, []) if bad == "one" else ([], flip)
    case.one.script(case.path, *first, gate, Cut(MIDDLE, reset=False), method="GET", times=1)
    case.one.script(case.path, Status(500), method="GET", ranged=True)
    case.two.script(case.path, *second, method="GET", times=1)
    return gate.gate


def hold_wholes(case: Case, *, bad: str) -> Gate:
    """Later answers to a GET of the whole wait before their head, the bad server's being wrong as before."""
    gate = Gate()
    for name, server in (("one", case.one), ("two", case.two)):
        faults = [Flip(10 if bad == "one" else LATE)] if name == bad else []
        server.script(case.path, *faults, Stall(-1, gate), method="GET", ranged=False)
    return gate


async def until_right(case: Case, *, attempts: int) -> Answer:
    """The first complete answer, of so many at most; those before it are broken off."""
    for _ in range(attempts):
        answer = await ask(case.url)
        if answer.is_complete:
            return answer
    raise AssertionError(f"no complete answer in {attempts} attempts")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["suspect", "passing"])
@pytest.mark.parametrize("bad", ["one", "two"])
async def test_suspects_are_taken_one_by_one(world: World, kind: str, base: str, bad: str) -> None:
    """Nobody is cooled for what two have made; who is right alone clears himself and convicts the other."""
    case = world.case(kind, base)
    gate = split(case, bad=bad)
    later = hold_wholes(case, bad=bad)
    pulling = asyncio.create_task(ask(case.url))
    await world.until_arrived(MIDDLE)
    gate.release()
    answer = await pulling
    assert (answer.status, answer.is_complete) == (200, False)
    assert case.two.asked_ranges(case.path)[:1] == [rest_of(MIDDLE)]
    assert await world.cooled() == set()
    if base == "passing":
        await at_rest(world.proxy)  # so that it is a later request that takes up the suspicion
    later.release()
    assert case.is_right(await until_right(case, attempts=3))
    await at_rest(world.proxy)
    assert await world.cooled() == {f"{kind}-{base}-{bad}"}
    alone = [*case.one.asked_ranges(case.path)[1:], *case.two.asked_ranges(case.path)[1:]]
    assert set(alone) <= {None, rest_of(MIDDLE)}
    assert case.two.asked_ranges(case.path).count(rest_of(MIDDLE)) == 1, "never put together again"


@pytest.mark.parametrize("kind", KINDS)
async def test_suspect_that_breaks_off_alone_gets_no_help(world: World, kind: str) -> None:
    """Nothing is put together again; it is the other one's turn."""
    case = world.case(kind, "suspect")
    gate = split(case, bad="two")
    case.one.script(case.path, Cut(MIDDLE, reset=False), method="GET")
    pulling = asyncio.create_task(ask(case.url))
    await world.until_arrived(MIDDLE)
    gate.release()
    assert not (await pulling).is_complete
    assert case.is_right(await until_right(case, attempts=3))
    assert case.two.asked_ranges(case.path) == [rest_of(MIDDLE), None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["one", "two"])
async def test_suspects_within_one_request(world: World, kind: str, bad: str) -> None:
    """A device that has no byte yet does not notice."""
    case, at = world.case(kind, "suspect", is_small=True), 100_000
    case.one.script(case.path, Status(500), method="GET", ranged=True)
    if bad == "one":
        case.one.script(case.path, Flip(10), method="GET", ranged=False, first=2)
    else:
        case.two.script(case.path, Flip(at + 10), method="GET")
    assert case.is_right(await pull(world, case, at, *([Flip(10)] if bad == "one" else [])))
    assert case.two.asked_ranges(case.path)[0] == rest_of(at)
    await at_rest(world.proxy)
    assert await world.cooled() == {f"{kind}-suspect-{bad}"}


@pytest.mark.parametrize("bad", ["one", "two"])
async def test_only_devices_with_bytes_of_a_wrong_whole_are_reset(world: World, bad: str) -> None:
    case = world.case("registry", "suspect")
    gate = split(case, bad=bad)
    (case.one if bad == "one" else case.two).script(case.path, Flip(10 if bad == "one" else LATE), method="GET")
    strict = case.url.replace("registry-suspect", "registry-strict")
    async with begun(case, 5) as devices:
        waiting = asyncio.create_task(ask(strict, headers={"Range": "bytes=1000-"}))
        await world.until_followed(6)
        gate.release()
        assert not any(await asyncio.gather(*(device.finish() for device in devices)))
    answer = await waiting
    assert (answer.status, answer.is_complete, answer.body) == (206, True, read_all(case.content)[1000:])


@pytest.mark.parametrize("kind", KINDS)
async def test_both_suspects_are_wrong(world: World, kind: str) -> None:
    """Each is tried alone, found out and cooled; then nobody is left."""
    case = world.case(kind, "suspect")
    gate = split(case, bad="two")
    case.one.script(case.path, Flip(10), method="GET")
    case.two.script(case.path, Flip(LATE), method="GET")
    pulling = asyncio.create_task(ask(case.url))
    await world.until_arrived(MIDDLE)
    gate.release()
    assert not (await pulling).is_complete

    async def are_cooled() -> bool:
        assert not (answer := await ask(case.url)).is_complete or answer.status >= 400
        return await world.cooled() == {f"{kind}-suspect-one", f"{kind}-suspect-two"}

    await until(are_cooled)
    asked = case.one.count(case.path) + case.two.count(case.path)
    assert (await ask(case.url)).status == (503 if kind == "registry" else 404)
    assert case.one.count(case.path) + case.two.count(case.path) == asked


@pytest.mark.parametrize("kind", KINDS)
async def test_wrong_parts_of_one_remote(world: World, kind: str) -> None:
    """All is its own: it cools, and the next source is asked from 0."""
    case = world.case(kind, "suspect")
    case.one.script(case.path, Flip(LATE), method="GET", ranged=True)
    case.one.script(case.path, Flip(LATE), method="GET", ranged=False, first=2)
    answer = await pull(world, case, MIDDLE, Flip(LATE))
    assert (answer.status, answer.is_complete) == (200, False)
    assert len(answer.body) <= SIZE - TAIL
    assert case.is_right(await until_right(case, attempts=2))
    assert await world.cooled() == {f"{kind}-suspect-one"}
    assert case.two.asked_ranges(case.path) == [None]


# In a window of memory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("at", PLACES)
async def test_cut_in_memory(full: World, kind: str, at: int, is_reset: bool) -> None:
    case = full.case(kind)
    answer = await pull(full, case, at, is_reset=is_reset)
    assert case.is_right(answer)
    assert "no-space" in answer.cache
    assert case.one.asked_ranges(case.path) == [None, rest_of(at)]
    assert case.one.sent(case.path, method="GET") == SIZE
    assert case.two.asked_ranges(case.path) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_stall_in_memory(full: World, kind: str) -> None:
    case = full.case(kind, "quick")
    case.one.script(case.path, Stall(MIDDLE), method="GET", times=1)
    assert case.is_right(await ask(case.url))
    assert case.one.asked_ranges(case.path) == [None, rest_of(MIDDLE)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 65536, MIDDLE, SIZE - 1])
async def test_next_remote_in_memory(full: World, kind: str, at: int) -> None:
    case = full.case(kind)
    case.one.script(case.path, Status(503), method="GET", ranged=True)
    assert case.is_right(await pull(full, case, at))
    assert case.two.asked_ranges(case.path) == [rest_of(at)]


@pytest.mark.parametrize("kind", KINDS)
async def test_twenty_devices_in_memory(full: World, kind: str) -> None:
    """The slow ones among them get their rest by ranges of their own."""
    case = full.case(kind)
    break_off(case, MIDDLE).release()
    async with slow_device(case.url) as slow:
        await slow.read(1000)
        assert all(case.is_right(answer) for answer in await ask_many(case.url, DEVICES - 1))
        assert await slow.finish()
        assert slow.body == read_all(case.content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["one", "two"])
async def test_suspects_in_memory(full: World, kind: str, bad: str) -> None:
    case = full.case(kind, "suspect")
    gate = split(case, bad=bad)
    (case.one if bad == "one" else case.two).script(case.path, Flip(10 if bad == "one" else LATE), method="GET")
    pulling = asyncio.create_task(ask(case.url))
    await full.until_arrived(MIDDLE)
    gate.release()
    assert not (await pulling).is_complete
    assert case.is_right(await until_right(case, attempts=3))
    await at_rest(full.proxy)
    assert await full.cooled() == {f"{kind}-suspect-{bad}"}


@asynccontextmanager
async def small_disk(folder: Path, one: RegistryRemote, two: RegistryRemote) -> AsyncIterator[Proxy]:
    """A proxy whose disk is full after 4 MiB of a file, with a window of 1 MiB."""
    config = pull_through("container", "reg", {"one": one.url, "two": two.url}, remote=TRYING)
    proxy = Proxy(folder, {**config, "window_size": MIB})
    limit_file_size(proxy, 4 * MIB)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


@pytest.mark.parametrize("at", [2 * MIB, 5 * MIB + 7, 6 * MIB - 1])
async def test_disk_that_is_full_in_the_middle(tmp_path: Path, at: int) -> None:
    """A part of what is held is on disk, a part in memory; what comes instead of a range is held against both."""
    content = fresh(6 * MIB)
    async with RegistryRemote() as one, RegistryRemote() as two, small_disk(tmp_path, one, two) as proxy:
        digest = one.push_blob("app", content)
        two.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        one.script(path, Slow(20 * MIB), Cut(at, reset=False), method="GET", times=1)
        one.script(path, IgnoreRange(), Flip(at // 2), method="GET")
        two.script(path, IgnoreRange(), method="GET")
        answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
        assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
        assert len(two.asked_ranges(path)) == 1
        assert two.asked_ranges(path)[0] is not None


async def test_remote_that_is_silent_when_the_disk_gets_full(tmp_path: Path) -> None:
    """What has come is sent all the same."""
    content, at = fresh(6 * MIB), 5 * MIB
    async with RegistryRemote() as one, RegistryRemote() as two, small_disk(tmp_path, one, two) as proxy:
        path = f"/v2/app/blobs/{one.push_blob('app', content)}"
        stall = Stall(at)
        one.script(path, stall, method="GET", times=1)
        async with slow_device(f"{proxy.url}{path.replace('/v2', '/v2/reg', 1)}") as device:
            async with asyncio.timeout(10):
                await device.read(at)
            stall.gate.release()
            assert await device.finish()
            assert device.body == read_all(content)
