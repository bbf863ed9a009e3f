"""The registry's grammar: OCI distribution-spec 1.1, as devices ask it of us and we of remotes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from urllib.parse import quote, unquote_to_bytes, urlencode

from contentapp.core import basepath
from contentapp.core.digest import Digest
from contentapp.core.errors import InvalidDigest, InvalidPath, InvalidReference, InvalidRequestError
from contentapp.core.mediatype import is_media_type
from contentapp.core.origin_path import SHOWN, decode_path
from contentapp.core.records import Remote, Source
from contentapp.core.remote_url import split_url
from contentapp.plugins.base import ContentPath, Wanted

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
ACCEPT = ", ".join(MANIFEST_TYPES)
"""What every remote is asked for, whatever the device accepts: so a tag is one digest for all devices."""

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
REGISTRY_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
PAGE_SIZE = re.compile(r"[0-9]{1,9}")
MAX_PAGE_SIZE = 10_000
MAX_UPSTREAM_NAME = 255  # what clients put up with
MAX_NAME = basepath.MAX_LENGTH + 1 + MAX_UPSTREAM_NAME

MAX_QUERY_LENGTH = 4096
PARAMETER = re.compile(r"[A-Za-z0-9._-]{1,32}")
PARAMETER_VALUE = re.compile(r"[!-~]{0,2048}")
MAX_PARAMETERS = 8

DOCKER_HUB = "registry-1.docker.io"
DOCKER_HUB_NAMES = frozenset({"docker.io", "index.docker.io", DOCKER_HUB})


class ErrorCode(StrEnum):
    """The codes of distribution-spec's table, and UNAVAILABLE, which registries use for 503."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DENIED = "DENIED"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"


def error_body(code: str, message: str, detail: object = None) -> bytes:
    """The spec's error JSON with one error; `detail` is any JSON, left out when None."""
    error: dict[str, object] = {"code": code, "message": message}
    if detail is not None:
        error["detail"] = detail
    return json.dumps({"errors": [error]}, separators=(",", ":")).encode("ascii")


def invalid_code(error: InvalidRequestError) -> ErrorCode:
    """The code for what `parse` refused."""
    if isinstance(error, InvalidDigest):
        return ErrorCode.DIGEST_INVALID
    return ErrorCode.MANIFEST_INVALID if isinstance(error, InvalidReference) else ErrorCode.NAME_INVALID


def valid_name(text: str) -> bool:
    """Whether it is a repository name, of our own (base_path and upstream name) or of a remote."""
    return len(text) <= MAX_NAME and NAME.fullmatch(text) is not None


def valid_base_path(text: str) -> bool:
    """Whether a container distribution may have it: it must be a repository name too."""
    return basepath.valid_base_path(text) and valid_name(text)


def parse(raw_path: str, query: str) -> ContentPath:
    """Read ``/v2/…`` as received, still percent-encoded, and its raw query, without the ``?``.

    InvalidPath for what is no endpoint of pull and discovery, and for a broken name or parameter; InvalidReference and
    InvalidDigest for a broken reference. Unknown parameters are kept for lists only (see ContentPath.continuation).
    """
    path = decode_path(raw_path)
    parameters = _parameters(query)
    namespace = _namespace(parameters.pop("ns", ""))
    if path in {"/v2", "/v2/"}:
        return ContentPath(wanted=Wanted.PING, namespace=namespace)
    if not path.startswith("/v2/"):
        raise InvalidPath(path[:SHOWN])
    return _endpoint(path[len("/v2/") :], namespace, parameters)


def _endpoint(path: str, namespace: str, parameters: dict[str, str]) -> ContentPath:
    """The name may itself hold segments such as ``blobs``, so the endpoint is read from the right."""
    name, _, tail = path.rpartition("/")
    name, _, noun = name.rpartition("/")
    if not valid_name(name):
        raise InvalidPath(path[:SHOWN])
    base = ContentPath(wanted=Wanted.PING, name=name, namespace=namespace)
    match noun, tail:
        case "manifests", _:
            return _manifest(base, tail)
        case "blobs", _ if tail != "uploads":
            return replace(base, wanted=Wanted.BLOB, digest=_digest(tail))
        case "referrers", _:
            return _referrers(replace(base, digest=_digest(tail)), parameters)
        case "tags", "list":
            return _tags(base, parameters)
    raise InvalidPath(path[:SHOWN])


def _manifest(base: ContentPath, reference: str) -> ContentPath:
    if ":" in reference:
        return replace(base, wanted=Wanted.MANIFEST, digest=_digest(reference))
    if not TAG.fullmatch(reference):
        raise InvalidReference(reference[:SHOWN])
    return replace(base, wanted=Wanted.MANIFEST, tag=reference)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest:
        raise InvalidDigest(text[:SHOWN]) from None


