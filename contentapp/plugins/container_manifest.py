"""Manifests, indexes and referrers (OCI image-spec 1.1, Docker's schema2), read as a remote's hostile input.

Bodies are bounded by the caller. Reading one takes about 20 ms a MiB, so a large one belongs in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from contentapp.core.digest import Digest
from contentapp.core.errors import InvalidDigest, MetadataInvalid
from contentapp.core.mediatype import essence, is_media_type
from contentapp.core.records import Kind, Member
from contentapp.plugins.container import DOCKER_LIST, MANIFEST_TYPES, OCI_INDEX

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
# Asked for under /manifests/ by clients, even the ones that we refuse to read.
SERVED_AS_MANIFEST = SCHEMA1_TYPES | {*MANIFEST_TYPES, OCI_ARTIFACT}
# Sent by plain file servers; then the body alone says what it is.
VAGUE_TYPES = frozenset({"", "application/json", "application/octet-stream", "text/plain"})
MAX_REFERENCES = 10_000
MAX_TOKENS = 200_000
MAX_SIZE = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A reference to content. `artifact_type` "" and no annotations when it has none."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest or index says. `subject` is not a member: to be named as a subject permits nobody to read it.

    artifact_type: its own, or for an image the config's media type, as referrers lists want it; "" for a plain index.
    """

    media_type: str
    members: tuple[Member, ...]
    subject: Digest | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES


def read_manifest(
    body: bytes, content_type: str | None, *, digest: Digest | None = None, max_references: int = MAX_REFERENCES
) -> Manifest:
    """Read a manifest or index of one of the four types that we ask for.

    `content_type` is the answer's; a vague one (none, JSON, text) leaves it to the body's mediaType. `digest` is the
    manifest's own, if known. MetadataInvalid, with a plain reason, for everything else: other types and schema1, types
    that disagree, a body that could be read as both an image and an index, broken descriptors, more than
    `max_references` of them, and a manifest that names itself.
    """
    document = _document(body)
    media_type = _media_type(document, essence(content_type))
    if media_type in INDEX_TYPES:
        members, config_type = _index_members(document, max_references), ""
    else:
        members, config_type = _image_members(document, max_references)
    subject = _subject(document)
    if digest is not None and (digest == subject or any(member.digest == digest for member in members)):
        _refuse("it names itself")
    return Manifest(
        media_type=media_type,
        members=members,
        subject=subject,
        artifact_type=_artifact_type(document) or config_type,
        annotations=_annotations(document),
    )


def read_referrers(
    body: bytes, content_type: str | None, *, max_references: int = MAX_REFERENCES
) -> tuple[Descriptor, ...]:
    """The referrers in an answer of the referrers API, or in the index under the fallback tag.

    It must be an OCI index, all of it valid: MetadataInvalid otherwise.
    """
    document = _document(body)
    if _media_type(document, essence(content_type)) != OCI_INDEX:
        _refuse("referrers must be an OCI index")
    _only(document, "manifests", not_in=("layers", "config"))
    return tuple(_descriptor(item) for item in _array(document, "manifests", max_references))


def referrers_index(descriptors: Iterable[Descriptor], *, artifact_type: str = "") -> bytes:
    """The body of our own answer: an OCI index of those with `artifact_type`, "" for all of them."""
    kept = [item.document() for item in descriptors if artifact_type in {"", item.artifact_type}]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": kept}
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _refuse(reason: str) -> NoReturn:
    raise MetadataInvalid(f"the manifest is refused: {reason}")


def _document(body: bytes) -> dict[str, Any]:
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_TOKENS:
        _refuse("it has too many parts")  # json holds the interpreter as long as it takes, thread or no thread
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        _refuse("it is not JSON")
    if not isinstance(document, dict):
        _refuse("it is not a JSON object")
    if document.get("schemaVersion") == 1:
        _refuse("schema1 is not supported")
    if document.get("schemaVersion") != 2:
        _refuse("its schemaVersion is not 2")
    return document


