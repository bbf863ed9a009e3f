"""How results look: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table as wide as it needs to be; `empty` instead of one without rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if not table.rows:
        click.echo(empty)
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # whoever reads it by machine wants whole lines
    console.print(table)


def printable(value: object) -> str:
    """On one line, and without anything that a terminal would obey: part of it comes from remotes."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def human_size(size: float | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return "?"
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def human_seconds(seconds: float | None) -> str:
    """A duration as people read it."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 600:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """``1 cooldown``, ``2 cooldowns``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
