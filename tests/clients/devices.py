"""The registry clients behind one face, so that each does the same pulls through the proxy."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from typing import Protocol

from tests.clients.pullers import Containerd, Podman, Skopeo
from tests.programs import Completed
from tests.remotes.images import Image, Index, make_image, make_index

BASE_PATH = "apps"
REGISTRY_HOST = "registry.test"
CONTENT: dict[str, Callable[[], Image | Index]] = {
    "oci-image": make_image,
    "docker-image": lambda: make_image(schema2=True),
    "oci-index": make_index,
    "docker-list": lambda: make_index(schema2=True),
}


class Place(Protocol):
    """Where a registry is reached: the proxy, or a registry itself."""

    @property
    def address(self) -> str:
        """``host:port``."""
        ...

    @property
    def url(self) -> str:
        """With the scheme."""
        ...


class Device(ABC):
    """Pulls what a place serves under BASE_PATH, or for REGISTRY_HOST (clients that send ``ns=``)."""

    def attach(self, place: Place) -> None:
        """Point it there."""
        self.place = place

    @abstractmethod
    async def pull(self, name: str) -> Completed:
        """Pull ``name:tag`` from nothing, whatever was pulled before."""

    @abstractmethod
    async def check(self, pulled: Image | Index) -> None:
        """What was pulled last is this, to the byte as far as the client can tell."""


class SkopeoDevice(Device):
    """``skopeo copy --all`` to a new folder each time."""

    def __init__(self, skopeo: Skopeo) -> None:
        self.skopeo, self.numbers, self.copied = skopeo, count(), ""

    async def pull(self, name: str) -> Completed:
        self.copied = f"copy-{next(self.numbers)}"
        return await self.skopeo.copy(f"{self.place.address}/{BASE_PATH}/{name}", self.copied, "--all")

    async def check(self, pulled: Image | Index) -> None:
        for image in pulled.images if isinstance(pulled, Index) else (pulled,):
            self.skopeo.check(self.copied, image, manifest=pulled.manifest)


class PodmanDevice(Device):
    """``podman pull`` into a store that is emptied before; it unpacks, so the diff ids are verified too."""

    def __init__(self, podman: Podman) -> None:
        self.podman, self.image = podman, ""

    def attach(self, place: Place) -> None:
        super().attach(place)
        self.podman.allow_http(place.address)

    async def pull(self, name: str) -> Completed:
        (await self.podman.run("rmi", "--all", "--force")).check()
        self.image = f"{self.place.address}/{BASE_PATH}/{name}"
        return await self.podman.pull(self.image)

    async def check(self, pulled: Image | Index) -> None:
        image = pulled.images[0] if isinstance(pulled, Index) else pulled
        assert await self.podman.digest(self.image) == pulled.digest
        assert await self.podman.layers(self.image) == json.loads(image.config.body)["rootfs"]["diff_ids"]


class ContainerdDevice(Device):
    """``ctr images pull`` through a hosts.toml, with ``ns=``, after everything was removed; it unpacks."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd

    def attach(self, place: Place) -> None:
        super().attach(place)
        self.containerd.add_host(REGISTRY_HOST, place.url)

    async def pull(self, name: str) -> Completed:
        await self.containerd.empty()
        return await self.containerd.pull(f"{REGISTRY_HOST}/{name}")

    async def check(self, pulled: Image | Index) -> None:
        await self.containerd.check(pulled, platform=pulled.images[0] if isinstance(pulled, Index) else None)


class ContainerdFetch(ContainerdDevice):
    """``ctr content fetch``: the same without unpacking, all platforms."""

    async def pull(self, name: str) -> Completed:
        await self.containerd.empty()
        return await self.containerd.fetch(f"{REGISTRY_HOST}/{name}", "--all-platforms")

    async def check(self, pulled: Image | Index) -> None:
        for part in (*pulled.manifests, *pulled.blobs):
            assert await self.containerd.blob(part) == part.body
