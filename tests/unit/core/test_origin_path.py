from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import InvalidPath
from contentapp.core.origin_path import MAX_PATH_SIZE, check_relative_path, decode_path, split_target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", ("/", "")),
        ("/v2/", ("/v2/", "")),
        ("/v2/a?n=1&last=b?c", ("/v2/a", "n=1&last=b?c")),
        ("/a%3Fb", ("/a%3Fb", "")),
        ("http://h:80/v2/?ns=x", ("/v2/", "ns=x")),
        ("HTTPS://h", ("/", "")),
        ("https://h?x", ("/", "x")),
        ("//evil/x", ("//evil/x", "")),
    ],
)
def test_split_target(target: str, expected: tuple[str, str]) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize("target", ["", "*", "h:443", "v2/", "?x", "ftp://h/x", "file:///etc/passwd"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(InvalidPath):
        split_target(target)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("", ""),
        ("a/b", "a/b"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("a%2520b", "a%20b"),  # decoded once
        ("%E2%82%AC", "€"),
        ("%e2%82%ac", "€"),
        ("€", "€"),
        ("€%E2%82%AC", "€€"),
        ("a%3Fb%23c", "a?b#c"),
        ("sha256%3Aab", "sha256:ab"),
        ("%2e%2e", ".."),
    ],
)
def test_decode(raw: str, path: str) -> None:
    assert decode_path(raw) == path


@pytest.mark.parametrize(
    "raw",
    [
        "a%",
        "a%2",
        "a%zz",
        "a%%20",
        "a%2Fb",
        "a%2fb",
        "a%5Cb",
        "a\\b",
        "a%00b",
        "a\0b",
        "a%0Ab",
        "a\rb",
        "a%7F",
        "a%C2%80",  # a C1 control
        "%FF",
        "%C3",
        "%C0%AF",  # an overlong slash
        "%ED%A0%80",  # a surrogate
        "a\udc80",
        "%41\udc80",
        "a?b",
        "a#b",
        "a" * (MAX_PATH_SIZE + 1),
        "€" * (MAX_PATH_SIZE // 3 + 1),
        "%20" * (MAX_PATH_SIZE + 1),
        "a" * 100_000,
    ],
)
def test_decode_refuses(raw: str) -> None:
    with pytest.raises(InvalidPath) as caught:
        decode_path(raw)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("path", ["a", "a/b", ".a", "a.", "...", "a b", "a..b", "€", "a" * MAX_PATH_SIZE])
def test_relative_paths(path: str) -> None:
    check_relative_path(path)


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a/../b", "a\nb", "a\\b"]
)
def test_relative_path_refuses(path: str) -> None:
    with pytest.raises(InvalidPath):
        check_relative_path(path)


@given(st.text())
def test_any_raw_path_is_decoded_or_refused(raw: str) -> None:
    try:
        path = decode_path(raw)
    except InvalidPath:
        return
    assert "\0" not in path
    assert "\\" not in path
    assert path.count("/") == raw.count("/")


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\\"), max_size=100))
def test_what_is_encoded_comes_back(path: str) -> None:
    assert decode_path(quote(path, safe="/")) == path
