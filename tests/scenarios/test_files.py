"""File pull-through: digests from PULP_MANIFEST or none, what happens when they change, folders, and what is kept."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import (
    Delay,
    Drop,
    Fault,
    Flip,
    Gate,
    Headers,
    LoginPage,
    Replace,
    Stall,
    Status,
    challenge,
    changed_etag,
    too_many,
)
from tests.remotes.files import MANIFEST, FileRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, at_rest, fresh, staged, until, until_hit

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024
MIB = 1024 * KIB
LARGE_SIZE = 3 * MIB
ODD = "sub folder/größe+1%20.bin"


def body(key: str, size: int = 30_000) -> Synthetic:
    """The bytes of a file; no two keys share any, since what one distribution has stored another one need not fetch."""
    return Synthetic(size, seed=zlib.crc32(key.encode()))


def holding(name: str, *paths: str, **settings: Any) -> FileRemote:
    """A remote whose files have the bytes of ``<name>/<path>``."""
    return FileRemote({path: body(f"{name}/{path}") for path in paths}, **settings)


@dataclass
class World:
    """Remotes by the names of their distributions; see the fixture for what is special about each."""

    proxy: Proxy
    remotes: dict[str, FileRemote]

    def __getitem__(self, name: str) -> FileRemote:
        return self.remotes[name]

    def url(self, path: str) -> str:
        return f"{self.proxy.url}/pulp/content/{path}"

    async def get(self, path: str, **headers: str) -> Answer:
        return await ask(self.url(path), headers=headers)

    async def total(self, name: str, **labels: str) -> float:
        return (await self.proxy.metrics()).total(f"contentapp_{name}", **labels)


def remotes_of_the_world() -> dict[str, FileRemote]:
    named = ["a", "b", "c", "sub/deep/d", ODD]
    remotes = {
        "listed": holding("listed", *named, "unlisted", listed=set(named)),
        "plain": FileRemote(manifest=False),
        "weak": FileRemote(manifest=False, etag="weak"),
        "dated": FileRemote(manifest=False, etag=None),
        "bare": FileRemote(manifest=False, etag=None, last_modified=None),
        "left": holding("left", "a"),
        "right": holding("right", "a", "mine"),
        **{name: holding(name, "a", "b", "c") for name in ("slow", "moving", "moved", "lying", "page", "torn")},
        "flow": FileRemote({"large": body("flow/large", LARGE_SIZE)}),
    }
    remotes["moved"].put("large", body("moved/large", LARGE_SIZE))
    for name in ("left", "right"):
        remotes[name].put("both", body("both"))
    return remotes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    remotes = remotes_of_the_world()

    def over(base_path: str, *names: str, content_ttl_seconds: float = 600, **remote: object) -> dict[str, object]:
        urls = {f"{base_path}-{name}": f"{remotes[name].url}/" for name in names or (base_path,)}
        settings = {"content_ttl_seconds": content_ttl_seconds, "first_byte_deadline_seconds": 1}
        return pull_through("file", base_path, urls, remote={**PATIENT, **remote}, distribution=settings)

    configs = [
        over("listed"),
        over("plain"),
        over("now", "plain", content_ttl_seconds=0),
        over("html", "plain", allow_html=True),
        *(over(name, content_ttl_seconds=0) for name in ("weak", "dated", "bare")),
        over("slow", metadata_wait_seconds=0.2),
        over("moving", metadata_ttl_seconds=0),
        over("moved"),
        over("lying"),
        over("two", "left", "right"),
        over("flow", policy="streamed"),
        over("page"),
        over("torn"),
    ]
    for remote in remotes.values():
        await remote.listen()
    try:
        async with staged(tmp_path_factory.mktemp("files"), *configs) as proxy:
            yield World(proxy, remotes)
    finally:
        for remote in remotes.values():
            await remote.__aexit__()


# With a digest


async def test_manifest_gives_digests(world: World) -> None:
    verified = await world.total("bodies_total", type="file", verified="yes")
    for path in ("a", "sub/deep/d"):
        answer, digest = await world.get(f"listed/{path}"), digest_of(body(f"listed/{path}"))
        assert (answer.status, answer.sha256) == (200, digest)
        assert answer.headers["ETag"] == f'"{digest}"'
    assert await world.total("bodies_total", type="file", verified="yes") == verified + 2
    assert world["listed"].count(f"/{MANIFEST}") == 1


async def test_path_that_the_manifest_does_not_name_has_no_digest(world: World) -> None:
    answer = await world.get("listed/unlisted")
    assert (answer.status, answer.sha256) == (200, digest_of(body("listed/unlisted")))
    assert answer.headers["ETag"].startswith('"u-')


async def test_odd_path(world: World) -> None:
    answer = await world.get("listed/sub%20folder/gr%C3%B6%C3%9Fe%2B1%2520.bin")
    assert (answer.status, answer.headers["ETag"]) == (200, f'"{digest_of(body(f"listed/{ODD}"))}"')
    (exchange,) = world["listed"].asked("/sub folder/*")
    assert exchange.raw_path == "/sub%20folder/gr%C3%B6%C3%9Fe%2B1%2520.bin"


async def test_listed_html_needs_no_permission(world: World) -> None:
    world["listed"].script("/c", Headers({"Content-Type": "text/html"}))
    assert (await world.get("listed/c")).sha256 == digest_of(body("listed/c"))


async def test_changed_manifest_is_used_after_its_ttl(world: World) -> None:
    """It is read in the background, conditionally; the request that finds it old is answered by what was known."""
    remote, old, new = world["moving"], body("moving/a"), body("moving/new")
    await until_hit(world.url("moving/a"))

    async def is_revalidated() -> bool:
        await world.get("moving/a")
        return remote.count(f"/{MANIFEST}") >= 3

    await until(is_revalidated)
    await remote.idle()
    later = remote.asked(f"/{MANIFEST}")[1:]
    assert all("If-None-Match" in exchange.headers for exchange in later)
    assert {exchange.status for exchange in later} == {304}
    remote.put("a", new)
    seen = [await world.get("moving/a")]

    async def is_new() -> bool:
        seen.append(await world.get("moving/a"))
        return seen[-1].sha256 == digest_of(new)

    await until(is_new)
    assert (seen[0].sha256, seen[0].cache) == (digest_of(old), "hit")
    assert remote.count("/a", method="GET") == 2, "an unchanged manifest changes nothing"
    assert await world.total("digest_failures_total", remote="moving-moving") == 0


async def test_change_within_the_ttl_is_found_by_its_contradiction(world: World) -> None:
    """The manifest is read once more before anybody is blamed: here it says that the file has changed."""
    remote = world["moved"]
    await world.get("moved/a")
    for number, (path, new) in enumerate((("b", body("moved/new b")), ("c", body("moved/new c", 40_000))), 1):
        remote.put(path, new)
        answer = await world.get(f"moved/{path}")
        assert (answer.status, answer.sha256) == (200, digest_of(new))
        assert answer.headers["ETag"] == f'"{digest_of(new)}"'
        assert remote.count(f"/{MANIFEST}") == 1 + number
    assert await world.total("digest_failures_total", remote="moved-moved") == 0


async def test_change_of_a_large_file_cuts_the_first_answer_and_serves_the_next(world: World) -> None:
    remote, new, stall = world["moved"], body("moved/new large", LARGE_SIZE), Stall(2 * MIB)
    await world.get("moved/a")
    remote.put("large", new)
    remote.script("/large", stall, times=1)
    pull = asyncio.create_task(world.get("moved/large"))
    await stall.gate.reached()
    stall.gate.release()
    broken = await pull
    assert (broken.status, broken.is_complete) == (200, False)
    answer = await world.get("moved/large")
    assert (answer.status, answer.sha256) == (200, digest_of(new))
    assert await world.total("digest_failures_total", remote="moved-moved") == 0


async def test_bytes_that_the_manifest_still_contradicts_are_wrong(world: World) -> None:
    remote = world["lying"]
    remote.script("/a", Flip(5), method="GET")
    remote.script("/b", Replace(b"short"), method="GET")
    for number, (path, reason) in enumerate({"a": b"digest mismatch", "b": b"size mismatch"}.items(), 1):
        answer = await world.get(f"lying/{path}")
        assert answer.status == 404
        assert reason in answer.body
        assert remote.count(f"/{MANIFEST}") == 1 + number
    assert await world.total("digest_failures_total", remote="lying-lying") == 1


# The manifest itself


async def test_request_goes_on_without_a_slow_manifest(world: World) -> None:
    """And once it is there the file has its digest, without another transfer."""
    remote, digest = world["slow"], digest_of(body("slow/a"))
    gate = remote.hold(f"/{MANIFEST}")
    before = await world.total("bodies_total", type="file", verified="no")
    answer = await world.get("slow/a")
    assert (answer.status, answer.sha256) == (200, digest)
    assert answer.headers["ETag"].startswith('"u-')
    assert await world.total("bodies_total", type="file", verified="no") == before + 1
    gate.release()

    async def has_digest() -> bool:
        return (await world.get("slow/a")).headers["ETag"] == f'"{digest}"'

    await until(has_digest)
    assert remote.count("/a", method="GET") == 1


@pytest.mark.parametrize(
    ("name", "fault"), [("page", LoginPage()), ("torn", Replace(b"a,nonsense,12\n"))], ids=["html", "broken"]
)
async def test_manifest_that_is_none_gives_no_digests(world: World, name: str, fault: Fault) -> None:
    world[name].script(f"/{MANIFEST}", fault)
    answer = await world.get(f"{name}/a")
    assert (answer.status, answer.sha256) == (200, digest_of(body(f"{name}/a")))
    assert answer.headers["ETag"].startswith('"u-')


async def test_remotes_that_disagree(world: World) -> None:
    """The first one's digest counts; a remote that says otherwise is no source for that path, nor cooled."""
    left, right = world["left"], world["right"]
    left.script("/[!P]*", Status(503))
    assert (await world.get("two/a")).status == 404
    assert right.count("/a") == 0
    both = await world.get("two/both")
    assert (both.status, both.sha256) == (200, digest_of(body("both")))
    mine = await world.get("two/mine")
    assert (mine.status, mine.headers["ETag"]) == (200, f'"{digest_of(body("right/mine"))}"')
    left.clear()
    assert (await world.get("two/a")).sha256 == digest_of(body("left/a"))
    cooled = (await world.proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
    assert "two-right" not in {item["remote"] for item in cooled}


# Without a digest


async def test_file_without_a_digest_is_told_so(world: World) -> None:
    content = fresh(2 * MIB)
    world["plain"].put("untold", content)
    for state in ("cold", "warm"):
        before = await world.total("bodies_total", type="file", verified="no")
        assert (await world.get("plain/untold")).sha256 == digest_of(content)
        assert await world.total("bodies_total", type="file", verified="no") == before + 1, state
        await until_hit(world.url("plain/untold"))


async def test_change_within_the_ttl_is_not_seen(world: World) -> None:
    remote, content = world["plain"], fresh(30_000)
    remote.put("fresh", content)
    await until_hit(world.url("plain/fresh"))
    remote.put("fresh", fresh(30_000))
    answer = await world.get("plain/fresh")
    assert (answer.cache, answer.sha256) == ("hit", digest_of(content))
    assert len(remote.asked("/fresh")) == 1


async def settled(world: World, path: str) -> Answer:
    """The first revalidated answer, for distributions whose content is never fresh: a flight is over by then."""
    found: list[Answer] = []

    async def is_revalidated() -> bool:
        found.append(await world.get(path))
        return found[-1].cache == "fwd=stale; fwd-status=200"

    await until(is_revalidated)
    return found[-1]


async def check_one_head(world: World, name: str, path: str, remote: FileRemote) -> Answer:
    """What is stored and unchanged costs one HEAD; the answer. A flight of before may be repeated until it is over."""
    await settled(world, f"{name}/{path}")
    asked = len(remote.asked(f"/{path}"))
    answer = await world.get(f"{name}/{path}")
    assert answer.cache == "fwd=stale; fwd-status=200"
    assert [exchange.method for exchange in remote.asked(f"/{path}")[asked:]] == ["HEAD"]
    return answer


async def test_revalidated_by_a_strong_tag(world: World) -> None:
    remote, old, new = world["plain"], fresh(30_000), fresh(30_000)
    remote.put("tagged", old)
    first = await world.get("now/tagged")
    again = await check_one_head(world, "now", "tagged", remote)
    assert (again.headers["ETag"], again.sha256) == (first.headers["ETag"], digest_of(old))
    remote.script("/tagged", changed_etag())
    asked = remote.count("/tagged", method="GET")
    same_bytes = await world.get("now/tagged")
    assert same_bytes.headers["ETag"] != first.headers["ETag"], "another tag: to the remote they are other bytes"
    assert remote.count("/tagged", method="GET") == asked + 1
    await check_one_head(world, "now", "tagged", remote)
    remote.clear()
    remote.put("tagged", new)
    assert (await world.get("now/tagged")).sha256 == digest_of(new)


@pytest.mark.parametrize("name", ["weak", "dated"])
async def test_revalidated_by_date_where_there_is_no_strong_tag(world: World, name: str) -> None:
    """A weak tag gives no ETag to devices."""
    remote, new = world[name], fresh(30_000)
    remote.put("f", fresh(30_000))
    assert "ETag" not in (await world.get(f"{name}/f")).headers
    again = await check_one_head(world, name, "f", remote)
    assert "ETag" not in again.headers
    remote.put("f", new)
    remote.script("/f", Headers({"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}))
    assert (await world.get(f"{name}/f")).sha256 == digest_of(new)


async def test_other_size_is_another_file_whatever_the_date(world: World) -> None:
    world["dated"].put("g", fresh(30_000))
    await settled(world, "dated/g")
    world["dated"].put("g", fresh(30_001))
    assert len((await world.get("dated/g")).body) == 30_001


async def test_without_any_validator_it_is_fetched_again(world: World) -> None:
    remote, content = world["bare"], fresh(30_000)
    for wanted in (content, content, fresh(30_000)):
        remote.put("f", wanted)
        before = remote.count("/f", method="GET")

        async def is_fetched(before: int = before) -> bool:
            await world.get("bare/f")
            return remote.count("/f", method="GET") > before

        await until(is_fetched)
        assert (await world.get("bare/f")).sha256 == digest_of(wanted)


FAULTS: dict[str, Fault] = {
    "401": Status(401),
    "challenge": challenge("Basic"),
    "403": Status(403),
    "429": too_many("0"),
    "500": Status(500),
    "503": Status(503),
    "drop": Drop(),
    "slow": Delay(60),
    "login page": LoginPage(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_stale_while_the_remote_fails(world: World, fault: Fault) -> None:
    old, new = fresh(30_000), fresh(30_000)
    remote, path = world["plain"], f"stale{old.seed}"
    remote.put(path, old)
    await settled(world, f"now/{path}")
    remote.put(path, new)
    remote.script(f"/{path}", fault)
    answer = await world.get(f"now/{path}")
    assert (answer.status, answer.sha256) == (200, digest_of(old))
    hit, ttl, detail = answer.cache.split("; ")
    assert (hit, detail) == ("hit", "detail=stale-if-error")
    assert int(ttl.removeprefix("ttl=")) < 0
    remote.clear()

    async def is_new() -> bool:
        return (await world.get(f"now/{path}")).sha256 == digest_of(new)

    await until(is_new)


async def test_stale_when_only_the_get_fails(world: World) -> None:
    """The HEAD has told that the file changed, but the new bytes can't be had, or are a page in their place."""
    old, new, remote = fresh(30_000), fresh(30_000), world["plain"]
    remote.put("halfway", old)
    await settled(world, "now/halfway")
    remote.put("halfway", new)
    for fault in (Status(503), Status(403), Drop(), LoginPage()):
        remote.clear()
        remote.script("/halfway", fault, method="GET")
        answer = await world.get("now/halfway")
        assert (answer.status, answer.sha256) == (200, digest_of(old)), fault
        assert answer.cache.endswith("detail=stale-if-error")
    remote.clear()
    assert (await world.get("now/halfway")).sha256 == digest_of(new)


async def test_404_ends_staleness(world: World) -> None:
    remote = world["plain"]
    remote.put("gone", fresh(30_000))
    await settled(world, "now/gone")
    del remote.files["gone"]
    assert (await world.get("now/gone")).status == 404
    remote.script("/gone", Status(503))
    assert (await world.get("now/gone")).cache == ""


async def test_html_in_the_place_of_a_file_is_refused(world: World) -> None:
    remote = world["plain"]
    for path in ("page", "page.html", "page.htm", "page.html.gz", "folder.html/page"):
        remote.put(path, content := fresh(3000))
        remote.script(f"/{path}", Headers({"Content-Type": "Text/HTML; charset=utf-8"}))
        expected = 200 if path.endswith((".html", ".htm")) else 404
        answer = await world.get(f"plain/{path}")
        assert answer.status == expected, path
        if expected == 404:
            assert b"HTML" in answer.body
            allowed = await world.get(f"html/{path}")
            assert (allowed.status, allowed.sha256) == (200, digest_of(content))
            assert allowed.headers["Content-Type"] != "text/html"
            assert allowed.headers["X-Content-Type-Options"] == "nosniff"


# Streamed


async def test_streamed_keeps_nothing(world: World) -> None:
    digest = digest_of(body("flow/large", LARGE_SIZE))
    for number in (1, 2):
        answer = await world.get("flow/large")
        assert (answer.cache, answer.sha256) == ("fwd=bypass", digest)
        assert world["flow"].count("/large", method="GET") == number
        await at_rest(world.proxy)
    assert digest[7:] not in {path.name for path in world.proxy.artifacts()}


async def test_streamed_is_verified_all_the_same(world: World) -> None:
    world["flow"].script("/large", Stall(MIB, gate := Gate()), Flip(LARGE_SIZE - 1), method="GET", times=1)
    pull = asyncio.create_task(world.get("flow/large"))
    await gate.reached()
    gate.release()
    answer = await pull
    assert (answer.status, answer.is_complete) == (200, False)


# Folders


async def test_folder_as_html_and_json(world: World) -> None:
    await world.get("listed/unlisted")
    html = await world.get("listed/")
    assert html.headers["Content-Type"] == "text/html; charset=utf-8"
    assert html.headers["X-Content-Type-Options"] == "nosniff"
    assert html.headers["Vary"] == "Accept"
    assert b'<a href="sub/">' in html.body
    assert b'<a href="a">' in html.body
    for accept in ("application/json", "application/json, text/html;q=0.1"):
        shown = await world.get("listed/", Accept=accept)
        assert shown.headers["Content-Type"] == "application/json"
        document = json.loads(shown.body)
        assert document["path"] == "/pulp/content/listed/"
        entries = {entry["name"]: (entry["type"], entry["size"]) for entry in document["entries"]}
        assert entries["a"] == ("file", 30_000)
        assert entries["sub"] == ("folder", None)
        assert entries["unlisted"] == ("file", 30_000), "stored, although no manifest names it"
    assert (await world.get("listed/", Accept="text/html, application/json")).headers["Content-Type"][:9] == "text/html"
    deep = json.loads((await world.get("listed/sub/", Accept="application/json")).body)
    assert [entry["name"] for entry in deep["entries"]] == ["deep"]


async def test_folders_above_and_beside(world: World) -> None:
    top = json.loads((await ask(f"{world.proxy.url}/pulp/content/", headers={"Accept": "application/json"})).body)
    assert {"listed", "plain", "two"} <= {entry["name"] for entry in top["entries"]}
    assert (await world.get("listed/nothing/")).status == 404
    assert (await world.get("nobody/")).status == 404
    assert (await world.get("listed/a/")).status == 404
    both = json.loads((await world.get("two/", Accept="application/json")).body)
    assert [entry["name"] for entry in both["entries"]] == ["a", "both", "mine"]


async def test_bytes_are_those_of_the_remote(world: World) -> None:
    """No conversion, no decompression: a compressed file stays one."""
    packed = b"\x1f\x8b" + read_all(fresh(3000))
    world["plain"].put("archive.tar.gz", packed)
    answer = await world.get("plain/archive.tar.gz", **{"Accept-Encoding": "gzip"})
    assert (answer.body, answer.headers["Content-Type"]) == (packed, "application/gzip")
    assert "Content-Encoding" not in answer.headers
    (exchange,) = world["plain"].asked("/archive.tar.gz", method="GET")
    assert exchange.headers["Accept-Encoding"] == "identity"
