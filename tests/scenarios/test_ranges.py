"""Ranges as DESIGN has them: warm and cold, near and far, with If-Range, of known and of unknown size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Cut, Drop, Flip, Gate, IgnoreRange, Stall, Status, Unsized, changed_etag
from tests.remotes.files import FileRemote, etag_of
from tests.remotes.images import Image, make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, asking
from tests.scenarios.stage import PATIENT, fresh, staged, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
SMALL_SIZE = 20_000
LARGE_SIZE = 3 * MIB + 7
BROKEN = (aiohttp.ClientError, ConnectionError)

# Range → status and (start, end) of the body, for SMALL_SIZE
SATISFIABLE = {
    "bytes=0-0": (0, 1),
    "bytes=5-9": (5, 10),
    "bytes=19000-": (19000, SMALL_SIZE),
    "bytes=-7": (SMALL_SIZE - 7, SMALL_SIZE),
    "bytes=100-99999999": (100, SMALL_SIZE),
    "bytes=-99999999": (0, SMALL_SIZE),
    "bytes=0-": (0, SMALL_SIZE),
    "Bytes=1-2": (1, 3),
}
UNSATISFIABLE = [f"bytes={SMALL_SIZE}-", f"bytes={SMALL_SIZE}-{SMALL_SIZE + 5}", "bytes=-0", "bytes=99999999-"]
IGNORED = ["bytes=9-5", "bytes=", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,3-4", "bytes 0-1", "bytes=1-2-3"]


@dataclass
class World:
    """Distributions over one registry: ``reg`` with the defaults, ``far``, ``strict``, ``flow``; ``files``; ``two``."""

    proxy: Proxy
    registry: RegistryRemote
    files: FileRemote
    others: FileRemote

    def blob(self, content: Synthetic, *, to: str = "reg") -> str:
        """Hold a blob; its URL."""
        return f"{self.proxy.url}/v2/{to}/app/blobs/{self.registry.push_blob('app', content)}"

    def file(self, content: Synthetic, *, to: str = "files") -> str:
        """Hold a file that no PULP_MANIFEST names; its URL."""
        self.files.put(f"f{content.seed}", content)
        return f"{self.proxy.url}/pulp/content/{to}/f{content.seed}"

    async def total(self, name: str, **labels: str) -> float:
        """A metric of now."""
        return (await self.proxy.metrics()).total(f"contentapp_{name}", **labels)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with (
        RegistryRemote() as registry,
        FileRemote(manifest=False) as files,
        FileRemote(manifest=False) as others,
    ):
        two = {"f": f"{files.url}/", "g": f"{others.url}/"}
        names = {"r": registry.url}
        far = {"range_wait_size": "256KiB"}
        async with staged(
            tmp_path_factory.mktemp("ranges"),
            pull_through("container", "reg", names, remote=PATIENT, distribution={"resume_deadline_seconds": 0.2}),
            pull_through("container", "far", names, remote=PATIENT, distribution=far),
            pull_through("container", "strict", names, remote=PATIENT, distribution={**far, "cold_range": "strict"}),
            pull_through("container", "flow", {"s": registry.url}, remote={**PATIENT, "policy": "streamed"}),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote=PATIENT),
            pull_through("file", "two", two, remote=PATIENT, distribution=far),
        ) as proxy:
            yield World(proxy, registry, files, others)


async def check_every_range(url: str, body: bytes) -> None:
    """All that can be asked of one body of SMALL_SIZE."""
    assert len(body) == SMALL_SIZE
    for header, (start, end) in SATISFIABLE.items():
        answer = await ask(url, headers={"Range": header})
        assert (answer.status, answer.body) == (206, body[start:end]), header
        assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SMALL_SIZE}"
        assert answer.headers["Content-Length"] == str(end - start)
        assert answer.headers["Accept-Ranges"] == "bytes"
    for header in UNSATISFIABLE:
        answer = await ask(url, headers={"Range": header})
        assert (answer.status, answer.body) == (416, b""), header
        assert answer.headers["Content-Range"] == f"bytes */{SMALL_SIZE}"
    for header in IGNORED:
        answer = await ask(url, headers={"Range": header})
        assert (answer.status, answer.body) == (200, body), header
        assert "Content-Range" not in answer.headers
        assert answer.headers["Accept-Ranges"] == "bytes"


# Warm


async def test_warm_blob(world: World) -> None:
    content = fresh(SMALL_SIZE)
    url = world.blob(content)
    await until_hit(url)
    await check_every_range(url, read_all(content))


async def test_warm_file_without_a_digest(world: World) -> None:
    content = fresh(SMALL_SIZE)
    url = world.file(content)
    await until_hit(url)
    await check_every_range(url, read_all(content))


async def test_manifest(world: World) -> None:
    image = make_image(layers=1, layer_size=100)
    world.registry.push("manifests", "v1", image)
    for reference in ("v1", image.digest):
        url, body = f"{world.proxy.url}/v2/reg/manifests/manifests/{reference}", image.manifest.body
        part = await ask(url, headers={"Range": "bytes=3-8"})
        assert (part.status, part.body) == (206, body[3:9])
        assert part.headers["Content-Range"] == f"bytes 3-8/{len(body)}"
        none = await ask(url, headers={"Range": f"bytes={len(body)}-"})
        assert (none.status, none.headers["Content-Range"]) == (416, f"bytes */{len(body)}")


async def test_head_knows_no_ranges(world: World) -> None:
    content = fresh(SMALL_SIZE)
    url = world.blob(content)
    for _ in range(2):
        answer = await ask(url, method="HEAD", headers={"Range": "bytes=0-4"})
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(SMALL_SIZE)
        assert "Content-Range" not in answer.headers
        await until_hit(url)


async def test_if_range_on_a_warm_blob(world: World) -> None:
    content = fresh(SMALL_SIZE)
    url = world.blob(content)
    warm, digest = await until_hit(url), digest_of(content)
    date = warm.headers["Last-Modified"]
    assert warm.headers["ETag"] == f'"{digest}"'
    statuses = {
        f'"{digest}"': 206,
        f'W/"{digest}"': 200,
        '"other"': 200,
        f'"{digest}-deadbeef"': 200,
        f'"{digest}-"': 200,
        date: 206,
        "Mon, 01 Jan 2024 00:00:01 GMT": 200,
        "Fri, 01 Jan 2100 00:00:00 GMT": 200,
        "nonsense": 200,
        f'"{digest}", "other"': 200,
        "*": 200,
    }
    for validator, status in statuses.items():
        answer = await ask(url, headers={"Range": "bytes=1-2", "If-Range": validator})
        assert answer.status == status, validator
        assert answer.body == (read_all(content)[1:3] if status == 206 else read_all(content))
    beyond = await ask(url, headers={"Range": "bytes=99999999-", "If-Range": '"other"'})
    assert beyond.status == 200
    without_range = await ask(url, headers={"If-Range": f'"{digest}"'})
    assert without_range.status == 200


async def test_if_range_without_a_digest(world: World) -> None:
    """The tag made of the remote's is strong; its date is not, since other bytes may have had it."""
    content = fresh(SMALL_SIZE)
    url = world.file(content)
    warm = await until_hit(url)
    tag = warm.headers["ETag"]
    assert tag.startswith('"u-')
    for validator, status in {tag: 206, f"W/{tag}": 200, warm.headers["Last-Modified"]: 200}.items():
        answer = await ask(url, headers={"Range": "bytes=1-2", "If-Range": validator})
        assert answer.status == status, validator


