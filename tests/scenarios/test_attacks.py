"""Attacks on resume, chunk lists, windows and notes: for wrong bytes (P1), a wait without end (P4), or a leak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contentapp.core.chunks import ChunkHasher, dump_chunk_list
from contentapp.storage.note import decode, encode
from tests.proxy import Proxy, pull_through, start_proxy
from tests.remotes.content import Content, Synthetic, digest_of, read_all
from tests.remotes.faults import (
    Cut,
    Fault,
    Flip,
    Gate,
    Headers,
    IgnoreIfRange,
    IgnoreRange,
    Portion,
    Slow,
    Stall,
    Status,
    Unsized,
)
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import Answer, ask, asking
from tests.scenarios.stage import PATIENT, at_rest, fresh, merged, until

MIB = 1024 * 1024
CHUNK = 2 * MIB
SIZE = 11 * MIB + 77
QUICK = {"progress_interval_seconds": 0.05, "grace_seconds": 0, "resume_interval_seconds": 0.1}
BY_HAND = {**QUICK, "resume_concurrency": 0, "chunk_learning_rate": 0}
FILE = "/pulp/content/files/f"


def list_of(content: Content, chunk_size: int = CHUNK) -> bytes:
    hasher = ChunkHasher(chunk_size)
    hasher.update(read_all(content))
    return dump_chunk_list(hasher.finish())


def files_config(remotes: list[FileRemote], *, remote: dict[str, Any] | None = None, **distribution: Any) -> Any:
    urls = {f"r{index}": f"{each.url}/" for index, each in enumerate(remotes)}
    return pull_through("file", "files", urls, remote={**PATIENT, **(remote or {})}, distribution=distribution)


def gets(remote: ScriptedRemote, path: str = "/f") -> list[str]:
    return [each or "" for each in remote.asked_ranges(path)]


def partials(proxy: Proxy) -> list[Path]:
    return list((proxy.data_dir / "partials").iterdir())


def notes(proxy: Proxy) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (proxy.data_dir / "partials").glob("*.progress.json")]


async def has_arrived(proxy: Proxy, size: int) -> None:
    async def look() -> bool:
        return any(each["arrived"] == size for each in (await proxy.admin("/pulp/api/v3/transfers/"))["results"])

    await until(look)


async def until_noted(proxy: Proxy, size: int) -> None:
    async def look() -> bool:
        with suppress(OSError, ValueError):
            return any(note["offset"] == size for note in notes(proxy))
        return False

    await until(look)


async def _has_logged(proxy: Proxy, event: str, times: int) -> bool:
    return proxy.output().count(event) >= times


async def lost(asked: asyncio.Task[Answer]) -> None:
    """The device of a proxy that was ended."""
    with suppress(aiohttp.ClientError, ConnectionError):
        assert not (await asked).is_complete


async def interrupt(proxy: Proxy, remote: ScriptedRemote, path: str, url: str, at: int, *faults: Fault) -> None:
    """Stop the proxy in order when `at` bytes have come, so that a note tells of all of them."""
    stall = Stall(at)
    remote.script(path, stall, *faults, method="GET", times=1)
    device = asyncio.create_task(ask(url))
    await has_arrived(proxy, at)
    await proxy.stop()
    await lost(device)
    stall.gate.release()
    assert [note["offset"] for note in notes(proxy)] == [at]


@asynccontextmanager
async def started(folder: Path, config: dict[str, Any]) -> AsyncIterator[Proxy]:
    """A proxy that a test may stop and kill; nothing unexpected may be in its log."""
    proxy = await start_proxy(folder, config)
    try:
        yield proxy
    finally:
        if proxy.service.is_running:
            await proxy.kill()
    for word in ("Traceback", "flight failed", "process failed", "never retrieved"):
        assert word not in proxy.output()


# P1: wrong bytes in an answer that ends properly.


async def test_if_range_after_a_resume_that_was_killed(tmp_path: Path) -> None:
    """What a resumed attempt brings behind its note is lost by a kill: its name must be lost with it."""
    content = fresh(SIZE)
    async with RegistryRemote() as registry:
        path, device_path = _blob(registry, content)
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        engine = {**BY_HAND, "progress_interval_seconds": 3600}
        async with started(tmp_path, merged(config, **engine)) as proxy:
            url = proxy.url + device_path
            await interrupt(proxy, registry, path, url, 5 * MIB)
            await proxy.start()
            stall = Stall(3 * MIB)
            registry.script(path, Flip(6 * MIB), stall, method="GET", times=1)
            async with asking(url) as response:
                etag = response.headers["ETag"]
                held = await response.content.readexactly(7 * MIB)
                await proxy.kill()
            stall.gate.release()
            assert held != read_all(content)[: len(held)]
            await proxy.start()
            answer = await ask(url, headers={"Range": f"bytes={len(held)}-", "If-Range": etag})
            assert answer.is_complete
            whole = answer.body if answer.status == 200 else held + answer.body
            assert whole == read_all(content)


async def test_if_range_of_before_a_resume_that_was_killed(tmp_path: Path) -> None:
    """A device that keeps the ETag of its first answer over several resumes (RFC 9110, 14.3)."""
    content = fresh(SIZE)
    async with RegistryRemote() as registry:
        path, device_path = _blob(registry, content)
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        engine = {**BY_HAND, "progress_interval_seconds": 3600}
        async with started(tmp_path, merged(config, **engine)) as proxy:
            url = proxy.url + device_path
            stall = Stall(5 * MIB)
            registry.script(path, stall, method="GET", times=1)
            async with asking(url) as response:
                etag = response.headers["ETag"]
                held = await response.content.readexactly(4 * MIB)
                await has_arrived(proxy, 5 * MIB)
                await proxy.stop()
            stall.gate.release()
            await proxy.start()
            stall = Stall(3 * MIB)
            registry.script(path, Flip(6 * MIB), stall, method="GET", times=1)
            async with asking(url, headers={"Range": f"bytes={len(held)}-", "If-Range": etag}) as response:
                assert response.status == 206
                held += await response.content.readexactly(3 * MIB)
                await proxy.kill()
            stall.gate.release()
            assert held != read_all(content)[: len(held)]
            await proxy.start()
            answer = await ask(url, headers={"Range": f"bytes={len(held)}-", "If-Range": etag})
            assert answer.is_complete
            whole = answer.body if answer.status == 200 else held + answer.body
            assert whole == read_all(content)


async def test_bytes_from_before_a_restart_are_not_proven_by_a_list_of_later(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with FileRemote({"f": content, "f.chunks.json": list_of(content)}) as remote:
        config = files_config([remote], cold_range="strict")
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            remote.script("/f.chunks.json", Status(404), times=1)
            await interrupt(proxy, remote, "/f", proxy.url + FILE, 4 * MIB, Flip(MIB))
            await proxy.start()
            end = 3 * MIB
            answer = await ask(proxy.url + FILE, headers={"Range": f"bytes=1-{end - 1}"})
            assert not answer.is_complete or answer.status != 206 or answer.body == read_all(content)[1:end]


async def test_an_answer_of_less_than_was_asked_for_is_not_the_end(tmp_path: Path) -> None:
    """RFC 9110, 15.3.7: a 206 may have less than was asked for; where the size is unknown that is not its end."""
    content = fresh(5 * MIB)
    async with FileRemote({"f": content}, manifest=False) as remote:
        remote.script("/f", Unsized(), Cut(3 * MIB), method="GET", times=1)
        remote.script("/f", Portion(MIB), method="GET", ranged=True)
        async with started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy:
            answer = await ask(proxy.url + FILE)
            assert not answer.is_complete or answer.body == read_all(content)


async def test_another_last_modified_is_another_file(tmp_path: Path) -> None:
    """A server that ignores If-Range and names no ETag with its 206 still tells by its Last-Modified."""
    old, new = fresh(5 * MIB), fresh(5 * MIB)
    async with FileRemote({"f": old}, manifest=False) as remote:
        remote.script("/f", Cut(3 * MIB), method="GET", times=1)
        later = Headers({"ETag": None, "Last-Modified": "Tue, 05 Aug 2025 10:00:00 GMT"})
        async with started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy:
            device = asyncio.create_task(ask(proxy.url + FILE))
            remote.script("/f", later, IgnoreIfRange(), Flip(4 * MIB), method="GET")
            answer = await device
            assert not answer.is_complete or answer.body in {read_all(old), read_all(new)}


# Distributions and remotes kept apart.


async def test_a_list_of_one_distribution_says_nothing_of_another(tmp_path: Path) -> None:
    """Whoever lists a digest of somebody else's, with chunks of their own, must not make it undeliverable there."""
    content = fresh(9 * MIB)
    lying = json.loads(list_of(content))
    lying["chunks"] = ["0" * 64] * len(lying["chunks"])
    async with (
        RegistryRemote() as registry,
        FileRemote({"f": content, "f.chunks.json": json.dumps(lying).encode()}) as hostile,
    ):
        _, device_path = _blob(registry, content)
        cold = {**PATIENT, "cooldown_seconds": 300}
        config = pull_through("container", "reg", {"good": registry.url}, remote=cold)
        async with started(tmp_path, merged(files_config([hostile]), config, **BY_HAND)) as proxy:
            await ask(proxy.url + FILE)
            await at_rest(proxy)
            answer = await ask(proxy.url + device_path)
            assert (answer.status, answer.sha256) == (200, digest_of(content))
            cooling = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert "good" not in [each["remote"] for each in cooling]


