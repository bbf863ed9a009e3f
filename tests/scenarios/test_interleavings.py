"""Interleavings, faults and hostile answers that cross the borders of the promises."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import signal
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest

from contentapp.core.errors import StorageUnavailable
from contentapp.core.records import ContentType, Policy, Remote, Source
from contentapp.core.settings import EngineSettings
from contentapp.core.window import Window
from contentapp.pipeline.fetch import Fetched
from contentapp.pipeline.flight import Flight, Plan
from contentapp.pipeline.intake import Intake
from contentapp.pipeline.progress import Attempt as FirstAttempt
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes import delivery
from tests.remotes.content import Content, digest_of, read_all
from tests.remotes.faults import Cut, Flip, Replace, Shorten, Stall, Status, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import Part, make_image
from tests.remotes.raw import RawRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.tokens import TokenServer
from tests.scenarios.device import Answer, ask, ask_many, asking, until_stored
from tests.scenarios.processes import children
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import PATIENT, fresh, merged, until

KIB = 1024
MIB = 1024 * KIB
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
HASTY = {"verify_first_seconds": 0.2}
FAR = {"range_wait_size": MIB}


@asynccontextmanager
async def over(
    folder: Path,
    *remotes: RegistryRemote | FileRemote | RawRemote,
    remote: Mapping[str, Any] | None = None,
    distribution: Mapping[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[Proxy]:
    """A proxy with one distribution ``d`` over remotes of one kind that run already, in their order."""
    is_registry = isinstance(remotes[0], RegistryRemote)
    urls = {f"r{number}": one.url + "/" * (not is_registry) for number, one in enumerate(remotes)}
    kind = "container" if is_registry else "file"
    config = pull_through(kind, "d", urls, remote=remote, distribution=distribution)
    async with running_proxy(folder, {**config, **more}) as proxy:
        yield proxy


def hold_blob(content: Content, *remotes: RegistryRemote, name: str = "app") -> str:
    """Let these remotes have a blob; its path there."""
    (digest,) = {remote.push_blob(name, content) for remote in remotes}
    return f"/v2/{name}/blobs/{digest}"


def url_of(proxy: Proxy, path: str) -> str:
    """Where a device finds what the registries have at this path."""
    return f"{proxy.url}/v2/d{path.removeprefix('/v2')}"


def file_url(proxy: Proxy, name: str = "f") -> str:
    """Where a device finds what the file remotes have under this name."""
    return f"{proxy.url}/pulp/content/d/{name}"


async def ask_tag(proxy: Proxy, name: str = "app", tag: str = "v1") -> Answer:
    """The manifest that a tag stands for."""
    return await ask(url_of(proxy, f"/v2/{name}/manifests/{tag}"))


async def cooldowns(proxy: Proxy) -> list[dict[str, Any]]:
    """What is left alone now."""
    results: list[dict[str, Any]] = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
    return results


async def leave(*devices: asyncio.Task[Answer]) -> None:
    """Let devices go away, whatever they have got."""
    for device in devices:
        device.cancel()
    await asyncio.gather(*devices, return_exceptions=True)


async def rest(answer: aiohttp.ClientResponse, stall: Stall) -> bytes | None:
    """What comes when the remote goes on; None if the answer breaks."""
    stall.gate.release()
    try:
        return await answer.content.read()
    except (aiohttp.ClientError, ConnectionError):
        return None


# -- a head of one attempt over the bytes of another


@dataclass
class Undigested:
    """A file of which each of two remotes has another version. The first breaks when its stall is released."""

    proxy: Proxy
    url: str
    versions: tuple[bytes, bytes]
    stall: Stall


@asynccontextmanager
async def undigested(folder: Path, *sizes: int) -> AsyncIterator[Undigested]:
    first, second = (read_all(fresh(size)) for size in sizes)
    async with (
        FileRemote({"f": first}, manifest=False) as a,
        FileRemote({"f": second}, manifest=False) as b,
        over(folder, a, b, remote=PATIENT, distribution=HASTY) as proxy,
    ):
        stall = Stall(0)
        a.script("/f", stall, Cut(0), method="GET")
        yield Undigested(proxy, file_url(proxy), (first, second), stall)


async def test_undigested_body_of_another_remote_and_size_is_never_completed(tmp_path: Path) -> None:
    """A's head (50000) is out when A breaks; B has another file of 60000: its first 50000 bytes are no answer."""
    async with undigested(tmp_path, 50_000, 60_000) as file, asking(file.url) as answer:
        body = await rest(answer, file.stall)
        assert body is None or body in file.versions, f"complete, {len(body)} bytes, of neither"


