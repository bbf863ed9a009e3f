from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.records import FileEntry, ListedFile
from contentapp.plugins.folder import FolderEntry, folder_entries, folder_html, folder_json, folder_prefix

D = Digest.of(b"content")
AT = datetime(2026, 2, 1, 13, 0, tzinfo=timezone(timedelta(hours=1)))


def stored(path: str, size: int = 1) -> FileEntry:
    return FileEntry(path=path, digest=D, size=size, is_digested=True, checked_at=AT, modified_at=AT)


def listed(path: str, size: int = 2) -> ListedFile:
    return ListedFile(path=path, digest=D, size=size)


def test_prefix() -> None:
    assert folder_prefix("") == ""
    assert folder_prefix("a/b") == "a/b/"


def test_folders_first_each_by_name_and_once() -> None:
    files: list[FileEntry | ListedFile]
    files = [stored("z"), listed("a/x"), listed("z"), listed("b"), stored("a/y/z"), listed("B"), listed("c/d")]
    assert folder_entries("", files) == (
        FolderEntry(name="a", is_folder=True),
        FolderEntry(name="c", is_folder=True),
        FolderEntry(name="B", size=2),
        FolderEntry(name="b", size=2),
        FolderEntry(name="z", size=1, modified_at=AT),
    )


def test_only_what_is_below() -> None:
    files = [listed("a/b"), listed("a/c/d"), listed("ab"), listed("b/a/b"), listed("a")]
    assert [entry.name for entry in folder_entries("a/", files)] == ["c", "b"]
    assert folder_entries("none/", files) == ()


def test_a_file_and_a_folder_of_one_name() -> None:
    found = folder_entries("", [listed("a"), listed("a/b")])
    assert [(entry.name, entry.is_folder) for entry in found] == [("a", True), ("a", False)]


def test_json() -> None:
    entries = folder_entries("", [stored("ä"), listed("d/e"), listed("f")])
    assert json.loads(folder_json("base/", entries)) == {
        "path": "base/",
        "entries": [
            {"name": "d", "type": "folder", "size": None, "modified_at": None},
            {"name": "f", "type": "file", "size": 2, "modified_at": None},
            {"name": "ä", "type": "file", "size": 1, "modified_at": "2026-02-01T12:00:00+00:00"},
        ],
    }


class Links(HTMLParser):
    """Collects tags, links and their text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "a":
            (name, href), *more = attrs
            assert name == "href"
            assert not more
            assert href is not None
            self.links.append(href)


def test_html() -> None:
    page = folder_html("base/", folder_entries("", [stored("a b.iso", 12), listed("d/e")]))
    assert Links(page).links == ["../", "d/", "a%20b.iso"]
    assert ">d/</a></td><td></td><td></td>" in page
    assert ">a b.iso</a></td><td>2026-02-01 12:00:00</td><td>12</td>" in page
    assert "<title>Index of base/</title>" in page


def test_html_of_hostile_names() -> None:
    names = ["<script>alert(1)</script>", '"onclick="x', "javascript:alert(1)", "&lt;b&gt;", "{title}", "'x'", "a?b#c"]
    page = folder_html("<img src=x>", [FolderEntry(name=name) for name in names])
    found = Links(page)
    assert not {"script", "b", "img"} & set(found.tags)
    assert [unquote(link) for link in found.links[1:]] == names
    for link in found.links:
        assert urljoin("http://h/base/", link).startswith("http://h/")
        assert urlsplit(link).scheme == urlsplit(link).query == ""


names = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\"), min_size=1, max_size=20)


@given(names.filter(lambda name: name not in {".", ".."}), st.booleans())
def test_links_lead_to_what_they_show(name: str, is_folder: bool) -> None:
    page = folder_html(name, [FolderEntry(name=name, is_folder=is_folder)])
    found = Links(page)
    target = urljoin("http://h/x/", found.links[1])
    assert unquote(target.removeprefix("http://h/x/")) == name + "/" * is_folder
    assert name in unescape(page)
    assert len(found.tags) == len(Links(folder_html("x", [FolderEntry(name="x")])).tags)
    json.loads(folder_json(name, [FolderEntry(name=name, size=1, modified_at=datetime.now(UTC))]))
