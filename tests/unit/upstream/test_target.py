from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.origin import Origin
from contentapp.upstream.target import HOST, join_target, own_origin, parse_target, target_origin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h", "http://h/"),
        ("HTTPS://H:443/a%2Fb?x=%20y&z=a+b", "https://H/a%2Fb?x=%20y&z=a+b"),
        ("http://h/a b", "http://h/a%20b"),
        ("http://h/ä", "http://h/%C3%A4"),
        ("http://h/p#fragment", "http://h/p"),
        ("http://h/a\\b", "http://h/a%5Cb"),
        ("http://[::1]:8080/p", "http://[::1]:8080/p"),
        ("http://h/?sig=a%3D%3d~", "http://h/?sig=a%3D%3d~"),
        ("http://h/a//b/../c", "http://h/a//b/../c"),
    ],
)
def test_a_url_is_kept_as_it_is_where_it_is_well_formed(text: str, expected: str) -> None:
    assert str(parse_target(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/relative",
        "ftp://h/",
        "file:///etc/passwd",
        "gopher://h",
        "http://",
        "http:///p",
        "http://user@h/",
        "http://user:pass@h/",
        "http://@h/",
        "http://h:0/",
        "http://h:/",
        "http://h:65536/",
        "http://h:x/",
        "http://h:1:2/",
        "http://a b/",
        "http://h\r\nX: y/",
        "http://h%00/",
        "http://h\\@evil/",
        "http://[fe80::1%25eth0]/",
        "http://[::1",
        "http://-h/",
        "http://ä/",
        "http://h/" + "x" * 9000,
        "http:\\\\h",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1:80/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://127.0.0.256/",
        "http://0x/",
    ],
)
def test_what_is_not_dialled(text: str) -> None:
    with pytest.raises(ValueError):
        parse_target(text)


@given(st.text(max_size=60))
def test_any_text_is_a_plain_url_or_a_value_error(text: str) -> None:
    for given_url in (text, f"http://{text}", f"http://h/{text}"):
        try:
            url = parse_target(given_url)
        except ValueError:
            continue
        assert url.scheme in {"http", "https"}
        assert url.user is None
        assert HOST.fullmatch(url.raw_authority.rsplit(":", 1)[0]) or HOST.fullmatch(url.raw_authority)
        assert not set(str(url)) & set(" \r\n\t\\")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/b?s=1", "http://h:5000/b?s=1"),
        ("b", "http://h:5000/v2/b"),
        ("../b", "http://h:5000/b"),
        ("?q=1", "http://h:5000/v2/a?q=1"),
        ("//cdn/x", "http://cdn/x"),
        ("https://cdn/x?X-Sig=%2F", "https://cdn/x?X-Sig=%2F"),
        (" https://cdn/x ", "https://cdn/x"),
    ],
)
def test_location_is_resolved_against_the_url_it_came_from(location: str, expected: str) -> None:
    assert str(join_target(parse_target("http://h:5000/v2/a"), location)) == expected


@pytest.mark.parametrize("location", ["http://u:p@cdn/x", "ftp://cdn/", "//u@cdn/", "javascript:x"])
def test_location_that_is_not_followed(location: str) -> None:
    with pytest.raises(ValueError):
        join_target(parse_target("http://h/a"), location)


def test_docker_hub_is_served_by_another_host_than_its_name() -> None:
    assert own_origin("https://docker.io") == Origin("https", "registry-1.docker.io", 443)
    assert own_origin("https://quay.io/x") == Origin("https", "quay.io", 443)


def test_origins_compare_by_scheme_host_and_port() -> None:
    assert target_origin(parse_target("https://Quay.IO./a")) == target_origin(parse_target("https://quay.io:443/b"))
    assert target_origin(parse_target("http://h/")) != target_origin(parse_target("https://h/"))
    assert target_origin(parse_target("http://h/")) != target_origin(parse_target("http://h:81/"))
