"""A note as a file has it: JSON that vouches for itself (P6).

One object in UTF-8 with the fields of Note and `sha256`: the digest, in hex, of the canonical form of the same object
without `sha256`. Canonical: keys sorted, no white space, ASCII alone (all else escaped), as `json.dumps` writes it with
sort_keys=True and separators=(",", ":").
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from contentapp.core.settings import KIB, MIB
from contentapp.storage.base import Note

LARGEST_NOTE = 8 * MIB
LARGEST_FACTS = 64 * KIB
FIELDS = frozenset(Note.__dataclass_fields__)


def encode(note: Note) -> bytes:
    """The text of a note. ValueError when it breaks the rules of Note, or is too large."""
    check_note(note)
    content = {name: getattr(note, name) for name in FIELDS}
    raw = _canonical(content | {"sha256": _digest(content)})
    if len(raw) > LARGEST_NOTE:
        raise ValueError(f"a note of {len(raw)} bytes is too large")
    return raw


def decode(raw: bytes) -> Note:
    """The note that a text is. ValueError for whatever `encode` doesn't write."""
    if len(raw) > LARGEST_NOTE:
        raise ValueError("too large for a note")
    try:
        content = json.loads(raw.decode())
        _check(isinstance(content, dict) and content.keys() == FIELDS | {"sha256"}, "not the fields of a note")
        _check(content.pop("sha256") == _digest(content), "not what its sha256 says")
    except RecursionError:
        raise ValueError("nested too deeply for a note") from None
    _check(isinstance(content["marks"], list), "marks: not a list")
    note = Note(**(content | {"marks": tuple(content["marks"])}))
    check_note(note)
    return note


def check_note(note: Note) -> None:
    """ValueError when a note breaks the rules of Note."""
    for name in ("key", "mark", "facts"):
        _check(isinstance(getattr(note, name), str), f"{name}: not a text")
    _check(_is_size(note.offset), "offset: not a number of bytes")
    _check(_is_size(note.step) and note.step > 0, "step: not a number of bytes")
    _check(note.size is None or (_is_size(note.size) and note.size >= note.offset), "size: less than offset")
    _check(all(isinstance(mark, str) for mark in note.marks), "marks: not texts")
    _check(len(note.marks) == note.offset // note.step, "marks: not one for each step")
    _check(len(note.facts.encode(errors="surrogatepass")) <= LARGEST_FACTS, "facts: too long")


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0  # True is an int too


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
