"""What an answer's head says about its body, held against what was asked (RFC 9110 §14, §8.4, §8.6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from multidict import CIMultiDictProxy

from contentapp.core.errors import UpstreamProtocolError, UpstreamStatusError
from contentapp.core.httpdate import parse_http_date
from contentapp.upstream.base import UpstreamRequest

REDIRECTS = frozenset({301, 302, 303, 307, 308})
LENGTH = re.compile(r"[0-9]{1,18}")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(\*|[0-9]{1,18})", re.IGNORECASE)
MAX_RETRY_AFTER_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Framing:
    """Where a body starts, how long it is, and how long the whole representation; None where unknown."""

    offset: int
    length: int | None
    size: int | None


def check_status(request: UpstreamRequest, status: int) -> bool:
    """Whether the status is an answer to this request: 200, 206 to a range, 304 to a condition."""
    if status == 304:
        return bool(request.if_none_match or request.if_modified_since)
    return status in {200, 206}


def read_framing(request: UpstreamRequest, status: int, headers: CIMultiDictProxy[str]) -> Framing:
    """The framing of an accepted answer; UpstreamProtocolError when it contradicts itself or the request."""
    length = _content_length(headers)
    _check_coding(headers)
    if status == 304:
        return Framing(0, 0, None)
    if status == 206:
        return _part(request, headers, length)
    return Framing(0, length, length)


def _content_length(headers: CIMultiDictProxy[str]) -> int | None:
    values = headers.getall("Content-Length", [])
    if not values:
        return None
    if len(values) > 1 or not LENGTH.fullmatch(values[0]):
        raise UpstreamProtocolError("bad Content-Length")
    if "Transfer-Encoding" in headers:
        raise UpstreamProtocolError("both Content-Length and Transfer-Encoding")
    return int(values[0])


def _check_coding(headers: CIMultiDictProxy[str]) -> None:
    """Nothing but plain bytes: a coded body has other digests, offsets and sizes."""
    codings = ",".join(headers.getall("Content-Encoding", [])).lower().split(",")
    if {coding.strip() for coding in codings} - {"", "identity"}:
        raise UpstreamProtocolError("content coding although none was accepted")
    if ",".join(headers.getall("Transfer-Encoding", [])).strip().lower() not in {"", "chunked"}:
        raise UpstreamProtocolError("unknown transfer coding")


def is_ranged(request: UpstreamRequest) -> bool:
    """Whether the request asks for a part."""
    return request.method == "GET" and (request.offset > 0 or request.end is not None)


def _part(request: UpstreamRequest, headers: CIMultiDictProxy[str], length: int | None) -> Framing:
    if not is_ranged(request):
        raise UpstreamProtocolError("206 although no range was asked for")
    if headers.get("Content-Type", "").strip().lower().startswith("multipart/byteranges"):
        raise UpstreamProtocolError("several parts although one was asked for")
    values = headers.getall("Content-Range", [])
    match = CONTENT_RANGE.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        raise UpstreamProtocolError("206 without a valid Content-Range")
    start, end = int(match[1]), int(match[2]) + 1
    size = None if match[3] == "*" else int(match[3])
    _check_range(request, start, end, size)
    if length is not None and length != end - start:
        raise UpstreamProtocolError("Content-Length and Content-Range differ")
    return Framing(start, end - start, size)


def _check_range(request: UpstreamRequest, start: int, end: int, size: int | None) -> None:
    if start != request.offset or end <= start:
        raise UpstreamProtocolError("206 with another range than asked for")
    if (request.end is not None and end > request.end) or (size is not None and end > size):
        raise UpstreamProtocolError("206 with more than asked for")


def range_header(request: UpstreamRequest) -> str:
    """The Range of a request, inclusive as on the wire."""
    return f"bytes={request.offset}-{'' if request.end is None else request.end - 1}"


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Retry-After in seconds (RFC 9110 §10.2.3), at most a day; None without a valid one.

    A date is taken relative to the answer's own Date, so that wrong clocks do not matter.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,18}", text):
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    if (until := parse_http_date(text, now)) is None:
        return None
    since = parse_http_date(headers.get("Date", ""), now) or now
    return min(max((until - since).total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)


def status_error(
    status: int, headers: Mapping[str, str], host: str, *, credentials_refused: bool = False
) -> UpstreamStatusError:
    """The error of an answer that is not the content; its text has our own words for the status, never the remote's."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    return UpstreamStatusError(
        status,
        f"{host} answered {status}{phrase}",
        host=host,
        retry_after_seconds=retry_after_seconds(headers, datetime.now(UTC)),
        credentials_refused=credentials_refused,
    )
