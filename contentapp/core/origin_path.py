"""Paths as devices and remotes send them: decoded once, and refused unless they can only mean one thing."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from contentapp.core.errors import InvalidPath

MAX_PATH_SIZE = 4000  # bytes of UTF-8; below Linux's PATH_MAX
SHOWN = 200  # characters of an offending text that an error repeats
BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
ENCODED_SLASH = re.compile(r"%2[Ff]")
# C0, DEL and C1 controls; the backslash, a separator to some; surrogates, which are bytes that were no UTF-8
FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\\\\\ud800-\udfff]")
AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


def split_target(target: str) -> tuple[str, str]:
    """The raw path and raw query ("" without) of a request target in origin-form or absolute-form (RFC 9112 §3.2)."""
    if match := AUTHORITY.match(target):
        target = target[match.end() :]
        target = target if target.startswith("/") else "/" + target
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise InvalidPath(path[:SHOWN])
    return path, query


def decode_path(raw: str) -> str:
    """Percent-decode a raw path, once, as UTF-8.

    InvalidPath for broken escapes, an encoded slash, bytes that are no UTF-8, control characters, backslashes, a query
    or fragment, and what is too long. Segments are not looked at.
    """
    if "?" in raw or "#" in raw:
        raise InvalidPath(raw[:SHOWN])
    path = _unescape(raw) if "%" in raw else raw
    check_text(path)
    return path


def _unescape(raw: str) -> str:
    if BROKEN_ESCAPE.search(raw) or ENCODED_SLASH.search(raw):
        raise InvalidPath(raw[:SHOWN])
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeError:
        raise InvalidPath(raw[:SHOWN]) from None


def check_text(path: str) -> None:
    """InvalidPath for a decoded path that is too long or holds a character that no path may."""
    if FORBIDDEN.search(path) or len(path) > MAX_PATH_SIZE or len(path.encode("utf-8")) > MAX_PATH_SIZE:
        raise InvalidPath(path[:SHOWN])


def check_relative_path(path: str) -> None:
    """InvalidPath unless it is a decoded path of whole segments, neither empty nor ``.`` nor ``..``."""
    check_text(path)
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise InvalidPath(path[:SHOWN])
