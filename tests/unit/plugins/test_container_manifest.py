from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import Kind, Member
from contentapp.plugins.container import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from contentapp.plugins.container_manifest import (
    Descriptor,
    read_manifest,
    read_referrers,
    referrers_index,
)

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def descriptor(name: str, media_type: str = LAYER, size: Any = 5, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest(name)), "size": size, **more}


def image(**changes: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("config", CONFIG),
        "layers": [descriptor("one"), descriptor("two")],
    }
    return _changed(document, changes)


def index(**changes: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor("amd64", OCI_MANIFEST), descriptor("arm64", OCI_MANIFEST, platform={"os": "linux"})],
    }
    return _changed(document, changes)


def _changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**document, **changes}.items() if value is not ...}


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def member(name: str, kind: Kind, media_type: str) -> Member:
    return Member(digest=digest(name), kind=kind, media_type=media_type, size=5)


IMAGE_MEMBERS = (
    member("config", Kind.BLOB, CONFIG),
    member("one", Kind.BLOB, LAYER),
    member("two", Kind.BLOB, LAYER),
)
INDEX_MEMBERS = (
    member("amd64", Kind.MANIFEST, OCI_MANIFEST),
    member("arm64", Kind.MANIFEST, OCI_MANIFEST),
)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
@pytest.mark.parametrize("content_type", ["", None, "same", "SAME; charset=utf-8", "application/json", "text/plain"])
def test_images(media_type: str, content_type: str | None) -> None:
    header = (content_type or "").replace("same", media_type).replace("SAME", media_type.upper())
    manifest = read_manifest(body(image(mediaType=media_type)), header if content_type is not None else None)
    assert manifest.media_type == media_type
    assert manifest.members == IMAGE_MEMBERS
    assert manifest.artifact_type == CONFIG
    assert not manifest.is_index
    assert manifest.subject is None


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_indexes(media_type: str) -> None:
    manifest = read_manifest(body(index(mediaType=media_type)), media_type)
    assert manifest.media_type == media_type
    assert manifest.members == INDEX_MEMBERS
    assert manifest.artifact_type == ""
    assert manifest.is_index


def test_the_bodys_type_is_optional_when_the_header_is_clear() -> None:
    assert read_manifest(body(image(mediaType=...)), OCI_MANIFEST).members == IMAGE_MEMBERS
    assert read_manifest(body(index(mediaType=...)), OCI_INDEX).members == INDEX_MEMBERS


def test_members_of_an_index_that_are_not_manifests_are_blobs() -> None:
    manifests = [descriptor("cache", LAYER), descriptor("nested", OCI_INDEX), descriptor("old", SCHEMA1)]
    assert [found.kind for found in read_manifest(body(index(manifests=manifests)), OCI_INDEX).members] == [
        Kind.BLOB,
        Kind.MANIFEST,
        Kind.MANIFEST,
    ]


def test_foreign_layers_are_members() -> None:
    layer = descriptor("foreign", FOREIGN, urls=["https://elsewhere.example/x"])
    found = read_manifest(body(image(layers=[layer])), OCI_MANIFEST).members
    assert found[1] == member("foreign", Kind.BLOB, FOREIGN)


def test_a_subject_is_no_member() -> None:
    document = image(subject=descriptor("subject", OCI_MANIFEST), artifactType="a/b", annotations={"k": "v"})
    manifest = read_manifest(body(document), OCI_MANIFEST)
    assert manifest.subject == digest("subject")
    assert manifest.members == IMAGE_MEMBERS
    assert manifest.artifact_type == "a/b"
    assert manifest.annotations == {"k": "v"}


def test_nothing_is_listed_twice() -> None:
    document = image(layers=[descriptor("one"), descriptor("one"), descriptor("config", CONFIG)])
    assert read_manifest(body(document), OCI_MANIFEST).members == IMAGE_MEMBERS[:2]


def test_no_layers_are_written_in_three_ways() -> None:
    nothing: list[Any] = [[], None, ...]
    for none in nothing:
        assert len(read_manifest(body(image(layers=none)), OCI_MANIFEST).members) == 1
    for none in nothing[:2]:
        assert read_manifest(body(index(manifests=none)), OCI_INDEX).members == ()


def test_the_last_of_duplicate_keys_counts() -> None:
    text = body(image()).replace(b'"schemaVersion": 2', b'"schemaVersion": 1, "schemaVersion": 2')
    assert read_manifest(text, OCI_MANIFEST).members == IMAGE_MEMBERS


