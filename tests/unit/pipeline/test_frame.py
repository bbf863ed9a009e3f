"""The frame of an answer: a pure function of what would be sent and what was asked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from contentapp.core.conditional import content_tag, names_content
from contentapp.core.digest import Digest
from contentapp.pipeline.frame import Frame, Representation, cache_control, frame, repr_digest
from contentapp.pipeline.request import DeviceRequest

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
MODIFIED = datetime(2024, 1, 1, 0, 0, 0, 999999, tzinfo=UTC)
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
SIZE = 1000
DIGEST = Digest("sha256", hashlib.sha256(b"x").hexdigest())
WHOLE = Representation(
    media_type="text/x",
    size=SIZE,
    digest=DIGEST,
    etag=content_tag(DIGEST),
    is_current=lambda opaque: names_content(opaque, DIGEST, lambda flight: flight == "good"),
    last_modified=MODIFIED,
    is_verified=True,
    docker_digest=DIGEST,
)


def asked(method: str = "GET", **headers: str) -> DeviceRequest:
    """A request; a header's name with underscores for hyphens."""
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return DeviceRequest(
        id="1", method=method, raw_path="/", query="", headers=named, version=(1, 1), peer="", started=0.0
    )


def framed(content: Representation = WHOLE, method: str = "GET", **headers: str) -> Frame:
    return frame(asked(method, **headers), content, NOW)


def test_whole() -> None:
    answer = framed()
    assert (answer.status, answer.start, answer.end, answer.length, answer.has_body) == (200, 0, SIZE, SIZE, True)
    assert answer.headers == {
        "Content-Type": "text/x",
        "Content-Length": "1000",
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Cache-Status": "contentapp; hit",
        "X-Content-Type-Options": "nosniff",
        "ETag": f'"{DIGEST}"',
        "Last-Modified": DATE,
        "Docker-Content-Digest": str(DIGEST),
        "Repr-Digest": repr_digest(DIGEST),
    }


def test_least() -> None:
    """What is not known is not said."""
    answer = framed(Representation(media_type="text/x", size=None))
    assert (answer.status, answer.end, answer.length) == (200, None, None)
    assert set(answer.headers) == {"Content-Type", "Cache-Control", "Cache-Status", "X-Content-Type-Options"}


def test_head_is_the_same_without_a_body() -> None:
    for content in (WHOLE, replace(WHOLE, size=None)):
        head, get = framed(content, "HEAD", Range="bytes=0-1"), framed(content)
        assert (head.status, head.headers) == (get.status, get.headers)
        assert not head.has_body


def test_empty_body() -> None:
    empty = replace(WHOLE, size=0)
    assert (framed(empty).status, framed(empty).headers["Content-Length"]) == (200, "0")
    assert framed(empty, Range="bytes=0-").status == 416
    assert framed(empty, Range="bytes=-1").status == 200


@pytest.mark.parametrize(
    ("header", "status", "bounds"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=-1", 206, (999, 1000)),
        ("bytes=999-5000", 206, (999, 1000)),
        ("bytes=1000-", 416, (0, 0)),
        ("bytes=-0", 416, (0, 0)),
        ("bytes=2-1", 200, (0, 1000)),
        ("bytes=0-1,5-6", 200, (0, 1000)),
        ("lines=0-1", 200, (0, 1000)),
    ],
)
def test_range(header: str, status: int, bounds: tuple[int, int]) -> None:
    answer = framed(Range=header)
    assert (answer.status, (answer.start, answer.end)) == (status, bounds)
    assert answer.has_body == (status != 416)
    assert answer.headers["Accept-Ranges"] == "bytes"
    shown = {206: f"bytes {bounds[0]}-{bounds[1] - 1}/1000", 416: "bytes */1000"}.get(status)
    assert answer.headers.get("Content-Range") == shown
    assert answer.headers["Content-Length"] == str(bounds[1] - bounds[0])


def test_range_of_unknown_size_is_ignored() -> None:
    answer = framed(replace(WHOLE, size=None), Range="bytes=0-1")
    assert (answer.status, answer.start, answer.end) == (200, 0, None)
    assert {"Accept-Ranges", "Content-Range", "Content-Length"}.isdisjoint(answer.headers)