async def test_the_list_of_a_second_remote_does_not_convict_the_first(tmp_path: Path) -> None:
    """The first remote's word on a file is the one that counts; so is its word on the file's chunks."""
    content = fresh(9 * MIB)
    lying = json.loads(list_of(content))
    lying["chunks"] = ["0" * 64] * len(lying["chunks"])
    files: dict[str, bytes | Content] = {"f": content, "f.chunks.json": json.dumps(lying).encode()}
    async with FileRemote({"f": content}) as first, FileRemote(files) as second:
        config = files_config([first, second], remote={"cooldown_seconds": 300})
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            answer = await ask(proxy.url + FILE)
            assert (answer.status, answer.sha256) == (200, digest_of(content))


# P2, P3: sources.


@pytest.mark.parametrize("at", [0, 5 * MIB])
async def test_a_wrong_chunk_and_a_source_without_ranges(tmp_path: Path, at: int) -> None:
    """The whole of the other source is good: without a list the device would have got it."""
    content = fresh(9 * MIB)
    files: dict[str, bytes | Content] = {"f": content, "f.chunks.json": list_of(content)}
    async with FileRemote(files) as bad, FileRemote(files, ranges=False) as good:
        bad.script("/f", Flip(at), method="GET")
        config = files_config([bad, good], remote={"cooldown_seconds": 300, "negative_ttl_seconds": 60})
        async with started(tmp_path, merged(config, verify_first_bytes="unlimited", **BY_HAND)) as proxy:
            answer = await ask(proxy.url + FILE)
            assert (answer.status, answer.sha256) == (200, digest_of(content))
            cooling = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert "r1" not in [each["remote"] for each in cooling]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_source_that_is_always_cut_and_wrong_is_given_up(tmp_path: Path, others: int) -> None:
    content = fresh(5 * MIB)
    async with FileRemote({"f": content}) as bad, FileRemote({"f": content}) as good:
        bad.script("/f", Flip(1), Cut(2 * MIB), method="GET")
        config = files_config([bad, good][: 1 + others], remote={"cooldown_seconds": 300})
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            device = asyncio.create_task(ask(proxy.url + FILE))
            await device
            await at_rest(proxy)
            assert len(gets(bad)) < 20
            if others:
                assert (await ask(proxy.url + FILE)).sha256 == digest_of(content)


