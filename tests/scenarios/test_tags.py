"""Tags: fresh for their TTL, revalidated by HEAD, served stale while the first source can't say what they are now."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.faults import Delay, Drop, Fault, Flip, Headers, LoginPage, Status, challenge, too_many
from tests.remotes.images import Image, make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, forget_stored, staged, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGES = [make_image(layers=1, layer_size=10, seed=40 + number) for number in range(4)]
names = itertools.count()
DEADLINE = {"first_byte_deadline_seconds": 1}


@dataclass
class World:
    """``day`` has a long TTL, ``now`` none, ``mixed`` one by pattern, ``blink`` half a second; ``two`` → first, second;
    ``strict`` allows no staleness, ``flow`` is streamed: both → first, second. TTL 0 where nothing is said.
    """

    proxy: Proxy
    first: RegistryRemote
    second: RegistryRemote
    bare: RegistryRemote
    mute: RegistryRemote

    def push(self, image: Image = IMAGES[0], *, tag: str = "v1", on: RegistryRemote | None = None) -> str:
        """Hold an image under a name of its own; the name."""
        name = f"app{next(names)}"
        (on or self.first).push(name, tag, image)
        return name

    async def pull(self, distribution: str, name: str, tag: str = "v1") -> Answer:
        return await ask(f"{self.proxy.url}/v2/{distribution}/{name}/manifests/{tag}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    def over(base_path: str, *remotes: RegistryRemote, **settings: object) -> dict[str, object]:
        urls = {f"{base_path}-{number}": remote.url for number, remote in enumerate(remotes)}
        remote = {**PATIENT, **({"policy": "streamed"} if base_path == "flow" else {})}
        distribution = {**DEADLINE, "tag_ttl_seconds": 0, **settings}
        return pull_through("container", base_path, urls, remote=remote, distribution=distribution)

    async with (
        RegistryRemote() as first,
        RegistryRemote() as second,
        RegistryRemote(head="bare") as bare,
        RegistryRemote(head="refused") as mute,
        staged(
            tmp_path_factory.mktemp("tags"),
            over("day", first, tag_ttl_seconds=86400),
            over("now", first),
            over("mixed", first, tag_ttl_patterns={"v[0-9]*": 86400, "v1-rc*": 0, "*-stable": 86400}),
            over("latest", first, tag_ttl_seconds=86400, tag_ttl_patterns={"latest": 0}),
            over("blink", first, tag_ttl_seconds=0.5),
            over("two", first, second),
            over("strict", first, stale_if_error_seconds=0),
            over("strict2", first, second, stale_if_error_seconds=0),
            over("flow", first, second),
            over("bare", bare),
            over("mute", mute),
            memory_cache_size=0,
        ) as proxy,
    ):
        yield World(proxy, first, second, bare, mute)


def asked(remote: RegistryRemote, name: str) -> list[str]:
    """The methods of all requests for a name's manifests so far."""
    return [exchange.method for exchange in remote.asked(f"/v2/{name}/manifests/*")]


# Fresh


async def test_no_request_within_the_ttl(world: World) -> None:
    name = world.push()
    for cache in ("fwd=miss; stored", "hit", "hit"):
        answer = await world.pull("day", name)
        assert (answer.cache, answer.sha256) == (cache, IMAGES[0].digest)
    assert asked(world.first, name) == ["GET"]


async def test_ttl_ends(world: World) -> None:
    name = world.push()
    await world.pull("blink", name)
    assert (await world.pull("blink", name)).cache == "hit"

    async def is_revalidated() -> bool:
        return (await world.pull("blink", name)).cache == "fwd=stale; fwd-status=200"

    await until(is_revalidated)
    assert (await world.pull("blink", name)).cache == "hit", "fresh again"
    assert asked(world.first, name) == ["GET", "HEAD"]


async def test_patterns_have_their_own_ttl(world: World) -> None:
    """The first pattern that matches, else the distribution's."""
    expected = {
        ("mixed", "v1"): ["GET"],
        ("mixed", "v1-rc1"): ["GET"],
        ("mixed", "9-stable"): ["GET"],
        ("mixed", "latest"): ["GET", "HEAD"],
        ("mixed", "V1"): ["GET", "HEAD"],
        ("latest", "latest"): ["GET", "HEAD"],
        ("latest", "latest2"): ["GET"],
    }
    for (distribution, tag), methods in expected.items():
        name = world.push(tag=tag)
        for _ in range(2):
            assert (await world.pull(distribution, name, tag)).status == 200
        assert asked(world.first, name) == methods, (distribution, tag)


