"""What an operator sees: metrics that are right over two workers, one log line a request, an orderly end, no secret."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import Metrics, Proxy, pull_through, running_proxy, start_proxy
from tests.remotes.content import Synthetic, digest_of, read_all
from tests.remotes.faults import Flip, Stall, Status, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, ask_many, asking, until_stored
from tests.scenarios.leak import assert_unsaid
from tests.scenarios.stage import PATIENT, merged, staged, until

KIB = 1024
MIB = 1024 * KIB
LARGE = Synthetic(5 * MIB, seed=90)
HERD = 10
PASSWORD, TOKEN = "sw0rdfish-in-config", "t0ken-of-a-device"


def total(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.total(f"contentapp_{name}", **labels)


def requests_logged(proxy: Proxy) -> list[dict[str, Any]]:
    """The lines of devices' requests in the JSON log; every other line must be JSON too."""
    lines = [json.loads(line) for line in proxy.output().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "request" and not line["path"].startswith("/pulp/api/")]


async def has_logged(proxy: Proxy, count: int) -> bool:
    """Whether so many requests are in the log: they are written a quarter of a second later."""
    return len(requests_logged(proxy)) >= count


async def test_metrics_and_log_of_two_workers(tmp_path: Path) -> None:
    """Every kind of outcome once or more, counted over both workers as the devices and the remotes counted it."""
    async with RegistryRemote() as good, RegistryRemote() as bad, FileRemote({"f": LARGE}, manifest=False) as files:
        image = make_image()
        digest = digest_of(LARGE)
        for remote in (bad, good):
            remote.push("app", "v1", image)
            remote.push_blob("app", LARGE)
        small = image.layers[0].digest
        bad.script(f"/v2/app/blobs/{small}", Flip(3), method="GET")
        stall = Stall(MIB)
        good.script(f"/v2/app/blobs/{digest}", stall, method="GET")
        bad.script(f"/v2/app/blobs/{digest}", Status(404))
        async with staged(
            tmp_path,
            pull_through("container", "reg", {"bad": bad.url, "good": good.url}, distribution={"tag_ttl_seconds": 0}),
            pull_through("file", "flow", {"s": f"{files.url}/"}, remote={"policy": "streamed"}),
            content={"workers": 2},
            log={"format": "json"},
        ) as proxy:
            answers: list[Answer] = [await ask(f"{proxy.url}/v2/reg/app/manifests/v1")]
            answers.append(await ask(f"{proxy.url}/v2/reg/app/blobs/{small}"))
            assert answers[-1].sha256 == small
            async with AsyncExitStack() as stack:
                asked = (asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") for _ in range(HERD))
                herd = [await stack.enter_async_context(one) for one in asked]  # each has its head, so it follows
                assert total(await proxy.metrics(), "transfers") == 1
                stall.gate.release()
                for response in herd:
                    body = await response.content.read()
                    answers.append(Answer(response.status, "", response.headers, body))
            await until_stored(proxy)
            answers += await ask_many(f"{proxy.url}/v2/reg/app/blobs/{digest}", 8)
            answers += await ask_many(f"{proxy.url}/pulp/content/flow/f", 1)
            answers.append(await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}", headers={"Range": "bytes=0-99"}))
            answers.append(
                await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}", headers={"If-None-Match": f'"{digest}"'})
            )
            await bad.refuse()
            answers.append(await ask(f"{proxy.url}/v2/reg/app/manifests/v1"))
            assert "stale-if-error" in answers[-1].cache
            answers.append(await ask(f"{proxy.url}/v2/none/app/manifests/v1"))
            await until(lambda: has_logged(proxy, len(answers)))
            lines = requests_logged(proxy)
            metrics = await proxy.metrics()

            assert len(lines) == len(answers)
            assert len({line["request_id"] for line in lines}) == len(lines)
            assert len({line["request_id"].rpartition("-")[0] for line in lines}) == 2, "both workers took part"
            outcomes = {name: sum(line["outcome"] == name for line in lines) for name in OUTCOMES}
            for outcome, count in outcomes.items():
                assert total(metrics, "requests_total", outcome=outcome) == count, outcome
            assert outcomes["collapsed"] == HERD - 1
            assert outcomes["stale"] == outcomes["streamed"] == outcomes["error"] == 1
            assert outcomes["hit"] == 10
            assert total(metrics, "requests_total") == len(lines)
            assert (
                total(metrics, "requests_total", type="file", policy="streamed", outcome="streamed", status="2xx") == 1
            )
            assert total(metrics, "requests_total", type="container", policy="on_demand", status="3xx") == 1
            assert total(metrics, "requests_total", type="none", policy="none", outcome="error", status="4xx") == 1
            # Bytes: what the devices got, and what the remotes sent.
            assert total(metrics, "device_bytes_total") == sum(len(answer.body) for answer in answers)
            assert sum(line["size"] for line in lines) == sum(len(answer.body) for answer in answers)
            assert total(metrics, "upstream_bytes_total", remote="good") == sum(
                exchange.sent for exchange in good.requests if exchange.status == 200
            )
            assert total(metrics, "upstream_bytes_total", remote="s") == LARGE.size
            # Times.
            assert total(metrics, "request_duration_seconds_count") == len(lines)
            assert total(metrics, "first_byte_seconds_count") <= len(lines)
            slow = total(metrics, "first_byte_seconds_bucket", outcome="hit", le="+Inf")
            assert slow >= outcomes["hit"] - 2
            assert total(metrics, "first_byte_seconds_sum") <= total(metrics, "request_duration_seconds_sum") + 0.1
            # What went wrong.
            assert total(metrics, "digest_failures_total", remote="bad") == 1
            assert total(metrics, "digest_failures_total", remote="good") == 0
            assert total(metrics, "failovers_total", remote="bad") >= 1
            assert total(metrics, "failovers_total", remote="good") == 0
            assert total(metrics, "cooldown_starts_total", remote="bad", scope="artifact") == 1
            assert total(metrics, "cooldowns", remote="bad") >= 1
            assert total(metrics, "degraded_flights_total") == 0
            assert total(metrics, "transfers") == 0
            stored = sum(path.stat().st_size for path in proxy.artifacts())
            assert stored == image.manifest.size + image.layers[0].size + LARGE.size
            assert total(metrics, "storage_used_bytes") == stored
            assert total(metrics, "storage_reserved_bytes") == 0
            assert total(metrics, "storage_limit_bytes") > stored
            assert total(metrics, "build_info") == 1
            for line in lines:
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
                assert line["device"] == "127.0.0.1"
                assert 0 <= line["seconds"] < 60
            shown = {value for sample in metrics.samples for name, value in sample.labels.items() if name != "le"}
            assert not {value for value in shown if "app" in value or "sha256" in value or "/" in value}


