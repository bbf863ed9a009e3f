"""Notes: what is written down of a transfer, so that it can go on after a restart (P6)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from contentapp.core.digest import Hasher
from contentapp.core.settings import MIB
from contentapp.pipeline.progress import Head
from contentapp.storage.base import Note

ATTEMPT = re.compile(r"[0-9a-f]{0,32}")
STEP = 4 * MIB
"""Bytes between the marks of a running hash: what is lost at most when the end of a partial is found damaged."""


class MarkedHasher:
    """A running hash that remembers what it was after each whole STEP. A core.digest.Hasher."""

    def __init__(self, running: Hasher, step: int = STEP) -> None:
        self.running = running
        self.offset = 0
        self.step = step
        self.marks: list[str] = []

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in what follows."""
        for piece in _cut(memoryview(data), self.step - self.offset % self.step, self.step):
            self.running.update(piece)
            self.offset += len(piece)
            if piece and self.offset % self.step == 0:
                self.marks.append(self.running.hexdigest())

    def hexdigest(self) -> str:
        """The digest of all so far."""
        return self.running.hexdigest()

    def copy(self) -> MarkedHasher:
        """Another one that has seen the same."""
        copied = MarkedHasher(self.running.copy(), self.step)
        copied.offset, copied.marks = self.offset, list(self.marks)
        return copied


def _cut(view: memoryview, first: int, step: int) -> Iterator[memoryview]:
    """The view in pieces of `step`, the first one of at most `first`."""
    start, stop = 0, first
    while start < len(view):
        yield view[start:stop]
        start, stop = stop, stop + step


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a transfer must know of its past. All JSON.

    attempt: its id if these are all of its bytes, so that a device's If-Range holds over the restart; else "".
    path: by which a device asks for it. url: of the source it came from last. sources: the URLs of all that have
    contributed. if_range: as in resume.Terms. moved_at: when the last byte came (time.time()).
    """

    attempt: str
    path: str
    url: str
    sources: tuple[str, ...]
    if_range: str
    moved_at: float
    head: Head


def dump_facts(facts: Facts) -> str:
    """As JSON text."""
    return json.dumps(asdict(facts))


def parse_facts(text: str) -> Facts | None:
    """None for what this version can't read."""
    try:
        found: dict[str, Any] = json.loads(text)
        head, sources = Head(**found["head"]), found["sources"]
        facts = Facts(**found | {"head": head, "sources": tuple(sources)})
        texts = (facts.attempt, facts.path, facts.url, facts.if_range, *facts.sources, *asdict(head).values())
        is_time = isinstance(facts.moved_at, float) and math.isfinite(facts.moved_at)
        is_readable = is_time and isinstance(sources, list) and all(isinstance(text, str) for text in texts)
        if not is_readable or not ATTEMPT.fullmatch(facts.attempt):
            return None
        if head.modified is not None and head.modified.tzinfo is None:
            return None
    except (ValueError, TypeError, KeyError):
        return None
    return facts


def make_note(key: str, size: int | None, hasher: MarkedHasher, facts: Facts) -> Note:
    """The note of all that a hash has seen."""
    return Note(
        key=key,
        size=size,
        offset=hasher.offset,
        step=hasher.step,
        marks=tuple(hasher.marks),
        mark=hasher.hexdigest(),
        facts=dump_facts(facts),
    )
