from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import (
    ContentAppError,
    InvalidDigest,
    InvalidPath,
    InvalidReference,
    InvalidRequestError,
    MetadataInvalid,
)
from contentapp.core.records import ContentType, Remote, Source
from contentapp.plugins.base import ContentPath, Wanted
from contentapp.plugins.container import (
    ACCEPT,
    MAX_NAME,
    MAX_PAGE_SIZE,
    OCI_INDEX,
    ErrorCode,
    error_body,
    invalid_code,
    locate,
    parse,
    referrers_tag_path,
    upstream_name,
    valid_base_path,
    valid_name,
)

D = Digest.of(b"content")
D512 = Digest.of(b"content", "sha512")
MANIFEST, BLOB, TAGS, REFERRERS = Wanted.MANIFEST, Wanted.BLOB, Wanted.TAGS, Wanted.REFERRERS


def remote(url: str = "https://quay.io") -> Remote:
    return Remote(id=1, name="r", type=ContentType.CONTAINER, url=url)


def ask(wanted: Wanted, **more: Any) -> ContentPath:
    return ContentPath(wanted=wanted, **more)


@pytest.mark.parametrize(
    ("raw_path", "query", "expected"),
    [
        ("/v2", "", ask(Wanted.PING)),
        ("/v2/", "", ask(Wanted.PING)),
        ("/v2/", "ns=quay.io", ask(Wanted.PING, namespace="quay.io")),
        ("/v2/a/manifests/latest", "", ask(MANIFEST, name="a", tag="latest")),
        ("/v2/quay.io/a/b-c/d__e/manifests/V1.0_x-y", "", ask(MANIFEST, name="quay.io/a/b-c/d__e", tag="V1.0_x-y")),
        ("/v2/a/manifests/_x", "", ask(MANIFEST, name="a", tag="_x")),
        ("/v2/a/manifests/" + "t" * 128, "", ask(MANIFEST, name="a", tag="t" * 128)),
        (f"/v2/a/manifests/{D}", "", ask(MANIFEST, name="a", digest=D)),
        (f"/v2/a/manifests/{D512}", "", ask(MANIFEST, name="a", digest=D512)),
        (f"/v2/a/manifests/sha256%3A{D.encoded}", "", ask(MANIFEST, name="a", digest=D)),
        ("/v2/%61/manifests/lat%65st", "", ask(MANIFEST, name="a", tag="latest")),
        ("/v2/a/manifests/x", "ns=docker.io", ask(MANIFEST, name="a", tag="x", namespace="docker.io")),
        ("/v2/a/manifests/x", "ns=LocalHost:5000", ask(MANIFEST, name="a", tag="x", namespace="localhost:5000")),
        ("/v2/a/manifests/x", "ns=localhost%3A5000", ask(MANIFEST, name="a", tag="x", namespace="localhost:5000")),
        ("/v2/a/manifests/x", "ns=[::1]:5000", ask(MANIFEST, name="a", tag="x", namespace="[::1]:5000")),
        ("/v2/a/manifests/x", "ns=", ask(MANIFEST, name="a", tag="x")),
        ("/v2/a/manifests/x", "other=1&_=2", ask(MANIFEST, name="a", tag="x")),
        (f"/v2/a/blobs/{D}", "", ask(BLOB, name="a", digest=D)),
        (f"/v2/a/blobs/{D}", "ns=quay.io", ask(BLOB, name="a", digest=D, namespace="quay.io")),
        ("/v2/a/tags/list", "", ask(TAGS, name="a")),
        ("/v2/a/tags/list", "n=0", ask(TAGS, name="a", page_size=0)),
        ("/v2/a/tags/list", "n=50&last=v1.0", ask(TAGS, name="a", page_size=50, last="v1.0")),
        ("/v2/a/tags/list", "n=999999999", ask(TAGS, name="a", page_size=MAX_PAGE_SIZE)),
        ("/v2/a/tags/list", "n=&last=", ask(TAGS, name="a")),
        (
            "/v2/a/tags/list",
            "n=5&next_page=gA%3D%3D",
            ask(TAGS, name="a", page_size=5, continuation=(("next_page", "gA=="),)),
        ),
        (f"/v2/a/referrers/{D}", "", ask(REFERRERS, name="a", digest=D)),
        (
            f"/v2/a/referrers/{D}",
            "artifactType=application/spdx+json",
            ask(REFERRERS, name="a", digest=D, artifact_type="application/spdx+json"),
        ),
        (
            f"/v2/a/referrers/{D}",
            "artifactType=application%2Fspdx%2Bjson",
            ask(REFERRERS, name="a", digest=D, artifact_type="application/spdx+json"),
        ),
        (
            f"/v2/a/referrers/{D}",
            "n=1&last=x",
            ask(REFERRERS, name="a", digest=D, continuation=(("n", "1"), ("last", "x"))),
        ),
        # names that look like endpoints
        ("/v2/tags/list/tags/list", "", ask(TAGS, name="tags/list")),
        ("/v2/a/blobs/manifests/latest", "", ask(MANIFEST, name="a/blobs", tag="latest")),
        ("/v2/manifests/manifests/manifests", "", ask(MANIFEST, name="manifests", tag="manifests")),
        ("/v2/a/blobs/uploads/manifests/x", "", ask(MANIFEST, name="a/blobs/uploads", tag="x")),
        ("/v2/v2/manifests/x", "", ask(MANIFEST, name="v2", tag="x")),
    ],
)
def test_requests(raw_path: str, query: str, expected: ContentPath) -> None:
    assert parse(raw_path, query) == expected


