"""What a remote's url may be."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

from contentapp.core.errors import InvalidPath, MetadataInvalid
from contentapp.core.origin_path import decode_path

MAX_LENGTH = 2048
VISIBLE = re.compile(r"[!-~]+")
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@lru_cache(maxsize=1024)
def split_url(url: str) -> SplitResult:
    """An http or https URL with a host, in its parts; its path is "" or begins with a slash.

    MetadataInvalid, which never repeats the URL (it may hold a secret), for anything else: credentials, a query, a
    fragment, dot segments, or characters that belong percent-encoded.
    """
    if len(url) > MAX_LENGTH or not VISIBLE.fullmatch(url):
        raise MetadataInvalid("url must be printable ASCII of at most 2048 characters, all else percent-encoded")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise MetadataInvalid("url has no valid host and port") from None
    if parts.scheme not in {"http", "https"} or not HOST.fullmatch(host) or parts.netloc.endswith(":"):
        raise MetadataInvalid("url must be http://host/… or https://host/…")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise MetadataInvalid("url may hold no credentials, query or fragment")
    _check_path(parts.path)
    return parts


def _check_path(raw: str) -> None:
    try:
        segments = decode_path(raw).removesuffix("/").split("/")[1:]
    except InvalidPath:
        segments = [".."]
    if not {"", ".", ".."}.isdisjoint(segments):
        raise MetadataInvalid("the path of url may hold no empty or dot segments and no broken escapes")
