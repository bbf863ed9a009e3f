"""The grammar of file content: paths as devices ask for them, and where remotes have them."""

from __future__ import annotations

import mimetypes
from urllib.parse import quote

from contentapp.core.errors import InvalidPath
from contentapp.core.origin_path import check_relative_path, decode_path
from contentapp.core.records import Remote, Source
from contentapp.core.remote_url import split_url
from contentapp.plugins.base import ContentPath, Wanted

LISTING = "PULP_MANIFEST"
DEFAULT_MEDIA_TYPE = "application/octet-stream"
# Bytes go out as they are stored, so a compressed file is of its compression's type, not of its content's.
COMPRESSED = {
    ".gz": "application/gzip",
    ".tgz": "application/gzip",
    ".bz2": "application/x-bzip2",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
}
# The built-in table alone: what a host has in /etc/mime.types changes no answer.
BY_SUFFIX = {**mimetypes.MimeTypes(filenames=()).types_map[1], **COMPRESSED}


def parse(raw_path: str) -> ContentPath:
    """Read what follows ``/pulp/content/``, as received, still percent-encoded, without a query.

    A last slash, or nothing at all, makes it a FOLDER; `name` has no slash at either end. InvalidPath unless the
    rest, decoded once, is a path of whole segments (see core.origin_path).
    """
    path = decode_path(raw_path)
    if path == "":
        return ContentPath(wanted=Wanted.FOLDER)
    name = path.removesuffix("/")
    check_relative_path(name)
    return ContentPath(wanted=Wanted.FILE if name == path else Wanted.FOLDER, name=name)


def valid_relative_path(path: str) -> bool:
    """Whether a decoded path can be asked for at all."""
    try:
        check_relative_path(path)
    except InvalidPath:
        return False
    return True


def base_url(remote: Remote) -> str:
    """The folder that paths are relative to, with its last slash; of a url that names a file, that file's folder."""
    parts = split_url(remote.url)
    folder, _, _ = parts.path.rpartition("/")
    return parts._replace(path=f"{folder}/").geturl()


def locate(remote: Remote, relative_path: str) -> Source:
    """Where the remote has a file; InvalidPath for a path that `parse` would not give."""
    check_relative_path(relative_path)
    return Source(remote=remote, url=base_url(remote) + quote(relative_path, safe="/"), path=relative_path)


def listing_source(remote: Remote) -> Source:
    """Where the remote's listing is: the file that its url names, else PULP_MANIFEST in its folder."""
    name = decode_path(split_url(remote.url).path.rpartition("/")[2]) or LISTING
    return locate(remote, name)


def media_type(path: str) -> str:
    """What a file's Content-Type is, by its name alone."""
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return BY_SUFFIX.get(f".{suffix.lower()}", DEFAULT_MEDIA_TYPE) if stem and dot else DEFAULT_MEDIA_TYPE
