from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import MetadataInvalid
from contentapp.core.remote_url import split_url


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://quay.io", "quay.io", None, ""),
        ("https://Quay.IO/", "quay.io", None, "/"),
        ("http://localhost:5000/v/", "localhost", 5000, "/v/"),
        ("http://127.0.0.1:8000/PULP_MANIFEST", "127.0.0.1", 8000, "/PULP_MANIFEST"),
        ("http://[::1]:8000/a%20b/", "::1", 8000, "/a%20b/"),
        ("https://my_host.example/", "my_host.example", None, "/"),
    ],
)
def test_urls(url: str, host: str, port: int | None, path: str) -> None:
    parts = split_url(url)
    assert (parts.hostname, parts.port, parts.path) == (host, port, path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "quay.io",
        "//quay.io",
        "/etc/passwd",
        "ftp://quay.io/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://:80/",
        "http://quay.io:/",
        "http://quay.io:x/",
        "http://quay.io:99999/",
        "http://-quay.io/",
        "http://./",
        "http://[::1/",
        "http://[x]/",
        "http://user@quay.io/",
        "http://user:sesame@quay.io/",
        "http://quay.io/?",
        "http://quay.io/?token=sesame",
        "http://quay.io/#sesame",
        "http://quay.io?x",
        "http://quay.io/a b",
        "http://quay.io/a\\b",
        "http://quay.io/\n",
        "http://quay.io\t/",
        "http://quäy.io/",
        "http://quay.io/ä",
        "http://quay.io//",
        "http://quay.io/a//b",
        "http://quay.io/../b",
        "http://quay.io/a/.",
        "http://quay.io/%2e%2e/b",
        "http://quay.io/a%2Fb",
        "http://quay.io/a%zz",
        "http://quay.io/a%00",
        "http://quay.io/" + "a" * 2048,
    ],
)
def test_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(MetadataInvalid) as caught:
        split_url(url)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text() | st.text().map("https://".__add__))
def test_any_text_is_read_or_refused(url: str) -> None:
    try:
        parts = split_url(url)
    except MetadataInvalid:
        return
    assert parts.hostname
    assert parts.path == "" or parts.path.startswith("/")
