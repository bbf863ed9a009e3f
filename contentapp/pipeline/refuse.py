"""Refuse: errors mapped to answers, once, on the way out (DESIGN: when no source can deliver)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus

from contentapp.core.errors import (
    CatalogUnavailable,
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    DistributionNotFound,
    InvalidDigest,
    InvalidPath,
    InvalidReference,
    InvalidRequestError,
)
from contentapp.core.records import Distribution
from contentapp.pipeline.route import is_registry_path
from contentapp.plugins.container import ErrorCode, error_body, invalid_code

REGISTRY_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Refused:
    """An error as an answer; `reason` is the reason phrase, None for the status's own."""

    status: int
    headers: dict[str, str]
    body: bytes
    reason: str | None = None


def refuse(raw_path: str, distribution: Distribution | None, error: ContentAppError) -> Refused:
    """The answer for an error of before the first byte; the registry's have the spec's JSON."""
    is_registry = is_registry_path(raw_path)
    if isinstance(error, CatalogUnavailable):
        error = ContentUnavailable("the catalog does not answer", "i/o timeout", 5.0)
    if isinstance(error, ContentUnavailable):
        return _unavailable(distribution, error, is_registry=is_registry)
    status, code = _status(raw_path, error)
    return _answer(status, code, _message(error), is_registry=is_registry)


def method_not_allowed(raw_path: str) -> Refused:
    """Pull and files know GET and HEAD."""
    refused = _answer(405, ErrorCode.UNSUPPORTED, "only GET and HEAD", is_registry=is_registry_path(raw_path))
    refused.headers["Allow"] = "GET, HEAD"
    return refused


def malformed_request() -> Refused:
    """What came is no HTTP request; nothing of it is repeated."""
    return _answer(400, ErrorCode.UNSUPPORTED, "malformed request", is_registry=False)


def internal_error(raw_path: str) -> Refused:
    """A fault of ours; the log has it. Transient to a puller."""
    return _answer(500, ErrorCode.UNAVAILABLE, "internal error", is_registry=is_registry_path(raw_path))


def _unavailable(distribution: Distribution | None, error: ContentUnavailable, *, is_registry: bool) -> Refused:
    configured = None if distribution is None else distribution.settings.unavailable_status
    status = configured or (503 if is_registry else 404)
    seconds = max(1, math.ceil(error.retry_after_seconds))
    refused = _answer(status, ErrorCode.UNAVAILABLE, str(error), is_registry=is_registry)
    refused.headers["Retry-After"] = str(min(seconds, REGISTRY_RETRY_SECONDS) if is_registry else seconds)
    return Refused(refused.status, refused.headers, refused.body, error.phrase)


def _status(raw_path: str, error: ContentAppError) -> tuple[int, ErrorCode]:
    if isinstance(error, ContentNotFound):
        return 404, _unknown(raw_path)
    if isinstance(error, DistributionNotFound):
        return 404, ErrorCode.NAME_UNKNOWN
    if isinstance(error, ContentDenied):
        return 403, ErrorCode.DENIED
    if isinstance(error, InvalidPath) and not is_registry_path(raw_path):
        return (400 if raw_path.startswith("/pulp/") else 404), ErrorCode.NAME_INVALID
    if isinstance(error, InvalidDigest | InvalidReference | InvalidPath):
        return 400, invalid_code(error)
    if isinstance(error, InvalidRequestError):
        return 400, ErrorCode.UNSUPPORTED
    return 500, ErrorCode.UNAVAILABLE


def _unknown(raw_path: str) -> ErrorCode:
    if "/blobs/" in raw_path:
        return ErrorCode.BLOB_UNKNOWN
    return ErrorCode.MANIFEST_UNKNOWN if "/manifests/" in raw_path else ErrorCode.NAME_UNKNOWN


def _message(error: ContentAppError) -> str:
    """An error's text, which is safe to show; malformed input is quoted, so that it can't pretend to be more."""
    if isinstance(error, InvalidRequestError):
        return f"invalid: {json.dumps(str(error)[:200])}"
    if isinstance(error, DistributionNotFound):
        return f"no distribution serves {json.dumps(str(error)[:200])}"
    return str(error)


def _answer(status: int, code: ErrorCode, message: str, *, is_registry: bool) -> Refused:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if is_registry:
        headers["Content-Type"] = "application/json"
        return Refused(status, headers, error_body(code, message))
    headers["Content-Type"] = "text/plain; charset=utf-8"
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"
    return Refused(status, headers, f"{status} {phrase}: {message}\n".encode("utf-8", "backslashreplace"))