async def test_digest_is_never_revalidated(world: World) -> None:
    name = world.push()
    for _ in range(3):
        assert (await world.pull("now", name, IMAGES[0].digest)).sha256 == IMAGES[0].digest
    assert asked(world.first, name) == ["GET"]


async def test_digest_that_a_tag_has_brought_is_known(world: World) -> None:
    name = world.push()
    await world.pull("now", name)
    assert (await world.pull("now", name, IMAGES[0].digest)).cache == "hit"
    assert asked(world.first, name) == ["GET"]


# Revalidated


async def test_unchanged_tag_costs_one_head(world: World) -> None:
    name = world.push()
    await world.pull("now", name)
    for number in (1, 2):
        answer = await world.pull("now", name)
        assert (answer.cache, answer.body) == ("fwd=stale; fwd-status=200", IMAGES[0].manifest.body)
        assert asked(world.first, name) == ["GET", *["HEAD"] * number]


async def test_changed_tag_is_fetched(world: World) -> None:
    name = world.push()
    await world.pull("now", name)
    world.first.push(name, "v1", IMAGES[1])
    answer = await world.pull("now", name)
    assert (answer.sha256, answer.headers["Docker-Content-Digest"]) == (IMAGES[1].digest, IMAGES[1].digest)
    assert asked(world.first, name) == ["GET", "HEAD", "GET"]
    assert (await world.pull("now", name, IMAGES[0].digest)).cache == "hit", "the old one is still there by its digest"


async def test_head_without_a_digest_is_followed_by_get(world: World) -> None:
    for distribution, remote in (("bare", world.bare), ("mute", world.mute)):
        name = world.push(on=remote)
        await world.pull(distribution, name)
        remote.push(name, "v1", IMAGES[1])
        assert (await world.pull(distribution, name)).sha256 == IMAGES[1].digest
        assert asked(remote, name) == ["GET", "HEAD", "GET"]


async def test_broken_digest_in_a_head_is_none(world: World) -> None:
    name = world.push()
    await world.pull("now", name)
    world.first.push(name, "v1", IMAGES[1])
    world.first.script(f"/v2/{name}/*", Headers({"Docker-Content-Digest": "sha256:nonsense"}))
    assert (await world.pull("now", name)).sha256 == IMAGES[1].digest


async def test_many_devices_revalidate_once(world: World) -> None:
    name = world.push()
    await world.pull("blink", name)
    gate = world.first.hold(f"/v2/{name}/manifests/v1", method="HEAD")
    pulls = []

    async def is_asked_upstream() -> bool:
        pulls.append(asyncio.create_task(world.pull("blink", name)))
        return gate.arrived > 0

    await until(is_asked_upstream)
    pulls += [asyncio.create_task(world.pull("blink", name)) for _ in range(10)]
    gate.release()
    assert {answer.sha256 for answer in await asyncio.gather(*pulls)} == {IMAGES[0].digest}
    assert asked(world.first, name) == ["GET", "HEAD"]


# Stale