async def test_undigested_body_of_another_remote_under_the_first_ones_validator(tmp_path: Path) -> None:
    async with undigested(tmp_path, 50_000, 50_000) as file:
        async with asking(file.url) as answer:
            etag = answer.headers["ETag"]
            body = await rest(answer, file.stall)
        if body is None:
            return
        await until_stored(file.proxy)
        stored = await ask(file.url)
        assert (body == stored.body) == (etag == stored.headers["ETag"]), "B's bytes went out under A's ETag"


async def test_blob_that_is_longer_at_the_next_remote_is_never_completed_short(tmp_path: Path) -> None:
    """The digest is known, the size is not: A lies about it, and breaks; B's bytes are right but cut at A's length."""
    content = fresh(60_000)
    async with (
        RegistryRemote() as a,
        RegistryRemote() as b,
        over(tmp_path, a, b, remote=PATIENT, distribution=HASTY) as proxy,
    ):
        path, stall = hold_blob(content, a, b), Stall(0)
        a.script(path, Shorten(50_000), stall, Cut(0), method="GET")
        async with asking(url_of(proxy, path)) as answer:
            body = await rest(answer, stall)
        assert body is None or body == read_all(content), f"complete with {len(body)} bytes"


# -- going on after damage, from an upstream of unknown size


async def test_going_on_after_damage_holds_the_tail_back(tmp_path: Path) -> None:
    """A stored blob is cut off while it is sent; upstream's is wrong by now, longer, and of unknown size."""
    content = fresh(12 * MIB)
    async with RegistryRemote() as remote, over(tmp_path, remote, remote=PATIENT) as proxy:
        path = hold_blob(content, remote)
        url = url_of(proxy, path)
        assert (await ask(url)).sha256 == digest_of(content)
        await until_stored(proxy)
        stall = Stall(12 * MIB - 10)
        remote.script(path, Replace(fresh(12 * MIB)), Unsized(), stall, method="GET")
        async with slow_device(url) as device:
            await device.read(MIB)
            (artifact,) = (one for one in proxy.artifacts() if one.stat().st_size == content.size)
            os.truncate(artifact, 8 * MIB)
            async with asyncio.timeout(20):
                finishing = asyncio.create_task(device.finish())
                await stall.gate.reached()
                await asyncio.wait([finishing], timeout=3)  # enough to end before the verdict, if it is let
                stall.gate.release()
                is_complete = await finishing
            is_right = device.body == read_all(content)
        assert is_right or not is_complete, "a complete response with wrong bytes"


# -- a flight's error given to those whose sources were never asked


async def test_a_flights_failure_is_not_the_answer_for_another_distribution(tmp_path: Path) -> None:
    content = fresh(2 * MIB)
    async with RegistryRemote() as a, RegistryRemote() as b:
        path, stall = hold_blob(content, a, b), Stall(-1)
        a.script(path, Status(404), stall, method="GET")
        config = merged(
            pull_through("container", "da", {"a": a.url}, remote=PATIENT),
            pull_through("container", "db", {"b": b.url}, remote=PATIENT),
        )
        async with running_proxy(tmp_path, config) as proxy:
            first = asyncio.create_task(ask(f"{proxy.url}/v2/da/app/blobs/{digest_of(content)}"))
            await stall.gate.reached()
            second = asyncio.create_task(ask(f"{proxy.url}/v2/db/app/blobs/{digest_of(content)}"))
            await b.seen(count=1)
            await asyncio.sleep(0.5)
            stall.gate.release()
            assert (await first).status == 404
            answer = await second
            assert (answer.status, b.count(method="GET")) == (200, 1)
            assert answer.sha256 == digest_of(content)


# -- a hostile manifest cools an innocent remote


async def test_a_manifest_that_lies_about_sizes_cools_no_remote(tmp_path: Path) -> None:
    good = make_image(layers=3, layer_size=3000)
    document = json.loads(good.manifest.body)
    for layer in document["layers"]:
        layer["size"] += 1
    lie = Part(OCI_MANIFEST, json.dumps(document).encode())
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        remote.push("good", "v1", good)
        remote.push("evil", "v1", good)
        remote.push_manifest("evil", lie, tag="lie")
        assert (await ask_tag(proxy, "evil", "lie")).status == 200
        for layer in good.layers:
            await ask(url_of(proxy, f"/v2/evil/blobs/{layer.digest}"))
        listed = await cooldowns(proxy)
        for answer in (
            await ask_tag(proxy, "good"),
            *[await ask(url_of(proxy, f"/v2/good/blobs/{layer.digest}")) for layer in good.layers],
        ):
            assert answer.status == 200, (answer.body, listed)


