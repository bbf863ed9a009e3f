"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re
from decimal import Decimal

SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*(?:([kmgtp])(i)?)?b?\s*", re.IGNORECASE)
DURATION = re.compile(r"\s*(?:[0-9]{1,12}(?:\.[0-9]{1,9})?\s*(?:ms|[smhdw])\s*)+")
PART = re.compile(r"([0-9.]+)\s*(ms|[smhdw])")
PREFIXES = "kmgtp"
SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
SECONDS["w"] = 7 * SECONDS["d"]
MAX_SIZE = 1 << 61


def parse_number(value: object) -> float | None:
    """A finite int or float as it is; None for anything else, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def parse_size(value: object) -> int | None:
    """Bytes of a whole number or of text such as ``64 MiB`` (1024s) or ``10GB`` (1000s); None if it is neither."""
    if (number := parse_number(value)) is not None:
        return int(number) if number == int(number) else None
    if not isinstance(value, str) or not (match := SIZE.fullmatch(value)):
        return None
    amount, prefix, is_binary = match.groups()
    power = PREFIXES.index(prefix.lower()) + 1 if prefix else 0
    size = int(Decimal(amount) * (1024 if is_binary else 1000) ** power)
    return size if size <= MAX_SIZE else None


def parse_rate(value: object) -> float | None:
    """Bytes a second of what `parse_size` reads, with or without ``/s``; None if it is neither."""
    size = parse_size(value.removesuffix("/s") if isinstance(value, str) else value)
    return None if size is None else float(size)


def parse_duration(value: object) -> float | None:
    """Seconds of a number or of text such as ``30s``, ``5m``, ``1h30m``, ``7d``; None if it is neither."""
    if (number := parse_number(value)) is not None:
        return float(number)
    if not isinstance(value, str) or not DURATION.fullmatch(value):
        return None
    return float(sum(Decimal(amount) * SECONDS[unit] for amount, unit in PART.findall(value)))


def format_size(size: float) -> str:
    """Bytes in the largest unit of 1024s that keeps them whole: ``64 MiB``; `parse_size` reads it back."""
    for power in range(len(PREFIXES), 0, -1):
        if size >= 1024**power and size % 1024**power == 0:
            return f"{int(size // 1024**power)} {PREFIXES[power - 1].upper()}iB"
    return f"{int(size)}"


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit that keeps them whole: ``5m``; `parse_duration` reads it back."""
    for unit in "dhm":
        length = int(SECONDS[unit])
        if seconds >= length and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{format_number(seconds)}s"


def format_number(number: float) -> str:
    """A number without a needless fraction."""
    return str(int(number)) if number == int(number) else repr(number)
