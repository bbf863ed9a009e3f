"""Records to fill a catalog with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from contentapp.catalog.base import Resources
from contentapp.core.digest import Digest
from contentapp.core.records import ArtifactRecord, FileEntry, ListedFile, ListingState, Tag

START = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def tag(name: str = "latest", *, of: int = 1, seconds: float = 0) -> Tag:
    return Tag(name=name, digest=digest(of), media_type=MANIFEST_TYPE, checked_at=at(seconds), remote_id=3)


def entry(path: str = "os/disk.qcow2", *, of: int = 1, seconds: float = 0) -> FileEntry:
    return FileEntry(
        path=path,
        digest=digest(of),
        size=1 << 40,
        is_digested=False,
        etag='"a"',
        last_modified="Thu, 29 Feb 2024 23:59:59 GMT",
        validator='"u-1"',
        remote_id=2,
        checked_at=at(seconds),
        modified_at=at(seconds),
    )


def listed(path: str, of: int = 1) -> ListedFile:
    return ListedFile(path=path, digest=digest(of), size=of)


def state(
    remote: int, *, present: bool = True, entries: int = 0, seconds: float = 0, etag: str = '"m"'
) -> ListingState:
    return ListingState(
        remote_id=remote, present=present, etag=etag, last_modified="then", checked_at=at(seconds), entries=entries
    )


def artifact(number: int, *, size: int = 10, stored: float = 0, flight: str = "f") -> ArtifactRecord:
    return ArtifactRecord(
        digest=digest(number), size=size, flight=flight, stored_at=at(stored), modified_at=at(stored - 1000)
    )


def remote(name: str = "quay", **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "container", "url": f"https://{name}.example", **fields}


def distribution(base_path: str, *remotes: str, **fields: Any) -> dict[str, Any]:
    return {"base_path": base_path, "type": "container", "remotes": list(remotes), **fields}


def resources(remotes: list[dict[str, Any]], distributions: list[dict[str, Any]] | None = None) -> Resources:
    return Resources(remotes=remotes, distributions=distributions or [])