# -- one odd answer makes a whole repository unavailable


@pytest.mark.parametrize("status", [400, 405, 500, 401])
async def test_a_registry_without_referrers_still_serves_its_images(tmp_path: Path, status: int) -> None:
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        digest = remote.push("app", "v1", make_image())
        remote.script("/v2/app/referrers/*", Status(status))
        referrers = await ask(url_of(proxy, f"/v2/app/referrers/{digest}"))
        answer = await ask_tag(proxy)
        assert answer.status == 200, (referrers.status, answer.body)


async def test_one_broken_tag_does_not_take_the_others_along(tmp_path: Path) -> None:
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        remote.push("app", "v1", make_image())
        remote.push_manifest("app", Part(OCI_MANIFEST, b'{"schemaVersion": 1}'), tag="old")
        await ask_tag(proxy, tag="old")
        answer = await ask_tag(proxy)
        assert answer.status == 200, answer.body


# -- nothing cached for a tag, and yet the second remote is not asked


@pytest.mark.parametrize("policy", ["streamed", "on_demand"])
async def test_a_known_tag_whose_manifest_is_not_held_fails_over(tmp_path: Path, policy: str) -> None:
    image = make_image()
    async with (
        RegistryRemote() as a,
        RegistryRemote() as b,
        over(tmp_path, a, b, remote={**PATIENT, "policy": policy}, memory_cache_size=0) as proxy,
    ):
        for remote in (a, b):
            remote.push("app", "v1", image)
        assert (await ask_tag(proxy)).status == 200
        for path in proxy.artifacts():
            path.unlink()
        await a.refuse()
        answer = await ask_tag(proxy)
        assert answer.status == 200, answer.body
        assert answer.sha256 == image.digest


# -- a streamed transfer that nobody wants any more


async def test_streamed_stops_when_the_last_device_left_before_the_head(tmp_path: Path) -> None:
    content = fresh(64 * MIB)
    async with RegistryRemote() as remote, over(tmp_path, remote, remote={**PATIENT, "policy": "streamed"}) as proxy:
        path = hold_blob(content, remote)
        gate = remote.hold(path, method="GET")
        device = asyncio.create_task(ask(url_of(proxy, path)))
        await gate.reached()
        await leave(device)
        await asyncio.sleep(0.5)
        gate.release()
        await remote.idle(path)
        assert remote.sent(path, method="GET") < content.size, "all of it was fetched for nobody"


# -- bodies that always break never cool their host


async def test_a_host_whose_bodies_always_break_is_cooled(tmp_path: Path) -> None:
    quick = {"max_retries": 0, "failure_threshold": 3}
    async with RegistryRemote() as a, RegistryRemote() as b, over(tmp_path, a, b, remote=quick) as proxy:
        a.script("/v2/app/blobs/*", Cut(0), method="GET")
        for content in [fresh(2 * MIB) for _ in range(5)]:
            assert (await ask(url_of(proxy, hold_blob(content, a, b)))).sha256 == digest_of(content)
        assert await cooldowns(proxy), f"{a.count(method='GET')} broken bodies in a row, and no cooldown"


# -- the cooldown of a token server is never cleared by success


async def test_a_token_server_that_works_again_is_asked_again(tmp_path: Path) -> None:
    """Success clears a cooldown: what the first pull has shown must not keep the second one out while it lasts."""
    content = fresh(8 * MIB)
    settings = {"max_retries": 0, "failure_threshold": 1, "cooldown_initial_seconds": 0.3}
    async with (
        TokenServer() as tokens,
        RegistryRemote(tokens=tokens) as remote,
        over(tmp_path, remote, remote=settings) as proxy,
    ):
        for name in ("one", "three"):
            remote.push(name, "v1", make_image())
        path = hold_blob(content, remote, name="two")
        gate = remote.hold(path, at=MIB, method="GET")
        assert (await ask_tag(proxy, "one")).status == 200
        await tokens.refuse()
        assert (await ask_tag(proxy, "three")).status == 503
        await tokens.listen()
        tokens.expire()
        await asyncio.sleep(0.5)
        pull = asyncio.create_task(ask(url_of(proxy, path)))
        await gate.reached()
        answer = await ask_tag(proxy, "three")
        gate.release()
        assert (await pull).sha256 == digest_of(content)
        assert (answer.status, await cooldowns(proxy)) == (200, []), answer.body


