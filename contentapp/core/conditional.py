"""Entity tags and conditional requests (RFC 9110 §8.8.3 and §13).

The order is §13.2.2's: If-None-Match, without it If-Modified-Since, then If-Range with Range. If-Match and
If-Unmodified-Since are ignored, as intermediaries may (§13.1.1, §13.1.4).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from contentapp.core.digest import Digest
from contentapp.core.httpdate import parse_http_date

TagTest = Callable[[str], bool]
"""Whether an opaque tag (no quotes, no ``W/``) names exactly the bytes that would be sent now."""

ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"')
SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)+|[ \t]+\Z|\Z")
LEADING = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True)
class EntityTag:
    """One tag; `opaque` is what stands between the quotes."""

    opaque: str
    is_weak: bool = False

    def matches_strongly(self, other: EntityTag) -> bool:
        """Strong comparison (§8.8.3.2): for ranges."""
        return not self.is_weak and not other.is_weak and self.opaque == other.opaque

    def matches_weakly(self, other: EntityTag) -> bool:
        """Weak comparison: for If-None-Match."""
        return self.opaque == other.opaque

    def __str__(self) -> str:
        return f'W/"{self.opaque}"' if self.is_weak else f'"{self.opaque}"'


@dataclass(frozen=True, slots=True)
class TagList:
    """The value of If-None-Match: some tags, or ``*``."""

    tags: tuple[EntityTag, ...] = ()
    is_any: bool = False


def parse_entity_tag(text: str | None) -> EntityTag | None:
    """Exactly one tag, as in ETag; None if it is anything else."""
    match = ENTITY_TAG.fullmatch(text or "")
    return EntityTag(match[2], match[1] is not None) if match else None


def parse_tag_list(text: str) -> TagList:
    """A list of tags or ``*``; one that breaks the grammar is empty: it matches nothing."""
    if text.strip(" \t") == "*":
        return TagList(is_any=True)
    tags: list[EntityTag] = []
    position = _skip(LEADING, text, 0)
    while position < len(text):
        match = ENTITY_TAG.match(text, position)
        separator = SEPARATOR.match(text, match.end()) if match else None
        if match is None or separator is None:
            return TagList()
        tags.append(EntityTag(match[2], match[1] is not None))
        position = separator.end()
    return TagList(tuple(tags))


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def is_not_modified(
    *,
    if_none_match: str | None,
    if_modified_since: str | None,
    is_current: TagTest,
    last_modified: datetime | None,
    now: datetime,
) -> bool:
    """Whether a GET or HEAD of something that exists is answered by 304.

    If-None-Match, once present, decides alone. `last_modified` is compared to the second; None: never 304 by date.
    """
    if if_none_match is not None:
        tags = parse_tag_list(if_none_match)
        return tags.is_any or any(is_current(tag.opaque) for tag in tags.tags)
    since = parse_http_date(if_modified_since, now)
    return since is not None and last_modified is not None and last_modified.replace(microsecond=0) <= since


def if_range_holds(
    header: str | None, *, is_current: TagTest, last_modified: datetime | None, is_date_strong: bool, now: datetime
) -> bool:
    """Whether Range is to be honoured: there is no If-Range, or it matches strongly (§13.1.5).

    A date must be exactly `last_modified`, and `is_date_strong` says that no other bytes have ever been sent with it
    (§8.8.2.2); a body that is not yet verified has no strong date.
    """
    if header is None:
        return True
    if (tag := parse_entity_tag(header)) is not None:
        return not tag.is_weak and is_current(tag.opaque)
    if not is_date_strong or last_modified is None:
        return False
    return parse_http_date(header, now) == last_modified.replace(microsecond=0)


def content_tag(digest: Digest) -> str:
    """The ETag of a verified body."""
    return f'"{digest}"'


def unverified_tag(digest: Digest, flight: str) -> str:
    """The ETag of a body that one flight is still fetching: good once, and only if, that flight verifies (P1)."""
    return f'"{digest}-{flight}"'


def names_content(opaque: str, digest: Digest, is_good_flight: TagTest) -> bool:
    """Whether an opaque tag is `content_tag`, or an `unverified_tag` whose flight is good; a TagTest once bound."""
    name, separator, flight = opaque.partition("-")
    return name == str(digest) and (not separator or (flight != "" and is_good_flight(flight)))


def undigested_tag(etag: str, size: int, remote: str) -> str:
    """The ETag shown for bytes without a digest, from the remote's ETag and the size; "" if that is weak or broken.

    remote: its name, since one remote's ETag says nothing of another one's bytes.
    """
    tag = parse_entity_tag(etag)
    if tag is None or tag.is_weak:
        return ""
    name = hashlib.sha256(f"{remote}:{size}:{tag.opaque}".encode("utf-8", "surrogateescape")).hexdigest()
    return f'"u-{name[:32]}"'
