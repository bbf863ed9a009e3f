"""Errors as answers: one table from the error tree to what devices see."""

from __future__ import annotations

import json

import pytest

from contentapp.core.errors import (
    ArtifactDamaged,
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
from contentapp.core.records import ContentType, Distribution
from contentapp.core.settings import DistributionSettings
from contentapp.pipeline.refuse import Refused, internal_error, method_not_allowed, refuse

MANIFEST, BLOB, TAGS = "/v2/a/manifests/v1", "/v2/a/blobs/sha256:0", "/v2/a/tags/list"
FILE, ELSEWHERE = "/pulp/content/a/f", "/favicon.ico"
UNAVAILABLE = ContentUnavailable("remote quay: broke", "i/o timeout", 7.2)


def code(refused: Refused) -> str:
    """The code of the spec's error JSON."""
    (error,) = json.loads(refused.body)["errors"]
    return str(error["code"])


def distribution(status: int | None) -> Distribution:
    return Distribution(
        id=1,
        name="d",
        base_path="d",
        type=ContentType.FILE,
        settings=DistributionSettings(unavailable_status=status),
    )


@pytest.mark.parametrize(
    ("path", "error", "status", "expected"),
    [
        (MANIFEST, ContentNotFound("x"), 404, "MANIFEST_UNKNOWN"),
        (BLOB, ContentNotFound("x"), 404, "BLOB_UNKNOWN"),
        (TAGS, ContentNotFound("x"), 404, "NAME_UNKNOWN"),
        (MANIFEST, DistributionNotFound("x"), 404, "NAME_UNKNOWN"),
        (MANIFEST, ContentDenied("x"), 403, "DENIED"),
        (MANIFEST, InvalidDigest("x"), 400, "DIGEST_INVALID"),
        (MANIFEST, InvalidReference("x"), 400, "MANIFEST_INVALID"),
        (MANIFEST, InvalidPath("x"), 400, "NAME_INVALID"),
        (MANIFEST, InvalidRequestError("x"), 400, "UNSUPPORTED"),
        (MANIFEST, UNAVAILABLE, 503, "UNAVAILABLE"),
        (MANIFEST, CatalogUnavailable("secret detail"), 503, "UNAVAILABLE"),
        (MANIFEST, ArtifactDamaged("x"), 500, "UNAVAILABLE"),
    ],
)
def test_registry(path: str, error: ContentAppError, status: int, expected: str) -> None:
    refused = refuse(path, None, error)
    assert (refused.status, code(refused)) == (status, expected)
    assert refused.headers["Content-Type"] == "application/json"
    assert refused.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "error", "status"),
    [
        (FILE, ContentNotFound("x"), 404),
        (FILE, DistributionNotFound("x"), 404),
        (FILE, ContentDenied("x"), 403),
        (FILE, InvalidPath("x"), 400),
        (ELSEWHERE, InvalidPath("x"), 404),
        (FILE, UNAVAILABLE, 404),
        (FILE, ArtifactDamaged("x"), 500),
    ],
)
def test_files(path: str, error: ContentAppError, status: int) -> None:
    refused = refuse(path, None, error)
    assert refused.status == status
    assert refused.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert refused.headers["Cache-Control"] == "no-store"
    assert refused.headers["X-Content-Type-Options"] == "nosniff"
    assert refused.body.startswith(str(status).encode())


@pytest.mark.parametrize("status", [404, 418, 503, 599])
def test_status_of_the_distribution(status: int) -> None:
    for path in (MANIFEST, FILE):
        refused = refuse(path, distribution(status), UNAVAILABLE)
        assert (refused.status, refused.reason, refused.headers["Retry-After"]) == (status, "i/o timeout", "8")
    assert refuse(FILE, distribution(status), ContentNotFound("x")).status == 404


def test_retry_after() -> None:
    for seconds, registry, files in ((0.0, "1", "1"), (1.0, "1", "1"), (59.1, "60", "60"), (3600.0, "60", "3600")):
        error = ContentUnavailable("r", retry_after_seconds=seconds)
        assert refuse(MANIFEST, None, error).headers["Retry-After"] == registry
        assert refuse(FILE, None, error).headers["Retry-After"] == files
    for other in (ContentNotFound("x"), ContentDenied("x"), InvalidPath("x")):
        assert "Retry-After" not in refuse(MANIFEST, None, other).headers


def test_message_ends_in_the_phrase() -> None:
    message = json.loads(refuse(MANIFEST, None, UNAVAILABLE).body)["errors"][0]["message"]
    assert message == "remote quay: broke: i/o timeout"


def test_malformed_input_is_quoted_and_cut() -> None:
    for path in (MANIFEST, FILE):
        refused = refuse(path, None, InvalidPath("line\nbreak <b>" + "x" * 5000))
        assert b"\n<" not in refused.body
        assert b"line\nbreak" not in refused.body
        assert len(refused.body) < 400
    assert b"surrogate" in refuse(FILE, None, InvalidPath("surrogate \udcff")).body


def test_catalog_that_is_down_does_not_tell_why() -> None:
    assert b"secret" not in refuse(MANIFEST, None, CatalogUnavailable("secret dsn")).body


def test_method_not_allowed() -> None:
    assert code(method_not_allowed(MANIFEST)) == "UNSUPPORTED"
    for path in (MANIFEST, FILE):
        refused = method_not_allowed(path)
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_internal_error_is_transient_to_a_puller() -> None:
    refused = internal_error(MANIFEST)
    assert (refused.status, code(refused), refused.headers["Cache-Control"]) == (500, "UNAVAILABLE", "no-store")


def test_path_that_only_begins_like_the_registry() -> None:
    assert refuse("/v2x/a", None, ContentNotFound("x")).headers["Content-Type"].startswith("text/plain")
    assert refuse("/v2", None, ContentNotFound("x")).headers["Content-Type"] == "application/json"
