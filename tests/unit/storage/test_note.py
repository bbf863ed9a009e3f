"""The text of a note: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.storage import note as note_module
from contentapp.storage.base import Note
from contentapp.storage.note import LARGEST_FACTS, LARGEST_NOTE, check_note, decode, encode

NOTE = Note(key="key", size=30, offset=25, step=10, marks=("aa", "bb"), mark="cc", facts='{"url": "ü"}')

texts = st.text(st.characters(), max_size=20)


@st.composite
def notes(draw: st.DrawFn) -> Note:
    step, count = draw(st.integers(1, 1 << 40)), draw(st.integers(0, 5))
    offset = step * count + draw(st.integers(0, step - 1))
    return Note(
        key=draw(texts),
        size=draw(st.none() | st.integers(offset, offset + 1000)),
        offset=offset,
        step=step,
        marks=tuple(draw(st.lists(texts, min_size=count, max_size=count))),
        mark=draw(texts),
        facts=draw(texts),
    )


@given(note=notes())
def test_what_is_written_is_read(note: Note) -> None:
    assert decode(encode(note)) == note


def test_the_form() -> None:
    """As the module says: whoever checks a note by other means relies on it."""
    raw = encode(NOTE)
    content = json.loads(raw)
    digest = content.pop("sha256")
    canonical = (
        b'{"facts":"{\\"url\\": \\"\\u00fc\\"}","key":"key","mark":"cc","marks":["aa","bb"],'
        b'"offset":25,"size":30,"step":10}'
    )
    assert digest == hashlib.sha256(canonical).hexdigest()
    assert raw == canonical[:-1].replace(b'"size"', b'"sha256":"%s","size"' % digest.encode()) + b"}"


@given(note=notes(), data=st.data())
def test_a_changed_byte_is_found(note: Note, data: st.DataObject) -> None:
    raw = bytearray(encode(note))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(raw))
    except ValueError:
        return
    assert found == note, "only what means the same, as an escape in capitals"


@given(note=notes(), data=st.data())
def test_a_cut_note_is_none(note: Note, data: st.DataObject) -> None:
    raw = encode(note)
    with pytest.raises(ValueError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(raw=st.binary(max_size=200))
def test_other_bytes_are_none(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode(raw)


def sealed(**changes: Any) -> bytes:
    """A note with these fields instead, and the right sha256 over them."""
    content: dict[str, Any] = json.loads(encode(NOTE))
    del content["sha256"]
    content |= changes
    content = {name: value for name, value in content.items() if value is not ...}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}).encode()


def test_white_space_and_order_mean_nothing() -> None:
    assert decode(sealed()) == NOTE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": 1}, "key"),
        ({"key": None}, "key"),
        ({"mark": None}, "mark"),
        ({"facts": {"url": "x"}}, "facts"),
        ({"facts": "x" * (LARGEST_FACTS + 1)}, "facts"),
        ({"facts": "ü" * (LARGEST_FACTS // 2 + 1)}, "facts"),
        ({"offset": "25"}, "offset"),
        ({"offset": 25.0}, "offset"),
        ({"offset": -1}, "offset"),
        ({"offset": True}, "offset"),
        ({"step": 0}, "step"),
        ({"step": -10}, "step"),
        ({"step": True}, "step"),
        ({"size": 24}, "size"),
        ({"size": "30"}, "size"),
        ({"size": float("nan")}, "size"),
        ({"marks": "ab"}, "marks"),
        ({"marks": None}, "marks"),
        ({"marks": ["aa"]}, "marks"),
        ({"marks": ["aa", "bb", "cc"]}, "marks"),
        ({"marks": ["aa", 1]}, "marks"),
        ({"more": 1}, "fields"),
        ({"mark": ...}, "fields"),
    ],
)
def test_fields(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(sealed(**changes))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "fields"),
        (b"null", "fields"),
        (b"1" * 5000, "digits|integer|fields"),
        (b"[" * 100_000, "deep"),
        (b'{"facts":' + b"[" * 100_000, "deep"),
        (encode(NOTE) + b"x", "Extra"),
        ("\ufeff".encode() + encode(NOTE), "BOM"),
        (encode(NOTE).decode().encode("utf-16"), "utf-8"),
        (b" " * LARGEST_NOTE + encode(NOTE), "large"),
    ],
    ids=["list", "null", "digits", "deep", "deep within", "more", "bom", "utf-16", "large"],
)
def test_texts(raw: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(raw)


def test_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encode(NOTE)
    monkeypatch.setattr(note_module, "LARGEST_NOTE", len(raw))
    assert decode(encode(NOTE)) == NOTE
    monkeypatch.setattr(note_module, "LARGEST_NOTE", len(raw) - 1)
    with pytest.raises(ValueError, match="large"):
        encode(NOTE)
    with pytest.raises(ValueError, match="large"):
        decode(raw)


def test_what_is_not_written() -> None:
    with pytest.raises(ValueError, match="marks"):
        encode(replace(NOTE, marks=()))
    check_note(replace(NOTE, size=None))
    check_note(replace(NOTE, size=25))
