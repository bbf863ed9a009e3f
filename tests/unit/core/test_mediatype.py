from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.mediatype import essence, is_media_type, preferred

HTML, JSON = "text/html", "application/json"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("text/html", HTML),
        ("Text/HTML; charset=utf-8", HTML),
        (" text/html ;charset=utf-8", HTML),
        ("text/html;", HTML),
        ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.index.v1+json"),
        (None, ""),
        ("", ""),
        ("text", ""),
        ("text/", ""),
        ("/html", ""),
        ("text/html/x", ""),
        ("text /html", ""),
        ("text/html, text/plain", ""),
        ("*/*", ""),
        ("text/html\n", ""),
        ("text/" + "x" * 300, ""),
    ],
)
def test_essence(header: str | None, expected: str) -> None:
    assert essence(header) == expected


@given(st.text())
def test_essence_of_anything(header: str) -> None:
    found = essence(header)
    assert found == "" or is_media_type(found)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, HTML),
        ("", HTML),
        ("*/*", HTML),
        ("application/json", JSON),
        ("Application/JSON", JSON),
        ("application/*", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("application/json;q=0.5, text/html;q=0.4", JSON),
        ("application/json;q=0.4, text/html;q=0.5", HTML),
        ("application/json, */*;q=0.1", JSON),
        ("text/html;q=0, */*", JSON),
        ("text/*;q=0.3, text/html;q=0.7, application/json;q=0.5", HTML),
        ("application/json;charset=utf-8;q=0.9, text/html;q=0.1", JSON),
        ("application/json;Q=0.9", JSON),
        ("application/json;q=2, text/html;q=0.5", JSON),
        ("image/png", HTML),
        ("application/json;q=0", HTML),
        ("nonsense", HTML),
        (",,,", HTML),
        (";;;", HTML),
        ("application/json," * 1000, HTML),
    ],
)
def test_choice_by_accept(accept: str | None, expected: str) -> None:
    assert preferred(accept, (HTML, JSON)) == expected


@given(st.text(st.sampled_from("*/;,=q01. atex"), max_size=60))
def test_choice_never_raises(accept: str) -> None:
    assert preferred(accept, (HTML, JSON)) in {HTML, JSON}
