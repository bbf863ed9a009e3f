"""The checks of an answer's head themselves; through HTTP some of it is refused by the parser before."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from contentapp.core.errors import UpstreamProtocolError
from contentapp.upstream.answer import Framing, range_header, read_framing, retry_after_seconds, status_error
from tests.unit.upstream.asking import make_remote, make_request

REMOTE = make_remote("http://h")


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    "pairs",
    [
        [("Content-Length", "5"), ("Content-Length", "5")],
        [("Content-Length", "5, 5")],
        [("Content-Length", "-1")],
        [("Content-Length", "+1")],
        [("Content-Length", "")],
        [("Content-Length", "5 ")],
        [("Content-Length", "٥")],
        [("Content-Length", "1" * 19)],
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "chunked, chunked")],
        [("Content-Encoding", "identity, gzip")],
    ],
)
def test_contradictions(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(UpstreamProtocolError):
        read_framing(make_request(REMOTE), 200, headers(*pairs))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 10-19/30", Framing(10, 10, 30)),
        ("BYTES 10-14/30", Framing(10, 5, 30)),
        ("bytes 10-19/*", Framing(10, 10, None)),
        ("bytes 10-19/20", Framing(10, 10, 20)),
        ("bytes 10-20/30", None),
        ("bytes 10-9/30", None),
        ("bytes 9-19/30", None),
        ("bytes 10-19/19", None),
    ],
)
def test_content_range(value: str, expected: Framing | None) -> None:
    request = make_request(REMOTE, offset=10, end=20)
    if expected is not None:
        assert read_framing(request, 206, headers(("Content-Range", value))) == expected
        return
    with pytest.raises(UpstreamProtocolError):
        read_framing(request, 206, headers(("Content-Range", value)))


def test_lengths() -> None:
    request = make_request(REMOTE)
    assert read_framing(request, 200, headers(("Content-Length", "0"))) == Framing(0, 0, 0)
    assert read_framing(request, 200, headers()) == Framing(0, None, None)
    assert read_framing(request, 304, headers(("Content-Length", "7"))) == Framing(0, 0, None)


def test_range_header() -> None:
    assert range_header(make_request(REMOTE, offset=5)) == "bytes=5-"
    assert range_header(make_request(REMOTE, offset=5, end=6)) == "bytes=5-5"


def test_retry_after_without_a_date_of_the_answer() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    given = {"Retry-After": "Wed, 01 Jan 2025 00:00:10 GMT"}
    assert retry_after_seconds(given, now) == 10
    assert retry_after_seconds({"Retry-After": "Fri, 01 Jan 2044 00:00:10 GMT"}, now) == 86400


def test_an_odd_status_has_no_phrase() -> None:
    assert str(status_error(799, {}, "h:1")) == "h:1 answered 799"
    assert str(status_error(404, {}, "h:1")) == "h:1 answered 404 Not Found"
