"""Base paths: what is one, and which of the configured ones a name lies under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_LENGTH = 255
SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]+")


def valid_base_path(text: str) -> bool:
    """Whether it can be a base_path: segments of letters, digits, ``.``, ``_`` and ``-``, at most 255 characters."""
    return len(text) <= MAX_LENGTH and all(SEGMENT.fullmatch(segment) for segment in text.split("/"))


class BasePaths(Generic[T]):
    """An immutable mapping from base paths that finds the longest one that a name lies under, by whole segments."""

    def __init__(self, entries: Mapping[str, T]) -> None:
        self._entries = dict(entries)
        self._depth = max((path.count("/") + 1 for path in entries), default=0)

    def find(self, name: str) -> tuple[T, str] | None:
        """The entry of the longest base path, and the rest of the name behind its slash ("" when nothing is left).

        Looks at no more segments than the deepest base path has, however many the name has.
        """
        segments = name.split("/", self._depth)[: self._depth]
        for count in range(len(segments), 0, -1):
            path = "/".join(segments[:count])
            if path in self._entries:
                return self._entries[path], name[len(path) + 1 :]
        return None