def test_sha512() -> None:
    long = Digest.of(b"x", "sha512")
    document = image(layers=[{"mediaType": LAYER, "digest": str(long), "size": 1}])
    assert read_manifest(body(document), OCI_MANIFEST).members[1].digest == long


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        # types
        (image(), OCI_INDEX),
        (image(), DOCKER_MANIFEST),
        (index(), OCI_MANIFEST),
        (image(), "text/html"),
        (image(mediaType=...), ""),
        (image(mediaType=...), "application/json"),
        (image(mediaType="application/json"), "application/json"),
        (image(mediaType=OCI_MANIFEST.upper()), OCI_MANIFEST),
        (image(mediaType=[OCI_MANIFEST]), OCI_MANIFEST),
        (image(mediaType=None), OCI_MANIFEST),
        (image(mediaType=ARTIFACT), ARTIFACT),
        (image(mediaType=LAYER), LAYER),
        (image(mediaType=SCHEMA1), SCHEMA1),
        (image(mediaType=...), SCHEMA1),
        (image(schemaVersion=1), OCI_MANIFEST),
        (image(schemaVersion=...), OCI_MANIFEST),
        (image(schemaVersion="2"), OCI_MANIFEST),
        (image(schemaVersion=3), OCI_MANIFEST),
        ({"schemaVersion": 1, "fsLayers": [], "history": []}, SCHEMA1),
        # one body, two meanings
        (image(manifests=[]), OCI_MANIFEST),
        (image(manifests=None), OCI_MANIFEST),
        (image(fsLayers=[]), OCI_MANIFEST),
        (index(layers=[]), OCI_INDEX),
        (index(config=descriptor("config")), OCI_INDEX),
        # not what the type has
        (image(config=...), OCI_MANIFEST),
        (image(config=None), OCI_MANIFEST),
        (image(config=[]), OCI_MANIFEST),
        (image(layers={}), OCI_MANIFEST),
        (image(layers="x"), OCI_MANIFEST),
        (image(layers=[None]), OCI_MANIFEST),
        (image(layers=[[]]), OCI_MANIFEST),
        (index(manifests=...), OCI_INDEX),
        (index(manifests={}), OCI_INDEX),
        ([], OCI_INDEX),
        ("x", OCI_INDEX),
        (None, OCI_INDEX),
        # descriptors
        (image(layers=[descriptor("x", size=-1)]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size=1 << 63)]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size=1.0)]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size="1")]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size=True)]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size=None)]), OCI_MANIFEST),
        (image(layers=[descriptor("x", "")]), OCI_MANIFEST),
        (image(layers=[descriptor("x", "layer")]), OCI_MANIFEST),
        (image(layers=[descriptor("x", "a/b; c=d")]), OCI_MANIFEST),
        (image(layers=[descriptor("x", "a/b\nSet-Cookie: c")]), OCI_MANIFEST),
        (image(layers=[{"digest": str(digest("x")), "size": 1}]), OCI_MANIFEST),
        (image(layers=[{**descriptor("x"), "digest": "x"}]), OCI_MANIFEST),
        (image(layers=[{**descriptor("x"), "digest": "sha256:../../etc/passwd"}]), OCI_MANIFEST),
        (image(layers=[{**descriptor("x"), "digest": f"md5:{'0' * 32}"}]), OCI_MANIFEST),
        (image(layers=[{**descriptor("x"), "digest": None}]), OCI_MANIFEST),
        (image(layers=[{**descriptor("x"), "digest": ["x"]}]), OCI_MANIFEST),
        (image(layers=[descriptor("x", size=1), descriptor("x", size=2)]), OCI_MANIFEST),
        (image(layers=[descriptor("config", size=6)]), OCI_MANIFEST),
        (image(subject={}), OCI_MANIFEST),
        (image(subject="x"), OCI_MANIFEST),
        (image(artifactType=1), OCI_MANIFEST),
        (image(artifactType="x"), OCI_MANIFEST),
        (image(annotations=["x"]), OCI_MANIFEST),
        (image(annotations={"x": 1}), OCI_MANIFEST),
        (index(manifests=[descriptor("x", OCI_MANIFEST, annotations={"x": {}})]), OCI_INDEX),
    ],
)
def test_refused(document: Any, content_type: str) -> None:
    with pytest.raises(MetadataInvalid):
        read_manifest(body(document), content_type)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<!DOCTYPE html>",
        b"\xff",
        b"\xef\xbb\xbf" + body(image()),
        body(image()).decode().encode("utf-16"),
        body(image())[:-1],
        body(image()) + b"x",
        body(image()).replace(b": 5", b": NaN"),
        body(image()).replace(b": 5", b": Infinity"),
        body(image(unknown=5)).replace(b'"unknown": 5', b'"unknown": NaN'),
        body(image()).replace(b": 5", b": 5e400"),
        body(image()).replace(b": 5", b": " + b"9" * 10_000),
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"schemaVersion":2,"annotations":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        read_manifest(text, OCI_MANIFEST)


