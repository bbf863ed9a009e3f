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
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

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
from tests.remotes.content import read_all
from tests.remotes.faults import Cut, Flip, Replace, Shorten, Stall, Status, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import Part, make_image
from tests.remotes.raw import RawRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.tokens import TokenServer
from tests.scenarios.device import ask, ask_many, asking, until_stored
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import PATIENT, fresh, merged

KIB = 1024
MIB = 1024 * KIB
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def workers_of(proxy: Proxy) -> list[int]:
    """The processes below the supervisor."""
    pid = proxy.service.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -- a head of one attempt over the bytes of another


async def test_undigested_body_of_another_remote_and_size_is_never_completed(tmp_path: Path) -> None:
    """A's head (50000) is out when A breaks; B has another file of 60000: its first 50000 bytes are no answer."""
    first, second = read_all(fresh(50_000)), read_all(fresh(60_000))
    async with FileRemote({"f": first}, manifest=False) as a, FileRemote({"f": second}, manifest=False) as b:
        stall = Stall(0)
        a.script("/f", stall, Cut(0), method="GET")
        config = pull_through(
            "file",
            "d",
            {"a": a.url + "/", "b": b.url + "/"},
            remote=PATIENT,
            distribution={"verify_first_seconds": 0.2},
        )
        async with running_proxy(tmp_path, config) as proxy:
            async with asking(f"{proxy.url}/pulp/content/d/f") as answer:
                stall.gate.release()
                try:
                    body = await answer.content.read()
                except Exception:
                    return
            assert body in (first, second), f"complete, {len(body)} bytes, of neither"


async def test_undigested_body_of_another_remote_under_the_first_ones_validator(tmp_path: Path) -> None:
    first, second = read_all(fresh(50_000)), read_all(fresh(50_000))
    async with FileRemote({"f": first}, manifest=False) as a, FileRemote({"f": second}, manifest=False) as b:
        stall = Stall(0)
        a.script("/f", stall, Cut(0), method="GET")
        config = pull_through(
            "file",
            "d",
            {"a": a.url + "/", "b": b.url + "/"},
            remote=PATIENT,
            distribution={"verify_first_seconds": 0.2},
        )
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/pulp/content/d/f"
            async with asking(url) as answer:
                etag = answer.headers["ETag"]
                stall.gate.release()
                try:
                    body = await answer.content.read()
                except Exception:
                    return
            await until_stored(proxy)
            stored = await ask(url)
            assert (body == stored.body) == (etag == stored.headers["ETag"]), "B's bytes went out under A's ETag"


async def test_blob_that_is_longer_at_the_next_remote_is_never_completed_short(tmp_path: Path) -> None:
    """The digest is known, the size is not: A lies about it, and breaks; B's bytes are right but cut at A's length."""
    content = fresh(60_000)
    async with RegistryRemote() as a, RegistryRemote() as b:
        digest = a.push_blob("app", content)
        b.push_blob("app", content)
        stall = Stall(0)
        a.script(f"/v2/app/blobs/{digest}", Shorten(50_000), stall, Cut(0), method="GET")
        config = pull_through(
            "container", "d", {"a": a.url, "b": b.url}, remote=PATIENT, distribution={"verify_first_seconds": 0.2}
        )
        async with running_proxy(tmp_path, config) as proxy:
            async with asking(f"{proxy.url}/v2/d/app/blobs/{digest}") as answer:
                stall.gate.release()
                try:
                    body = await answer.content.read()
                except Exception:
                    return
            assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest, f"complete with {len(body)} bytes"


# -- going on after damage, from an upstream of unknown size


async def test_going_on_after_damage_holds_the_tail_back(tmp_path: Path) -> None:
    """A stored blob is cut off while it is sent; upstream's is wrong by now, longer, and of unknown size."""
    content = fresh(12 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url}, remote=PATIENT)) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            assert (await ask(url)).sha256 == digest
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
                    done, _ = await asyncio.wait([finishing], timeout=3)
                    stall.gate.release()
                    is_complete = await finishing
                print("complete before the verdict:", bool(done))
                found = f"sha256:{hashlib.sha256(device.body).hexdigest()}"
            assert not is_complete or found == digest, "a complete response with wrong bytes"


