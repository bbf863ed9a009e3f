from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.conditional import (
    EntityTag,
    TagList,
    content_tag,
    if_range_holds,
    is_not_modified,
    names_content,
    parse_entity_tag,
    parse_tag_list,
    undigested_tag,
    unverified_tag,
)
from contentapp.core.digest import Digest
from contentapp.core.httpdate import format_http_date

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MODIFIED = datetime(2026, 2, 1, 12, 0, 0, 500_000, tzinfo=UTC)
DATE = "Sun, 01 Feb 2026 12:00:00 GMT"
LATER = "Sun, 01 Feb 2026 12:00:01 GMT"
EARLIER = "Sun, 01 Feb 2026 11:59:59 GMT"
DIGEST = Digest.of(b"content")
OTHER = Digest.of(b"other")

opaque_tags = st.text(st.characters(codec="utf-8", exclude_characters='"\x7f', min_codepoint=0x21), max_size=20)
entity_tags = st.builds(EntityTag, opaque_tags, st.booleans())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a"', EntityTag("a")),
        ('""', EntityTag("")),
        ('W/"a"', EntityTag("a", is_weak=True)),
        ('"a,b"', EntityTag("a,b")),
        ('"W/"', EntityTag("W/")),
        ('"sha256:ab-1"', EntityTag("sha256:ab-1")),
        ('"\u00e9\udc80"', EntityTag("\u00e9\udc80")),
        (None, None),
        ("", None),
        ("a", None),
        ('"a', None),
        ('a"', None),
        ('w/"a"', None),
        ('W/ "a"', None),
        ('"a"b"', None),
        ('"a b"', None),
        ('"a\n"', None),
        ('"a"\n', None),
        (' "a"', None),
        ('"a", "b"', None),
        ("*", None),
    ],
)
def test_one_tag(text: str | None, expected: EntityTag | None) -> None:
    assert parse_entity_tag(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"a"', TagList((EntityTag("a"),))),
        ('"a", W/"b"', TagList((EntityTag("a"), EntityTag("b", is_weak=True)))),
        ('"a","b"', TagList((EntityTag("a"), EntityTag("b")))),
        ('"a,b"  ,\t"c"', TagList((EntityTag("a,b"), EntityTag("c")))),
        (', "a", , "b" ,', TagList((EntityTag("a"), EntityTag("b")))),
        (' "a" ', TagList((EntityTag("a"),))),
        ("*", TagList(is_any=True)),
        (" * ", TagList(is_any=True)),
        ("", TagList()),
        (" ,, ", TagList()),
        ('"a" "b"', TagList()),
        ('"a"b', TagList()),
        ('"a", b', TagList()),
        ('"a", *', TagList()),
        ('*, "a"', TagList()),
        ('"a', TagList()),
        ("**", TagList()),
    ],
)
def test_a_list_of_tags(text: str, expected: TagList) -> None:
    assert parse_tag_list(text) == expected


@given(st.lists(entity_tags, max_size=5))
def test_tags_round_trip(tags: list[EntityTag]) -> None:
    assert parse_tag_list(", ".join(map(str, tags))) == TagList(tuple(tags))
    for tag in tags:
        assert parse_entity_tag(str(tag)) == tag


@given(st.text(st.sampled_from('"W/, \t*a\x7f\u00ff'), max_size=40))
def test_any_header_is_read(text: str) -> None:
    parse_tag_list(text)
    parse_entity_tag(text)


@pytest.mark.parametrize(
    ("left", "right", "strong", "weak"),
    [  # the table of RFC 9110 §8.8.3.2
        ('W/"1"', 'W/"1"', False, True),
        ('W/"1"', 'W/"2"', False, False),
        ('W/"1"', '"1"', False, True),
        ('"1"', '"1"', True, True),
        ('"1"', '"2"', False, False),
    ],
)
def test_comparison(left: str, right: str, strong: bool, weak: bool) -> None:
    one, two = parse_entity_tag(left), parse_entity_tag(right)
    assert one is not None
    assert two is not None
    assert one.matches_strongly(two) is two.matches_strongly(one) is strong
    assert one.matches_weakly(two) is two.matches_weakly(one) is weak


