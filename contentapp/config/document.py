"""A YAML text as a tree of nodes that know their line.

Built from the parser's events, iteratively, so that depth, number of nodes and what aliases expand to are bounded, and
no tag can construct anything. Scalars are YAML 1.1's without dates and sexagesimal numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from contentapp.config.problem import ConfigError, Problem

MAX_FILE_SIZE = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 32

INTEGER = re.compile(r"[-+]?[0-9][0-9_]{0,30}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?")
CONSTANTS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null"), None),
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}

Value = str | int | float | bool | None | list["Node"] | dict[str, "Node"]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Node:
    """One value and where it stands.

    line: counts from 1; that of its key, if it has one. text: a scalar as it was written. size: nodes in it.
    """

    value: Value
    file: str
    line: int | None = None
    text: str = ""
    size: int = 1


def read_document(path: Path) -> Node:
    """Read one file, an empty one as an empty mapping; ConfigError when it is not one bounded YAML document."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise _failure(str(path), None, f"can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_SIZE:
        raise _failure(str(path), None, f"is larger than {MAX_FILE_SIZE} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _failure(str(path), line, "is not UTF-8") from None
    root = parse_document(text, str(path))
    return Node({}, root.file, 1) if root.value is None else root


def parse_document(text: str, file: str) -> Node:
    """The tree of a text, null for an empty one; `file` is its name in messages."""
    try:
        return _Builder(file).build(yaml.parse(text, Loader=Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _failure(file, mark.line + 1 if mark else None, f"is not YAML: {_safe(error.problem)}") from None
    except yaml.YAMLError:
        raise _failure(file, None, "is not YAML: it holds characters that are not allowed") from None


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """What a plain scalar means."""
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    return float(text) if FLOAT.fullmatch(text) else text


def _failure(file: str, line: int | None, message: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", "", message)])


def _safe(problem: str | None) -> str:
    """The parser's own words without what it quotes from the text, which may be a secret."""
    return re.sub(r"'[^']{2,}'", "'…'", problem or "unknown error")


class _Builder:
    """Turns events into nodes; a stack of open collections instead of recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.open: list[_Open] = []
        self.root: Node | None = None
        self.documents = 0
        self.nodes = 0

    def build(self, events: Iterator[Any]) -> Node:
        """The document's root; ConfigError with all of its problems."""
        for event in events:
            self._take(event)
        if self.problems:
            raise ConfigError(self.problems)
        return self.root or Node(None, self.file, 1)

    def _take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self._fail(line, "holds more than one document")
            case yaml.AliasEvent():
                aliased = self._aliased(event.anchor or "", line)
                self._add(aliased, line, cost=aliased.size)
            case yaml.ScalarEvent():
                self._check_tag(event, line)
                value = resolve_scalar(event.value) if event.implicit[0] else event.value
                self._close(Node(value, self.file, line, event.value), event.anchor)
            case yaml.CollectionStartEvent():
                self._check_tag(event, line)
                if len(self.open) >= MAX_DEPTH:
                    self._fail(line, f"is nested deeper than {MAX_DEPTH} levels")
                self.open.append(_Open(isinstance(event, yaml.MappingStartEvent), event.anchor, line))
            case yaml.CollectionEndEvent():
                self._end_collection()
            case _:
                pass

    def _end_collection(self) -> None:
        done = self.open.pop()
        value: Value = self._mapping(done) if done.is_mapping else done.children
        size = 1 + sum(child.size for child in done.children)
        self._close(Node(value, self.file, done.line, size=size), done.anchor)

    def _close(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self.anchors[anchor] = node
        self._add(node, node.line or 1, cost=1)

    def _add(self, node: Node, line: int, *, cost: int) -> None:
        """Put a finished node where it belongs. An alias costs all that it stands for: no alias bombs."""
        self.nodes += cost
        if self.nodes > MAX_NODES:
            self._fail(line, f"holds more than {MAX_NODES} values")
        if self.open:
            self.open[-1].children.append(replace(node, line=line))
        else:
            self.root = node

    def _aliased(self, anchor: str, line: int) -> Node:
        if anchor not in self.anchors:
            self._fail(line, "holds an alias without an anchor before it")
        return self.anchors[anchor]

    def _mapping(self, done: _Open) -> dict[str, Node]:
        """Keys and values in turn; merge keys (<<) fill in what is not there."""
        pairs: dict[str, Node] = {}
        merged: list[Node] = []
        for key, value in zip(done.children[::2], done.children[1::2], strict=True):
            name = key.text
            if isinstance(key.value, list | dict) or not name:
                self._note(key, "a key must be text")
            elif name == "<<":
                merged.append(value)
            elif name in pairs:
                self._note(key, f"the key {name[:60]!r} stands twice in one mapping")
            else:
                pairs[name] = replace(value, line=key.line)
        for node in merged:
            self._merge(pairs, node)
        return pairs

    def _merge(self, pairs: dict[str, Node], node: Node) -> None:
        sources = node.value if isinstance(node.value, list) else [node]
        for source in sources:
            if isinstance(source.value, dict):
                pairs |= {name: value for name, value in source.value.items() if name not in pairs}
            else:
                self._note(node, "<< must name a mapping or a list of mappings")

    def _check_tag(self, event: Any, line: int) -> None:
        if event.tag not in {None, "!", "tag:yaml.org,2002:str"}:
            self.problems.append(Problem(self.file, line, "", "", "YAML tags are not allowed"))

    def _note(self, node: Node, message: str) -> None:
        self.problems.append(Problem(self.file, node.line, "", "", message))

    def _fail(self, line: int, message: str) -> NoReturn:
        raise ConfigError([*self.problems, Problem(self.file, line, "", "", message)])


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    is_mapping: bool
    anchor: str | None
    line: int
    children: list[Node] = field(default_factory=list)
