"""Media types (RFC 9110 §8.3.1, RFC 6838 §4.2) and the choice by Accept (RFC 9110 §12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_ACCEPT_LENGTH = 4096
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
MEDIA_TYPE = re.compile(f"{_NAME}/{_NAME}")
ACCEPT_RANGE = re.compile(rf"(\*/\*|{_NAME}/\*|{_NAME}/{_NAME})")
QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def is_media_type(text: str) -> bool:
    """Whether it is ``type/subtype`` and nothing more, each at most 127 characters."""
    return MEDIA_TYPE.fullmatch(text) is not None


def essence(header: str | None) -> str:
    """The ``type/subtype`` of a Content-Type, in lower case, without parameters; "" if there is none."""
    media_type = (header or "").partition(";")[0].strip(" \t")
    return media_type.lower() if is_media_type(media_type) else ""


def preferred(accept: str | None, offers: Sequence[str]) -> str:
    """The offer that an Accept likes best, the first of equals; the first of all when none is acceptable."""
    if not accept or len(accept) > MAX_ACCEPT_LENGTH:
        return offers[0]
    ranges = dict(filter(None, map(_accept_range, accept.split(","))))
    return max(offers, key=lambda offer: _quality(offer, ranges))


def _accept_range(element: str) -> tuple[str, float] | None:
    media_range, *parameters = (part.strip(" \t") for part in element.split(";"))
    if not ACCEPT_RANGE.fullmatch(media_range):
        return None
    for parameter in parameters:
        if match := QUALITY.fullmatch(parameter):
            return media_range.lower(), float(match[1])
    return media_range.lower(), 1.0


def _quality(offer: str, ranges: dict[str, float]) -> float:
    kind = offer.partition("/")[0]
    for candidate in (offer, f"{kind}/*", "*/*"):
        if candidate in ranges:
            return ranges[candidate]
    return 0.0
