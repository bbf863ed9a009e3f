"""Kinds of values: each reads a node, or says what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contentapp.config.document import Node
from contentapp.config.problem import NOT_AVAILABLE, Invalid, Report
from contentapp.config.quantity import (
    format_duration,
    format_number,
    format_size,
    parse_duration,
    parse_number,
    parse_rate,
    parse_size,
)
from contentapp.core.settings import UNLIMITED

PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value may be. `nullable`: null is a value too. `is_secret`: what was given must not be shown."""

    nullable: bool = False
    is_secret = False
    is_text = False  # an environment variable's text is taken as it is, not as YAML

    def read(self, node: Node, key: str, report: Report) -> Any:
        """The value; Invalid with what is allowed. What is wrong deeper inside goes into the report at its own key."""
        return None if node.value is None and self.nullable else self.parse(node)

    def parse(self, node: Node) -> Any:
        """The value of a node that is not null, if null is allowed; Invalid."""
        raise NotImplementedError

    @property
    def range(self) -> str:
        """What is allowed, in a few words, for the table of settings."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """A value as the documentation writes it."""
        return "null" if value is None else str(value)

    def _or_null(self, text: str) -> str:
        return f"{text}, or null" if self.nullable else text


@dataclass(frozen=True, kw_only=True)
class Quantity(Kind):
    """A number with bounds; its subclasses say how it is written."""

    minimum: float | None = None
    maximum: float | None = None
    noun = "a number"
    examples = ""

    def parse(self, node: Node) -> Any:
        value = self.number(node.value)
        if value is None or not self.is_within(value):
            raise Invalid(f"must be {self.allowed}")
        return value

    def number(self, value: object) -> float | None:
        return parse_number(value)

    def is_within(self, value: float) -> bool:
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    def format(self, value: float) -> str:
        return format_number(value)

    def show(self, value: Any) -> str:
        return "null" if value is None else self.format(value)

    @property
    def allowed(self) -> str:
        examples = f" ({self.examples})" if self.examples else ""
        return f"{self.noun} {self.range}{examples}"

    @property
    def range(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return self._or_null(f"{self.format(self.minimum)} – {self.format(self.maximum)}")
        return self._or_null(f"≥ {self.format(self.minimum or 0)}")


class Number(Quantity):
    """A plain number."""


class Integer(Quantity):
    """A whole number."""

    noun = "a whole number"

    def number(self, value: object) -> float | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None


class Duration(Quantity):
    """Seconds."""

    noun = "a duration"
    examples = "a number of seconds, or text such as 30s, 5m, 2h, 7d"

    def number(self, value: object) -> float | None:
        return parse_duration(value)

    def format(self, value: float) -> str:
        return format_duration(value)


@dataclass(frozen=True, kw_only=True)
class Size(Quantity):
    """Bytes. `unlimited`: that word is allowed; `empty`: "" is allowed and means None."""

    unlimited: bool = False
    empty: bool = False
    noun = "a size"
    examples = "a number of bytes, or text such as 64 MiB, 10GB"

    def parse(self, node: Node) -> Any:
        if self.unlimited and node.value == "unlimited":
            return UNLIMITED
        if self.empty and node.value == "":
            return None
        return super().parse(node)

    def number(self, value: object) -> float | None:
        return parse_size(value)

    def format(self, value: float) -> str:
        return "unlimited" if value == UNLIMITED else format_size(value)

    def show(self, value: Any) -> str:
        return '""' if value is None and self.empty else super().show(value)

    @property
    def range(self) -> str:
        extras = [", or unlimited"] * self.unlimited + [', or ""'] * self.empty
        return super().range + "".join(extras)


class Rate(Quantity):
    """Bytes a second."""

    noun = "bytes a second"
    examples = "a number, or text such as 10 MiB, 5MB/s"

    def number(self, value: object) -> float | None:
        return parse_rate(value)

    def format(self, value: float) -> str:
        return f"{format_size(value)}/s" if value else "0"


class Boolean(Kind):
    """true or false."""

    def parse(self, node: Node) -> Any:
        if not isinstance(node.value, bool):
            raise Invalid("must be true or false")
        return node.value

    def show(self, value: Any) -> str:
        return "null" if value is None else str(value).lower()

    @property
    def range(self) -> str:
        return "true, false"


@dataclass(frozen=True, kw_only=True)
class Choice(Kind):
    """One of a few words; `later` are known, but not available yet."""

    choices: tuple[str, ...]
    later: tuple[str, ...] = ()

    def parse(self, node: Node) -> Any:
        if node.value in self.choices:
            return node.value
        must = f"must be {'one of ' if len(self.choices) > 1 else ''}{', '.join(self.choices)}"
        raise Invalid(f"{NOT_AVAILABLE}; {must}" if node.value in self.later else must)

    @property
    def range(self) -> str:
        return ", ".join(self.choices)


@dataclass(frozen=True, kw_only=True)
class Text(Kind):
    """One line of text that the pattern matches; `allowed` says in words what that is."""

    allowed: str = "text of one line"
    pattern: re.Pattern[str] = PRINTABLE
    maximum: int = 1024
    is_text = True

    def parse(self, node: Node) -> Any:
        text = text_of(node)
        if not text or len(text) > self.maximum or not self.pattern.fullmatch(text):
            raise Invalid(f"must be {self.allowed}")
        return text

    @property
    def range(self) -> str:
        return self.allowed


@dataclass(frozen=True, kw_only=True)
class Parsed(Text):
    """Text that a function turns into a value, or refuses with Invalid."""

    parser: Callable[[str], Any]

    def parse(self, node: Node) -> Any:
        return self.parser(super().parse(node))


class FilePath(Kind):
    """A path; a relative one is meant from the folder of the file that names it."""

    is_text = True

    def parse(self, node: Node) -> Any:
        text = text_of(node)
        if not text or "\0" in text or len(text) > 4096:
            raise Invalid("must be a path")
        return resolve_path(text, node)

    @property
    def range(self) -> str:
        return "path"


class Empty(Kind):
    """Nothing yet: a known setting of a later version."""

    is_secret = True
    is_text = True

    def parse(self, node: Node) -> Any:
        if node.value not in ("", None):
            raise Invalid(f'{NOT_AVAILABLE}; must be ""')
        return ""

    def show(self, value: Any) -> str:
        return '""'

    @property
    def range(self) -> str:
        return f'"" (others are {NOT_AVAILABLE})'


@dataclass(frozen=True, kw_only=True)
class ListOf(Kind):
    """A list of values of one kind, each once."""

    item: Kind
    what: str

    def read(self, node: Node, key: str, report: Report) -> Any:
        if node.value is None and self.nullable:
            return None
        if not isinstance(node.value, list):
            raise Invalid(f"must be a list of {self.what}")
        values: list[Any] = []
        for index, child in enumerate(node.value):
            try:
                value = self.item.read(child, f"{key}[{index}]", report)
            except Invalid as invalid:
                report.problem(child, f"{key}[{index}]", str(invalid), show=not self.item.is_secret)
                continue
            if value in values:
                report.problem(child, f"{key}[{index}]", "stands twice in the list")
            values.append(value)
        return values

    def show(self, value: Any) -> str:
        return "[]" if not value else ", ".join(map(str, value))

    @property
    def range(self) -> str:
        return f"list of {self.what}"


@dataclass(frozen=True, kw_only=True)
class PatternDurations(Kind):
    """A mapping from shell patterns to durations, in their order."""

    item: Duration

    def read(self, node: Node, key: str, report: Report) -> Any:
        if not isinstance(node.value, dict) or len(node.value) > 100:
            raise Invalid("must be a mapping of at most 100 shell patterns, each to a duration")
        values = {}
        for pattern, child in node.value.items():
            at = f"{key}[{pattern[:60]}]"
            if len(pattern) > 128 or not PRINTABLE.fullmatch(pattern):
                report.problem(child, at, "a pattern has at most 128 printable characters")
                continue
            try:
                values[pattern] = self.item.read(child, at, report)
            except Invalid as invalid:
                report.problem(child, at, str(invalid))
        return values

    def show(self, value: Any) -> str:
        return "{" + ", ".join(f"{pattern}: {self.item.show(ttl)}" for pattern, ttl in (value or {}).items()) + "}"

    @property
    def range(self) -> str:
        return f"mapping of patterns to {self.item.range}"


def text_of(node: Node) -> str | None:
    """A scalar as it was written (an unquoted 1.20 is text where text is wanted); None for null and collections."""
    if node.value is None or isinstance(node.value, list | dict):
        return None
    return node.text or str(node.value)


def resolve_path(text: str, node: Node) -> Path:
    """The absolute path of `text` at `node`: from the folder of its file, or the working one if there is no file."""
    base = Path(node.file).parent if node.line is not None else Path()
    return (base / Path(text).expanduser()).absolute()