# -- a flight's error given to those whose sources were never asked


async def test_a_flights_failure_is_not_the_answer_for_another_distribution(tmp_path: Path) -> None:
    content = fresh(2 * MIB)
    async with RegistryRemote() as a, RegistryRemote() as b:
        digest = a.push_blob("app", content)
        b.push_blob("app", content)
        stall = Stall(-1)
        a.script(f"/v2/app/blobs/{digest}", Status(404), stall, method="GET")
        config = merged(
            pull_through("container", "da", {"a": a.url}, remote=PATIENT),
            pull_through("container", "db", {"b": b.url}, remote=PATIENT),
        )
        async with running_proxy(tmp_path, config) as proxy:
            first = asyncio.create_task(ask(f"{proxy.url}/v2/da/app/blobs/{digest}"))
            await stall.gate.reached()
            second = asyncio.create_task(ask(f"{proxy.url}/v2/db/app/blobs/{digest}"))
            await b.seen(count=1)
            await asyncio.sleep(0.5)
            stall.gate.release()
            assert (await first).status == 404
            answer = await second
            assert (answer.status, b.count(method="GET")) == (200, 1)
            assert answer.sha256 == digest


# -- a hostile manifest cools an innocent remote


async def test_a_manifest_that_lies_about_sizes_cools_no_remote(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        good = make_image(layers=3, layer_size=3000)
        remote.push("good", "v1", good)
        document = json.loads(good.manifest.body)
        for layer in document["layers"]:
            layer["size"] += 1
        body = json.dumps(document).encode()
        lie = Part(OCI_MANIFEST, body)
        remote.push("evil", "v1", good)
        remote.push_manifest("evil", lie, tag="lie")
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            assert (await ask(f"{proxy.url}/v2/d/evil/manifests/lie")).status == 200
            for layer in good.layers:
                await ask(f"{proxy.url}/v2/d/evil/blobs/{layer.digest}")
            listed = await proxy.admin("/pulp/api/v3/cooldowns/")
            print(listed)
            answer = await ask(f"{proxy.url}/v2/d/good/manifests/v1")
            assert answer.status == 200, answer.body
            for layer in good.layers:
                answer = await ask(f"{proxy.url}/v2/d/good/blobs/{layer.digest}")
                assert answer.status == 200, answer.body


# -- one odd answer makes a whole repository unavailable


@pytest.mark.parametrize("status", [400, 405, 500, 401])
async def test_a_registry_without_referrers_still_serves_its_images(tmp_path: Path, status: int) -> None:
    async with RegistryRemote() as remote:
        image = make_image()
        digest = remote.push("app", "v1", image)
        remote.script("/v2/app/referrers/*", Status(status))
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            referrers = await ask(f"{proxy.url}/v2/d/app/referrers/{digest}")
            answer = await ask(f"{proxy.url}/v2/d/app/manifests/v1")
            assert answer.status == 200, (referrers.status, answer.body)


async def test_one_broken_tag_does_not_take_the_others_along(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "v1", make_image())
        remote.push_manifest("app", Part(OCI_MANIFEST, b'{"schemaVersion": 1}'), tag="old")
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            await ask(f"{proxy.url}/v2/d/app/manifests/old")
            answer = await ask(f"{proxy.url}/v2/d/app/manifests/v1")
            assert answer.status == 200, answer.body


# -- nothing cached for a tag, and yet the second remote is not asked


@pytest.mark.parametrize("policy", ["streamed", "on_demand"])
async def test_a_known_tag_whose_manifest_is_not_held_fails_over(tmp_path: Path, policy: str) -> None:
    async with RegistryRemote() as a, RegistryRemote() as b:
        image = make_image()
        for remote in (a, b):
            remote.push("app", "v1", image)
        config = pull_through(
            "container",
            "d",
            {"a": a.url, "b": b.url},
            remote={**PATIENT, "policy": policy},
        )
        async with running_proxy(tmp_path, {**config, "memory_cache_size": 0}) as proxy:
            url = f"{proxy.url}/v2/d/app/manifests/v1"
            assert (await ask(url)).status == 200
            for path in proxy.artifacts():
                path.unlink()
            await a.refuse()
            answer = await ask(url)
            assert answer.status == 200, answer.body
            assert answer.sha256 == image.digest


# -- a streamed transfer that nobody wants any more


async def test_streamed_stops_when_the_last_device_left_before_the_head(tmp_path: Path) -> None:
    content = fresh(64 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        stall = Stall(-1)
        remote.script(path, stall, method="GET")
        config = pull_through("container", "d", {"r": remote.url}, remote={**PATIENT, "policy": "streamed"})
        async with running_proxy(tmp_path, config) as proxy:
            device = asyncio.create_task(ask(f"{proxy.url}/v2/d/app/blobs/{digest}"))
            await stall.gate.reached()
            device.cancel()
            await asyncio.gather(device, return_exceptions=True)
            await asyncio.sleep(0.5)
            stall.gate.release()
            await remote.idle(path)
            assert remote.sent(path, method="GET") < content.size, "all of it was fetched for nobody"


# -- bodies that always break never cool their host


async def test_a_host_whose_bodies_always_break_is_cooled(tmp_path: Path) -> None:
    async with RegistryRemote() as a, RegistryRemote() as b:
        digests = []
        for _ in range(5):
            content = fresh(2 * MIB)
            digests.append(a.push_blob("app", content))
            b.push_blob("app", content)
        a.script("/v2/app/blobs/*", Cut(0), method="GET")
        quick = {"max_retries": 0, "failure_threshold": 3}
        async with running_proxy(tmp_path, pull_through("container", "d", {"a": a.url, "b": b.url}, remote=quick)) as p:
            for digest in digests:
                assert (await ask(f"{p.url}/v2/d/app/blobs/{digest}")).sha256 == digest
            listed = (await p.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert listed, f"{a.count(method='GET')} broken bodies in a row, and no cooldown"


# -- the cooldown of a token server is never cleared by success


async def test_a_token_server_that_works_again_is_asked_again(tmp_path: Path) -> None:
    """Success clears a cooldown: what the first pull has shown must not keep the second one out while it lasts."""
    content = fresh(8 * MIB)
    async with TokenServer() as tokens, RegistryRemote(tokens=tokens) as remote:
        for name in ("one", "three"):
            remote.push(name, "v1", make_image())
        digest = remote.push_blob("two", content)
        stall = Stall(MIB)
        remote.script(f"/v2/two/blobs/{digest}", stall, method="GET")
        settings = {"max_retries": 0, "failure_threshold": 1, "cooldown_initial_seconds": 0.3}
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url}, remote=settings)) as proxy:
            assert (await ask(f"{proxy.url}/v2/d/one/manifests/v1")).status == 200
            await tokens.refuse()
            assert (await ask(f"{proxy.url}/v2/d/three/manifests/v1")).status == 503
            await tokens.listen()
            tokens.expire()
            await asyncio.sleep(0.5)
            pull = asyncio.create_task(ask(f"{proxy.url}/v2/d/two/blobs/{digest}"))
            await stall.gate.reached()
            answer = await ask(f"{proxy.url}/v2/d/three/manifests/v1")
            stall.gate.release()
            assert (await pull).sha256 == digest
            listed = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert (answer.status, listed) == (200, []), answer.body