OUTCOMES = ("hit", "miss", "collapsed", "stale", "streamed", "error")


async def test_unstored_delivery_is_counted(tmp_path: Path) -> None:
    """A quota too small for a body: delivered all the same, counted as degraded, with a warning."""
    async with FileRemote({"f": LARGE}, manifest=False) as remote:
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=PATIENT)
        async with staged(tmp_path, config, cache={"max_size": "2MiB"}, space_wait_seconds=0) as proxy:
            answer = await ask(f"{proxy.url}/pulp/content/files/f")
            assert answer.sha256 == digest_of(LARGE)
            assert answer.cache == "fwd=miss; detail=no-space"
            metrics = await proxy.metrics()
            assert total(metrics, "degraded_flights_total", reason="no_space") == 1
            assert total(metrics, "storage_used_bytes") == 0
            assert proxy.artifacts() == []

            async def warned() -> bool:
                return '"event": "delivering unstored"' in proxy.output()

            await until(warned)


async def test_counts_survive_a_worker(tmp_path: Path) -> None:
    """A worker that is killed takes none of its counts along, and another one takes its place."""
    async with RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "v1", image)
        config = merged(pull_through("container", "reg", {"r": remote.url}), content={"workers": 2})
        async with running_proxy(tmp_path, config) as proxy:
            for _ in range(12):
                assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            before = total(await proxy.metrics(), "requests_total")
            assert before == 12
            before_it = children(proxy)
            victim = before_it[0]
            os.kill(victim, signal.SIGKILL)

            async def replaced() -> bool:
                now = children(proxy)
                return len(now) == len(before_it) and victim not in now

            await until(replaced)
            await proxy.ready()
            answered = [await ask(f"{proxy.url}/v2/reg/app/manifests/v1") for _ in range(6)]
            assert {answer.status for answer in answered} == {200}
            assert total(await proxy.metrics(), "requests_total") == 18


# -- the end


async def test_sigterm_finishes_what_goes_on_and_refuses_what_is_new(tmp_path: Path) -> None:
    """Idle connections close at once, new ones are refused by the kernel, a response in the middle comes whole."""
    async with FileRemote({"f": LARGE}, manifest=False) as remote:
        stall = Stall(2 * MIB)
        remote.script("/f", stall, method="GET")
        config = pull_through("file", "files", {"r": f"{remote.url}/"})
        proxy = await start_proxy(tmp_path, {**config, "content": {"workers": 2}, "grace_seconds": 20})
        try:
            idle = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(8)]
            for _, writer in idle[::2]:
                writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asking(f"{proxy.url}/pulp/content/files/f") as response:
                got = await response.content.readexactly(MIB)
                started = time.monotonic()
                stopping = asyncio.create_task(proxy.stop())
                async with asyncio.timeout(5):
                    await asyncio.gather(*(reader.read() for reader, _ in idle))
                    while await connects(proxy.port):
                        await asyncio.sleep(0.02)
                assert not stopping.done()
                stall.gate.release()
                got += await response.content.read()
                assert got == read_all(LARGE)
            assert await stopping == 0
            assert time.monotonic() - started < 10
            for _, writer in idle:
                writer.close()
        finally:
            stall.gate.release()
            if proxy.service.is_running:
                await proxy.kill()
        assert "process killed" not in proxy.output()
        assert "Traceback" not in proxy.output()


