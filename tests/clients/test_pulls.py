"""Registry clients pull from a real registry through the proxy: cold, warm, upstream stopped, a corrupt remote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.devices import BASE_PATH, CONTENT, REGISTRY_HOST, Device
from tests.clients.pullers import Podman, Skopeo
from tests.clients.servers import DockerRegistry, Nginx
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.faults import Flip
from tests.remotes.images import Image, Index, make_image, make_index
from tests.remotes.registry import RegistryRemote

pytestmark = pytest.mark.clients

MIB = 1024 * 1024
TRIES = 4


def config(urls: dict[str, str], **distribution: object) -> dict[str, object]:
    """A container distribution over these remotes; every tag is asked upstream again, or served stale."""
    settings = {"registry_hosts": [REGISTRY_HOST], "tag_ttl_seconds": 0, **distribution}
    return pull_through("container", BASE_PATH, urls, distribution=settings)


def blob_requests(origin: DockerRegistry) -> int:
    """How many blobs the registry was asked for."""
    return sum('"GET /v2/' in line and "/blobs/" in line for line in origin.log().splitlines())


async def pull(device: Device, name: str, pulled: Image | Index) -> None:
    """Pull and check."""
    (await device.pull(name)).check()
    await device.check(pulled)


async def test_cold_warm_and_upstream_stopped(device: Device, origin: DockerRegistry, tmp_path: Path) -> None:
    contents = {f"team/{kind}:1.0": make() for kind, make in CONTENT.items()}
    for name, content in contents.items():
        await origin.push(name.partition(":")[0], "1.0", content)
    async with running_proxy(tmp_path, config({"origin": origin.url})) as proxy:
        device.attach(proxy)
        for name, content in contents.items():
            await pull(device, name, content)
        asked = blob_requests(origin)
        assert asked > 0
        for name, content in contents.items():
            await pull(device, name, content)
        assert blob_requests(origin) == asked, "a warm pull fetched a blob from upstream"
        await origin.stop()
        for name, content in contents.items():
            await pull(device, name, content)


async def test_upstream_stopped_from_the_start(device: Device, origin: DockerRegistry, tmp_path: Path) -> None:
    await origin.push("team/app", "1.0", make_image())
    await origin.stop()
    async with running_proxy(tmp_path, config({"origin": origin.url})) as proxy:
        device.attach(proxy)
        failed = await device.pull("team/app:1.0")
        assert failed.status != 0
        assert "not found" not in failed.messages and "unknown" not in failed.messages.lower()


async def test_corrupt_remote_before_a_good_one(device: Device, origin: DockerRegistry, tmp_path: Path) -> None:
    """Small blobs are verified before their first byte: no client notices anything."""
    image, index = make_image(), make_index()
    async with RegistryRemote() as corrupt:
        for name, content in (("app", image), ("multi", index)):
            corrupt.push(name, "1.0", content)
            await origin.push(name, "1.0", content)
        corrupt.script("*/blobs/*", Flip(at=20))
        async with running_proxy(tmp_path, config({"corrupt": corrupt.url, "origin": origin.url})) as proxy:
            device.attach(proxy)
            await pull(device, "app:1.0", image)
            await pull(device, "multi:1.0", index)
            assert corrupt.count("*/blobs/*", method="GET") > 0
            assert await cools_down(proxy, "corrupt")


async def test_corrupt_remote_with_large_blobs(device: Device, origin: DockerRegistry, tmp_path: Path) -> None:
    """Large blobs stream: a wrong one is reset, which fails that pull at worst; the next ones get the good remote's."""
    image = make_image(layers=2, layer_size=3 * MIB // 2)
    async with RegistryRemote() as corrupt:
        corrupt.push("app", "1.0", image)
        await origin.push("app", "1.0", image)
        for layer in image.layers:
            corrupt.script(f"*/{layer.digest}", Flip(at=MIB))
        async with running_proxy(tmp_path, config({"corrupt": corrupt.url, "origin": origin.url})) as proxy:
            device.attach(proxy)
            statuses = [(await device.pull("app:1.0")).status]
            while statuses[-1] != 0 and len(statuses) < TRIES:
                statuses.append((await device.pull("app:1.0")).status)
            assert statuses[-1] == 0, statuses
            await device.check(image)
            assert all(corrupt.count(f"*/{layer.digest}", method="GET") == 1 for layer in image.layers)


async def cools_down(proxy: Proxy, remote: str) -> bool:
    """Whether the API shows a cooldown of this remote that names a digest."""
    shown = [json.dumps(entry) for entry in (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]]
    return any(remote in entry and "sha256:" in entry for entry in shown)


async def test_inspect(skopeo: Skopeo, origin: DockerRegistry, tmp_path: Path) -> None:
    image = make_image()
    for tag in ("1.0", "1.1", "2.0"):
        await origin.push("team/app", tag, image)
    async with running_proxy(tmp_path, config({"origin": origin.url})) as proxy:
        said = await skopeo.inspect(f"{proxy.address}/{BASE_PATH}/team/app:1.0")
        assert (said["Digest"], sorted(said["RepoTags"])) == (image.digest, ["1.0", "1.1", "2.0"])
        assert await skopeo.inspect(f"{proxy.address}/{BASE_PATH}/team/app:1.0", "--raw") == json.loads(
            image.manifest.body
        )


async def test_podman_mirror(podman: Podman, origin: DockerRegistry, tmp_path: Path) -> None:
    """The way most devices are set up: the image keeps its name, registries.conf points at the proxy."""
    image = make_image()
    await origin.push("team/app", "1.0", image)
    async with running_proxy(tmp_path, config({"origin": origin.url})) as proxy:
        podman.add_mirror(REGISTRY_HOST, f"{proxy.address}/{BASE_PATH}")
        (await podman.pull(f"{REGISTRY_HOST}/team/app:1.0")).check()
        assert await podman.digest(f"{REGISTRY_HOST}/team/app:1.0") == image.digest


async def test_pull_through_nginx(skopeo: Skopeo, origin: DockerRegistry, tmp_path: Path) -> None:
    """nginx between device and proxy changes nothing."""
    index = make_index()
    await origin.push("multi", "1.0", index)
    async with running_proxy(tmp_path, config({"origin": origin.url})) as proxy:
        front = Nginx(tmp_path, proxy.url)
        await front.start()
        (await skopeo.copy(f"{front.address}/{BASE_PATH}/multi:1.0", "multi", "--all")).check()
        skopeo.check("multi", index.images[1], manifest=index.manifest)
        await front.stop()