@pytest.mark.parametrize(
    ("if_none_match", "if_modified_since", "expected"),
    [
        (None, None, False),
        ('"now"', None, True),
        ('W/"now"', None, True),
        ('"old", "now"', None, True),
        ('"old"', None, False),
        ("*", None, True),
        ("now", None, False),
        ("", None, False),
        # If-None-Match decides alone, even when it is broken
        ('"old"', DATE, False),
        ('"now"', EARLIER, True),
        ("broken", DATE, False),
        # the date
        (None, DATE, True),
        (None, LATER, True),
        (None, EARLIER, False),
        (None, "yesterday", False),
        (None, f"{DATE}, {DATE}", False),
    ],
)
def test_not_modified(if_none_match: str | None, if_modified_since: str | None, expected: bool) -> None:
    assert expected is is_not_modified(
        if_none_match=if_none_match,
        if_modified_since=if_modified_since,
        is_current="now".__eq__,
        last_modified=MODIFIED,
        now=NOW,
    )


def test_without_a_date_of_ours_no_date_matches() -> None:
    assert not is_not_modified(
        if_none_match=None, if_modified_since=LATER, is_current="now".__eq__, last_modified=None, now=NOW
    )


@pytest.mark.parametrize(
    ("header", "is_date_strong", "expected"),
    [
        (None, False, True),
        ('"now"', False, True),
        ('W/"now"', True, False),
        ('"old"', True, False),
        ('"now", "old"', True, False),
        ("*", True, False),
        ("", True, False),
        ("now", True, False),
        (DATE, True, True),
        (DATE, False, False),
        (LATER, True, False),
        (EARLIER, True, False),
        ("yesterday", True, False),
    ],
)
def test_if_range(header: str | None, is_date_strong: bool, expected: bool) -> None:
    assert expected is if_range_holds(
        header, is_current="now".__eq__, last_modified=MODIFIED, is_date_strong=is_date_strong, now=NOW
    )


def test_if_range_by_date_needs_a_date_of_ours() -> None:
    for header in (DATE, "nonsense"):
        assert not if_range_holds(header, is_current="now".__eq__, last_modified=None, is_date_strong=True, now=NOW)


@given(st.text(), st.integers(0, 100))
def test_headers_never_raise(header: str, age: int) -> None:
    modified = NOW - timedelta(seconds=age)
    is_not_modified(
        if_none_match=header, if_modified_since=None, is_current="now".__eq__, last_modified=modified, now=NOW
    )
    is_not_modified(
        if_none_match=None, if_modified_since=header, is_current="now".__eq__, last_modified=modified, now=NOW
    )
    if_range_holds(header, is_current="now".__eq__, last_modified=modified, is_date_strong=True, now=NOW)
    assert if_range_holds(
        format_http_date(modified), is_current=bool, last_modified=modified, is_date_strong=True, now=NOW
    )


def _opaque(tag: str) -> str:
    parsed = parse_entity_tag(tag)
    assert parsed is not None
    assert not parsed.is_weak
    return parsed.opaque


def test_tags_of_content() -> None:
    is_current = partial(names_content, digest=DIGEST, is_good_flight="f1".__eq__)
    assert is_current(_opaque(content_tag(DIGEST)))
    assert is_current(_opaque(unverified_tag(DIGEST, "f1")))
    assert not is_current(_opaque(unverified_tag(DIGEST, "f2")))
    assert not is_current(_opaque(unverified_tag(OTHER, "f1")))
    assert not is_current(_opaque(content_tag(OTHER)))
    assert not is_current("")
    assert not is_current(DIGEST.encoded)


def test_a_tag_that_ends_in_a_hyphen_names_nothing() -> None:
    assert not names_content(f"{DIGEST}-", DIGEST, lambda _: True)


def test_a_flight_may_have_hyphens() -> None:
    assert names_content(_opaque(unverified_tag(DIGEST, "a-b")), DIGEST, "a-b".__eq__)


def test_tag_of_undigested_content() -> None:
    tag = undigested_tag('"abc"', 10, "r")
    assert _opaque(tag).startswith("u-")
    assert tag == undigested_tag('"abc"', 10, "r")
    assert (
        len(
            {tag, undigested_tag('"abd"', 10, "r"), undigested_tag('"abc"', 11, "r"), undigested_tag('"0:abc"', 1, "r")}
        )
        == 4
    )
    assert tag != undigested_tag('"abc"', 10, "s")
    assert undigested_tag('W/"abc"', 10, "r") == undigested_tag("abc", 10, "r") == undigested_tag("", 10, "r") == ""
    assert undigested_tag('"\udc80"', 10, "r") != ""


@given(st.text(), st.integers(0))
def test_a_remotes_tag_never_raises(etag: str, size: int) -> None:
    tag = undigested_tag(etag, size, "r")
    assert tag == "" or parse_entity_tag(tag) is not None
