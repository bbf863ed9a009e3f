"""Every real client works against a real registry without the proxy: what fails elsewhere is not the harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.devices import BASE_PATH, CONTENT, Device
from tests.clients.pullers import Containerd, Podman, Skopeo
from tests.clients.servers import DockerRegistry, Nginx
from tests.programs import require_program, run
from tests.remotes.authority import Authority
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import Cut, Flip
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote

pytestmark = pytest.mark.clients


@pytest.mark.parametrize("kind", CONTENT)
async def test_every_client_pulls(device: Device, origin: DockerRegistry, kind: str) -> None:
    content = CONTENT[kind]()
    for name in (f"{BASE_PATH}/team/app", "team/app"):
        await origin.push(name, "1.0", content)
    device.attach(origin)
    for _ in range(2):
        (await device.pull("team/app:1.0")).check()
        await device.check(content)
    assert (await device.pull("team/app:2.0")).status != 0


async def test_every_client_recovers_from_a_reset(device: Device) -> None:
    """A corrupt body that is reset ends in the right image after a few pulls, even when the client resumes it."""
    image = make_image(layers=2, layer_size=3 * 512 * 1024)
    async with RegistryRemote() as remote:
        for name in (f"{BASE_PATH}/app", "app"):
            remote.push(name, "1.0", image)
        for layer in image.layers:
            remote.script(f"*/{layer.digest}", Flip(at=1024 * 1024), Cut(at=1500 * 1024), times=1)
        device.attach(remote)
        statuses = [(await device.pull("app:1.0")).status]
        while statuses[-1] != 0 and len(statuses) < 4:
            statuses.append((await device.pull("app:1.0")).status)
        assert statuses[-1] == 0, statuses
        await device.check(image)


async def test_podman_with_a_private_authority(podman: Podman, authority: Authority) -> None:
    image = make_image()
    async with RegistryRemote(tls=authority.issue("podman").server_context()) as remote:
        remote.push("app", "1.0", image)
        assert "unknown authority" in (await podman.pull(f"{remote.address}/app:1.0")).messages
        podman.trust(authority.certificate)
        (await podman.pull(f"{remote.address}/app:1.0")).check()
        assert await podman.digest(f"{remote.address}/app:1.0") == image.digest


async def test_containerd_sends_its_namespace(containerd: Containerd) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "1.0", make_image())
        containerd.add_host("registry.test", remote.url)
        (await containerd.pull("registry.test/app:1.0")).check()
        assert {exchange.query for exchange in remote.requests} == {"ns=registry.test"}


async def test_pullers_notice_a_flipped_byte(skopeo: Skopeo, podman: Podman, containerd: Containerd) -> None:
    async with RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "1.0", image)
        remote.script(f"*/{image.layers[1].digest}", Flip(at=100))
        podman.allow_http(remote.address)
        containerd.add_host("registry.test", remote.url)
        for pull in (
            skopeo.copy(f"{remote.address}/app:1.0", "app"),
            podman.pull(f"{remote.address}/app:1.0"),
            containerd.pull("registry.test/app:1.0"),
        ):
            assert image.layers[1].digest in (await pull).messages


async def test_curl_through_nginx(tmp_path: Path) -> None:
    content = Synthetic(200_000)
    async with FileRemote({"a": content}) as remote:
        front = Nginx(tmp_path, remote.url)
        await front.start()
        curl, output = require_program("curl"), tmp_path / "out"
        output.write_bytes(read_all(content)[:1000])
        (await run(curl, "-sS", "--fail", "-C", "-", "-o", output, f"{front.url}/a")).check()
        assert output.read_bytes() == read_all(content)
        assert remote.sent() == 199_000
        await front.stop()