@pytest.mark.parametrize(
    ("raw_path", "query", "error"),
    [
        ("", "", InvalidPath),
        ("/", "", InvalidPath),
        ("/v1/", "", InvalidPath),
        ("/v22/", "", InvalidPath),
        ("/V2/", "", InvalidPath),
        ("//v2/", "", InvalidPath),
        ("/v2//", "", InvalidPath),
        ("/v2/_catalog", "", InvalidPath),
        ("/v2/a", "", InvalidPath),
        ("/v2/manifests/latest", "", InvalidPath),
        ("/v2//manifests/latest", "", InvalidPath),
        ("/v2/a/manifests", "", InvalidPath),
        ("/v2/a/manifest/latest", "", InvalidPath),
        ("/v2/a/tags", "", InvalidPath),
        ("/v2/a/tags/lists", "", InvalidPath),
        ("/v2/a/tags/list/", "", InvalidPath),
        # uploads are not of this version
        ("/v2/a/blobs/uploads", "", InvalidPath),
        ("/v2/a/blobs/uploads/", "", InvalidPath),
        ("/v2/a/blobs/uploads/0f3c", "", InvalidPath),
        # names
        ("/v2/A/manifests/x", "", InvalidPath),
        ("/v2/a//b/manifests/x", "", InvalidPath),
        ("/v2/a/../b/manifests/x", "", InvalidPath),
        ("/v2/a/%2e%2e/b/manifests/x", "", InvalidPath),
        ("/v2/a/%252e%252e/b/manifests/x", "", InvalidPath),
        ("/v2/../manifests/x", "", InvalidPath),
        ("/v2/./a/manifests/x", "", InvalidPath),
        ("/v2/a%2Fb/manifests/x", "", InvalidPath),
        ("/v2/a%00/manifests/x", "", InvalidPath),
        ("/v2/a\n/manifests/x", "", InvalidPath),
        ("/v2/a b/manifests/x", "", InvalidPath),
        ("/v2/a%20b/manifests/x", "", InvalidPath),
        ("/v2/ä/manifests/x", "", InvalidPath),
        ("/v2/a.-b/manifests/x", "", InvalidPath),
        ("/v2/a___b/manifests/x", "", InvalidPath),
        ("/v2/-a/manifests/x", "", InvalidPath),
        ("/v2/a-/manifests/x", "", InvalidPath),
        ("/v2/localhost:5000/a/manifests/x", "", InvalidPath),
        ("/v2/a@b/manifests/x", "", InvalidPath),
        ("/v2/" + "a" * (MAX_NAME + 1) + "/manifests/x", "", InvalidPath),
        # references
        ("/v2/a/manifests/", "", InvalidReference),
        ("/v2/a/manifests/.x", "", InvalidReference),
        ("/v2/a/manifests/-x", "", InvalidReference),
        ("/v2/a/manifests/..", "", InvalidReference),
        ("/v2/a/manifests/" + "t" * 129, "", InvalidReference),
        ("/v2/a/manifests/a%20b", "", InvalidReference),
        ("/v2/a/manifests/x%0A", "", InvalidPath),
        ("/v2/a/manifests/%2Fx", "", InvalidPath),
        ("/v2/a/manifests/l%2561test", "", InvalidReference),
        ("/v2/a/manifests/x%", "", InvalidPath),
        # digests
        ("/v2/a/manifests/sha256:abc", "", InvalidDigest),
        ("/v2/a/manifests/a:b", "", InvalidDigest),
        (f"/v2/a/manifests/latest@{D}", "", InvalidDigest),
        ("/v2/a/blobs/latest", "", InvalidDigest),
        ("/v2/a/blobs/", "", InvalidDigest),
        (f"/v2/a/blobs/{D}0", "", InvalidDigest),
        (f"/v2/a/blobs/md5:{'0' * 32}", "", InvalidDigest),
        (f"/v2/a/blobs/sha256%253A{D.encoded}", "", InvalidDigest),
        ("/v2/a/referrers/x", "", InvalidDigest),
        # parameters
        ("/v2/", "ns=a/b", InvalidPath),
        ("/v2/", "ns=a@b", InvalidPath),
        ("/v2/", "ns=.", InvalidPath),
        ("/v2/", "ns=a%0Ab", InvalidPath),
        ("/v2/", "ns=http://a", InvalidPath),
        ("/v2/", "ns=a:b", InvalidPath),
        ("/v2/", "ns=a:123456", InvalidPath),
        ("/v2/", "ns=a&ns=b", InvalidPath),
        ("/v2/", "ns=" + "a" * 254, InvalidPath),
        ("/v2/", "ns=%E4", InvalidPath),
        ("/v2/a/tags/list", "n=-1", InvalidPath),
        ("/v2/a/tags/list", "n=x", InvalidPath),
        ("/v2/a/tags/list", "n=" + "9" * 10, InvalidPath),
        ("/v2/a/tags/list", "n=%D9%A1", InvalidPath),
        ("/v2/a/tags/list", "n=1&n=2", InvalidPath),
        ("/v2/a/tags/list", "last=..", InvalidPath),
        ("/v2/a/tags/list", "last=a/b", InvalidPath),
        ("/v2/a/tags/list", "x=a%20b", InvalidPath),
        ("/v2/a/tags/list", "x=a%0d%0ab", InvalidPath),
        ("/v2/a/tags/list", "%78=1", InvalidPath),
        ("/v2/a/tags/list", "=1", InvalidPath),
        ("/v2/a/tags/list", "&".join(f"x{i}=1" for i in range(9)), InvalidPath),
        ("/v2/a/tags/list", "x=" + "a" * 2049, InvalidPath),
        ("/v2/a/tags/list", "x=" + "%61" * 2000, InvalidPath),
        (f"/v2/a/referrers/{D}", "artifactType=x", InvalidPath),
        (f"/v2/a/referrers/{D}", "artifactType=a/b;c=d", InvalidPath),
        ("/v2/a/manifests/x", "x=\udc80", InvalidPath),
    ],
)
def test_refused_requests(raw_path: str, query: str, error: type[InvalidRequestError]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(raw_path, query)
    assert type(caught.value) is error
    assert len(str(caught.value)) <= 200


def test_errors_never_repeat_the_query() -> None:
    for query in ("ns=se/same", "n=sesame", "se same=1", "last=sesame/", "x=%0asesame"):
        with pytest.raises(InvalidPath) as caught:
            parse("/v2/a/tags/list", query)
        assert "same" not in str(caught.value)


path_characters = st.text(st.sampled_from("/v2abA.-_:%0e\0\n\udc80ä@"), max_size=40)


@given(st.one_of(st.text(), path_characters.map("/v2/".__add__)), st.one_of(st.text(), st.text("n=s&last%0ab+[")))
def test_any_request_is_read_or_refused(raw_path: str, query: str) -> None:
    try:
        path = parse(raw_path, query)
    except InvalidRequestError:
        return
    assert path.wanted is Wanted.PING or valid_name(path.name)


parts = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
names = st.lists(parts, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,30}", fullmatch=True)
digests = st.binary().map(Digest.of)
media_types = st.from_regex(r"[a-z]{1,5}/[a-z][a-z.+&^]{0,8}", fullmatch=True)
tokens = st.from_regex(r"[!-~]{1,20}", fullmatch=True)
paths = st.one_of(
    st.builds(ContentPath, wanted=st.just(MANIFEST), tag=tags),
    st.builds(ContentPath, wanted=st.just(MANIFEST), digest=digests),
    st.builds(ContentPath, wanted=st.just(BLOB), digest=digests),
    st.builds(
        ContentPath,
        wanted=st.just(TAGS),
        page_size=st.none() | st.integers(0, MAX_PAGE_SIZE),
        last=st.just("") | tags,
        continuation=st.just(()) | tokens.map(lambda token: (("next_page", token),)),
    ),
    st.builds(ContentPath, wanted=st.just(REFERRERS), digest=digests, artifact_type=st.just("") | media_types),
)


@given(paths, names)
def test_what_a_remote_is_asked_means_the_same(path: ContentPath, name: str) -> None:
    parts = urlsplit(locate(remote(), name, path).url)
    assert parse(parts.path, parts.query) == replace(path, name=name)


@pytest.mark.parametrize(
    ("url", "name", "path", "expected"),
    [
        ("https://quay.io", "", ask(Wanted.PING), ("https://quay.io/v2/", "")),
        ("https://quay.io", "a/b", ask(MANIFEST, tag="x"), ("https://quay.io/v2/a/b/manifests/x", "a/b")),
        ("https://quay.io/", "a", ask(MANIFEST, digest=D), (f"https://quay.io/v2/a/manifests/{D}", "a")),
        ("http://localhost:5000", "a", ask(BLOB, digest=D), (f"http://localhost:5000/v2/a/blobs/{D}", "a")),
        (
            "https://h/artifactory/api/docker/x/",
            "a",
            ask(TAGS),
            ("https://h/artifactory/api/docker/x/v2/a/tags/list", "a"),
        ),
        ("https://quay.io", "a", ask(TAGS, page_size=0, last="x"), ("https://quay.io/v2/a/tags/list?n=0&last=x", "a")),
        (
            "https://quay.io",
            "a",
            ask(REFERRERS, digest=D, artifact_type="a/b+c"),
            (f"https://quay.io/v2/a/referrers/{D}?artifactType=a%2Fb%2Bc", "a"),
        ),
        (
            "https://quay.io",
            "a",
            ask(MANIFEST, tag="x", namespace="docker.io"),
            ("https://quay.io/v2/a/manifests/x", "a"),
        ),
        # Docker Hub
        (
            "https://docker.io",
            "debian",
            ask(MANIFEST, tag="x"),
            ("https://registry-1.docker.io/v2/library/debian/manifests/x", "library/debian"),
        ),
        (
            "https://index.docker.io/",
            "debian",
            ask(MANIFEST, tag="x"),
            ("https://registry-1.docker.io/v2/library/debian/manifests/x", "library/debian"),
        ),
        (
            "https://registry-1.docker.io",
            "a/b",
            ask(MANIFEST, tag="x"),
            ("https://registry-1.docker.io/v2/a/b/manifests/x", "a/b"),
        ),
        (
            "https://Docker.IO:443",
            "library/a",
            ask(MANIFEST, tag="x"),
            ("https://registry-1.docker.io/v2/library/a/manifests/x", "library/a"),
        ),
        (
            "https://mirror.docker.io.example",
            "a",
            ask(MANIFEST, tag="x"),
            ("https://mirror.docker.io.example/v2/a/manifests/x", "a"),
        ),
        ("http://docker.io:5000", "a", ask(MANIFEST, tag="x"), ("http://docker.io:5000/v2/a/manifests/x", "a")),
    ],
)
def test_locate(url: str, name: str, path: ContentPath, expected: tuple[str, str]) -> None:
    source = locate(remote(url), name, path)
    assert (source.url, source.path) == expected
    assert source.scope == (f"repository:{source.path}:pull" if source.path else "")


def test_every_remote_is_asked_for_the_same_types() -> None:
    assert ACCEPT == (
        "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
        "application/vnd.docker.distribution.manifest.list.v2+json, "
        "application/vnd.docker.distribution.manifest.v2+json"
    )
    headers = {wanted: _headers(ask(wanted, tag="x", digest=D)) for wanted in (MANIFEST, BLOB, TAGS, REFERRERS)}
    assert headers == {
        MANIFEST: (("Accept", ACCEPT),),
        BLOB: (),
        TAGS: (("Accept", "application/json"),),
        REFERRERS: (("Accept", OCI_INDEX),),
    }


def _headers(path: ContentPath) -> tuple[tuple[str, str], ...]:
    source: Source = locate(remote(), "a", path)
    return source.headers


@pytest.mark.parametrize("name", ["", "A", "../x", "a//b", "a/", "x?y", "a" * 256])
def test_a_name_that_no_remote_has(name: str) -> None:
    with pytest.raises(InvalidPath):
        locate(remote(), name, ask(MANIFEST, tag="x"))


@pytest.mark.parametrize("wanted", [Wanted.FILE, Wanted.FOLDER])
def test_what_no_registry_has(wanted: Wanted) -> None:
    with pytest.raises(InvalidPath):
        locate(remote(), "a", ask(wanted))


def test_a_broken_remote_url() -> None:
    with pytest.raises(MetadataInvalid):
        locate(remote("https://u:p@quay.io"), "a", ask(MANIFEST, tag="x"))


@given(st.text(), st.text(), paths)
def test_locate_raises_nothing_else(url: str, name: str, path: ContentPath) -> None:
    for candidate in (url, "https://quay.io"):
        try:
            locate(remote(candidate), name, path)
        except ContentAppError:
            continue


def test_upstream_name() -> None:
    assert upstream_name(remote("https://docker.io"), "a") == "library/a"
    assert upstream_name(remote(), "a") == "a"


def test_referrers_tag() -> None:
    path = ContentPath(
        wanted=REFERRERS, name="q/a", namespace="h", digest=D, artifact_type="a/b", continuation=(("x", "y"),)
    )
    assert referrers_tag_path(path) == ContentPath(
        wanted=MANIFEST, name="q/a", namespace="h", tag=f"sha256-{D.encoded}"
    )
    long = referrers_tag_path(replace(path, digest=D512))
    assert long.tag == f"sha512-{D512.encoded[:64]}"
    with pytest.raises(InvalidDigest):
        referrers_tag_path(replace(path, digest=None))


@pytest.mark.parametrize("text", ["quay.io", "a", "a/b-c", "x" * 255])
def test_base_paths(text: str) -> None:
    assert valid_base_path(text)


@pytest.mark.parametrize("text", ["", "Quay.io", "quay.io:443", "a_-b", "a/", "..", "a\n", "x" * 256])
def test_no_base_paths(text: str) -> None:
    assert not valid_base_path(text)


def test_error_body() -> None:
    assert json.loads(error_body(ErrorCode.NAME_UNKNOWN, 'no "x"')) == {
        "errors": [{"code": "NAME_UNKNOWN", "message": 'no "x"'}]
    }
    body = error_body(ErrorCode.UNAVAILABLE, "späte\udc80", {"remote": "r"})
    assert json.loads(body)["errors"][0]["detail"] == {"remote": "r"}
    assert body.isascii()


def test_codes_of_refusals() -> None:
    assert invalid_code(InvalidDigest("x")) is ErrorCode.DIGEST_INVALID
    assert invalid_code(InvalidReference("x")) is ErrorCode.MANIFEST_INVALID
    assert invalid_code(InvalidPath("x")) is ErrorCode.NAME_INVALID
