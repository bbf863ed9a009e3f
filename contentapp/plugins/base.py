"""Plugins: a content type's grammar as pure functions, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contentapp.core.digest import Digest


class Wanted(StrEnum):
    """What a request asks for."""

    PING = "ping"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    FILE = "file"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPath:
    """A parsed path. `name`: what is left for the distribution to match (registry: full repository name; files: path).

    tag or digest: of manifests; digest: of blobs and referrers. namespace: containerd's ``ns=``, "" without.
    continuation: parameters of a list's next page that only its remote understands, as that remote named them.
    """

    wanted: Wanted
    name: str = ""
    tag: str = ""
    digest: Digest | None = None
    namespace: str = ""
    page_size: int | None = None  # n= of a tag list
    last: str = ""  # last= of a tag list
    artifact_type: str = ""  # artifactType= of referrers
    continuation: tuple[tuple[str, str], ...] = ()
