from __future__ import annotations

import json
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.plugins.base import ContentPath, Wanted
from contentapp.plugins.container import parse
from contentapp.plugins.container_tags import next_link, parse_tag_list, tag_list, tags_page

D = Digest.of(b"content")
TAGS = ContentPath(wanted=Wanted.TAGS, name="quay.io/a", page_size=2)
REFERRERS = ContentPath(wanted=Wanted.REFERRERS, name="quay.io/a", digest=D)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"name":"a","tags":["x","y"]}', ("x", "y")),
        (b'{"name":"a","tags":["y","x"]}', ("y", "x")),
        (b'{"name":"a","tags":[]}', ()),
        (b'{"name":"a","tags":null}', ()),
        (b'{"name":"a"}', ()),
        (b'{"tags":["x",".y","a/b","","z"],"tags":["x","..","<b>"]}', ("x",)),
        (b' {"tags":["x"],"child":[],"manifest":{}}\n', ("x",)),
    ],
)
def test_tag_lists(body: bytes, expected: tuple[str, ...]) -> None:
    assert parse_tag_list(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'["x"]',
        b'"x"',
        b'{"tags":"x"}',
        b'{"tags":{"x":1}}',
        b'{"tags":[1]}',
        b'{"tags":[["x"]]}',
        b'{"tags":false}',
        b"<!DOCTYPE html><html>",
        b'{"tags":["x"',
        b"\xff\xfe",
        '{"tags":["x"]}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"tags":' * 100_000,
        b'{"n":' + b"9" * 10_000 + b"}",
        json.dumps({"tags": ["x"] * 6}).encode(),
    ],
)
def test_refused_tag_lists(body: bytes) -> None:
    with pytest.raises(MetadataInvalid):
        parse_tag_list(body, max_tags=5)


@given(st.binary() | st.text().map(str.encode))
def test_any_tag_list_is_read_or_refused(body: bytes) -> None:
    with suppress(MetadataInvalid):
        parse_tag_list(body)


tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,10}", fullmatch=True)


@given(st.lists(tags))
def test_our_own_list_comes_back(found: list[str]) -> None:
    body = tag_list("quay.io/a", found)
    assert json.loads(body)["name"] == "quay.io/a"
    assert parse_tag_list(body) == tuple(found)


def follow(link: str) -> ContentPath:
    target, rel = link.split(";")
    assert rel == ' rel="next"'
    assert target.startswith("</v2/")
    parts = urlsplit(target[1:-1])
    return parse(parts.path, parts.query)


@given(st.sets(tags), st.integers(1, 4))
def test_pages_together_are_the_whole(known: set[str], size: int) -> None:
    path = ContentPath(wanted=Wanted.TAGS, name="quay.io/a", page_size=size, namespace="h:1")
    found: list[str] = []
    while True:
        page, link = tags_page(known, path)
        assert len(page) <= size
        found += page
        if not link:
            break
        path = follow(link)
        assert path.namespace == "h:1"
    assert found == sorted(known)


def test_pages() -> None:
    known = ["b", "a", "C", "b"]
    assert tags_page(known, ContentPath(wanted=Wanted.TAGS, name="n")) == (["C", "a", "b"], "")
    assert tags_page(known, ContentPath(wanted=Wanted.TAGS, name="n", page_size=0)) == ([], "")
    assert tags_page(known, ContentPath(wanted=Wanted.TAGS, name="n", page_size=3)) == (["C", "a", "b"], "")
    assert tags_page(known, ContentPath(wanted=Wanted.TAGS, name="n", last="aa")) == (["b"], "")
    page = tags_page(known, ContentPath(wanted=Wanted.TAGS, name="n", page_size=2))
    assert page == (["C", "a"], '</v2/n/tags/list?n=2&last=a>; rel="next"')