def test_references_are_bounded() -> None:
    layers = [descriptor(str(number)) for number in range(9)]
    assert len(read_manifest(body(image(layers=layers)), OCI_MANIFEST, max_references=10).members) == 10
    with pytest.raises(MetadataInvalid):
        read_manifest(body(image(layers=layers)), OCI_MANIFEST, max_references=9)
    with pytest.raises(MetadataInvalid):
        read_manifest(body(index(manifests=layers)), OCI_INDEX, max_references=8)
    with pytest.raises(MetadataInvalid):
        read_referrers(body(index(manifests=layers)), OCI_INDEX, max_references=8)


def test_a_manifest_that_names_itself() -> None:
    own = digest("amd64")
    assert read_manifest(body(index()), OCI_INDEX, digest=digest("own")).members == INDEX_MEMBERS
    for document, content_type in (
        (index(), OCI_INDEX),
        (index(manifests=[], subject=descriptor("amd64", OCI_MANIFEST)), OCI_INDEX),
        (image(layers=[descriptor("amd64")]), OCI_MANIFEST),
        (image(config=descriptor("amd64")), OCI_MANIFEST),
    ):
        with pytest.raises(MetadataInvalid, match="names itself"):
            read_manifest(body(document), content_type, digest=own)


def test_reasons_are_plain() -> None:
    with pytest.raises(MetadataInvalid, match="schema1 is not supported"):
        read_manifest(body({"schemaVersion": 1}), "text/plain")
    with pytest.raises(MetadataInvalid, match="not the Content-Type"):
        read_manifest(body(image()), OCI_INDEX)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType", "annotations"]
)


@given(st.sampled_from([image(), index()]), st.dictionaries(fields, json_values, max_size=3))
def test_any_field_is_read_or_refused(document: dict[str, Any], changes: dict[str, Any]) -> None:
    text = body({**document, **changes})
    for read in (read_manifest, read_referrers):
        try:
            read(text, document["mediaType"])
        except MetadataInvalid:
            continue


@given(st.binary(), st.text())
def test_any_body_is_read_or_refused(text: bytes, content_type: str) -> None:
    with pytest.raises(MetadataInvalid):
        read_manifest(text, content_type)


REFERRERS = (
    Descriptor(media_type=OCI_MANIFEST, digest=digest("sbom"), size=1, artifact_type="a/sbom", annotations={"k": "ä"}),
    Descriptor(media_type=OCI_MANIFEST, digest=digest("signature"), size=2, artifact_type="a/signature"),
    Descriptor(media_type=OCI_INDEX, digest=digest("plain"), size=3),
)


def test_referrers_round_trip() -> None:
    text = referrers_index(REFERRERS)
    assert read_referrers(text, OCI_INDEX) == REFERRERS
    assert json.loads(text)["schemaVersion"] == 2
    assert set(json.loads(text)["manifests"][2]) == {"mediaType", "digest", "size"}


def test_referrers_of_one_type() -> None:
    assert read_referrers(referrers_index(REFERRERS, artifact_type="a/sbom"), OCI_INDEX) == REFERRERS[:1]
    assert read_referrers(referrers_index(REFERRERS, artifact_type="a/none"), OCI_INDEX) == ()
    assert read_referrers(referrers_index(()), OCI_INDEX) == ()


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (image(), OCI_MANIFEST),
        (index(mediaType=DOCKER_LIST), DOCKER_LIST),
        (index(), DOCKER_LIST),
        (index(), "text/html"),
        (index(manifests=...), OCI_INDEX),
        (index(manifests=[{}]), OCI_INDEX),
        (index(layers=[]), OCI_INDEX),
        ({"errors": []}, "application/json"),
    ],
)
def test_refused_referrers(document: Any, content_type: str) -> None:
    with pytest.raises(MetadataInvalid):
        read_referrers(body(document), content_type)