@pytest.mark.parametrize(
    ("validator", "status"),
    [
        (f'"{DIGEST}"', 206),
        (f'"{DIGEST}-good"', 206),
        (f'"{DIGEST}-bad"', 200),
        (f'W/"{DIGEST}"', 200),
        ('"other"', 200),
        (DATE, 206),
        ("Mon, 01 Jan 2024 00:00:01 GMT", 200),
        ("", 200),
    ],
)
def test_if_range(validator: str, status: int) -> None:
    assert framed(Range="bytes=0-1", If_Range=validator).status == status
    unsatisfiable = framed(Range="bytes=5000-", If_Range=validator)
    assert unsatisfiable.status == (416 if status == 206 else 200)


def test_date_is_strong_only_for_verified_bytes() -> None:
    pending = replace(WHOLE, is_verified=False)
    assert framed(pending, Range="bytes=0-1", If_Range=DATE).status == 200
    assert framed(pending, Range="bytes=0-1", If_Range=f'"{DIGEST}-good"').status == 206
    assert "Repr-Digest" not in framed(pending).headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {"If_None_Match": f'"{DIGEST}"'},
        {"If_None_Match": f'W/"{DIGEST}"'},
        {"If_None_Match": "*"},
        {"If_None_Match": f'"{DIGEST}-good", "other"'},
        {"If_Modified_Since": DATE},
        {"If_None_Match": f'"{DIGEST}"', "Range": "bytes=5000-"},
    ],
)
def test_not_modified_comes_before_range(method: str, headers: dict[str, str]) -> None:
    for content in (WHOLE, replace(WHOLE, size=None)):
        answer = framed(content, method, **headers)
        assert (answer.status, answer.has_body, answer.end) == (304, False, 0)
        assert answer.headers["ETag"] == f'"{DIGEST}"'
        assert {"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges"}.isdisjoint(answer.headers)


def test_conditions_that_do_not_hold() -> None:
    for headers in (
        {"If_None_Match": '"other"', "If_Modified_Since": DATE},
        {"If_None_Match": f'"{DIGEST}-bad"'},
        {"If_Modified_Since": "Sun, 31 Dec 2023 23:59:59 GMT"},
    ):
        assert framed(WHOLE, "GET", **headers).status == 200
    assert framed(replace(WHOLE, last_modified=None), If_Modified_Since=DATE).status == 200


@given(st.integers(0, 5000), st.one_of(st.none(), st.integers(0, 5000)), st.integers(0, 3000))
def test_frame_never_leaves_the_body(first: int, last: int | None, size: int) -> None:
    header = f"bytes={first}-{'' if last is None else last}"
    answer = framed(replace(WHOLE, size=size), Range=header)
    assert answer.end is not None
    assert 0 <= answer.start <= answer.end <= max(size, 0)
    if answer.status == 206:
        assert answer.headers["Content-Range"] == f"bytes {answer.start}-{answer.end - 1}/{size}"
        assert answer.start == first < answer.end
    assert answer.headers["Content-Length"] == str(answer.end - answer.start)


def test_last_modified_is_told_to_the_second() -> None:
    at = MODIFIED + timedelta(microseconds=1)
    assert framed(replace(WHOLE, last_modified=at)).headers["Last-Modified"] == "Mon, 01 Jan 2024 00:00:01 GMT"


def test_repr_digest_of_both_algorithms() -> None:
    long = Digest("sha512", hashlib.sha512(b"").hexdigest())
    assert repr_digest(DIGEST) == "sha-256=:LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=:"
    assert repr_digest(long).startswith("sha-512=:z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7")


def test_cache_control() -> None:
    assert cache_control(is_immutable=True, is_private=False) == "max-age=31536000, immutable"
    assert cache_control(is_immutable=True, is_private=True) == "private, max-age=31536000, immutable"
    assert cache_control(is_immutable=False, is_private=True) == "private, no-cache"
