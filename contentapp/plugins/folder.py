"""A folder of files as a page for people (HTML) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from urllib.parse import quote

from contentapp.core.records import FileEntry, ListedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEntry:
    """One line of a folder. `name` is one segment; `size` and `modified_at` are None for folders and when unknown."""

    name: str
    is_folder: bool = False
    size: int | None = None
    modified_at: datetime | None = None


def folder_prefix(relative_path: str) -> str:
    """What the paths of all files in a folder begin with; "" for the distribution's own."""
    return f"{relative_path}/" if relative_path else ""


def folder_entries(prefix: str, files: Iterable[FileEntry | ListedFile]) -> tuple[FolderEntry, ...]:
    """What lies directly in the folder `prefix`, folders first, each group by name; the first of two of one name stays.

    Files that are not below `prefix` are left out.
    """
    found: dict[tuple[bool, str], FolderEntry] = {}
    for file in files:
        if file.path.startswith(prefix) and (rest := file.path[len(prefix) :]):
            entry = _entry(rest, file)
            found.setdefault((not entry.is_folder, entry.name), entry)
    return tuple(found[key] for key in sorted(found))


def _entry(rest: str, file: FileEntry | ListedFile) -> FolderEntry:
    name, slash, _ = rest.partition("/")
    if slash:
        return FolderEntry(name=name, is_folder=True)
    modified_at = file.modified_at if isinstance(file, FileEntry) else None
    return FolderEntry(name=name, size=file.size, modified_at=modified_at)


def folder_json(path: str, entries: Sequence[FolderEntry]) -> bytes:
    """The folder as an object: its path and its entries; what is not known is null."""
    listed = [
        {
            "name": entry.name,
            "type": "folder" if entry.is_folder else "file",
            "size": entry.size,
            "modified_at": None if entry.modified_at is None else entry.modified_at.astimezone(UTC).isoformat(),
        }
        for entry in entries
    ]
    return json.dumps({"path": path, "entries": listed}, ensure_ascii=False, indent=1).encode("utf-8")


def folder_html(path: str, entries: Sequence[FolderEntry]) -> str:
    """The folder as a page whose links are relative, so the request's path must have ended in a slash.

    `path` is only shown. Encode it as UTF-8.
    """
    title = escape(f"Index of {path}")
    rows = "\n".join(map(_row, entries))
    return PAGE.format(title=title, rows=rows)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<table>
<tr><th>Name</th><th>Last modified</th><th>Size</th></tr>
<tr><td><a href="../">../</a></td><td></td><td></td></tr>
{rows}
</table>
</body>
</html>
"""


def _row(entry: FolderEntry) -> str:
    slash = "/" if entry.is_folder else ""
    # every character but letters, digits and -._~ is encoded: a colon can't make it a scheme
    href = quote(entry.name, safe="") + slash
    modified = "" if entry.modified_at is None else f"{entry.modified_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    size = "" if entry.size is None else str(entry.size)
    return f'<tr><td><a href="{href}">{escape(entry.name)}{slash}</a></td><td>{modified}</td><td>{size}</td></tr>'