async def connects(port: int) -> bool:
    """Whether the kernel takes a connection; False when it refuses."""
    with socket.socket() as connection:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        except (ConnectionRefusedError, ConnectionResetError):
            return False
    return True


@pytest.mark.parametrize("is_sized", [True, False])
async def test_after_the_grace_period_what_is_left_is_cut(tmp_path: Path, is_sized: bool) -> None:
    """Incomplete for the device, in time, without the supervisor having to kill anybody."""
    async with FileRemote({"f": LARGE}, manifest=False) as remote:
        stall = Stall(2 * MIB)
        remote.script("/f", stall, *([] if is_sized else [Unsized()]), method="GET")
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=PATIENT)
        proxy = await start_proxy(tmp_path, {**config, "grace_seconds": 1.5})
        try:
            async with asking(f"{proxy.url}/pulp/content/files/f") as response:
                await response.content.readexactly(MIB)
                started = time.monotonic()
                assert await proxy.stop() == 0
                assert 1.4 <= time.monotonic() - started < 3
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await response.content.read()
            assert "process killed" not in proxy.output()
            assert "Traceback" not in proxy.output()
            stall.gate.release()
            remote.clear()
            await proxy.start()
            assert (await ask(f"{proxy.url}/pulp/content/files/f")).sha256 == digest_of(LARGE)
            await proxy.stop()
        finally:
            stall.gate.release()
            if proxy.service.is_running:
                await proxy.kill()


# -- secrets


@pytest.mark.parametrize("form", ["json", "console"])
async def test_no_secret_is_ever_written(tmp_path: Path, form: str) -> None:
    """Neither what is configured nor what devices and remotes send, at the most talkative level, also when it fails."""
    async with RegistryRemote() as remote, FileRemote({"f": b"x"}, manifest=False) as files:
        remote.push("app", "v1", make_image())
        remote.script("/v2/leaky/*", Status(500, {"X-Echo": TOKEN}, body=TOKEN.encode(), reason=TOKEN))
        remote.script("/v2/teapot/*", Status(418, {"Location": f"http://x/?token={TOKEN}"}, body=TOKEN.encode()))
        secrets = {
            "password": {"env": "CONTENTAPP_TEST_PASSWORD"},
            "username": "robot",
            "headers": [{"X-Key": PASSWORD}],
        }
        config = merged(
            pull_through("container", "reg", {"r": remote.url}, remote={**PATIENT, **secrets}),
            pull_through("file", "files", {"f": f"{files.url}/"}, remote={**PATIENT, **secrets}),
            log={"format": form, "level": "debug"},
        )
        proxy = Proxy(tmp_path, config)
        proxy.service.env["CONTENTAPP_TEST_PASSWORD"] = PASSWORD
        await proxy.start()
        try:
            own = {
                "Authorization": f"Bearer {TOKEN}",
                "Cookie": f"session={TOKEN}",
                "Proxy-Authorization": f"Basic {TOKEN}",
                "X-Api-Key": TOKEN,
                "Referer": f"http://x/?token={TOKEN}",
                "User-Agent": f"agent {TOKEN}",
            }
            answers = []
            for path in (
                "/v2/",
                "/v2/reg/app/manifests/v1",
                f"/v2/reg/app/manifests/v1?token={TOKEN}",
                f"/v2/reg/none/manifests/v1?X-Amz-Signature={TOKEN}",
                "/v2/reg/leaky/manifests/v1",
                "/v2/reg/teapot/tags/list",
                f"/pulp/content/files/f?sig={TOKEN}",
                f"/pulp/content/files/none?sig={TOKEN}",
                f"/elsewhere?sig={TOKEN}",
            ):
                answers.append(await ask(f"{proxy.url}{path}", headers=own))
            async with aiohttp.ClientSession() as session:
                login = aiohttp.encode_basic_auth("admin", TOKEN)
                for headers in ({"Authorization": login}, {"Authorization": f"Bearer {TOKEN}"}, {"Cookie": TOKEN}):
                    async with session.get(f"{proxy.admin_url}/pulp/api/v3/cooldowns/", headers=headers) as refused:
                        assert refused.status in (401, 403)
                        assert TOKEN not in await refused.text()
            await asyncio.sleep(0.5)  # the log is written a quarter of a second later
            password = (proxy.data_dir / "admin-password").read_text().strip()
            assert (proxy.data_dir / "admin-password").stat().st_mode & 0o077 == 0
            await assert_unsaid(proxy, [PASSWORD, TOKEN, password, login[6:]], answers)
            for pid in [proxy.service.process.pid, *children(proxy)]:
                assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()
        finally:
            await proxy.stop()
        assert PASSWORD not in proxy.output()


def children(proxy: Proxy) -> list[int]:
    pid = proxy.service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
