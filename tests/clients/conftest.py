"""The real programs as fixtures, each stopped at the end of its test, all files in the test's folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.clients.devices import ContainerdDevice, ContainerdFetch, Device, PodmanDevice, SkopeoDevice
from tests.clients.pullers import Containerd, Podman, Skopeo
from tests.clients.servers import DockerRegistry


@pytest.fixture
async def origin(tmp_path: Path) -> AsyncIterator[DockerRegistry]:
    """A running docker-registry, empty."""
    registry = DockerRegistry(folder(tmp_path, "origin"))
    await registry.start()
    yield registry
    if registry.service.is_running:
        await registry.stop()


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder with a short path, for sockets and the like."""
    with TemporaryDirectory(prefix="run-") as made:
        yield Path(made)


@pytest.fixture
def skopeo(tmp_path: Path) -> Skopeo:
    """skopeo; its copies go to folders of its own."""
    return Skopeo(folder(tmp_path, "skopeo"))


@pytest.fixture
async def podman(tmp_path: Path, runtime: Path) -> AsyncIterator[Podman]:
    """podman with an empty store."""
    client = Podman(folder(tmp_path, "podman"), folder(runtime, "podman"))
    yield client
    await client.run("rmi", "--all", "--force")


@pytest.fixture
async def containerd(tmp_path: Path, runtime: Path) -> AsyncIterator[Containerd]:
    """A running containerd with an empty store."""
    daemon = Containerd(folder(tmp_path, "containerd"), folder(runtime, "containerd"))
    async with daemon.service:
        await daemon.service.ready(daemon.answers)
        yield daemon


@pytest.fixture(params=["skopeo", "podman", "containerd", "containerd-fetch"])
def device(request: pytest.FixtureRequest) -> Device:
    """Each of the registry clients in turn."""
    if request.param == "skopeo":
        return SkopeoDevice(request.getfixturevalue("skopeo"))
    if request.param == "podman":
        return PodmanDevice(request.getfixturevalue("podman"))
    kind = ContainerdDevice if request.param == "containerd" else ContainerdFetch
    return kind(request.getfixturevalue("containerd"))


def folder(parent: Path, name: str) -> Path:
    """A new folder."""
    made = parent / name
    made.mkdir()
    return made