# -- what was expected is outdated, and another worker's devices are told "unavailable"


async def test_followers_in_other_workers_survive_a_change_of_the_listing(tmp_path: Path) -> None:
    async with (
        FileRemote({"f": fresh(2 * MIB)}) as remote,
        over(tmp_path, remote, remote=PATIENT, content={"workers": 2}) as proxy,
    ):
        await ask_many(file_url(proxy, "other"), 20)  # every worker has the listing
        remote.put("f", fresh(2 * MIB + 5))
        gate = remote.hold("/f", method="GET")
        devices = [asyncio.create_task(ask(file_url(proxy))) for _ in range(20)]
        await gate.reached()
        await asyncio.sleep(0.5)
        gate.release()
        answers = await asyncio.gather(*devices)
        assert sorted({answer.status for answer in answers}) == [200]


# -- a catalog that can't be written costs an answer that is at hand


async def test_a_tag_is_served_while_the_catalog_can_not_be_written(tmp_path: Path) -> None:
    async with RegistryRemote() as remote, over(tmp_path, remote, distribution={"tag_ttl_seconds": 0}) as proxy:
        remote.push("app", "v1", make_image())
        assert (await ask_tag(proxy)).status == 200
        with sqlite3.connect(proxy.data_dir / "catalog.sqlite3", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await ask_tag(proxy)
            other.execute("ROLLBACK")
        assert answer.status == 200, answer.body


# -- devices that wait for a slot of their own for ever


@dataclass
class OneSlot:
    """A proxy that asks for one range at a time; a flight stands at 1 MiB, and each range far ahead of it waits, too.

    whole, ranged: where the remote stands still. first: who follows the flight.
    """

    proxy: Proxy
    content: Content
    whole: Stall
    ranged: Stall
    url: str
    first: asyncio.Task[Answer]

    def ask_far(self) -> asyncio.Task[Answer]:
        """A device that wants a range far ahead."""
        return asyncio.create_task(ask(self.url, headers={"Range": f"bytes={6 * MIB}-{7 * MIB}"}))


@asynccontextmanager
async def one_slot(folder: Path, *, stall_at: int, times: int | None = None) -> AsyncIterator[OneSlot]:
    """The first `times` ranges (None: all) stand still after `stall_at` bytes."""
    content, whole, ranged = fresh(8 * MIB), Stall(MIB), Stall(stall_at)
    async with (
        RegistryRemote() as remote,
        over(folder, remote, remote=PATIENT, distribution=FAR, range_requests=1) as proxy,
    ):
        path = hold_blob(content, remote)
        remote.script(path, whole, method="GET", ranged=False)
        remote.script(path, ranged, method="GET", ranged=True, times=times)
        first = asyncio.create_task(ask(url_of(proxy, path)))
        await whole.gate.reached()
        yield OneSlot(proxy, content, whole, ranged, url_of(proxy, path), first)


async def test_a_far_range_does_not_wait_for_a_slot_when_its_bytes_are_here(tmp_path: Path) -> None:
    async with one_slot(tmp_path, stall_at=0) as slot:
        hog = slot.ask_far()
        await slot.ranged.gate.reached()
        waiting = slot.ask_far()
        await asyncio.sleep(0.3)
        slot.whole.gate.release()
        assert (await slot.first).sha256 == digest_of(slot.content)  # all is here now
        done, _ = await asyncio.wait([waiting], timeout=5)
        slot.ranged.gate.release()
        await asyncio.gather(hog, waiting, return_exceptions=True)
        assert done, "it waits for another device's upstream request although the bytes are here"


async def test_a_device_that_leaves_gives_its_slot_back(tmp_path: Path) -> None:
    async with one_slot(tmp_path, stall_at=1000, times=1) as slot:
        leaver = slot.ask_far()
        await slot.ranged.gate.reached()
        await leave(leaver)
        async with asyncio.timeout(5):
            assert (await slot.ask_far()).status == 206
        slot.whole.gate.release()
        await slot.first


# -- a far range with the last byte, and a disk that fills up


async def test_a_far_range_alone_does_not_hang_when_the_disk_fills_up(tmp_path: Path) -> None:
    """The flight loses its spool; its window waits for a follower to move, the only one waits for the flight."""
    content, whole = fresh(48 * MIB), Stall(MIB)
    async with (
        RegistryRemote() as remote,
        over(tmp_path, remote, remote=PATIENT, distribution=FAR, window_size="1MiB") as proxy,
    ):
        path = hold_blob(content, remote)
        remote.script(path, whole, method="GET", ranged=False)
        device = asyncio.create_task(ask(url_of(proxy, path), headers={"Range": f"bytes={46 * MIB}-"}))
        await remote.seen(path, 3)  # HEAD, GET, ranged GET
        await asyncio.sleep(0.3)
        for pid in children(proxy):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (8 * MIB, resource.RLIM_INFINITY))
        whole.gate.release()
        done, _ = await asyncio.wait([device], timeout=20)
        await leave(device)
        assert done, "neither bytes nor an end in 20 s"