def _media_type(document: dict[str, Any], content_type: str) -> str:
    own = document.get("mediaType", "")
    if not isinstance(own, str):
        _refuse("its mediaType is not a string")
    if content_type in VAGUE_TYPES:
        media_type = own
    elif own in {"", content_type}:
        media_type = content_type
    else:
        _refuse("its mediaType is not the Content-Type")
    if media_type in SCHEMA1_TYPES:
        _refuse("schema1 is not supported")
    if media_type not in MANIFEST_TYPES:
        _refuse("its media type is not supported")
    return media_type


def _index_members(document: dict[str, Any], max_references: int) -> tuple[Member, ...]:
    """Members that are not manifests are blobs: build caches put layers straight into an index."""
    _only(document, "manifests", not_in=("layers", "config", "fsLayers"))
    descriptors = [_descriptor(item) for item in _array(document, "manifests", max_references)]
    return _unique(
        _member(item, Kind.MANIFEST if item.media_type in SERVED_AS_MANIFEST else Kind.BLOB) for item in descriptors
    )


def _image_members(document: dict[str, Any], max_references: int) -> tuple[tuple[Member, ...], str]:
    """Config and layers, and the config's media type. Layers with `urls` count: remotes may have them all the same."""
    _only(document, "config", not_in=("manifests", "fsLayers"))
    config = _descriptor(document["config"])
    layers = [_descriptor(item) for item in _array(document, "layers", max_references - 1)]
    return _unique(_member(item, Kind.BLOB) for item in (config, *layers)), config.media_type


def _only(document: dict[str, Any], name: str, *, not_in: tuple[str, ...]) -> None:
    """A body with the parts of two types means different things to different readers (CVE-2021-41190)."""
    if name not in document:
        _refuse(f"it has no {name}")
    if any(other in document for other in not_in):
        _refuse("it could be an image as well as an index")


def _array(document: dict[str, Any], name: str, limit: int) -> list[Any]:
    """`null` is what some writers make of an empty list."""
    items = document.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        _refuse(f"its {name} is not a list")
    if len(items) > limit:
        _refuse(f"its {name} has more than {limit} entries")
    return items


def _descriptor(item: Any) -> Descriptor:
    if not isinstance(item, dict):
        _refuse("a descriptor is not an object")
    media_type, size = item.get("mediaType"), item.get("size")
    if not isinstance(media_type, str) or not is_media_type(media_type):
        _refuse("a descriptor has no valid mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        _refuse("a descriptor has no valid size")
    return Descriptor(
        media_type=media_type,
        digest=_digest(item.get("digest")),
        size=size,
        artifact_type=_artifact_type(item),
        annotations=_annotations(item),
    )


def _digest(text: Any) -> Digest:
    try:
        return Digest.parse(text if isinstance(text, str) else "")
    except InvalidDigest:
        _refuse("a descriptor has no valid digest")


def _subject(document: dict[str, Any]) -> Digest | None:
    subject = document.get("subject")
    return None if subject is None else _descriptor(subject).digest


def _artifact_type(document: dict[str, Any]) -> str:
    artifact_type = document.get("artifactType") or ""
    if not isinstance(artifact_type, str) or (artifact_type and not is_media_type(artifact_type)):
        _refuse("an artifactType is not a media type")
    return artifact_type


def _annotations(document: dict[str, Any]) -> Mapping[str, str]:
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        _refuse("annotations are not a map of strings")
    return annotations


def _member(item: Descriptor, kind: Kind) -> Member:
    return Member(digest=item.digest, kind=kind, media_type=item.media_type, size=item.size)


def _unique(members: Iterable[Member]) -> tuple[Member, ...]:
    """Each (digest, kind) once; one digest with two sizes is a lie."""
    found: dict[tuple[Digest, Kind], Member] = {}
    sizes: dict[Digest, int | None] = {}
    for member in members:
        if sizes.setdefault(member.digest, member.size) != member.size:
            _refuse("one digest has two sizes")
        found.setdefault((member.digest, member.kind), member)
    return tuple(found.values())