NEXT = '</v2/quay.io/a/tags/list?n=2&last=y>; rel="next"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('</v2/a/tags/list?n=2&last=y>; rel="next"', NEXT),
        ("</v2/a/tags/list?n=2&last=y>;rel=next", NEXT),
        ("</v2/a/tags/list?last=y&n=2> ; REL = NEXT", NEXT),
        ('</v2/a/tags/list?n=2&last=y>; rel="prev next"', NEXT),
        ('</v2/a/tags/list?n=2&last=y>; title="x"; rel="next"', NEXT),
        ('</v2/a/tags/list?n=2>; rel="prev", </v2/a/tags/list?n=2&last=y>; rel="next"', NEXT),
        # absolute, relative, on another host, below a prefix: only the query is used
        ('<https://registry.example/v2/a/tags/list?n=2&last=y>; rel="next"', NEXT),
        ('<http://169.254.169.254/v2/a/tags/list?n=2&last=y>; rel="next"', NEXT),
        ('<https://h/prefix/v2/a/tags/list?n=2&last=y>; rel="next"', NEXT),
        ('</v2/a/tags/list?n=2&last=y&ns=evil.example>; rel="next"', NEXT),
        # what only the remote understands
        (
            '</v2/a/tags/list?n=2&next_page=gAAA%3D>; rel="next"',
            '</v2/quay.io/a/tags/list?n=2&next_page=gAAA%3D>; rel="next"',
        ),
        ('</v2/a/tags/list?last=y>; rel="next"', '</v2/quay.io/a/tags/list?last=y>; rel="next"'),
        # none
        (None, ""),
        ("", ""),
        ("nonsense", ""),
        ("</v2/a/tags/list?n=2&last=y>", ""),
        ('</v2/a/tags/list?n=2&last=y>; rel="prev"', ""),
        ('</v2/a/tags/list?n=2&last=y>; rel="nextish"', ""),
        ("</v2/a/tags/list?n=2&last=y>; rel=nextish", ""),
        ('</v2/a/tags/list?n=2&last=y; rel="next"', ""),
        ('</v2/a/tags/list>; rel="next"', ""),
        ('</v2/a/tags/list?>; rel="next"', ""),
        ('</v2/a/tags/list?ns=x>; rel="next"', ""),
        ('<>; rel="next"', ""),
        # the same page again
        ('</v2/a/tags/list?n=2>; rel="next"', ""),
        # another resource
        ('</v2/_catalog?n=2&last=y>; rel="next"', ""),
        ('</v2/a/manifests/x?n=2&last=y>; rel="next"', ""),
        ('</v2/a/xtags/list?n=2&last=y>; rel="next"', ""),
        ('</v2/a/tags/list/../x?n=2&last=y>; rel="next"', ""),
        ('<?n=2&last=y>; rel="next"', ""),
        # hostile
        ('</v2/a/tags/list?n=2&last=../../x>; rel="next"', ""),
        ('</v2/a/tags/list?n=2&last=y%0d%0aSet-Cookie:x>; rel="next"', ""),
        ('</v2/a/tags/list?n=2&x=%3E%22>; rel="next"', '</v2/quay.io/a/tags/list?n=2&x=%3E%22>; rel="next"'),
        ('</v2/a/tags/list?n=2&last=y%00>; rel="next"', ""),
        ('</v2/a/tags/list?n=-2&last=y>; rel="next"', ""),
        ('</v2/a%2Ftags/list?n=2&last=y>; rel="next"', ""),
        ('<http://[::1/v2/a/tags/list?n=2&last=y>; rel="next"', ""),
        ("</v2/a/tags/list?n=2&last=" + "y" * 9000 + '>; rel="next"', ""),
        ("<" * 8000, ""),
        ("<x>" + ';rel="' * 1300, ""),
        ("<x>" + "; " * 4000, ""),
        ('<x>;rel="' + " " * 8000, ""),
    ],
)
def test_link_of_a_tag_list(header: str | None, expected: str) -> None:
    assert next_link(header, TAGS) == expected


def test_link_of_referrers() -> None:
    url = f"/v2/a/referrers/{D}?artifactType=a%2Fb&nextToken=x"
    expected = f'</v2/quay.io/a/referrers/{D}?artifactType=a%2Fb&nextToken=x>; rel="next"'
    assert next_link(f'<{url}>; rel="next"', REFERRERS) == expected
    assert next_link(f'<{url.replace(":", "%3A")}>; rel="next"', REFERRERS) == expected
    other = Digest.of(b"other")
    assert next_link(f'</v2/a/referrers/{other}?nextToken=x>; rel="next"', REFERRERS) == ""


def test_link_keeps_our_namespace() -> None:
    path = ContentPath(wanted=Wanted.TAGS, name="a", namespace="localhost:5000")
    link = next_link('</v2/a/tags/list?last=y&ns=evil>; rel="next"', path)
    assert link == '</v2/a/tags/list?last=y&ns=localhost%3A5000>; rel="next"'
    assert follow(link).namespace == "localhost:5000"


@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from('n=2&lasty%0"<>;#/\\\n ä')).map(lambda t: f'</v2/a/tags/list?{t}>; rel="next"'),
    )
)
def test_any_link_is_rewritten_or_dropped(header: str) -> None:
    link = next_link(header, TAGS)
    if link:
        assert link.isascii()
        assert link.isprintable()
        assert follow(link).name == TAGS.name
