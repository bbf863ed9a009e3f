"""HTTP dates (RFC 9110 §5.6.7)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(MONTHS)})"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_WEEKDAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
FORMATS = (
    re.compile(f"(?:{'|'.join(DAYS)}), (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),  # IMF-fixdate
    re.compile(f"{_WEEKDAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),  # rfc850-date
    re.compile(f"(?:{'|'.join(DAYS)}) {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),  # asctime-date
)


def parse_http_date(text: str | None, now: datetime) -> datetime | None:
    """Any of the three formats as aware UTC; None if it is none of them or no real time.

    `now` decides the century of rfc850-date's two digits. The day's name is not compared with the date.
    """
    for pattern in FORMATS:
        if match := pattern.fullmatch(text or ""):
            return _date(match, now)
    return None


def _date(match: re.Match[str], now: datetime) -> datetime | None:
    second = int(match["second"])
    leap = timedelta(seconds=1 if second == 60 else 0)  # the grammar has leap seconds, datetime has not
    try:
        return leap + datetime(
            _year(match["year"], now),
            MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            59 if leap else second,
            tzinfo=UTC,
        )
    except (ValueError, OverflowError):
        return None


def _year(digits: str, now: datetime) -> int:
    if len(digits) == 4:
        return int(digits)
    year = now.year - now.year % 100 + int(digits)
    return year - 100 if year > now.year + 50 else year


def format_http_date(moment: datetime) -> str:
    """IMF-fixdate, to the second below; `moment` must be aware."""
    utc = moment.astimezone(UTC)
    day, month = DAYS[utc.weekday()], MONTHS[utc.month - 1]
    return f"{day}, {utc.day:02} {month} {utc.year:04} {utc.hour:02}:{utc.minute:02}:{utc.second:02} GMT"
