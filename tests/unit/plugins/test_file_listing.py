from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import ListedFile
from contentapp.plugins.file import valid_relative_path
from contentapp.plugins.file_listing import MAX_LINE, ListingParser

D = Digest.of(b"content")
HEX = D.encoded


def read(body: bytes, step: int = 1 << 20) -> list[ListedFile]:
    parser = ListingParser()
    files = [file for at in range(0, len(body), step) for file in parser.feed(body[at : at + step])]
    return files + parser.finish()


def listed(path: str, size: int = 1) -> ListedFile:
    return ListedFile(path=path, digest=D, size=size)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", []),
        ("\n", []),
        (f"a,{HEX},1\n", [listed("a")]),
        (f"a,{HEX},1", [listed("a")]),
        (f"a,{HEX},1\r\nb/c,{HEX},2\r\n", [listed("a"), listed("b/c", 2)]),
        (f"\n\n a , {HEX} , 1 \n\n", [listed("a")]),
        (f"# name,sha256,size\na,{HEX},1\n#b\n", [listed("a")]),
        (f"a,b,c,{HEX},1\n", [listed("a,b,c")]),
        (f'"a",{HEX},1\n', [listed('"a"')]),
        (f"a b,{HEX},0\n", [listed("a b", 0)]),
        (f"a%20b,{HEX},1\n", [listed("a%20b")]),
        (f"€,{HEX},1\n", [listed("€")]),
        (f"a,{HEX.upper()},1\n", [listed("a")]),
        (f"a,{HEX},00012\n", [listed("a", 12)]),
        (f"a,{HEX},{(1 << 63) - 1}\n", [listed("a", (1 << 63) - 1)]),
        (f"\ufeffa,{HEX},1\n", [listed("a")]),
        (f"a,{HEX},1\na,{HEX},1\n", [listed("a"), listed("a")]),
    ],
)
def test_listings(body: str, expected: list[ListedFile]) -> None:
    for step in (1 << 20, 7, 1):
        assert read(body.encode(), step) == expected


@pytest.mark.parametrize(
    "line",
    [
        "<!DOCTYPE html>",
        "a",
        "a,b",
        f"a,{HEX}",
        f"a,1,{HEX}",
        f"{HEX},1",
        f",{HEX},1",
        f"a,{HEX},",
        f"a,{HEX},-1",
        f"a,{HEX},+1",
        f"a,{HEX},1.0",
        f"a,{HEX},1_0",
        f"a,{HEX},x",
        f"a,{HEX},١",
        f"a,{HEX},{1 << 63}",
        f"a,{HEX},{'9' * 20}",
        f"a,{HEX[:-1]},1",
        f"a,{HEX}0,1",
        f"a,{HEX[:-1]}g,1",
        f"a,sha256:{HEX},1",
        f"/a,{HEX},1",
        f"a/,{HEX},1",
        f"a//b,{HEX},1",
        f"../a,{HEX},1",
        f"a/../b,{HEX},1",
        f"./a,{HEX},1",
        f"a\\b,{HEX},1",
        f"a\0b,{HEX},1",
        f"a\x7fb,{HEX},1",
        f"a\x85b,{HEX},1",
        f"a\rb,{HEX},1",
        f"a,{HEX},1;b",
    ],
)
def test_refused_lines_are_named(line: str) -> None:
    good = f"a,{HEX},1\n\n".encode()
    with pytest.raises(MetadataInvalid, match="line 3 of the listing"):
        read(good + line.encode() + b"\n" + good)
    with pytest.raises(MetadataInvalid, match="line 3 of the listing"):
        read(good + line.encode())


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(MetadataInvalid, match="line 1 of the listing is not UTF-8"):
        read(b"a\xff," + HEX.encode() + b",1\n")
    with pytest.raises(MetadataInvalid):
        read("\ufeff\ufeffa\n".encode())


def test_lines_are_bounded_before_they_end() -> None:
    longest = b"#" * MAX_LINE
    assert read(longest + b"\n" + longest, 100) == []
    for body in (longest + b"#\n", b"\n\n" + longest + b"#"):
        with pytest.raises(MetadataInvalid, match="is too long"):
            read(body)
    parser = ListingParser()
    parser.feed(b"\n" + longest)
    with pytest.raises(MetadataInvalid, match="line 2 of the listing is too long"):
        parser.feed(b"#")


def test_files_come_as_soon_as_their_line_is_complete() -> None:
    parser = ListingParser()
    assert parser.feed(f"a,{HEX},1".encode()) == []
    assert parser.feed(b"2\nb") == [listed("a", 12)]
    assert parser.feed(f",{HEX},3".encode()) == []
    assert parser.finish() == [listed("b", 3)]


def test_a_refusal_repeats_nothing_of_the_line() -> None:
    with pytest.raises(MetadataInvalid) as caught:
        read(b"sesame\n")
    assert "sesame" not in str(caught.value)


paths = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda path: valid_relative_path(path) and path == path.strip() and not path.startswith(("#", "\ufeff"))
)
files = st.builds(ListedFile, path=paths, digest=st.binary().map(Digest.of), size=st.integers(0, (1 << 63) - 1))


@given(st.lists(files, max_size=5), st.integers(1, 100))
def test_round_trip(expected: list[ListedFile], step: int) -> None:
    body = "".join(f"{file.path},{file.digest.encoded},{file.size}\n" for file in expected)
    assert read(body.encode(), step) == expected


@given(
    st.binary() | st.text(st.sampled_from("a,/.\n\r# 0")).map(lambda t: t.replace("0", HEX).encode()), st.integers(1, 9)
)
def test_any_listing_is_read_or_refused(body: bytes, step: int) -> None:
    try:
        found = read(body, step)
    except MetadataInvalid:
        return
    assert all(valid_relative_path(file.path) and file.size >= 0 for file in found)
