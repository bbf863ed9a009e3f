"""PULP_MANIFEST: one file a line, ``relative_path,sha256,size``, as Pulp writes and reads it.

A path may hold commas, since the other two fields can't; nothing is quoted. Blank lines and lines that begin with ``#``
are skipped, blanks round a field are not part of it, digests may be in upper case.
"""

from __future__ import annotations

import re
from typing import NoReturn

from contentapp.core.digest import Digest
from contentapp.core.errors import InvalidPath, MetadataInvalid
from contentapp.core.origin_path import check_relative_path
from contentapp.core.records import ListedFile

MAX_LINE = 4096  # bytes, the newline apart
MAX_SIZE = (1 << 63) - 1
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
SIZE = re.compile(r"[0-9]{1,19}")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ListingParser:
    """Reads a listing as its bytes arrive; holds at most one line of it.

    After a MetadataInvalid, whose text names the line, it is of no more use. Paths given twice are the catalog's to
    find. Feed it at most 64 KiB at a time on an event loop (about 2 ms).
    """

    def __init__(self) -> None:
        self._rest = b""
        self._line = 0

    def feed(self, chunk: bytes) -> list[ListedFile]:
        """The files of all lines that are now complete, in their order."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        files = [listed for line in lines if (listed := self._read(line)) is not None]
        if len(self._rest) > MAX_LINE:
            self._refuse("is too long", self._line + 1)
        return files

    def finish(self) -> list[ListedFile]:
        """The file of a last line without a newline, if there is one."""
        rest, self._rest = self._rest, b""
        listed = self._read(rest)
        return [] if listed is None else [listed]

    def _refuse(self, fault: str, line: int) -> NoReturn:
        raise MetadataInvalid(f"line {line} of the listing {fault}")

    def _read(self, raw: bytes) -> ListedFile | None:
        self._line += 1
        if len(raw) > MAX_LINE:
            self._refuse("is too long", self._line)
        if self._line == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            self._refuse("is not UTF-8", self._line)
        return None if not line or line.startswith("#") else self._parse(line)

    def _parse(self, line: str) -> ListedFile:
        fields = [field.strip() for field in line.rsplit(",", 2)]
        path, digest, size = fields if len(fields) == 3 else ("", "", "")
        if not SHA256.fullmatch(digest) or not SIZE.fullmatch(size) or int(size) > MAX_SIZE:
            self._refuse("is not relative_path,sha256,size", self._line)
        try:
            check_relative_path(path)
        except InvalidPath:
            self._refuse("has a path that no file can have", self._line)
        return ListedFile(path=path, digest=Digest("sha256", digest.lower()), size=int(size))
