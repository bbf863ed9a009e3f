"""P2, before the first byte: the next source is tried within the same request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.proxy import pull_through, running_proxy
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import Cut, Delay, Drop, Fault, Flip, LoginPage, Redirect, Status, challenge, too_many
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Puller, ask

KIB = 1024
MIB = 1024 * KIB
LARGE = Synthetic(2 * MIB + 5)

FAULTS: dict[str, Fault] = {
    "500": Status(500),
    "502": Status(502),
    "503": Status(503),
    "404": Status(404),
    "403": Status(403),
    "429": too_many("30"),
    "drop": Drop(),
    "login page": LoginPage(),
    "redirect loop": Redirect("{path}"),
    "malformed challenge": challenge('Bearer realm="'),
    "foreign realm": challenge('Bearer realm="http://169.254.169.254/token",service="x"'),
    "slow head": Delay(60),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("is_digested", [True, False], ids=["digest", "no digest"])
async def test_next_source_within_the_request(tmp_path: Path, fault: Fault, is_digested: bool) -> None:
    async with (
        FileRemote({"f": LARGE}, manifest=is_digested) as bad,
        FileRemote({"f": LARGE}, manifest=is_digested) as good,
    ):
        bad.script("/f", fault)
        config = pull_through(
            "file",
            "files",
            {"bad": f"{bad.url}/", "good": f"{good.url}/"},
            remote={"sock_read_timeout": 1},
            distribution={"first_byte_deadline_seconds": 8},
        )
        async with running_proxy(tmp_path, config) as proxy:
            answer = await ask(f"{proxy.url}/pulp/content/files/f")
            assert (answer.status, answer.is_complete) == (200, True)
            assert answer.sha256 == digest_of(LARGE)
            assert (await proxy.metrics()).total("contentapp_failovers_total", remote="bad") >= 1


async def test_refused_connection_goes_over_at_once(tmp_path: Path) -> None:
    async with RegistryRemote() as good:
        image = make_image()
        good.push("app", "v1", image)
        config = pull_through("container", "reg", {"dead": f"http://127.0.0.1:{free_port()}", "good": good.url})
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            for blob in image.blobs:
                assert (await ask(f"{proxy.url}/v2/reg/app/blobs/{blob.digest}")).sha256 == blob.digest


async def test_all_sources_together_have_one_deadline(tmp_path: Path) -> None:
    async with RegistryRemote() as one, RegistryRemote() as two:
        for remote in (one, two):
            remote.push("app", "v1", make_image())
            remote.script("/v2/app/*", Delay(60))
        config = pull_through(
            "container", "reg", {"one": one.url, "two": two.url}, distribution={"first_byte_deadline_seconds": 1.5}
        )
        async with running_proxy(tmp_path, config) as proxy:
            async with asyncio.timeout(10):
                answer = await ask(f"{proxy.url}/v2/reg/app/manifests/v1")
            assert answer.status == 503
            assert answer.reason == "i/o timeout"
            assert two.count() == 1


async def test_retries_are_for_the_last_source(tmp_path: Path) -> None:
    async with RegistryRemote() as one, RegistryRemote() as two:
        for remote in (one, two):
            remote.push("app", "v1", make_image())
        one.script("/v2/app/manifests/*", Status(503))
        two.script("/v2/app/manifests/*", Status(503), times=2)
        config = pull_through("container", "reg", {"one": one.url, "two": two.url}, remote={"max_retries": 3})
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            assert (one.count("/v2/app/manifests/*"), two.count("/v2/app/manifests/*")) == (1, 3)


@pytest.mark.parametrize("fault", [Flip(1_000_000), Cut(1_000_000)], ids=["corrupt", "cut"])
async def test_resuming_device_ends_with_the_right_bytes(tmp_path: Path, fault: Fault) -> None:
    """The first answer may be cut; the device's resume is served, from the good source."""
    async with RegistryRemote() as bad, RegistryRemote() as good:
        digest = bad.push_blob("app", LARGE)
        good.push_blob("app", LARGE)
        bad.script(f"/v2/app/blobs/{digest}", fault, method="GET")
        config = pull_through("container", "reg", {"bad": bad.url, "good": good.url})
        async with running_proxy(tmp_path, config) as proxy:
            puller = Puller(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            body = await puller.pull()
            assert len(body) == LARGE.size
            whole = await ask(puller.url)
            assert whole.sha256 == digest