async def test_chunk_lists_that_are_refused_do_not_cool_the_host(tmp_path: Path) -> None:
    """Many a store answers 503 or 403 for what it does not have; the file's own exchange is what counts."""
    contents = [fresh(9 * MIB) for _ in range(4)]
    async with FileRemote({f"f{index}": content for index, content in enumerate(contents)}) as remote:
        remote.script("*.chunks.json", Status(503))
        gate = Gate()
        remote.script("/f?", Stall(MIB, gate), method="GET", times=3)
        config = files_config([remote], remote={"failure_threshold": 3, "cooldown_seconds": 300})
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            urls = [f"{proxy.url}/pulp/content/files/f{index}" for index in range(4)]
            held = [asyncio.create_task(ask(url)) for url in urls[:3]]
            await gate.reached(3)
            await remote.seen("*.chunks.json", 3)
            await remote.idle("*.chunks.json")
            await until(lambda: _has_logged(proxy, "no chunk list", 3))
            try:
                answer = await ask(urls[3])
                assert (answer.status, answer.sha256) == (200, digest_of(contents[3]))
            finally:
                gate.release()
            assert [each.sha256 for each in await asyncio.gather(*held)] == [digest_of(each) for each in contents[:3]]


async def test_a_chunk_list_that_never_comes_holds_no_first_byte(tmp_path: Path) -> None:
    content = fresh(9 * MIB)
    async with FileRemote({"f": content}) as remote:
        gate = remote.hold("/f.chunks.json")
        async with started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy:
            try:
                answer = await ask(proxy.url + FILE)
            finally:
                gate.release()
            assert answer.sha256 == digest_of(content)
            assert answer.first_byte_seconds < 5