# -- what was expected is outdated, and another worker's devices are told "unavailable"


async def test_followers_in_other_workers_survive_a_change_of_the_listing(tmp_path: Path) -> None:
    async with FileRemote({"f": fresh(2 * MIB)}) as remote:
        config = {**pull_through("file", "d", {"r": remote.url + "/"}, remote=PATIENT), "content": {"workers": 2}}
        async with running_proxy(tmp_path, config) as proxy:
            await ask_many(f"{proxy.url}/pulp/content/d/other", 20)  # every worker has the listing
            after = fresh(2 * MIB + 5)
            remote.put("f", after)
            stall = Stall(-1)
            remote.script("/f", stall, method="GET")
            devices = [asyncio.create_task(ask(f"{proxy.url}/pulp/content/d/f")) for _ in range(20)]
            await stall.gate.reached()
            await asyncio.sleep(0.5)
            stall.gate.release()
            answers = await asyncio.gather(*devices)
            assert sorted({answer.status for answer in answers}) == [200]


# -- a catalog that can't be written costs an answer that is at hand


async def test_a_tag_is_served_while_the_catalog_can_not_be_written(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "v1", make_image())
        config = pull_through("container", "d", {"r": remote.url}, distribution={"tag_ttl_seconds": 0})
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/d/app/manifests/v1"
            assert (await ask(url)).status == 200
            with sqlite3.connect(proxy.data_dir / "catalog.sqlite3", isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                answer = await ask(url)
                other.execute("ROLLBACK")
            assert answer.status == 200, answer.body


# -- devices that wait for a slot of their own for ever


async def test_a_far_range_does_not_wait_for_a_slot_when_its_bytes_are_here(tmp_path: Path) -> None:
    content = fresh(8 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        whole, ranged = Stall(MIB), Stall(0)
        remote.script(path, whole, method="GET", ranged=False)
        remote.script(path, ranged, method="GET", ranged=True)
        config = pull_through(
            "container", "d", {"r": remote.url}, remote=PATIENT, distribution={"range_wait_size": MIB}
        )
        async with running_proxy(tmp_path, {**config, "range_requests": 1}) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            first = asyncio.create_task(ask(url))
            await whole.gate.reached()
            far = {"Range": f"bytes={6 * MIB}-{7 * MIB}"}
            hog = asyncio.create_task(ask(url, headers=far))
            await ranged.gate.reached()
            waiting = asyncio.create_task(ask(url, headers=far))
            await asyncio.sleep(0.3)
            whole.gate.release()
            assert (await first).sha256 == digest  # all is here now
            done, _ = await asyncio.wait([waiting], timeout=5)
            ranged.gate.release()
            await asyncio.gather(hog, waiting, return_exceptions=True)
            assert done, "it waits for another device's upstream request although the bytes are here"


# -- a far range with the last byte, and a disk that fills up


async def test_a_far_range_alone_does_not_hang_when_the_disk_fills_up(tmp_path: Path) -> None:
    """The flight loses its spool; its window waits for a follower to move, the only one waits for the flight."""
    content = fresh(48 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        whole = Stall(MIB)
        remote.script(path, whole, method="GET", ranged=False)
        config = pull_through(
            "container", "d", {"r": remote.url}, remote=PATIENT, distribution={"range_wait_size": MIB}
        )
        async with running_proxy(tmp_path, {**config, "window_size": "1MiB"}) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            device = asyncio.create_task(ask(url, headers={"Range": f"bytes={46 * MIB}-"}))
            await remote.seen(path, 3)  # HEAD, GET, ranged GET
            await asyncio.sleep(0.3)
            for pid in workers_of(proxy):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (8 * MIB, resource.RLIM_INFINITY))
            whole.gate.release()
            done, _ = await asyncio.wait([device], timeout=20)
            device.cancel()
            await asyncio.gather(device, return_exceptions=True)
            assert done, "neither bytes nor an end in 20 s"


# -- validators that are too long to be told to other processes


async def test_odd_validators_do_not_break_a_transfer(tmp_path: Path) -> None:
    """Three headers of 8000 odd bytes are 144 KB of JSON: more than a snapshot may have."""
    odd, body = b"\xff" * 8000, read_all(fresh(1000))
    head = b'HTTP/1.1 200 OK\r\nETag: "%b"\r\nLast-Modified: %b\r\nContent-Type: %b\r\nContent-Length: 1000\r\n\r\n'
    async with (
        RawRemote(head % (odd, odd, odd) + body) as remote,
        running_proxy(tmp_path, pull_through("file", "d", {"r": remote.url + "/"}, remote=PATIENT)) as proxy,
    ):
        answer = await ask(f"{proxy.url}/pulp/content/d/f")
        await until_stored(proxy)
        partials = list(proxy.data_dir.rglob("*.part"))
        assert (answer.status, partials) == (200, []), answer.body


# -- a far range without a digest, from a remote that does not know If-Range


async def test_a_far_range_of_another_version_is_not_sent_as_this_one(tmp_path: Path) -> None:
    before, after = fresh(8 * MIB), fresh(8 * MIB)
    async with FileRemote({"f": before}, manifest=False) as remote:
        whole = Stall(MIB)
        remote.script("/f", whole, method="GET", ranged=False)
        config = pull_through(
            "file", "d", {"r": remote.url + "/"}, remote=PATIENT, distribution={"range_wait_size": MIB}
        )
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/pulp/content/d/f"
            first = asyncio.create_task(ask(url))
            await whole.gate.reached()
            remote.put("f", after)

            import tests.remotes.delivery as delivery

            known = delivery.range_is_current
            delivery.range_is_current = lambda answer, headers: True  # no If-Range here
            try:
                ranged = asyncio.create_task(ask(url, headers={"Range": f"bytes={6 * MIB}-{6 * MIB + 999}"}))
                await remote.seen("/f", 2)
                whole.gate.release()
                answer = await ranged
            finally:
                delivery.range_is_current = known
            one = await first
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
    content = fresh(2 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        remote.push("app", "v1", make_image())
        remote.script(f"/v2/app/blobs/{digest}", Status(403), method="HEAD")
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            answer = await ask(f"{proxy.url}/v2/d/app/blobs/{digest}")
            other = await ask(f"{proxy.url}/v2/d/app/manifests/v1")
            assert (answer.status, other.status) == (200, 200)


# -- N devices, N HEADs


async def test_a_herd_costs_one_head(tmp_path: Path) -> None:
    content = fresh(2 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            answers = await ask_many(f"{proxy.url}/v2/d/app/blobs/{digest}", 20)
            assert {answer.sha256 for answer in answers} == {digest}
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
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        remote.script(f"/v2/app/blobs/{digest}", Flip(0), method="GET", times=1)
        config = pull_through("container", "d", {"r": remote.url}, remote={**PATIENT, "cooldown_seconds": 0.1})
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            etag = (await ask(url, method="HEAD")).headers.get("ETag", "")
            first = await ask(url)
            assert not first.is_complete
            await asyncio.sleep(0.5)
            headers = {"Range": f"bytes={len(first.body)}-", **({"If-Range": etag} if etag else {})}
            second = await ask(url, headers=headers)
            whole = first.body + second.body if second.status == 206 else second.body
            assert not etag or f"sha256:{hashlib.sha256(whole).hexdigest()}" == digest


# -- a worker that is told to stop comes back


async def test_a_worker_that_was_stopped_alone_is_replaced(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "v1", make_image())
        async with running_proxy(tmp_path, pull_through("container", "d", {"r": remote.url})) as proxy:
            os.kill(workers_of(proxy)[0], signal.SIGTERM)
            await asyncio.sleep(3)
            async with asyncio.timeout(10):
                assert (await ask(f"{proxy.url}/v2/d/app/manifests/v1")).status == 200


# -- a slot whose device has left


async def test_a_device_that_leaves_gives_its_slot_back(tmp_path: Path) -> None:
    content = fresh(8 * MIB)
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", content)
        path = f"/v2/app/blobs/{digest}"
        whole, ranged = Stall(MIB), Stall(1000)
        remote.script(path, whole, method="GET", ranged=False)
        remote.script(path, ranged, method="GET", ranged=True, times=1)
        config = pull_through(
            "container", "d", {"r": remote.url}, remote=PATIENT, distribution={"range_wait_size": MIB}
        )
        async with running_proxy(tmp_path, {**config, "range_requests": 1}) as proxy:
            url = f"{proxy.url}/v2/d/app/blobs/{digest}"
            first = asyncio.create_task(ask(url))
            await whole.gate.reached()
            far = {"Range": f"bytes={6 * MIB}-{7 * MIB}"}
            leaver = asyncio.create_task(ask(url, headers=far))
            await ranged.gate.reached()
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            async with asyncio.timeout(5):
                assert (await ask(url, headers=far)).status == 206
            whole.gate.release()
            await first
