"""The programs that devices pull with, each with its state in a folder of its own."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.programs import Completed, Service, require_program, run
from tests.remotes.images import Image, Index, Part

UNNEEDED_PLUGINS = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
ACCEPT_ANYTHING = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Skopeo:
    """skopeo, with plain HTTP allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = require_program("skopeo")
        self.policy = folder / "policy.json"
        self.policy.write_text(ACCEPT_ANYTHING)

    async def copy(self, source: str, into: str, *flags: str) -> Completed:
        """Copy ``address/name:tag`` into a ``dir:`` folder of this name, manifests as they are."""
        wanted = ("copy", "--preserve-digests", "--src-tls-verify=false", *flags)
        places = (f"docker://{source}", f"dir:{self.folder / into}")
        return await run(self.program, "--policy", self.policy, *wanted, *places)

    async def inspect(self, source: str, *flags: str) -> Any:
        """What ``inspect`` says, decoded."""
        done = await run(self.program, "inspect", "--tls-verify=false", *flags, f"docker://{source}")
        return json.loads(done.check().output)

    def check(self, into: str, image: Image, *, manifest: Part | None = None) -> None:
        """The folder holds every blob of the image, and its manifest (or index) byte for byte."""
        copied = self.folder / into
        assert (copied / "manifest.json").read_bytes() == (manifest or image.manifest).body
        for blob in image.blobs:
            assert (copied / blob.digest.partition(":")[2]).read_bytes() == blob.body


class Podman:
    """podman with a store, registries.conf and certs.d of its own.

    runtime: a folder with a short path; podman takes at most 50 characters for its runroot.
    """

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder, self.runtime = folder, runtime
        self.program = require_program("podman")
        self.registries = folder / "registries.conf"
        self.certificates = folder / "certs.d"
        self.policy = folder / "policy.json"
        self.registries.write_text('unqualified-search-registries = []\nshort-name-mode = "disabled"\n')
        self.certificates.mkdir()
        self.policy.write_text(ACCEPT_ANYTHING)

    async def run(self, *words: str | Path) -> Completed:
        """Run one command on this store."""
        places = ("--root", self.folder / "root", "--runroot", self.runtime, "--tmpdir", self.runtime / "tmp")
        drivers = ("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none")
        env = {"CONTAINERS_REGISTRIES_CONF": str(self.registries), "TMPDIR": str(self.folder)}
        return await run(self.program, *places, *drivers, *words, env=env)

    async def pull(self, image: str, *flags: str | Path) -> Completed:
        """Pull ``address/name:tag``."""
        return await self.run("pull", "--signature-policy", self.policy, "--cert-dir", self.certificates, *flags, image)

    async def digest(self, image: str) -> str:
        """The digest that a pulled image was stored under."""
        done = await self.run("image", "inspect", "--format", "{{.Digest}}", image)
        return done.check().output.decode().strip()

    async def layers(self, image: str) -> list[str]:
        """The diff ids of the layers that it unpacked."""
        done = await self.run("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)
        found: list[str] = json.loads(done.check().output)
        return found

    def allow_http(self, address: str) -> None:
        """Talk plain HTTP to this address."""
        with self.registries.open("a") as registries:
            registries.write(f'\n[[registry]]\nlocation = "{address}"\ninsecure = true\n')

    def add_mirror(self, registry: str, mirror: str) -> None:
        """Pull this registry's images from ``address/path`` over plain HTTP."""
        with self.registries.open("a") as registries:
            registries.write(f'\n[[registry]]\nlocation = "{registry}"\n')
            registries.write(f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n')

    def trust(self, authority: Path) -> None:
        """Put a CA into certs.d (given to pull as --cert-dir)."""
        (self.certificates / "ca.crt").write_bytes(authority.read_bytes())


@dataclass
class Containerd:
    """containerd with root, state, socket and hosts.toml files of its own; ctr talks to it.

    runtime: a folder with a path short enough for a Unix socket's.
    """

    folder: Path
    runtime: Path
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.ctr = require_program("ctr")
        self.hosts = self.folder / "hosts"
        self.socket = self.runtime / "sock"
        config = self.folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.folder / "root"}"\nstate = "{self.runtime / "state"}"\n'
            f'disabled_plugins = {json.dumps(UNNEEDED_PLUGINS)}\n[grpc]\naddress = "{self.socket}"\n'
        )
        tomllib.loads(config.read_text())
        self.service = Service([require_program("containerd"), "--config", config], log=self.folder / "containerd.log")

    async def run(self, *words: str | Path) -> Completed:
        """One ctr command."""
        return await run(self.ctr, "--address", self.socket, *words)

    async def answers(self) -> bool:
        """Whether the daemon is up."""
        return (await self.run("version")).status == 0

    def add_host(self, registry: str, *mirrors: str) -> None:
        """Pull this registry's images from these URLs, in their order; ctr sends them ``ns=<registry>``.

        The server itself is the last mirror too, so that nothing is ever asked outside of loopback.
        """
        folder = self.hosts / registry
        folder.mkdir(parents=True)
        lines = [f'server = "{mirrors[-1]}"']
        lines += [f'[host."{mirror}"]\n  capabilities = ["pull", "resolve"]' for mirror in mirrors]
        (folder / "hosts.toml").write_text("\n".join(lines) + "\n")

    async def pull(self, image: str) -> Completed:
        """Pull and unpack; with `fetch` instead where this machine permits no mounts."""
        if not await mounts_are_permitted():
            return await self.fetch(image)
        return await self.run("images", "pull", "--hosts-dir", self.hosts, "--snapshotter", "native", image)

    async def fetch(self, image: str, *flags: str) -> Completed:
        """Fetch into the content store without unpacking."""
        return await self.run("content", "fetch", "--hosts-dir", self.hosts, *flags, image)

    async def empty(self) -> None:
        """Remove every image and all content, at once."""
        images = (await self.run("images", "list", "--quiet")).check().output.decode().split()
        if images:
            (await self.run("images", "remove", "--sync", *images)).check()
        left = (await self.run("content", "list", "--quiet")).check().output.decode().split()
        if left:
            (await self.run("content", "remove", *left)).check()

    async def blob(self, part: Part) -> bytes:
        """What the content store has under a digest."""
        return (await self.run("content", "get", part.digest)).check().output

    async def check(self, image: Image | Index, *, platform: Image | None = None) -> None:
        """The content store holds the manifest and every blob (of an index: of one platform's image)."""
        wanted = platform or image
        for part in (image.manifest, wanted.manifest, *wanted.blobs):
            assert await self.blob(part) == part.body


async def mounts_are_permitted() -> bool:
    """Whether this process may mount, which containerd's unpacking wants."""
    return (await run("unshare", "--mount", "true")).status == 0
