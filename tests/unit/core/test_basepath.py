from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.basepath import BasePaths, valid_base_path

PATHS = BasePaths({"quay.io": 1, "quay.io/team": 2, "quay": 3, "a/b/c": 4})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quay.io", (1, "")),
        ("quay.io/x", (1, "x")),
        ("quay.io/x/y/z/w", (1, "x/y/z/w")),
        ("quay.io/team", (2, "")),
        ("quay.io/team/x", (2, "x")),
        ("quay.io/teams/x", (1, "teams/x")),
        ("quay/io", (3, "io")),
        ("a/b/c/d", (4, "d")),
        ("a/b/c", (4, "")),
        ("a/b", None),
        ("a", None),
        ("quay.ioo", None),
        ("", None),
        ("/quay.io", None),
        ("x/quay.io", None),
    ],
)
def test_longest_match_by_whole_segments(name: str, expected: tuple[int, str] | None) -> None:
    assert PATHS.find(name) == expected


def test_nothing_configured() -> None:
    assert BasePaths[int]({}).find("a/b") is None


def test_later_changes_of_the_mapping_do_not_show() -> None:
    entries = {"a": 1}
    paths = BasePaths(entries)
    entries["b"] = 2
    assert paths.find("b") is None


segments = st.sampled_from(["a", "b", "ab"])
names = st.lists(segments, min_size=1, max_size=5).map("/".join)


@given(st.dictionaries(names, st.integers()), names)
def test_agrees_with_trying_all(entries: dict[str, int], name: str) -> None:
    matching = [path for path in entries if f"{name}/".startswith(f"{path}/")]
    found = BasePaths(entries).find(name)
    if not matching:
        assert found is None
    else:
        best = max(matching, key=len)
        assert found == (entries[best], name[len(best) + 1 :])


@pytest.mark.parametrize("text", ["a", "quay.io", "A_b-c.d/e", "...", "a/..b", "x" * 255])
def test_valid(text: str) -> None:
    assert valid_base_path(text)


@pytest.mark.parametrize(
    "text", ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a b", "a:5000", "ä", "a\n", "a%20", "x" * 256]
)
def test_invalid(text: str) -> None:
    assert not valid_base_path(text)
