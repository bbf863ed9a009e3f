"""Clients whose proxy or whose remotes die in the middle of a body."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from tests.clients.devices import BASE_PATH, PodmanDevice
from tests.clients.pullers import Podman
from tests.programs import require_program, run
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import Cut, Drop, Stall
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.stage import PATIENT, merged, until

pytestmark = pytest.mark.clients

MIB = 1024 * 1024
STOP = 6 * MIB
QUICK = {"progress_interval_seconds": 0.05, "grace_seconds": 0, "resume_concurrency": 0}


async def noted(proxy: Proxy, offset: int) -> None:
    """Return when so much of a transfer is written down."""

    async def is_noted() -> bool:
        found = (proxy.data_dir / "partials").glob("*.progress.json")
        return any(json.loads(path.read_text())["offset"] == offset for path in found)

    await until(is_noted)


async def test_podman_pulls_over_a_proxy_that_is_killed_and_started_again(podman: Podman, tmp_path: Path) -> None:
    image = make_image(layers=1, layer_size=11 * MIB)
    async with RegistryRemote() as remote:
        remote.push("app", "1.0", image)
        layer = f"*/{image.layers[0].digest}"
        stall = Stall(STOP)
        remote.script(layer, stall, method="GET", times=1)
        config = pull_through("container", BASE_PATH, {"r": remote.url}, remote=PATIENT)
        async with running_proxy(tmp_path, merged(config, **QUICK)) as proxy:
            device = PodmanDevice(podman)
            device.attach(proxy)
            pulling = asyncio.create_task(device.pull("app:1.0"))
            await noted(proxy, STOP)
            await proxy.kill()
            stall.gate.release()
            await proxy.start()
            if (await pulling).status != 0:  # one before containers/image 5.24 does not resume within a pull
                (await device.pull("app:1.0")).check()
            await device.check(image)
            asked = [each.headers.get("Range", "") for each in remote.requests if each.path.endswith(layer[2:])]
            assert asked == ["", f"bytes={STOP}-"]


async def test_curl_resumes_over_a_proxy_that_is_killed_and_started_again(tmp_path: Path) -> None:
    content = Synthetic(11 * MIB + 7, seed=5)
    curl, output = require_program("curl"), tmp_path / "out"
    async with FileRemote({"f": content}) as remote:
        stall = Stall(STOP)
        remote.script("/f", stall, method="GET", times=1)
        config = pull_through("file", "files", {"r": f"{remote.url}/"}, remote=PATIENT)
        async with running_proxy(tmp_path, merged(config, **QUICK)) as proxy:
            words = (
                curl,
                "--silent",
                "--show-error",
                "--fail",
                "--output",
                output,
                f"{proxy.url}/pulp/content/files/f",
            )
            downloading = asyncio.create_task(run(*words))
            await noted(proxy, STOP)
            await until(lambda: _has(output, 5 * MIB))
            await proxy.kill()
            stall.gate.release()
            assert (await downloading).status != 0
            held = output.stat().st_size
            assert 0 < held <= STOP
            await proxy.start()
            (await run(*words, "--continue-at", "-")).check()
        assert hashlib.sha256(output.read_bytes()).digest() == hashlib.sha256(read_all(content)).digest()
        asked = [each.headers.get("Range", "") for each in remote.requests if (each.method, each.path) == ("GET", "/f")]
        assert asked == ["", f"bytes={STOP}-"]


async def _has(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size >= size


async def test_podman_pulls_while_each_remote_dies_half_way(podman: Podman, tmp_path: Path) -> None:
    """It notices nothing: one answer, put together from three exchanges."""
    image = make_image(layers=1, layer_size=11 * MIB)
    layer = image.layers[0].digest
    async with RegistryRemote() as one, RegistryRemote() as two:
        for remote in (one, two):
            remote.push("app", "1.0", image)
        one.script(f"*/{layer}", Cut(5 * MIB), method="GET", times=1)
        one.script(f"*/{layer}", Drop(), method="GET")
        two.script(f"*/{layer}", Cut(3 * MIB), method="GET", times=1)
        config = pull_through("container", BASE_PATH, {"one": one.url, "two": two.url}, remote=PATIENT)
        async with running_proxy(tmp_path, config) as proxy:
            device = PodmanDevice(podman)
            device.attach(proxy)
            (await device.pull("app:1.0")).check()
            await device.check(image)
            assert (await proxy.metrics()).total("contentapp_requests_total", type="container", outcome="error") == 0
        asked = [each.headers.get("Range", "") for each in two.requests if each.path.endswith(layer)]
        assert asked == [f"bytes={5 * MIB}-", f"bytes={8 * MIB}-"]
