"""Small, valid, deterministic images: what a registry holds and what podman and containerd can really unpack.

OCI image-spec 1.1 (manifest.md, image-index.md, config.md, layer.md) and Docker's schema 2 with the same content.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from contentapp.core.digest import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

CREATED = "2024-01-01T00:00:00Z"


@dataclass(frozen=True)
class Part:
    """One stored thing: a manifest, an index, a config or a layer. `subject` is the digest of what it refers to."""

    media_type: str
    body: bytes = field(repr=False)
    algorithm: str = "sha256"
    platform: tuple[str, str] | None = None  # (os, architecture), shown in an index
    subject: str = ""
    artifact_type: str = ""

    @cached_property
    def digest(self) -> str:
        """``algorithm:encoded`` of the body."""
        return str(Digest.of(self.body, self.algorithm))

    @property
    def size(self) -> int:
        """Length of the body in bytes."""
        return len(self.body)

    def descriptor(self) -> dict[str, Any]:
        """The descriptor other manifests name it by (descriptor.md)."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type:
            found["artifactType"] = self.artifact_type
        if self.platform:
            found["platform"] = {"os": self.platform[0], "architecture": self.platform[1]}
        return found


@dataclass(frozen=True)
class Image:
    """A manifest with everything it references."""

    manifest: Part
    config: Part
    layers: tuple[Part, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def blobs(self) -> tuple[Part, ...]:
        """Config first, then the layers in their order."""
        return (self.config, *self.layers)

    @property
    def manifests(self) -> tuple[Part, ...]:
        """The manifest alone; an Index has several."""
        return (self.manifest,)


@dataclass(frozen=True)
class Index:
    """An index with its images, one a platform."""

    manifest: Part
    images: tuple[Image, ...]

    @property
    def digest(self) -> str:
        """The index's digest."""
        return self.manifest.digest

    @property
    def blobs(self) -> tuple[Part, ...]:
        """Every blob of every image."""
        return tuple(blob for image in self.images for blob in image.blobs)

    @property
    def manifests(self) -> tuple[Part, ...]:
        """Children first, the index last: the order in which a registry takes them."""
        return (*(image.manifest for image in self.images), self.manifest)


def make_image(
    *, layers: int = 3, layer_size: int = 64 * 1024, arch: str = "amd64", schema2: bool = False, seed: int = 0
) -> Image:
    """An image whose layers are about `layer_size` bytes each, incompressible; other seeds share no byte with it."""
    contents = [layer_tar(number, layer_size, f"{arch}-{seed}") for number in range(layers)]
    layer_type = DOCKER_LAYER if schema2 else OCI_LAYER
    parts = tuple(Part(layer_type, gzip.compress(content, compresslevel=1, mtime=0)) for content in contents)
    config = image_config(
        [str(Digest.of(content)) for content in contents], arch, DOCKER_CONFIG if schema2 else OCI_CONFIG
    )
    media_type = DOCKER_MANIFEST if schema2 else OCI_MANIFEST
    body = manifest_body(media_type, config=config.descriptor(), layers=[part.descriptor() for part in parts])
    return Image(Part(media_type, body, platform=("linux", arch)), config, parts)


def make_index(
    *,
    arches: Sequence[str] = ("amd64", "arm64"),
    layers: int = 2,
    layer_size: int = 32 * 1024,
    schema2: bool = False,
    seed: int = 0,
) -> Index:
    """An index (Docker: manifest list) with one image for each architecture."""
    images = tuple(
        make_image(layers=layers, layer_size=layer_size, arch=arch, schema2=schema2, seed=seed) for arch in arches
    )
    media_type = DOCKER_LIST if schema2 else OCI_INDEX
    body = manifest_body(media_type, manifests=[image.manifest.descriptor() for image in images])
    return Index(Part(media_type, body), images)


def make_artifact(
    *,
    artifact_type: str = "application/vnd.example.sbom.v1",
    content: bytes = b"a bill of materials",
    subject: Part | None = None,
) -> Image:
    """An OCI artifact: empty config, one layer; with a `subject` it is a referrer of that manifest."""
    config, layer = Part(OCI_EMPTY, b"{}"), Part(artifact_type, content)
    fields: dict[str, Any] = {"artifactType": artifact_type}
    if subject is not None:
        fields["subject"] = {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    body = manifest_body(OCI_MANIFEST, **fields, config=config.descriptor(), layers=[layer.descriptor()])
    named = subject.digest if subject is not None else ""
    return Image(Part(OCI_MANIFEST, body, subject=named, artifact_type=artifact_type), config, (layer,))


def manifest_body(media_type: str, **fields: Any) -> bytes:
    """The JSON of a manifest, indented as build tools write it, so that nobody gets away with re-encoding it."""
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}, indent=3).encode()


def image_config(diff_ids: Iterable[str], arch: str, media_type: str) -> Part:
    """The configuration of an image with these layers (config.md)."""
    ids = list(diff_ids)
    config = {
        "created": CREATED,
        "architecture": arch,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(ids))],
    }
    return Part(media_type, json.dumps(config).encode())


def layer_tar(number: int, size: int, flavour: str) -> bytes:
    """An uncompressed layer: the first one has the folders of a root file system, all have one file of random bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        if number == 0:
            for folder in ("bin", "data", "etc"):
                add_entry(tar, folder, None)
            add_entry(tar, "etc/os-release", f'NAME="tiny"\nVERSION="{flavour}"\n'.encode())
        else:
            add_entry(tar, "data", None)
        add_entry(tar, f"data/layer-{number}", random.Random(f"{flavour}/{number}").randbytes(size))
    return packed.getvalue()


def add_entry(tar: tarfile.TarFile, name: str, content: bytes | None) -> None:
    """A folder (no content) or a file, with nothing in it that depends on time or user."""
    entry = tarfile.TarInfo(name)
    if content is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    else:
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))
