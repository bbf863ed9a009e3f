"""The frame of an answer: status, headers and the part of the body to send (DESIGN of ranges, conditions, headers).

Pure: what would be sent is a `Representation`, what a device asked is its request, and `frame` decides.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime

from contentapp.core.byterange import ByteRange, Unsatisfiable, content_range, parse_range
from contentapp.core.conditional import TagTest, if_range_holds, is_not_modified
from contentapp.core.digest import Digest
from contentapp.core.httpdate import format_http_date
from contentapp.pipeline.request import DeviceRequest

IMMUTABLE = "max-age=31536000, immutable"
NO_CACHE = "no-cache"


def no_tag(opaque: str) -> bool:
    """No entity tag matches."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """What would be sent for the whole.

    etag: with its quotes, "" for none. is_current: whether an opaque tag names these bytes;
    is_resumable: whether it also says that what came before is of the same transfer (If-Range), None: the same.
    is_verified: the whole
    digest
    is known to match already. size None: unknown, sent chunked without ranges. cache_status: what follows "contentapp;
    ".
    """

    media_type: str
    size: int | None
    digest: Digest | None = None
    etag: str = ""
    is_current: TagTest = no_tag
    is_resumable: TagTest | None = None
    last_modified: datetime | None = None
    is_verified: bool = False
    is_private: bool = False
    is_immutable: bool = False
    cache_status: str = "hit"
    docker_digest: Digest | None = None
    extra: tuple[tuple[str, str], ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """status, headers; the body is bytes start <= i < end (end None: to the end, unknown yet). has_body: False for
    HEAD.
    """

    status: int
    headers: dict[str, str]
    start: int = 0
    end: int | None = None
    has_body: bool = True

    @property
    def is_part(self) -> bool:
        """Whether it is an answer to a range."""
        return self.status == 206

    @property
    def length(self) -> int | None:
        """Bytes of the body, None if unknown."""
        return None if self.end is None else self.end - self.start


def frame(request: DeviceRequest, content: Representation, now: datetime) -> Frame:
    """The answer's frame, in the order of RFC 9110, 13.2.2: conditions first, then If-Range, then Range."""
    headers = _headers(content)
    if is_not_modified(
        if_none_match=request.headers.get("If-None-Match"),
        if_modified_since=request.headers.get("If-Modified-Since"),
        is_current=content.is_current,
        last_modified=content.last_modified,
        now=now,
    ):
        for name in ("Content-Type", "Accept-Ranges", "Repr-Digest"):
            headers.pop(name, None)
        return Frame(status=304, headers=headers, end=0, has_body=False)
    if content.size is None:
        return Frame(status=200, headers=headers, has_body=not request.is_head)
    headers["Accept-Ranges"] = "bytes"
    wanted = _range(request, content, content.size, now)
    if isinstance(wanted, Unsatisfiable):
        return _unsatisfiable(wanted, content.size)
    if isinstance(wanted, ByteRange):
        headers["Content-Range"] = content_range(wanted, content.size)
        headers["Content-Length"] = str(wanted.length)
        return Frame(status=206, headers=headers, start=wanted.start, end=wanted.end)
    headers["Content-Length"] = str(content.size)
    return Frame(status=200, headers=headers, end=content.size, has_body=not request.is_head)


def _range(
    request: DeviceRequest, content: Representation, size: int, now: datetime
) -> ByteRange | Unsatisfiable | None:
    header = request.range_header
    if header is None or not if_range_holds(
        request.headers.get("If-Range"),
        is_current=content.is_resumable or content.is_current,
        last_modified=content.last_modified,
        is_date_strong=content.is_verified,
        now=now,
    ):
        return None
    wanted = parse_range(header, size)
    return wanted if isinstance(wanted, ByteRange | Unsatisfiable) else None


def _unsatisfiable(wanted: Unsatisfiable, size: int) -> Frame:
    headers = {
        "Content-Range": content_range(wanted, size),
        "Content-Length": "0",
        "Cache-Control": "no-store",
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }
    return Frame(status=416, headers=headers, end=0, has_body=False)


def _headers(content: Representation) -> dict[str, str]:
    headers = {
        "Content-Type": content.media_type,
        "Cache-Control": cache_control(is_immutable=content.is_immutable, is_private=content.is_private),
        "Cache-Status": f"contentapp; {content.cache_status}",
        "X-Content-Type-Options": "nosniff",
    }
    if content.etag:
        headers["ETag"] = content.etag
    if content.last_modified is not None:
        headers["Last-Modified"] = format_http_date(content.last_modified)
    if content.docker_digest is not None:
        headers["Docker-Content-Digest"] = str(content.docker_digest)
    if content.digest is not None and content.is_verified:
        headers["Repr-Digest"] = repr_digest(content.digest)
    headers.update(content.extra)
    return headers


def repr_digest(digest: Digest) -> str:
    """RFC 9530's Repr-Digest of the whole: an RFC 8941 dictionary with a byte sequence."""
    name = {"sha256": "sha-256", "sha512": "sha-512"}[digest.algorithm]
    return f"{name}=:{base64.b64encode(bytes.fromhex(digest.encoded)).decode('ascii')}:"


def cache_control(*, is_immutable: bool, is_private: bool) -> str:
    """By digest for ever, everything else to be asked for again."""
    value = IMMUTABLE if is_immutable else NO_CACHE
    return f"private, {value}" if is_private else value