# -- validators that are too long to be told to other processes


async def test_odd_validators_do_not_break_a_transfer(tmp_path: Path) -> None:
    """Three headers of 8000 odd bytes are 144 KB of JSON: more than a snapshot may have."""
    odd, body = b"\xff" * 8000, read_all(fresh(1000))
    head = b'HTTP/1.1 200 OK\r\nETag: "%b"\r\nLast-Modified: %b\r\nContent-Type: %b\r\nContent-Length: 1000\r\n\r\n'
    async with RawRemote(head % (odd, odd, odd) + body) as remote, over(tmp_path, remote, remote=PATIENT) as proxy:
        answer = await ask(file_url(proxy))
        await until_stored(proxy)
        partials = list(proxy.data_dir.rglob("*.part"))
        assert (answer.status, partials) == (200, []), answer.body


# -- a far range without a digest, from a remote that does not know If-Range


async def test_a_far_range_of_another_version_is_not_sent_as_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = fresh(8 * MIB), fresh(8 * MIB)
    async with (
        FileRemote({"f": before}, manifest=False) as remote,
        over(tmp_path, remote, remote=PATIENT, distribution=FAR) as proxy,
    ):
        whole, url = Stall(MIB), file_url(proxy)
        remote.script("/f", whole, method="GET", ranged=False)
        first = asyncio.create_task(ask(url))
        await whole.gate.reached()
        remote.put("f", after)
        monkeypatch.setattr(delivery, "range_is_current", lambda answer, headers: True)
        ranged = asyncio.create_task(ask(url, headers={"Range": f"bytes={6 * MIB}-{6 * MIB + 999}"}))
        await remote.seen("/f", 2)
        whole.gate.release()
        answer, one = await ranged, await first
        assert one.body == read_all(before)
        if answer.status == 206 and answer.is_complete:
            assert answer.headers.get("ETag") == one.headers.get("ETag")
            assert answer.body == one.body[6 * MIB : 6 * MIB + 1000], "bytes of another version, same ETag"


# -- ns= and a name that begins like the base_path