async def test_tag_of_an_unverified_body(world: World) -> None:
    """Good for If-Range while its flight goes on and once that flight has verified; a date is not good before that."""
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content), Gate()
    world.registry.script(f"*/{digest_of(content)}", Stall(2 * MIB, gate), method="GET")
    async with asking(url) as response:
        tag, date = response.headers["ETag"], response.headers["Last-Modified"]
        assert tag.startswith(f'"{digest_of(content)}-')
        await gate.reached()
        wanted = {"Range": "bytes=1000-1003"}
        for validator, status in {tag: 206, f'{tag[:-1]}0"': 200, date: 200}.items():
            async with asking(url, headers={**wanted, "If-Range": validator}) as answer:
                assert answer.status == status, validator
                body = await answer.content.readexactly(4)
            start = 1000 if status == 206 else 0
            assert body == read_all(content)[start : start + 4]
        gate.release()
        assert len(await response.content.read()) == LARGE_SIZE
    assert (await until_hit(url)).headers["ETag"] == f'"{digest_of(content)}"'
    resumed = await ask(url, headers={**wanted, "If-Range": tag})
    assert (resumed.status, resumed.body) == (206, read_all(content)[1000:1004])


# Cold


async def test_cold_small_blob(world: World) -> None:
    """Verified before the first byte, whatever part is wanted."""
    cases: dict[str, tuple[int, tuple[int, int]]] = {
        **{header: (206, bounds) for header, bounds in SATISFIABLE.items()},
        **dict.fromkeys(UNSATISFIABLE, (416, (0, 0))),
        **dict.fromkeys(IGNORED, (200, (0, SMALL_SIZE))),
    }
    for header, (status, (start, end)) in cases.items():
        content = fresh(SMALL_SIZE)
        answer = await ask(world.blob(content), headers={"Range": header})
        assert (answer.status, answer.body) == (status, read_all(content)[start:end]), header
        if status == 206:
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SMALL_SIZE}"


