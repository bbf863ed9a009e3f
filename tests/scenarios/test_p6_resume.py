"""P6: a transfer that a restart has interrupted goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import Proxy, pull_through, start_proxy
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import IgnoreRange, Replace, Stall, Status, changed_etag
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.scripted import ScriptedRemote
from tests.scenarios.device import ask, asking
from tests.scenarios.stage import PATIENT, fresh, merged, until, until_hit

MIB = 1024 * 1024
STEP = 4 * MIB
SIZE = 11 * MIB + 77
STOP = 9 * MIB + 5
QUICK = {"progress_interval_seconds": 0.05, "grace_seconds": 0, "resume_interval_seconds": 0.1}


@dataclass
class Kind:
    """One way to ask for one content of one or two remotes."""

    name: str
    content: Synthetic
    remote: ScriptedRemote
    path: str
    device_path: str
    config: dict[str, Any]


@asynccontextmanager
async def remote_of(name: str) -> AsyncIterator[Kind]:
    """A blob of a registry, a listed file, or one of which no digest is known."""
    content = fresh(SIZE)
    if name == "blob":
        async with RegistryRemote() as registry:
            digest = registry.push_blob("app", content)
            config = pull_through("container", "reg", {"r": registry.url}, remote=PATIENT)
            yield Kind(name, content, registry, f"/v2/app/blobs/{digest}", f"/v2/reg/app/blobs/{digest}", config)
        return
    async with FileRemote({"f": content}, manifest=name == "listed") as files:
        config = pull_through("file", "files", {"r": f"{files.url}/"}, remote=PATIENT)
        yield Kind(name, content, files, "/f", "/pulp/content/files/f", config)


@asynccontextmanager
async def stopped(
    kind: Kind, folder: Path, *, signal: str = "kill", stop: int = STOP, **engine: Any
) -> AsyncIterator[Proxy]:
    """A proxy that was ended when `stop` bytes of the content had come and were written down; it does not run."""
    stall = Stall(stop)
    kind.remote.script(kind.path, stall, method="GET", times=1)
    config = merged(kind.config, **{"resume_concurrency": 0, **QUICK, **engine})
    proxy = await start_proxy(folder, config)
    try:
        device = asyncio.create_task(ask(proxy.url + kind.device_path))
        await until(lambda: _noted(proxy, stop if signal == "kill" else 0))
        await _arrived(proxy, stop)
        if signal == "kill":
            await proxy.kill()
        else:
            await proxy.stop()
        with suppress(aiohttp.ClientError, ConnectionError):
            assert not (await device).is_complete
        yield proxy
    finally:
        stall.gate.release()
        if proxy.service.is_running:
            await proxy.kill()


async def _arrived(proxy: Proxy, size: int) -> None:
    async def has_arrived() -> bool:
        return any(each["arrived"] == size for each in (await proxy.admin("/pulp/api/v3/transfers/"))["results"])

    await until(has_arrived)


async def _noted(proxy: Proxy, size: int) -> bool:
    return size == 0 or any(note["offset"] == size for note in notes(proxy))


def notes(proxy: Proxy) -> list[dict[str, Any]]:
    """What is written down."""
    return [json.loads(path.read_text()) for path in (proxy.data_dir / "partials").glob("*.progress.json")]


def partials(proxy: Proxy) -> list[Path]:
    return list((proxy.data_dir / "partials").glob("*.part"))


def ranges(kind: Kind) -> list[str]:
    """What the remote was asked for, GET after GET."""
    asked = [each for each in kind.remote.requests if each.method == "GET" and each.path == kind.path]
    return [each.headers.get("Range", "") for each in asked]


KINDS = ["blob", "listed", "undigested"]


@pytest.mark.parametrize("signal", ["term", "kill"])
@pytest.mark.parametrize("name", KINDS)
async def test_a_device_gets_the_whole_and_upstream_is_asked_for_the_rest(
    tmp_path: Path, name: str, signal: str
) -> None:
    async with remote_of(name) as kind, stopped(kind, tmp_path, signal=signal) as proxy:
        assert [note["offset"] for note in notes(proxy)] == [STOP]
        await proxy.start()
        answer = await ask(proxy.url + kind.device_path)
        assert (answer.status, answer.is_complete, answer.sha256) == (200, True, digest_of(kind.content))
        assert ranges(kind) == ["", f"bytes={STOP}-"]
        assert (await until_hit(proxy.url + kind.device_path)).sha256 == digest_of(kind.content)
        await until(lambda: _is_empty(proxy))
        assert (await proxy.metrics()).total("contentapp_resumed_transfers_total", remote="r") == 1


@pytest.mark.parametrize("name", KINDS)
async def test_without_a_device_it_goes_on_by_itself(tmp_path: Path, name: str) -> None:
    async with remote_of(name) as kind, stopped(kind, tmp_path, resume_concurrency=1) as proxy:
        await proxy.start()
        await until(lambda: _has_artifacts(proxy, 1))
        assert ranges(kind) == ["", f"bytes={STOP}-"]
        assert (await until_hit(proxy.url + kind.device_path)).sha256 == digest_of(kind.content)


async def _has_artifacts(proxy: Proxy, count: int) -> bool:
    return len(proxy.artifacts()) == count


@pytest.mark.parametrize(
    ("damaged", "asked"),
    [(0, 0), (STEP - 1, 0), (STEP, STEP), (2 * STEP - 1, STEP), (2 * STEP, 2 * STEP), (STOP - 1, 2 * STEP)],
)
async def test_damaged_bytes_are_cut_off(tmp_path: Path, damaged: int, asked: int) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path) as proxy:
        (partial,) = partials(proxy)
        with partial.open("r+b") as file:
            file.seek(damaged)
            byte = file.read(1)
            file.seek(damaged)
            file.write(bytes([byte[0] ^ 1]))
        await proxy.start()
        answer = await ask(proxy.url + kind.device_path)
        assert (answer.is_complete, answer.sha256) == (True, digest_of(kind.content))
        assert ranges(kind) == ["", f"bytes={asked}-" if asked else ""]


@pytest.mark.parametrize("edit", ["truncated", "edited", "empty", "another offset", "partial gone short"])
async def test_what_does_not_verify_means_from_the_beginning(tmp_path: Path, edit: str) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path) as proxy:
        (partial,), (note,) = partials(proxy), (proxy.data_dir / "partials").glob("*.progress.json")
        text = note.read_text()
        if edit == "partial gone short":
            with partial.open("r+b") as file:
                file.truncate(STOP - 1)
        else:
            edited = {
                "truncated": text[:-10],
                "edited": text.replace("progress", "progreso").replace('"step":4194304', '"step":4194305'),
                "empty": "",
                "another offset": text.replace(f'"offset":{STOP}', f'"offset":{STOP - 1}'),
            }[edit]
            assert edited != text
            note.write_text(edited)
        await proxy.start()
        answer = await ask(proxy.url + kind.device_path)
        assert (answer.is_complete, answer.sha256) == (True, digest_of(kind.content))
        assert ranges(kind) == ["", ""]


async def test_undigested_bytes_that_have_changed_are_fetched_whole(tmp_path: Path) -> None:
    async with remote_of("undigested") as kind, stopped(kind, tmp_path) as proxy:
        other = fresh(SIZE)
        kind.remote.script(kind.path, Replace(other), changed_etag())
        await proxy.start()
        answer = await ask(proxy.url + kind.device_path)
        assert (answer.is_complete, answer.sha256) == (True, digest_of(other))


async def test_digested_bytes_that_have_changed_unseen_never_mix(tmp_path: Path) -> None:
    """With the rest of another file it is wrong as a whole; the same source is asked anew, and not blamed."""
    async with remote_of("blob") as kind, stopped(kind, tmp_path) as proxy:
        kind.remote.script(kind.path, Replace(fresh(SIZE)), times=1)
        await proxy.start()
        first = await ask(proxy.url + kind.device_path)
        assert not first.is_complete
        second = await until_hit(proxy.url + kind.device_path)
        assert second.sha256 == digest_of(kind.content)
        assert ranges(kind) == ["", f"bytes={STOP}-", ""]
        assert (await proxy.metrics()).total("contentapp_digest_failures_total") == 0


async def test_a_remote_that_ignores_ranges_is_read_again_and_compared(tmp_path: Path) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path) as proxy:
        kind.remote.script(kind.path, IgnoreRange())
        await proxy.start()
        answer = await ask(proxy.url + kind.device_path)
        assert (answer.is_complete, answer.sha256) == (True, digest_of(kind.content))
        assert ranges(kind) == ["", f"bytes={STOP}-"]


async def test_while_upstream_is_down_it_is_kept_and_goes_on_later(tmp_path: Path) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path, resume_concurrency=1) as proxy:
        down = kind.remote.script("*", Status(503), times=4)
        await proxy.start()
        assert (await ask(proxy.url + kind.device_path)).status == 503
        await until(lambda: _has_artifacts(proxy, 1))
        assert down.hits == 4
        assert ranges(kind)[-1] == f"bytes={STOP}-"


async def test_undigested_bytes_whose_remote_is_gone_come_from_the_next_one(tmp_path: Path) -> None:
    """It can't go on with the first one's bytes; but it has the file."""
    async with remote_of("undigested") as kind, FileRemote({"f": fresh(SIZE)}, manifest=False) as second:
        urls = {"r": f"{kind.remote.url}/", "second": f"{second.url}/"}
        kind.config = pull_through("file", "files", urls, remote=PATIENT)
        async with stopped(kind, tmp_path, resume_concurrency=1) as proxy:
            kind.remote.script("*", Status(503))
            await proxy.start()
            answer = await ask(proxy.url + kind.device_path)
            assert (answer.status, answer.is_complete) == (200, True)
            assert answer.sha256 == digest_of(second.files["f"])
            await until(lambda: _is_empty(proxy))


async def test_what_nobody_resumes_goes_after_its_age(tmp_path: Path) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path, partial_max_age_seconds=1) as proxy:
        await proxy.start()
        await until(lambda: _is_empty(proxy))
        used = (await proxy.admin("/pulp/api/v3/status/"))["storage"]
        assert used["used"] == 0, used


async def _is_empty(proxy: Proxy) -> bool:
    return not partials(proxy) and not notes(proxy)


@pytest.mark.parametrize(("signal", "status"), [("term", 206), ("kill", 200)])
async def test_if_range_holds_over_a_restart_when_nothing_was_lost(tmp_path: Path, signal: str, status: int) -> None:
    """After a kill bytes may be fetched again which a device has had in another form: it has to begin anew."""
    async with remote_of("blob") as kind:
        stall = Stall(STOP)
        kind.remote.script(kind.path, stall, method="GET", times=1)
        proxy = await start_proxy(tmp_path, merged(kind.config, resume_concurrency=0, **QUICK))
        try:
            async with asking(proxy.url + kind.device_path) as response:
                etag = response.headers["ETag"]
                await _arrived(proxy, STOP)
                await until(lambda: _noted(proxy, STOP if signal == "kill" else 0))
            await (proxy.kill() if signal == "kill" else proxy.stop())
            await proxy.start()
            resumed = await ask(proxy.url + kind.device_path, headers={"Range": f"bytes={MIB}-", "If-Range": etag})
            assert (resumed.status, resumed.is_complete) == (status, True)
            assert resumed.body == read_all(kind.content)[MIB if status == 206 else 0 :]
        finally:
            stall.gate.release()
            await proxy.kill()


async def test_a_little_is_not_kept(tmp_path: Path) -> None:
    async with remote_of("blob") as kind, stopped(kind, tmp_path, signal="term", stop=MIB - 1) as proxy:
        assert (partials(proxy), notes(proxy)) == ([], [])


async def test_streamed_content_is_not_kept(tmp_path: Path) -> None:
    async with remote_of("blob") as kind:
        kind.config["remotes"][0]["policy"] = "streamed"
        async with stopped(kind, tmp_path, signal="term") as proxy:
            assert (partials(proxy), notes(proxy)) == ([], [])