# P4: nobody waits without an outcome.


async def test_a_disk_that_is_full_while_upstream_is_ahead(tmp_path: Path) -> None:
    """The reader stops when much waits to be written; a write that fails meanwhile must let it go on."""
    held, body = fresh(700 * MIB), fresh(80 * MIB)
    spool = 64 * MIB
    async with FileRemote({"held": held, "f": body}, manifest=False) as remote:
        remote.script("/held", Stall(1), method="GET")
        full, ahead, rest = Stall(spool), Stall(spool + 1), Stall(spool + 4 * MIB)
        remote.script("/f", Unsized(), full, ahead, rest, method="GET")
        config = merged(
            files_config([remote]), cache={"max_size": "800 MiB"}, space_wait_seconds=2, window_size=16 * MIB, **BY_HAND
        )
        async with started(tmp_path, config) as proxy:
            other = asyncio.create_task(ask(f"{proxy.url}/pulp/content/files/held"))
            await remote.seen("/held")
            device = asyncio.create_task(ask(proxy.url + FILE))
            await has_arrived(proxy, spool)
            full.gate.release()
            await until(lambda: _has_logged(proxy, "nothing more can be evicted", 1))
            ahead.gate.release()
            await rest.gate.reached()
            await until(lambda: _has_logged(proxy, "delivering unstored", 1))
            rest.gate.release()
            try:
                async with asyncio.timeout(10):
                    answer = await device
            finally:
                other.cancel()
            assert (answer.is_complete, answer.sha256) == (True, digest_of(body))


async def test_a_leftover_without_room_ends(tmp_path: Path) -> None:
    """Nobody reads the window of a transfer that goes on by itself."""
    content = fresh(30 * MIB)
    async with RegistryRemote() as registry:
        path, device_path = _blob(registry, content)
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            await interrupt(proxy, registry, path, proxy.url + device_path, 5 * MIB)
            proxy.config["cache"] = {"max_size": "12 MiB"}
            proxy.config["resume_concurrency"] = 1
            proxy.config["resume_interval_seconds"] = 3600
            await proxy.start()
            await registry.seen(path, 2)
            await until(lambda: _is_put_down(proxy), timeout=5)


async def _is_put_down(proxy: Proxy) -> bool:
    found = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
    return [each["state"] for each in found] == ["suspended"]


async def test_slow_transfers_with_chunk_lists_hold_up_no_other(tmp_path: Path) -> None:
    """What chunks may take of memory is not the slow ones' to keep."""
    count, chunk = 9, 16 * MIB
    slow = [fresh(2 * chunk) for _ in range(count)]
    content = fresh(9 * MIB)
    files: dict[str, bytes | Content] = {f"s{index}": each for index, each in enumerate(slow)}
    files |= {f"s{index}.chunks.json": list_of(each, chunk) for index, each in enumerate(slow)}
    files |= {"f": content, "f.chunks.json": list_of(content)}
    async with FileRemote(files) as remote:
        gate = Gate()
        remote.script("/s?", Stall(1, gate), method="GET")
        async with started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy:
            held = [asyncio.create_task(ask(f"{proxy.url}/pulp/content/files/s{index}")) for index in range(count)]
            await gate.reached(count)
            try:
                async with asyncio.timeout(10):
                    answer = await ask(proxy.url + FILE)
                assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
            finally:
                gate.release()
                await asyncio.gather(*held, return_exceptions=True)


