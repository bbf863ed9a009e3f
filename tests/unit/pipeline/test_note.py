"""Running hashes that remember, and what is written down of a transfer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.pipeline.note import Facts, MarkedHasher, dump_facts, make_note, parse_facts
from contentapp.pipeline.progress import Head

FACTS = Facts(
    attempt="0a1b2c3d",
    path="/v2/quay.io/app/blobs/sha256:00",
    url="https://quay.io/v2/app/blobs/sha256:00",
    sources=("https://quay.io/v2/app/blobs/sha256:00", "http://mirror/x"),
    if_range='"tag"',
    moved_at=1.5,
    head=Head(media_type="text/plain", etag='"tag"', last_modified="", modified_at="2026-11-20T10:00:00+00:00"),
)


@given(pieces=st.lists(st.binary(max_size=50), max_size=20), step=st.integers(1, 30))
def test_marks_are_the_digests_of_all_before_them(pieces: list[bytes], step: int) -> None:
    marked, body = MarkedHasher(hashlib.sha256(), step), b"".join(pieces)
    for piece in pieces:
        marked.update(piece)
    assert marked.offset == len(body)
    assert marked.hexdigest() == hashlib.sha256(body).hexdigest()
    ends = range(step, len(body) + 1, step)
    assert marked.marks == [hashlib.sha256(body[:end]).hexdigest() for end in ends]


@given(before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_a_copy_goes_its_own_way(before: bytes, after: bytes) -> None:
    one = MarkedHasher(hashlib.sha256(), 7)
    one.update(before)
    two = one.copy()
    two.update(after)
    assert (one.offset, one.hexdigest()) == (len(before), hashlib.sha256(before).hexdigest())
    assert len(one.marks) == len(before) // 7
    both = before + after
    assert (two.offset, two.hexdigest()) == (len(both), hashlib.sha256(both).hexdigest())
    assert len(two.marks) == len(both) // 7


def test_facts_survive_being_written_down() -> None:
    assert parse_facts(dump_facts(FACTS)) == FACTS
    bare = replace(FACTS, attempt="", sources=(), head=Head())
    assert parse_facts(dump_facts(bare)) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 1},
        {"attempt": "0a1b\r\nSet-Cookie: x"},
        {"attempt": "A" * 8},
        {"attempt": "0" * 33},
        {"path": None},
        {"url": ["x"]},
        {"sources": "http://x"},
        {"sources": [1]},
        {"sources": None},
        {"if_range": {}},
        {"moved_at": "now"},
        {"moved_at": True},
        {"moved_at": float("nan")},
        {"head": {"media_type": 1}},
        {"head": []},
        {"head": {"modified_at": "yesterday"}},
        {"head": {"modified_at": "2026-11-20T10:00:00"}},
        {"head": {"color": "red"}},
        {"color": "red"},
    ],
)
def test_facts_of_another_kind_are_none(change: dict[str, object]) -> None:
    assert parse_facts(json.dumps(json.loads(dump_facts(FACTS)) | change)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "1", '"x"'])
def test_what_is_no_facts_at_all(text: str) -> None:
    assert parse_facts(text) is None


def test_a_note_says_what_the_hash_has_seen() -> None:
    marked = MarkedHasher(hashlib.sha256(), 4)
    marked.update(b"abcdefghij")
    note = make_note("key", 100, marked, FACTS)
    assert (note.key, note.size, note.offset, note.step) == ("key", 100, 10, 4)
    assert note.marks == tuple(hashlib.sha256(body).hexdigest() for body in (b"abcd", b"abcdefgh"))
    assert note.mark == hashlib.sha256(b"abcdefghij").hexdigest()
    assert parse_facts(note.facts) == FACTS
    marked.update(b"kl")
    assert len(note.marks) == 2
