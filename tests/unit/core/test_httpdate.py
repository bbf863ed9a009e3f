from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.httpdate import format_http_date, parse_http_date

NOW = datetime(2026, 3, 1, tzinfo=UTC)
EXAMPLE = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", EXAMPLE),
        ("Sunday, 06-Nov-94 08:49:37 GMT", EXAMPLE),
        ("Sun Nov  6 08:49:37 1994", EXAMPLE),
        ("Sun Nov 16 08:49:37 1994", EXAMPLE + timedelta(days=10)),
        ("Mon, 06 Nov 1994 08:49:37 GMT", EXAMPLE),  # the wrong day's name
        ("Sat, 31 Dec 2016 23:59:60 GMT", datetime(2017, 1, 1, tzinfo=UTC)),
        ("Thursday, 01-Jan-76 00:00:00 GMT", datetime(2076, 1, 1, tzinfo=UTC)),
        ("Saturday, 01-Jan-77 00:00:00 GMT", datetime(1977, 1, 1, tzinfo=UTC)),
        ("Thu, 29 Feb 2024 00:00:00 GMT", datetime(2024, 2, 29, tzinfo=UTC)),
    ],
)
def test_reads_all_three_formats(text: str, expected: datetime) -> None:
    assert parse_http_date(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "0",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "sun, 06 nov 1994 08:49:37 gmt",
        "Sun, 06 Nov 1994 24:49:37 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Thu, 29 Feb 2023 00:00:00 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT\n",
        " Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, ٠٦ Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-1994 08:49:37 GMT",
        "Sun Nov   08:49:37 1994",
        "2026-03-01T00:00:00Z",
    ],
)
def test_refuses_the_rest(text: str | None) -> None:
    assert parse_http_date(text, NOW) is None


def test_formats_in_utc_to_the_second_below() -> None:
    zone = timezone(timedelta(hours=2))
    moment = datetime(1994, 11, 6, 10, 49, 37, 999_999, tzinfo=zone)
    assert format_http_date(moment) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert format_http_date(datetime(33, 1, 2, tzinfo=UTC)) == "Sun, 02 Jan 0033 00:00:00 GMT"


@given(st.datetimes(timezones=st.just(UTC)))
def test_round_trip(moment: datetime) -> None:
    assert parse_http_date(format_http_date(moment), NOW) == moment.replace(microsecond=0)


@given(st.text())
def test_never_raises(text: str) -> None:
    parsed = parse_http_date(text, NOW)
    assert parsed is None or parsed.tzinfo is UTC
