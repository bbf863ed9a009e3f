from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import ContentAppError, InvalidPath, MetadataInvalid
from contentapp.core.records import ContentType, Remote
from contentapp.plugins.base import ContentPath, Wanted
from contentapp.plugins.file import base_url, listing_source, locate, media_type, parse, valid_relative_path


def remote(url: str = "https://h/dir/") -> Remote:
    return Remote(id=1, name="r", type=ContentType.FILE, url=url)


@pytest.mark.parametrize(
    ("raw_path", "wanted", "name"),
    [
        ("", Wanted.FOLDER, ""),
        ("a", Wanted.FILE, "a"),
        ("a/", Wanted.FOLDER, "a"),
        ("a/b.iso", Wanted.FILE, "a/b.iso"),
        ("a/b/", Wanted.FOLDER, "a/b"),
        ("a/b%20c", Wanted.FILE, "a/b c"),
        ("a/%E2%82%AC", Wanted.FILE, "a/€"),
        ("a/b%3Fc", Wanted.FILE, "a/b?c"),
        ("a/b%2520c", Wanted.FILE, "a/b%20c"),
        ("a/b+c,d", Wanted.FILE, "a/b+c,d"),
        ("a/.hidden", Wanted.FILE, "a/.hidden"),
        ("a/..b", Wanted.FILE, "a/..b"),
    ],
)
def test_requests(raw_path: str, wanted: Wanted, name: str) -> None:
    assert parse(raw_path) == ContentPath(wanted=wanted, name=name)


@pytest.mark.parametrize(
    "raw_path",
    [
        "/",
        "//",
        "/a",
        "a//",
        "a//b",
        "..",
        "../",
        "a/..",
        "a/../",
        "a/../../etc/passwd",
        "a/%2e%2e/b",
        "a/%2E./b",
        ".",
        "a/.",
        "a/./b",
        "a%2F..%2Fb",
        "a%2fb",
        "a\\b",
        "a%5Cb",
        "a%5C..%5Cb",
        "a%00.iso",
        "a%0Ab",
        "a%0D%0Ab",
        "a%7Fb",
        "a%C2%85b",
        "a%FFb",
        "a%C0%AE%C0%AE/b",
        "a%",
        "a%u002e",
        "a?b",
        "a#b",
        "a\udcffb",
        "a" * 4001,
    ],
)
def test_refused_requests(raw_path: str) -> None:
    with pytest.raises(InvalidPath):
        parse(raw_path)


@given(st.text() | st.text(st.sampled_from("a/.%2eF0\\\n\udc80")))
def test_any_request_is_read_or_refused(raw_path: str) -> None:
    try:
        path = parse(raw_path)
    except InvalidPath:
        return
    assert path.name == "" or valid_relative_path(path.name)


@pytest.mark.parametrize(
    ("url", "base", "listing"),
    [
        ("https://h", "https://h/", "https://h/PULP_MANIFEST"),
        ("https://h/", "https://h/", "https://h/PULP_MANIFEST"),
        ("https://h/dir/", "https://h/dir/", "https://h/dir/PULP_MANIFEST"),
        ("https://h/dir/PULP_MANIFEST", "https://h/dir/", "https://h/dir/PULP_MANIFEST"),
        ("http://h:8/dir/MY%20LIST", "http://h:8/dir/", "http://h:8/dir/MY%20LIST"),
        ("https://h/LIST", "https://h/", "https://h/LIST"),
        ("https://h/a%20b/", "https://h/a%20b/", "https://h/a%20b/PULP_MANIFEST"),
    ],
)
def test_base_and_listing(url: str, base: str, listing: str) -> None:
    assert base_url(remote(url)) == base
    source = listing_source(remote(url))
    assert source.url == listing
    assert source.path == unquote(listing.rpartition("/")[2])


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("a", "a"),
        ("a/b c", "a/b%20c"),
        ("a/b?c#d", "a/b%3Fc%23d"),
        ("100%", "100%25"),
        ("a%20b", "a%2520b"),
        ("a+b", "a%2Bb"),
        ("a:b@c", "a%3Ab%40c"),
        ("€", "%E2%82%AC"),
        ("a-b_c.d~e", "a-b_c.d~e"),
    ],
)
def test_locate(path: str, encoded: str) -> None:
    source = locate(remote(), path)
    assert (source.url, source.path) == (f"https://h/dir/{encoded}", path)
    assert source.scope == ""
    assert source.headers == ()


@pytest.mark.parametrize("path", ["", "/a", "a/", "../a", "a/../b", "a//b", "a\nb"])
def test_locate_refuses(path: str) -> None:
    with pytest.raises(InvalidPath):
        locate(remote(), path)


@pytest.mark.parametrize("url", ["https://h/dir/?token=x", "https://h/PULP_MANIFEST?x", "https://u:p@h/", "h/dir/", ""])
def test_refused_remotes(url: str) -> None:
    with pytest.raises(MetadataInvalid):
        locate(remote(url), "a")
    with pytest.raises(MetadataInvalid):
        listing_source(remote(url))


segments = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\\/"), min_size=1, max_size=10)
relative_paths = st.lists(segments, min_size=1, max_size=4).map("/".join).filter(valid_relative_path)


@given(relative_paths)
def test_what_a_remote_is_asked_means_the_same(path: str) -> None:
    parts = urlsplit(locate(remote(), path).url)
    assert parts.query == parts.fragment == ""
    assert parse(parts.path.removeprefix("/dir/")) == ContentPath(wanted=Wanted.FILE, name=path)


@given(st.text(), st.text())
def test_locate_raises_nothing_else(url: str, path: str) -> None:
    for candidate in (url, "https://h/"):
        try:
            locate(remote(candidate), path)
            listing_source(remote(candidate))
        except ContentAppError:
            continue


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.html", "text/html"),
        ("a/B.HTML", "text/html"),
        ("a.json", "application/json"),
        ("a.txt", "text/plain"),
        ("a.tar", "application/x-tar"),
        ("a.tar.gz", "application/gzip"),
        ("a.tgz", "application/gzip"),
        ("a.json.xz", "application/x-xz"),
        ("a.html.zst", "application/zstd"),
        ("a.html.Z", "application/octet-stream"),
        ("disk.qcow2", "application/octet-stream"),
        ("a.html/b", "application/octet-stream"),
        (".html", "application/octet-stream"),
        ("PULP_MANIFEST", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("", "application/octet-stream"),
    ],
)
def test_media_types(path: str, expected: str) -> None:
    assert media_type(path) == expected