async def test_a_source_that_trickles_a_chunk_is_not_waited_for(tmp_path: Path) -> None:
    content = fresh(9 * MIB)
    files: dict[str, bytes | Content] = {"f": content, "f.chunks.json": list_of(content)}
    async with FileRemote(files) as bad, FileRemote(files) as slow, FileRemote(files) as good:
        bad.script("/f", Flip(1), method="GET")
        gates = [Stall(at) for at in range(0, 400, 1)]
        slow.script("/f", *gates, method="GET")

        async def trickle() -> None:
            for stall in gates:
                await asyncio.sleep(0.5)
                stall.gate.release()

        config = files_config([bad, slow, good], resume_deadline_seconds=3)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            trickling = asyncio.create_task(trickle())
            try:
                async with asyncio.timeout(12):
                    answer = await ask(proxy.url + FILE)
                assert (answer.is_complete, answer.sha256) == (True, digest_of(content))
            finally:
                trickling.cancel()


async def test_a_beginning_that_trickles_is_not_waited_for(tmp_path: Path) -> None:
    """A source that answers a range with the whole, byte by byte, brings nothing new for as long as it likes."""
    content = fresh(9 * MIB)
    async with FileRemote({"f": content}) as one, FileRemote({"f": content}) as two:
        one.script("/f", Cut(6 * MIB), method="GET", times=1)
        one.script("/f", IgnoreRange(), Slow(200), method="GET")
        config = files_config([one, two], resume_deadline_seconds=2, first_byte_deadline_seconds=2)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            async with asyncio.timeout(12):
                answer = await ask(proxy.url + FILE)
            assert not answer.is_complete or answer.sha256 == digest_of(content)


async def test_transfers_that_were_ended_give_their_memory_back(tmp_path: Path) -> None:
    """Of chunks that are not whole; there is room for eight of these."""
    count, chunk = 9, 16 * MIB
    contents = [fresh(2 * chunk) for _ in range(count)]
    files: dict[str, bytes | Content] = {f"s{index}": each for index, each in enumerate(contents)}
    files |= {f"s{index}.chunks.json": list_of(each, chunk) for index, each in enumerate(contents)}
    async with FileRemote(files) as remote, started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy:
        for index in range(count - 1):
            gate = remote.hold(f"/s{index}", at=MIB, method="GET", times=1)
            device = asyncio.create_task(ask(f"{proxy.url}/pulp/content/files/s{index}"))
            await gate.reached()
            (transfer,) = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
            await proxy.admin(transfer["pulp_href"], method="DELETE")
            gate.release()
            with suppress(aiohttp.ClientError, ConnectionError):
                await device
        async with asyncio.timeout(15):
            answer = await ask(f"{proxy.url}/pulp/content/files/s{count - 1}")
        assert answer.sha256 == digest_of(contents[-1])


# P6: what is kept, and for how long.


async def test_all_there_but_the_end_of_an_unknown_size(tmp_path: Path) -> None:
    """Nothing follows what has come: 416 says so, and the digest that it is all."""
    content = fresh(5 * MIB)
    async with RegistryRemote() as registry:
        path, device_path = _blob(registry, content)
        registry.script(path, Unsized(), Cut(5 * MIB), method="GET", times=1)
        quick = {"resume_deadline_seconds": 2}
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT, distribution=quick)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            answers = [await ask(proxy.url + device_path) for _ in range(3)]
            assert answers[-1].sha256 == digest_of(content), [(each.status, each.is_complete) for each in answers]


@pytest.mark.parametrize("status", [404, 503])
async def test_what_stays_unavailable_is_not_kept_for_ever(tmp_path: Path, status: int) -> None:
    """To try again is not to go on: the age of a partial counts from its last byte."""
    content = fresh(SIZE)
    async with RegistryRemote() as registry:
        path, device_path = _blob(registry, content)
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            await interrupt(proxy, registry, path, proxy.url + device_path, 5 * MIB)
            registry.script(path, Status(status))
            proxy.config["resume_concurrency"] = 1
            proxy.config["partial_max_age_seconds"] = 4
            await proxy.start()
            assert partials(proxy) != []
            await until(lambda: _is_empty(proxy), timeout=8)


async def _is_empty(proxy: Proxy) -> bool:
    return partials(proxy) == []