async def test_ns_asks_for_the_name_it_was_given(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        wrong = remote.push("web", "v1", make_image(seed=1))
        right = remote.push("team/web", "v1", make_image(seed=2))
        assert wrong != right
        config = pull_through(
            "container", "team", {"r": remote.url}, distribution={"registry_hosts": ["registry.example"]}
        )
        async with running_proxy(tmp_path, config) as proxy:
            answer = await ask(f"{proxy.url}/v2/team/web/manifests/v1?ns=registry.example")
            assert answer.sha256 == right, "the image of another repository"


# -- HEAD refused with 403, as presigned URLs do


async def test_a_blob_whose_store_denies_head_can_be_pulled(tmp_path: Path) -> None:
    """A redirect to a URL signed for GET: HEAD there is 403 (S3, GCS)."""
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        path = hold_blob(fresh(2 * MIB), remote)
        remote.push("app", "v1", make_image())
        remote.script(path, Status(403), method="HEAD")
        answer = await ask(url_of(proxy, path))
        other = await ask_tag(proxy)
        assert (answer.status, other.status) == (200, 200)


# -- N devices, N HEADs


async def test_a_herd_costs_one_head(tmp_path: Path) -> None:
    content = fresh(2 * MIB)
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        answers = await ask_many(url_of(proxy, hold_blob(content, remote)), 20)
        assert {answer.sha256 for answer in answers} == {digest_of(content)}
        assert remote.count(method="GET") == 1
        assert remote.count(method="HEAD") <= 2


# -- a spool that gives no reader


class _Response:
    status, offset, size, length, etag, last_modified, host, url = 200, 0, 4, 4, "", "", "h:1", "u"
    headers: ClassVar[dict[str, str]] = {}

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"body"
        await asyncio.sleep(3600)


class _Fetcher:
    @asynccontextmanager
    async def open(self, sources: Any, request: Any, **_: Any) -> AsyncIterator[Fetched]:
        yield Fetched(sources[0], _Response())  # type: ignore[arg-type]


class _Writer:
    written, is_aborted = 0, False

    def write(self, buffers: Any) -> None:
        self.written += sum(map(len, buffers))

    def follow(self) -> Any:
        raise StorageUnavailable("follow: too many open files")

    async def abort(self) -> None:
        self.is_aborted = True


class _Storage:
    writer = _Writer()

    async def resume(self, key: str) -> None:
        """Nothing has been left by an earlier transfer."""

    async def begin(self, key: str, *, size: int | None, keep: bool) -> _Writer:
        return self.writer


async def _nothing(*_: Any) -> Any:
    return None


async def test_a_spool_without_a_reader_becomes_a_window() -> None:
    """EMFILE at dup: the bytes go to the writer all the same, and the window, which devices read, stays empty."""
    remote = Remote(id=1, name="r", type=ContentType.FILE, url="http://x/", policy=Policy.ON_DEMAND)
    source = Source(remote=remote, url="http://x/f", path="f")
    plan = Plan(
        key="1/f",
        path="/pulp/content/d/f",
        sources=[source],
        digest=None,
        size=None,
        is_stored=_nothing,
        delivered=_nothing,
        record=_nothing,
        revalidate=_nothing,
        find_modified=_nothing,
    )
    with ThreadPoolExecutor(1) as executor:
        storage = _Storage()
        intake = Intake(_Fetcher(), storage, executor, EngineSettings())  # type: ignore[arg-type]
        flight = Flight(plan.key, plan, FirstAttempt(), followers=1)
        task = asyncio.create_task(intake.run(flight))
        async with asyncio.timeout(5):
            while not flight.attempt.arrived:
                await asyncio.sleep(0.01)
        attempt = flight.attempt
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    piece = attempt.window.read(0) if attempt.window is not None else None
    assert piece is not None and piece.data == b"body", (
        f"{attempt.arrived} bytes have arrived, the window has {piece}: who follows spins for ever in send()"
    )


# -- a window of tiny chunks


def test_a_window_does_not_grow_with_the_number_of_chunks() -> None:
    """A remote that sends byte by byte: each costs a tuple, a bytes object and a copy of the hash."""
    tracemalloc.start()
    try:
        window: Window[Any] = Window(8 * MIB, 0, hashlib.sha256())
        hasher = hashlib.sha256()
        for number in range(50_000):
            window.append(bytes([number % 251]), hasher.copy())
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 50_000 * 40, f"{used / 50_000:.0f} bytes for one: {used / 50_000 * 8 / 1024:.1f} GiB for a window"


# -- the validator of a HEAD, over a body that nobody has verified


async def test_a_heads_validator_does_not_splice_a_good_end_to_a_bad_beginning(tmp_path: Path) -> None:
    """A device that asks HEAD first, and resumes with the ETag it got there: its first part was wrong."""
    content = fresh(4 * MIB)
    async with (
        RegistryRemote() as remote,
        over(tmp_path, remote, remote={**PATIENT, "cooldown_seconds": 0.1}) as proxy,
    ):
        path = hold_blob(content, remote)
        remote.script(path, Flip(0), method="GET", times=1)
        url = url_of(proxy, path)
        etag = (await ask(url, method="HEAD")).headers.get("ETag", "")
        first = await ask(url)
        assert not first.is_complete
        await asyncio.sleep(0.5)
        headers = {"Range": f"bytes={len(first.body)}-", **({"If-Range": etag} if etag else {})}
        second = await ask(url, headers=headers)
        whole = first.body + second.body if second.status == 206 else second.body
        assert not etag or whole == read_all(content)


# -- a worker that is told to stop comes back


async def test_a_worker_that_was_stopped_alone_is_replaced(tmp_path: Path) -> None:
    async with RegistryRemote() as remote, over(tmp_path, remote) as proxy:
        remote.push("app", "v1", make_image())
        before = children(proxy)

        async def is_replaced() -> bool:
            now = children(proxy)
            return before[0] not in now and len(now) == len(before)

        os.kill(before[0], signal.SIGTERM)
        await until(is_replaced)
        await proxy.ready()
        async with asyncio.timeout(10):
            assert (await ask_tag(proxy)).status == 200
