"""How the demo is told: numbered steps, and under each what was seen, checked before it is printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

PLAIN_WIDTH = 100
WIDEST = 110
NARROWEST = 20
INDENT = 6


class Differs(Exception):
    """Something did not happen as told; the text says what happened instead."""


class Story:
    """Prints to one console; counts steps and checks."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._width = min(self._console.width, WIDEST)
        self.steps = 0
        self.checks = 0

    def title(self, text: str, rest: str) -> None:
        """The first line."""
        self._console.print(Text.assemble((text, "bold"), rest))

    def step(self, title: str) -> None:
        """Begin a step."""
        self.steps += 1
        self._console.print()
        self._paragraph(f"{self.steps:>3}", "bold cyan", title, style="bold")

    def tell(self, text: str) -> None:
        """Something that helps to understand what follows."""
        self._paragraph("", "", text)

    def check(self, *, is_so: bool, told: str, otherwise: str) -> None:
        """Tell it if it is so; Differs if not."""
        if not is_so:
            raise Differs(otherwise)
        self.fact(told)

    def fact(self, told: str) -> None:
        """Something that was checked."""
        self.checks += 1
        self._paragraph(" ok", "green", told)

    def table(self, rows: Sequence[Sequence[str]], *headings: str) -> None:
        """Columns that belong to the step; the last one takes what is left of the line, and further lines."""
        shown = [headings, *rows] if headings else list(rows)
        widths = [max(map(len, column)) + 2 for column in zip(*shown, strict=True)][:-1]
        indent = INDENT + sum(widths)
        for number, (*first, last) in enumerate(shown):
            start = "".join(text.ljust(width) for text, width in zip(first, widths, strict=True))
            style = "dim" if headings and number == 0 else ""
            self._paragraph(f"{'':{INDENT}}{start}", style, last, style=style, indent=indent)

    def end(self, text: str) -> None:
        """The last line, when all went well."""
        self._console.print()
        self._console.print(Text(text, "bold green"))

    def failure(self, text: str, details: Sequence[str] = ()) -> None:
        """The last lines, when something differed."""
        self._console.print()
        self._paragraph(" no", "bold red", text, style="red")
        for line in details:
            self._console.print(Text(f"      {line}", "dim"), soft_wrap=True)

    def _paragraph(self, start: str, start_style: str, text: str, *, style: str = "", indent: int = INDENT) -> None:
        """Text that begins at `indent`, behind `start`, and goes on below itself."""
        width = max(self._width - indent, NARROWEST)
        for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]:
            self._console.print(Text.assemble((f"{start:<{indent}}", start_style), (line, style)), soft_wrap=True)
            start = ""


def make_console() -> Console:
    """On a terminal as wide as it is; elsewhere plain text of a fixed width."""
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, markup=False, width=PLAIN_WIDTH)
    return console


def in_bytes(size: int) -> str:
    """A size for people."""
    if size >= 1_000_000:
        return f"{size / 1_000_000:.1f} MB"
    return f"{size / 1000:.1f} kB" if size >= 1000 else f"{size} B"


def in_time(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def short_digest(digest: str) -> str:
    """As much of a digest as one can tell it by."""
    return f"{digest[:19]}..." if len(digest) > 22 else digest