FAULTS: dict[str, Fault] = {
    "401": Status(401),
    "challenge": challenge('Bearer realm="'),
    "403": Status(403),
    "429": too_many("0"),
    "500": Status(500),
    "502": Status(502),
    "503": Status(503),
    "drop": Drop(),
    "slow": Delay(60),
    "login page": LoginPage(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_stale_while_the_first_source_fails(world: World, fault: Fault) -> None:
    """A later source is not asked: it might have an older image under the tag."""
    name = world.push()
    world.second.push(name, "v1", IMAGES[1])
    await world.pull("two", name)
    world.first.script(f"/v2/{name}/*", fault)
    before = (await world.proxy.metrics()).total("contentapp_requests_total", outcome="stale")
    answer = await world.pull("two", name)
    assert (answer.status, answer.sha256) == (200, IMAGES[0].digest)
    hit, ttl, detail = answer.cache.split("; ")
    assert (hit, detail) == ("hit", "detail=stale-if-error")
    assert int(ttl.removeprefix("ttl=")) < 0
    assert answer.headers["Cache-Control"] == "no-cache"
    assert (await world.proxy.metrics()).total("contentapp_requests_total", outcome="stale") == before + 1
    assert world.second.count(f"/v2/{name}/*") == 0
    world.first.clear()
    world.first.push(name, "v1", IMAGES[2])

    async def is_new() -> bool:
        return (await world.pull("two", name)).sha256 == IMAGES[2].digest

    await until(is_new)


async def test_stale_when_only_the_get_fails(world: World) -> None:
    """The HEAD has told that the tag changed, but the new manifest can't be had, or is wrong."""
    name = world.push()
    await world.pull("now", name)
    world.first.push(name, "v1", IMAGES[1])
    for fault in (Status(503), Flip(10)):
        world.first.script(f"/v2/{name}/*", fault, method="GET", times=1)
        answer = await world.pull("now", name)
        assert answer.sha256 == IMAGES[0].digest
        assert answer.cache.endswith("detail=stale-if-error")


async def test_stale_while_connections_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And over a restart: neither start nor answer needs a remote."""
    async with RegistryRemote() as remote:
        remote.push("app", "v1", IMAGES[0])
        config = pull_through("container", "reg", {"r": remote.url}, distribution={"tag_ttl_seconds": 0})
        async with staged(tmp_path_factory.mktemp("refused"), config) as proxy:
            url = f"{proxy.url}/v2/reg/app/manifests/v1"
            assert (await ask(url)).status == 200
            await remote.refuse()
            for restart in (proxy.restart, None):
                answer = await ask(url)
                assert (answer.sha256, answer.cache.startswith("hit; ttl=-")) == (IMAGES[0].digest, True)
                assert (await ask(f"{proxy.url}/v2/reg/app/manifests/{IMAGES[0].digest}")).cache == "hit"
                if restart is not None:
                    await restart()


async def test_no_longer_than_stale_if_error_seconds(world: World) -> None:
    name = world.push()
    await world.pull("strict", name)
    world.first.script(f"/v2/{name}/*", Status(503))
    assert (await world.pull("strict", name)).status == 503


async def test_404_of_the_first_source_ends_staleness(world: World) -> None:
    name, other = world.push(), world.push()
    world.second.push(other, "v1", IMAGES[1])
    for pulled in (name, other):
        assert (await world.pull("two", pulled)).sha256 == IMAGES[0].digest
        world.first.repositories[pulled].tags.clear()
    gone = await world.pull("two", name)
    assert (gone.status, gone.headers["Cache-Control"]) == (404, "no-store")
    assert (await world.pull("two", other)).sha256 == IMAGES[1].digest, "nothing is cached any more, so the second may"
    world.first.script(f"/v2/{name}/*", Status(503))
    assert (await world.pull("two", name)).status == 503, "it does not come back"


async def test_later_source_answers_when_nothing_is_cached(world: World) -> None:
    name = f"app{next(names)}"
    world.first.script(f"/v2/{name}/*", Status(503))
    world.second.push(name, "v1", IMAGES[1])
    assert (await world.pull("two", name)).sha256 == IMAGES[1].digest
    world.first.push(name, "v1", IMAGES[0])
    world.first.clear()
    assert (await world.pull("two", name)).sha256 == IMAGES[0].digest, "the first has the word again"


async def test_later_source_answers_when_what_was_cached_is_gone(world: World) -> None:
    """Off the disk; never kept, since streamed; or too old to be served."""
    marked = make_image(layers=3, layer_size=10, seed=77)
    for distribution in ("two", "flow", "strict2"):
        name = world.push(marked)
        world.second.push(name, "v1", IMAGES[1])
        assert (await world.pull(distribution, name)).sha256 == marked.digest
        if distribution == "two":
            await forget_stored(world.proxy, len(marked.manifest.body))
        world.first.script(f"/v2/{name}/*", Status(503))
        assert (await world.pull(distribution, name)).sha256 == IMAGES[1].digest, distribution


async def test_streamed_tag_keeps_nothing(world: World) -> None:
    image = make_image(layers=4, layer_size=10, seed=78)
    name = world.push(image)
    for _ in range(2):
        answer = await world.pull("flow", name)
        assert (answer.cache, answer.sha256) == ("fwd=bypass", image.digest)
    assert asked(world.first, name) == ["GET", "GET"]
    assert not [path for path in world.proxy.artifacts() if path.stat().st_size == len(image.manifest.body)]
