"""A remote that serves files over plain HTTP, as a web server with a Pulp-style manifest does."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

from aiohttp import web
from multidict import CIMultiDict

from tests.remotes.content import Content, content_of, digest_of
from tests.remotes.faults import Answer
from tests.remotes.scripted import ScriptedRemote

MANIFEST = "PULP_MANIFEST"
LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)


class FileRemote(ScriptedRemote):
    """Files by path (without a leading slash). `listed` paths (default: all) stand in PULP_MANIFEST, if there is one.

    etag: "strong", "weak" or None. last_modified: None sends none. ranges: whether Range is honoured.
    """

    def __init__(
        self,
        files: Mapping[str, bytes | Content] | None = None,
        *,
        manifest: bool = True,
        listed: set[str] | None = None,
        etag: str | None = "strong",
        last_modified: datetime | None = LONG_AGO,
        ranges: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls=tls)
        self.files: dict[str, Content] = {path: content_of(body) for path, body in (files or {}).items()}
        self.has_manifest, self.listed = manifest, listed
        self.etag, self.last_modified, self.ranges = etag, last_modified, ranges

    def put(self, path: str, body: bytes | Content) -> None:
        """Add a file or change one."""
        self.files[path] = content_of(body)

    def manifest(self) -> bytes:
        """PULP_MANIFEST: a line ``name,sha256,size`` for each listed file."""
        paths = [path for path in self.files if self.listed is None or path in self.listed]
        lines = (f"{path},{digest_of(self.files[path])[7:]},{self.files[path].size}\n" for path in sorted(paths))
        return "".join(lines).encode()

    async def answer(self, request: web.BaseRequest) -> Answer:
        content = self._find(request.path.lstrip("/"))
        if content is None:
            return Answer(path=request.path, status=404, content=content_of(b"not found"))
        if request.method not in ("GET", "HEAD"):
            return Answer(path=request.path, status=405)
        headers = self._headers(request.path, content)
        if is_current(request, headers):
            return Answer(path=request.path, status=304, headers=headers)
        return Answer(path=request.path, headers=headers, content=content, honours_range=self.ranges)

    def _find(self, path: str) -> Content | None:
        if self.has_manifest and path == MANIFEST and path not in self.files:
            return content_of(self.manifest())
        return self.files.get(path)

    def _headers(self, path: str, content: Content) -> CIMultiDict[str]:
        headers = CIMultiDict({"Content-Type": "application/octet-stream"})
        if self.etag is not None:
            headers["ETag"] = f'{"W/" if self.etag == "weak" else ""}"{etag_of(content)}"'
        if self.last_modified is not None:
            headers["Last-Modified"] = format_datetime(self.last_modified, usegmt=True)
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
        return headers


def etag_of(content: Content) -> str:
    """A validator that changes with the content, without reading much of it."""
    return f"{digest_of(content_of(b''.join(content.pieces(0, min(content.size, 4096)))))[7:23]}-{content.size}"


def is_current(request: web.BaseRequest, headers: CIMultiDict[str]) -> bool:
    """Whether the conditions of the request are answered with 304 (RFC 9110, 13.2.2)."""
    if "If-None-Match" in request.headers:
        return request.headers["If-None-Match"] == headers.get("ETag")
    since = request.headers.get("If-Modified-Since")
    return since is not None and since == headers.get("Last-Modified")