async def test_a_stop_while_the_chunk_list_is_awaited_keeps_the_partial(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with (
        FileRemote({"f": content}) as remote,
        started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy,
    ):
        await interrupt(proxy, remote, "/f", proxy.url + FILE, 5 * MIB)
        gate = remote.hold("/f.chunks.json")
        await proxy.start()
        device = asyncio.create_task(ask(proxy.url + FILE))
        await gate.reached()
        await proxy.stop()
        gate.release()
        await lost(device)
        assert [note["offset"] for note in notes(proxy)] == [5 * MIB]


async def test_a_cancel_while_the_chunk_list_is_awaited_leaves_nothing(tmp_path: Path) -> None:
    content = fresh(SIZE)
    async with (
        FileRemote({"f": content}) as remote,
        started(tmp_path, merged(files_config([remote]), **BY_HAND)) as proxy,
    ):
        await interrupt(proxy, remote, "/f", proxy.url + FILE, 5 * MIB)
        gate = remote.hold("/f.chunks.json")
        await proxy.start()
        device = asyncio.create_task(ask(proxy.url + FILE))
        await gate.reached()
        (transfer,) = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
        await proxy.admin(transfer["pulp_href"], method="DELETE")
        await device
        await at_rest(proxy)
        gate.release()
        answer = await ask(proxy.url + FILE)
        assert (answer.sha256, gets(remote)[-1]) == (digest_of(content), "")
        await until(lambda: _is_empty(proxy))


async def test_what_is_counted_is_what_is_there(tmp_path: Path) -> None:
    """Over resumes, kills, stops and cancels: the quota is charged with what lies on the disk."""
    contents = [fresh(SIZE) for _ in range(4)]
    async with RegistryRemote() as registry:
        blobs = [_blob(registry, content) for content in contents]
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            for round_ in range(3):
                stalls = [Stall(MIB + index) for index in range(4)]
                for (path, _), stall in zip(blobs, stalls, strict=True):
                    registry.script(path, stall, method="GET", times=1)
                devices = [asyncio.create_task(ask(proxy.url + device_path)) for _, device_path in blobs]
                await asyncio.gather(*(stall.gate.reached() for stall in stalls))
                await until(lambda: _have_all(proxy, 4, MIB))
                found = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
                await proxy.admin(found[round_]["pulp_href"], method="DELETE")
                await (proxy.kill() if round_ == 1 else proxy.stop())
                for stall in stalls:
                    stall.gate.release()
                await asyncio.gather(*map(lost_or_refused, devices))
                await proxy.start()
                storage = (await proxy.admin("/pulp/api/v3/status/"))["storage"]
                sizes = [path.stat().st_size for path in partials(proxy) if path.suffix == ".part"]
                assert (storage["reserved"], len(sizes)) == (sum(sizes), 3)
            answers = [await ask(proxy.url + device_path) for _, device_path in blobs]
            assert [each.sha256 for each in answers] == [digest_of(each) for each in contents]
            await at_rest(proxy)
            storage = (await proxy.admin("/pulp/api/v3/status/"))["storage"]
            assert (storage["used"], storage["reserved"]) == (4 * SIZE, 0)
            assert partials(proxy) == []


async def _have_all(proxy: Proxy, count: int, least: int) -> bool:
    """Whether so many transfers have at least so many bytes each."""
    found = (await proxy.admin("/pulp/api/v3/transfers/"))["results"]
    return len([each for each in found if each["state"] == "running" and each["arrived"] >= least]) == count


async def lost_or_refused(asked: asyncio.Task[Answer]) -> None:
    with suppress(aiohttp.ClientError, ConnectionError):
        assert not (answer := await asked).is_complete or answer.status == 503


@pytest.mark.parametrize("path", ["\ud800", "/v2/reg/app/manifests/latest"])
async def test_a_note_with_an_odd_path_harms_nothing(tmp_path: Path, path: str) -> None:
    """Written by hand, with a digest that is right."""
    content = fresh(SIZE)
    async with RegistryRemote() as registry:
        remote_path, device_path = _blob(registry, content)
        config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
        async with started(tmp_path, merged(config, **BY_HAND)) as proxy:
            await interrupt(proxy, registry, remote_path, proxy.url + device_path, 5 * MIB)
            (file,) = (each for each in partials(proxy) if each.suffix == ".json")
            note = decode(file.read_bytes())
            facts = json.loads(note.facts) | {"path": path}
            file.write_bytes(encode(replace(note, facts=json.dumps(facts))))
            proxy.config["resume_concurrency"] = 1
            proxy.config["partial_max_age_seconds"] = 4
            await proxy.start()
            await until(lambda: _is_empty(proxy), timeout=15)


def _blob(registry: RegistryRemote, content: Synthetic) -> tuple[str, str]:
    digest = registry.push_blob("app", content)
    return f"/v2/app/blobs/{digest}", f"/v2/reg/app/blobs/{digest}"
