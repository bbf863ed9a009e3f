from __future__ import annotations

import pytest

from contentapp.core.origin import Origin, describe_origin, describe_url, parse_origin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Quay.io/v2/", "quay.io:443"),
        ("http://quay.io.", "quay.io:80"),
        ("http://h:5000/p?q", "h:5000"),
        ("http://user:secret@h/", "h:80"),
        ("https://[2001:DB8::1]/x", "[2001:db8::1]:443"),
        ("https://[::1]:8443", "[::1]:8443"),
        ("ftp://h", ""),
        ("no url", ""),
        ("http://h:99999/", ""),
        ("http://[::1", ""),
        ("", ""),
    ],
)
def test_describe_origin(url: str, expected: str) -> None:
    assert describe_origin(url) == expected


def test_parse_origin() -> None:
    assert parse_origin("http://h") == Origin("http", "h", 80)
    with pytest.raises(ValueError, match="absolute"):
        parse_origin("//h/p")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://u:secret@h:1/p?sig=secret#secret", "https://h:1/p"),
        ("http://h/a@b", "http://h/a@b"),
        ("http://[::1", ""),
    ],
)
def test_describe_url_shows_no_secret(url: str, expected: str) -> None:
    assert describe_url(url) == expected


def test_describe_url_is_bounded() -> None:
    assert len(describe_url("http://h/" + "x" * 5000)) == 300