async def test_if_range_on_cold_content(world: World) -> None:
    """What is verified before its first byte has the tag of its digest; what is not, that of its flight alone."""
    for size, statuses in ((SMALL_SIZE, {"": 206, "-x": 200}), (LARGE_SIZE, {"": 200, "-x": 200})):
        for suffix, status in statuses.items():
            content, gate = fresh(size), Gate()
            url, digest = world.blob(content), digest_of(content)
            if size == LARGE_SIZE:
                world.registry.script(f"*/{digest}", Stall(2 * MIB, gate), method="GET")
            async with asking(url, headers={"Range": "bytes=1-4", "If-Range": f'"{digest}{suffix}"'}) as answer:
                assert answer.status == status, (size, suffix)
                gate.release()
                assert await answer.read() == (read_all(content) if status == 200 else read_all(content)[1:5])
    for validator in ('"other"', 'W/"other"', "nonsense", "Mon, 01 Jan 2024 00:00:01 GMT"):
        content = fresh(SMALL_SIZE)
        whole = await ask(world.blob(content), headers={"Range": "bytes=1-4", "If-Range": validator})
        assert (whole.status, whole.body) == (200, read_all(content)), validator


async def test_refused_range_on_cold_content_still_warms_it(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url = world.blob(content)
    answer = await ask(url, headers={"Range": f"bytes={LARGE_SIZE}-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{LARGE_SIZE}")
    await until_hit(url)
    assert world.registry.count(f"*/{digest_of(content)}", method="GET") == 1


async def test_cold_range_is_fed_from_the_flight_as_it_arrives(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content), Gate()
    path = f"*/{digest_of(content)}"
    world.registry.script(path, Stall(MIB, gate), method="GET")
    before = await world.total("bodies_total", type="container", verified="pending")
    early = await ask(url, headers={"Range": "bytes=500000-600000"})
    assert (early.status, early.body) == (206, read_all(content)[500_000:600_001])
    assert early.headers["Accept-Ranges"] == "bytes"
    assert "Repr-Digest" not in early.headers
    assert await world.total("bodies_total", type="container", verified="pending") == before + 1
    later = asyncio.create_task(ask(url, headers={"Range": "bytes=2000000-2000009"}))
    await world.registry.seen(path, method="GET")
    gate.release()
    assert (await later).body == read_all(content)[2_000_000:2_000_010]
    asked = world.registry.asked(path, method="GET")
    assert ["Range" in exchange.headers for exchange in asked] == [False]


async def test_tail_of_a_cold_range_waits_for_the_verdict(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content), Gate()
    world.registry.script(f"*/{digest_of(content)}", Stall(LARGE_SIZE - 1, gate), method="GET")
    async with asking(url, headers={"Range": "bytes=-1000000"}) as response:
        assert response.status == 206
        await gate.reached()
        head = await response.content.readexactly(1_000_000 - 64 * KIB)
        assert response.content.total_bytes == len(head)
        gate.release()
        assert head + await response.content.read() == read_all(content)[-1_000_000:]


async def test_cold_range_with_the_last_byte_of_wrong_bytes_is_cut(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content), Gate()
    world.registry.script(f"*/{digest_of(content)}", Stall(LARGE_SIZE - 1, gate), Flip(3), method="GET")
    async with asking(url, headers={"Range": "bytes=-1000000"}) as response:
        assert response.status == 206
        head = await response.content.readexactly(1_000_000 - 64 * KIB)
        gate.release()
        with pytest.raises(BROKEN):
            await response.content.read()
        assert response.content.total_bytes == len(head)


async def test_cold_range_is_reset_when_the_flight_fails(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content), Gate()
    world.registry.script(f"*/{digest_of(content)}", Stall(MIB, gate), Cut(MIB), method="GET", times=1)
    world.registry.script(f"*/{digest_of(content)}", Drop(), method="GET")
    async with asking(url, headers={"Range": "bytes=0-2000000"}) as response:
        assert response.status == 206
        await response.content.readexactly(MIB)
        gate.release()
        with pytest.raises(BROKEN):
            await response.content.read()


# Far ahead


@dataclass
class Far:
    """A cold blob whose flight stands at 128 KiB, and the gates of the flight and of what is asked by range."""

    content: Synthetic
    url: str
    path: str
    flight: Gate

    @property
    def body(self) -> bytes:
        return read_all(self.content)


def far_blob(world: World, *faults: Flip | Cut, size: int = LARGE_SIZE) -> Far:
    content = fresh(size)
    url, gate, path = world.blob(content, to="far"), Gate(), f"*/{digest_of(content)}"
    world.registry.script(path, Stall(128 * KIB, gate), *faults, method="GET", ranged=False)
    return Far(content, url, path, gate)


async def ranges_asked(world: World, far: Far) -> list[str]:
    asked = world.registry.asked(far.path, method="GET")
    return [exchange.headers["Range"] for exchange in asked if "Range" in exchange.headers]


async def test_far_range_gets_a_request_of_its_own(world: World) -> None:
    far = far_blob(world)
    before = await world.total("range_requests_total", remote="r")
    answer = await ask(far.url, headers={"Range": "bytes=2000000-2100000"})
    assert (answer.status, answer.body) == (206, far.body[2_000_000:2_100_001])
    assert answer.cache == "fwd=miss; detail=range"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Range"] == f"bytes 2000000-2100000/{LARGE_SIZE}"
    assert await ranges_asked(world, far) == ["bytes=2000000-2100000"]
    assert await world.total("range_requests_total", remote="r") == before + 1
    far.flight.release()
    await until_hit(far.url)
    assert len(world.registry.asked(far.path, method="GET")) == 2


async def test_range_just_before_the_limit_waits(world: World) -> None:
    far = far_blob(world)
    async with asking(far.url):
        await far.flight.reached()
        start = 128 * KIB + 256 * KIB - 1
        waiting = asyncio.create_task(ask(far.url, headers={"Range": f"bytes={start}-{start + 9}"}))
        beyond = await ask(far.url, headers={"Range": f"bytes={start + 1}-{start + 9}"})
        assert beyond.body == far.body[start + 1 : start + 10]
        assert not waiting.done()
        far.flight.release()
        assert (await waiting).body == far.body[start : start + 10]
        assert await ranges_asked(world, far) == [f"bytes={start + 1}-{start + 9}"]


async def test_tail_of_a_far_range_waits_for_the_verdict(world: World) -> None:
    far = far_blob(world)
    async with asking(far.url, headers={"Range": "bytes=-1000000"}) as response:
        assert response.status == 206
        head = await response.content.readexactly(1_000_000 - 64 * KIB)
        await far.flight.reached()
        assert response.content.total_bytes == len(head)
        far.flight.release()
        assert head + await response.content.read() == far.body[-1_000_000:]


async def test_far_range_that_differs_from_the_verified_whole_is_cut(world: World) -> None:
    far = far_blob(world)
    world.registry.script(far.path, Flip(LARGE_SIZE - 100_000), method="GET", ranged=True)
    async with asking(far.url) as whole, asking(far.url, headers={"Range": "bytes=-500000"}) as response:
        head = await response.content.readexactly(500_000 - 64 * KIB)
        assert head != far.body[-500_000 : -64 * KIB]
        far.flight.release()
        with pytest.raises(BROKEN):
            await response.content.read()
        assert len(await whole.content.read()) == LARGE_SIZE


async def test_far_range_is_cut_when_the_whole_is_wrong(world: World) -> None:
    far = far_blob(world, Flip(5))
    async with asking(far.url, headers={"Range": "bytes=-1000000"}) as response:
        head = await response.content.readexactly(1_000_000 - 64 * KIB)
        far.flight.release()
        with pytest.raises(BROKEN):
            await response.content.read()
        assert head == far.body[-1_000_000 : -64 * KIB]


async def test_far_range_in_the_middle_is_reset_when_the_flight_fails_meanwhile(world: World) -> None:
    far, gate = far_blob(world, Flip(5)), Gate()
    world.registry.script(far.path, Stall(100_000, gate), method="GET", ranged=True)
    async with asking(far.url, headers={"Range": "bytes=2000000-2999999"}) as response:
        await response.content.readexactly(100_000)
        failures = await world.total("digest_failures_total", remote="r")
        far.flight.release()
        await until_failed(world, failures)
        gate.release()
        with pytest.raises(BROKEN):
            await response.content.read()


async def until_failed(world: World, before: float) -> None:
    async with asyncio.timeout(20):
        while await world.total("digest_failures_total", remote="r") == before:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fault", [IgnoreRange(), Status(503), Status(404)], ids=["ignored", "503", "404"])
async def test_far_range_waits_for_the_flight_when_the_remote_gives_none(
    world: World, fault: IgnoreRange | Status
) -> None:
    far = far_blob(world)
    world.registry.script(far.path, fault, method="GET", ranged=True)
    asking_range = asyncio.create_task(ask(far.url, headers={"Range": "bytes=2000000-2000009"}))
    await world.registry.seen(far.path, 3)  # HEAD, the flight, the range
    far.flight.release()
    answer = await asking_range
    assert (answer.status, answer.body, answer.is_complete) == (206, far.body[2_000_000:2_000_010], True)
    other = fresh(SMALL_SIZE)
    assert (await ask(world.blob(other, to="far"))).sha256 == digest_of(other), "nobody is blamed"


async def test_far_range_without_a_digest_comes_from_the_flights_own_source(world: World) -> None:
    """Of the same version: the remote's strong ETag says so. Another remote may have other bytes."""
    content, gate = fresh(LARGE_SIZE), Gate()
    url, path = f"{world.proxy.url}/pulp/content/two/f{content.seed}", f"/f{content.seed}"
    world.others.put(path[1:], content)
    world.others.script(path, Stall(128 * KIB, gate), method="GET", ranged=False)
    async with asking(url):
        await gate.reached()
        world.files.put(path[1:], fresh(LARGE_SIZE))
        answer = await ask(url, headers={"Range": "bytes=2000000-2000009"})
        assert (answer.status, answer.body) == (206, read_all(content)[2_000_000:2_000_010])
        (ranged,) = (exchange for exchange in world.others.asked(path) if "Range" in exchange.headers)
        assert ranged.headers["If-Range"] == f'"{etag_of(content)}"'
        world.others.script(path, changed_etag(), method="GET", ranged=True)
        changed = asyncio.create_task(ask(url, headers={"Range": "bytes=2000000-2000009"}))
        await world.others.seen(path, 3)
        gate.release()
        assert (await changed).body == read_all(content)[2_000_000:2_000_010]
    assert world.files.count(path) == 1, "the 404 of before the flight"


async def test_far_range_without_digest_and_validator_waits(world: World) -> None:
    content, gate = fresh(LARGE_SIZE), Gate()
    url, path = world.file(content, to="two"), f"/f{content.seed}"
    world.files.script(path, Stall(128 * KIB, gate), changed_etag('W/"weak"'), method="GET")
    async with asking(url):
        await gate.reached()
        waiting = asyncio.create_task(ask(url, headers={"Range": "bytes=2000000-2000009"}))
        early = await ask(url, headers={"Range": "bytes=5-9"})
        assert early.body == read_all(content)[5:10]
        gate.release()
        assert (await waiting).body == read_all(content)[2_000_000:2_000_010]
    assert world.files.count(path, method="GET") == 1


# Strict


async def test_strict_range_waits_for_the_whole(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate, path = world.blob(content, to="strict"), Gate(), f"*/{digest_of(content)}"
    world.registry.script(path, Stall(2 * MIB, gate), method="GET")
    near = asyncio.create_task(ask(url, headers={"Range": "bytes=0-9"}))
    far = asyncio.create_task(ask(url, headers={"Range": "bytes=2500000-2500009"}))
    async with asking(url) as whole:  # what is no range streams
        await gate.reached()
        await whole.content.readexactly(MIB)
        assert not near.done()
        assert not far.done()
        gate.release()
        for task, start in ((near, 0), (far, 2_500_000)):
            answer = await task
            assert (answer.status, answer.body) == (206, read_all(content)[start : start + 10])
            assert answer.headers["ETag"] == f'"{digest_of(content)}"'
            assert "Repr-Digest" in answer.headers
    assert world.registry.count(path, method="GET") == 1


async def test_strict_range_of_wrong_bytes_is_an_error(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url = world.blob(content, to="strict")
    world.registry.script(f"*/{digest_of(content)}", Flip(LARGE_SIZE - 1), method="GET")
    answer = await ask(url, headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.is_complete) == (503, True)


# Unknown size, and streamed


async def test_unknown_size_has_no_ranges_until_it_is_known(world: World) -> None:
    content = fresh(LARGE_SIZE)
    url, gate = world.file(content), Gate()
    world.files.script(f"/f{content.seed}", Unsized(), Stall(2 * MIB, gate), method="GET", times=1)
    async with asking(url, headers={"Range": "bytes=5-9"}) as response:
        assert response.status == 200
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert {"Accept-Ranges", "Content-Range", "Content-Length"}.isdisjoint(response.headers)
        gate.release()
        assert await response.content.read() == read_all(content)
    known = await until_hit(url)
    assert known.headers["Accept-Ranges"] == "bytes"
    assert (await ask(url, headers={"Range": "bytes=5-9"})).body == read_all(content)[5:10]


async def test_size_that_a_manifest_tells_is_known(world: World) -> None:
    """The remote sends the blob chunked, but the manifest has its size."""
    image: Image = make_image(layers=1, layer_size=2 * MIB, seed=99)
    world.registry.push("sized", "v1", image)
    layer = image.layers[0]
    world.registry.script(f"*/{layer.digest}", Unsized())
    assert (await ask(f"{world.proxy.url}/v2/reg/sized/manifests/v1")).status == 200
    answer = await ask(f"{world.proxy.url}/v2/reg/sized/blobs/{layer.digest}", headers={"Range": "bytes=5-9"})
    assert (answer.status, answer.body) == (206, layer.body[5:10])
    assert answer.headers["Content-Range"] == f"bytes 5-9/{layer.size}"


async def test_streamed_range(world: World) -> None:
    """Each of the devices is the last one, and stops the transfer; the next begins another at once."""
    content = fresh(LARGE_SIZE)
    url, gate = world.blob(content, to="flow"), Gate()
    world.registry.script(f"*/{digest_of(content)}", Stall(2 * MIB, gate), method="GET")
    for _ in range(5):
        answer = await ask(url, headers={"Range": "bytes=5-9"})
        assert (answer.status, answer.body, answer.cache) == (206, read_all(content)[5:10], "fwd=bypass")
