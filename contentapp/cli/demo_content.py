"""What the demo's remotes have: an image of several layers and a tree of files, made on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field

REPOSITORY = "demo/app"
TAG = "1.0"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
BYTES_TYPE = "application/octet-stream"

KIB, MIB = 1024, 1024 * 1024
LAYERS = {"base": 4 * MIB, "runtime": 400 * KIB, "app": 200 * KIB}
FILES = {"firmware.bin": 32 * MIB, "release-notes.txt": 2 * KIB}
BIG_FILE = "firmware.bin"
FILES_ROOT = "/files/"


@dataclass(frozen=True, slots=True)
class Blob:
    """Some bytes, what they are called in the story, and their digest as ``sha256:…``."""

    title: str
    body: bytes = field(repr=False)
    digest: str

    @classmethod
    def of(cls, title: str, body: bytes) -> Blob:
        """With the digest that the bytes have."""
        return cls(title, body, f"sha256:{hashlib.sha256(body).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image, as the OCI image specification has it. `blobs`: the layers, then the configuration."""

    manifest: Blob
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, slots=True)
class Resource:
    """What one path of a remote answers. `is_blob`: a corrupt remote spoils it."""

    body: bytes = field(repr=False)
    media_type: str
    digest: str = ""
    is_blob: bool = False


@dataclass(frozen=True, slots=True)
class DemoContent:
    """All of it; the same bytes at every run."""

    image: Image
    files: dict[str, Blob]

    @classmethod
    def make(cls) -> DemoContent:
        """Takes some tenths of a second."""
        noise = random.Random(1)  # noqa: S311 - content, not a secret
        layers = [Blob.of(f"layer {title}", _layer(title, noise.randbytes(size))) for title, size in LAYERS.items()]
        files = {name: Blob.of(name, noise.randbytes(size)) for name, size in FILES.items()}
        return cls(_image(layers), files)

    def resources(self) -> dict[str, Resource]:
        """What a remote has, by path."""
        manifest = self.image.manifest
        found = Resource(manifest.body, MANIFEST_TYPE, manifest.digest)
        root = f"/v2/{REPOSITORY}"
        resources = {f"{root}/manifests/{name}": found for name in (TAG, manifest.digest)}
        for blob in self.image.blobs:
            resources[blob_path(blob)] = Resource(blob.body, BYTES_TYPE, blob.digest, is_blob=True)
        for name, file in self.files.items():
            resources[f"{FILES_ROOT}{name}"] = Resource(file.body, BYTES_TYPE, is_blob=True)
        resources["/v2/"] = Resource(b"{}", "application/json")
        resources[f"{FILES_ROOT}PULP_MANIFEST"] = Resource(self._listing(), "text/plain")
        return resources

    def _listing(self) -> bytes:
        """``name,sha256,size`` a line, as Pulp writes it."""
        lines = [
            f"{name},{file.digest.removeprefix('sha256:')},{len(file.body)}\n" for name, file in self.files.items()
        ]
        return "".join(lines).encode()


def blob_path(blob: Blob) -> str:
    """Where a registry has it."""
    return f"/v2/{REPOSITORY}/blobs/{blob.digest}"


def _layer(title: str, body: bytes) -> bytes:
    """An uncompressed tar with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo(f"opt/demo/{title}")
        entry.size = len(body)
        archive.addfile(entry, io.BytesIO(body))
    return packed.getvalue()


def _image(layers: list[Blob]) -> Image:
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    settings = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    config = Blob.of("configuration", json.dumps(settings).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(config, CONFIG_TYPE),
        "layers": [_descriptor(layer, LAYER_TYPE) for layer in layers],
    }
    return Image(Blob.of("manifest", json.dumps(manifest).encode()), (*layers, config))


def _descriptor(blob: Blob, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": len(blob.body)}
