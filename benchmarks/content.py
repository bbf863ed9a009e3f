"""The images that are pulled: one big layer each, with a manifest, laid out as files that a web server can serve."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
REPOSITORY = "bench/image"
BLOCK = 1 << 20
NOISE_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Image:
    """What a device needs to know to pull it: a tag, the digests and sizes of its manifest and of its big layer."""

    tag: str
    manifest: str
    manifest_size: int
    layer: str
    size: int

    @property
    def layer_path(self) -> str:
        return f"{REPOSITORY}/blobs/{self.layer}"

    @property
    def tag_path(self) -> str:
        return f"{REPOSITORY}/manifests/{self.tag}"

    @property
    def digest_path(self) -> str:
        return f"{REPOSITORY}/manifests/{self.manifest}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """OCI's descriptor: what names a part of an image."""

    media_type: str
    digest: str
    size: int

    def as_json(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


class ImageStore:
    """Images as files under `root`: blobs/<digest> and manifests/<digest>."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count()
        self._noise = os.urandom(NOISE_BLOCKS * BLOCK)
        for name in ("blobs", "manifests"):
            (root / name).mkdir(parents=True)

    def add(self, size: int) -> Image:
        """A new image, whose layer differs from every other one in each of its blocks."""
        number = next(self._numbers)
        layer = self._add_layer(number, size)
        config = self._add_small("blobs", {"architecture": "amd64", "os": "linux", "number": number}, CONFIG_TYPE)
        manifest = self._add_small("manifests", _manifest(config, layer), MANIFEST_TYPE)
        # The tag ends in the digest, so that the web server can tell one from the other without a table.
        tag = f"v{number}-{manifest.digest.removeprefix('sha256:')}"
        return Image(tag, manifest.digest, manifest.size, layer.digest, size)

    def remove(self, image: Image) -> None:
        (self.root / "blobs" / image.layer).unlink()
        (self.root / "manifests" / image.manifest).unlink()

    def _add_layer(self, number: int, size: int) -> Descriptor:
        digest = hashlib.sha256()
        partial = self.root / "partial"
        with partial.open("wb") as file:
            for index in range(0, size, BLOCK):
                at = index // BLOCK % NOISE_BLOCKS * BLOCK
                block = (number.to_bytes(8) + index.to_bytes(8) + self._noise[at + 16 : at + BLOCK])[: size - index]
                digest.update(block)
                file.write(block)
        descriptor = Descriptor(LAYER_TYPE, f"sha256:{digest.hexdigest()}", size)
        partial.rename(self.root / "blobs" / descriptor.digest)
        return descriptor

    def _add_small(self, folder: str, value: dict[str, object], media_type: str) -> Descriptor:
        body = json.dumps(value, indent=2).encode()
        descriptor = Descriptor(media_type, f"sha256:{hashlib.sha256(body).hexdigest()}", len(body))
        (self.root / folder / descriptor.digest).write_bytes(body)
        return descriptor


def _manifest(config: Descriptor, layer: Descriptor) -> dict[str, object]:
    """With nine more layers that nobody pulls, so that it is as long as those of usual images."""
    others = [f"sha256:{hashlib.sha256(bytes([index])).hexdigest()}" for index in range(9)]
    layers = [*(Descriptor(LAYER_TYPE, other, 4096) for other in others), layer]
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.as_json(),
        "layers": [item.as_json() for item in layers],
    }