def _referrers(base: ContentPath, parameters: dict[str, str]) -> ContentPath:
    artifact_type = parameters.pop("artifactType", "")
    if artifact_type and not is_media_type(artifact_type):
        raise InvalidPath("artifactType")
    continuation = tuple(parameters.items())
    return replace(base, wanted=Wanted.REFERRERS, artifact_type=artifact_type, continuation=continuation)


def _tags(base: ContentPath, parameters: dict[str, str]) -> ContentPath:
    size, last = parameters.pop("n", ""), parameters.pop("last", "")
    if (size and not PAGE_SIZE.fullmatch(size)) or (last and not TAG.fullmatch(last)):
        raise InvalidPath("n or last")
    page_size = min(int(size), MAX_PAGE_SIZE) if size else None
    continuation = tuple(parameters.items())
    return replace(base, wanted=Wanted.TAGS, page_size=page_size, last=last, continuation=continuation)


def _namespace(text: str) -> str:
    if text and not REGISTRY_HOST.fullmatch(text):
        raise InvalidPath("ns")
    return text.lower()


def _parameters(query: str) -> dict[str, str]:
    """At most 8, each once, printable ASCII. A ``+`` is itself: media types have it, and no value has a space."""
    if len(query) > MAX_QUERY_LENGTH or query.count("&") >= MAX_PARAMETERS:
        raise InvalidPath("query")
    parameters: dict[str, str] = {}
    for name, value in _pairs(query):
        if name in parameters or not PARAMETER.fullmatch(name) or not PARAMETER_VALUE.fullmatch(value):
            raise InvalidPath("query")
        parameters[name] = value
    return parameters


def _pairs(query: str) -> Iterator[tuple[str, str]]:
    for field in filter(None, query.split("&")):
        name, _, value = field.partition("=")
        yield name, unquote_to_bytes(value.encode("utf-8", "surrogatepass")).decode("latin-1")


def upstream_name(remote: Remote, name: str) -> str:
    """The repository's name on the remote; on Docker Hub one-part names live under ``library/``."""
    return f"library/{name}" if "/" not in name and _is_docker_hub(remote) else name


def locate(remote: Remote, name: str, path: ContentPath) -> Source:
    """Where the remote has what `path` asks for; `name` is the rest of the name behind the base_path.

    `Source.path`, by which cooldowns are kept, is the repository's name on the remote, "" for the ping.
    """
    base = registry_url(remote)
    if path.wanted is Wanted.PING:
        return Source(remote=remote, url=f"{base}/v2/", path="")
    if len(name) > MAX_UPSTREAM_NAME or not valid_name(name):
        raise InvalidPath(name[:SHOWN])
    name = upstream_name(remote, name)
    return Source(
        remote=remote,
        url=f"{base}/v2/{name}/{endpoint(path)}",
        path=name,
        headers=_headers(path.wanted),
        scope=f"repository:{name}:pull",
    )


def registry_url(remote: Remote) -> str:
    """The remote's url without a last slash; Docker Hub's several names lead to the host that serves it."""
    parts = split_url(remote.url)
    if _is_docker_hub(remote):
        parts = parts._replace(netloc=DOCKER_HUB)
    return parts.geturl().rstrip("/")


def _is_docker_hub(remote: Remote) -> bool:
    parts = split_url(remote.url)
    return parts.netloc.lower().removesuffix(":443") in DOCKER_HUB_NAMES


def resource(path: ContentPath) -> str:
    """What follows the name in a URL, without the query."""
    match path.wanted:
        case Wanted.MANIFEST:
            return f"manifests/{path.digest or path.tag}"
        case Wanted.BLOB:
            return f"blobs/{path.digest}"
        case Wanted.TAGS:
            return "tags/list"
        case Wanted.REFERRERS:
            return f"referrers/{path.digest}"
    raise InvalidPath(path.wanted)


def endpoint(path: ContentPath) -> str:
    """What follows the name in a URL, with the query, percent-encoded."""
    return resource(path) + _query(path)


def _query(path: ContentPath) -> str:
    fields = {
        "n": "" if path.page_size is None else str(path.page_size),
        "last": path.last,
        "artifactType": path.artifact_type,
    }
    fields = {name: value for name, value in fields.items() if value} | dict(path.continuation)
    return "?" + urlencode(fields, quote_via=quote) if fields else ""


def _headers(wanted: Wanted) -> tuple[tuple[str, str], ...]:
    accept = {Wanted.MANIFEST: ACCEPT, Wanted.TAGS: "application/json", Wanted.REFERRERS: OCI_INDEX}.get(wanted)
    return (("Accept", accept),) if accept else ()


def referrers_tag_path(path: ContentPath) -> ContentPath:
    """Where the referrers are on a remote without the API: distribution-spec's "Referrers Tag Schema".

    The algorithm is cut to 32 characters and the encoded digest to 64.
    """
    if path.digest is None:
        raise InvalidDigest(path.name)
    tag = f"{path.digest.algorithm[:32]}-{path.digest.encoded[:64]}"
    return ContentPath(wanted=Wanted.MANIFEST, name=path.name, namespace=path.namespace, tag=tag)
