"""What is wrong with a configuration, told so that one can mend it without reading anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from contentapp.core.errors import ContentAppError
from contentapp.core.redaction import HIDDEN, redact_text

if TYPE_CHECKING:
    from contentapp.config.document import Node

MAX_SHOWN = 80
NOT_AVAILABLE = "not available in this version"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem or warning. `value` is printable, bounded, and "" for a secret; `message` says what is allowed."""

    file: str
    line: int | None
    key: str
    value: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.value, self.message) if part)


class ConfigError(ContentAppError):
    """Every problem of a configuration, in the order of its lines; its text has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Invalid(Exception):
    """A value is outside what its kind allows; the text says what is allowed, never what was given."""


def shown(value: object) -> str:
    """A value as it may be printed: one line, at most MAX_SHOWN characters, without query or what could be userinfo."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        value = redact_text(re.sub(r"(?s)^([a-z]+://)?.*@", rf"\1{HIDDEN}@", value))
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


@dataclass(slots=True)
class Report:
    """Collects what is found while a configuration is read."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, node: Node, key: str, message: str, *, show: bool = True) -> None:
        """An error at `node`; `show` False keeps its value out of the message."""
        self.problems.append(Problem(node.file, node.line, key, shown(node.value) if show else "", message))

    def warning(self, node: Node, key: str, message: str) -> None:
        """Something that works but deserves a look; the value is never shown."""
        self.warnings.append(Problem(node.file, node.line, key, "", message))

    def raise_problems(self) -> None:
        """ConfigError if there is any problem."""
        if self.problems:
            raise ConfigError(sorted(self.problems, key=_place))


def _place(problem: Problem) -> tuple[str, int]:
    return (problem.file, problem.line or 0)


def suggestion(word: str, known: Sequence[str]) -> str:
    """``; did you mean …?``, or "" when nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
