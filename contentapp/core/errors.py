"""Everything that can go wrong, as one tree.

    ContentAppError
    ├── InvalidDigest, InvalidPath, InvalidReference     a device's request is malformed
    ├── DistributionNotFound, ContentNotFound            nothing here by that name
    ├── ContentDenied                                    every source denies it
    ├── ContentUnavailable                               no source can deliver it now
    ├── MetadataInvalid                                  a remote's metadata breaks its grammar
    │   └── InvalidChunkList
    ├── StorageError
    │   ├── ArtifactNotFound
    │   ├── ArtifactDamaged
    │   ├── NoSpace
    │   └── StorageUnavailable
    ├── CatalogUnavailable
    ├── LeaderLost                                       the process that held a flight is gone
    └── UpstreamError
        ├── ConnectError, UpstreamTimeout, TransferInterrupted
        ├── AddressRefused, RedirectRefused, ChallengeInvalid
        ├── HostCooling
        ├── UpstreamStatusError                          an answer that is not the content
        └── UpstreamProtocolError                        an answer that breaks HTTP or our request

A library's errors are mapped to these once, where the library is called, and these to a response once, in
pipeline/respond.py (devices) or api/ (admins).
"""

from __future__ import annotations

from dataclasses import dataclass


class ContentAppError(Exception):
    """The root; its text is safe to show: it never holds a secret or a query string."""


class InvalidRequestError(ContentAppError):
    """A device sent something outside the grammar; the offending text is the first argument."""


class InvalidDigest(InvalidRequestError):
    """Not ``algorithm:encoded`` with a registered algorithm."""


class InvalidPath(InvalidRequestError):
    """A path that no content can have."""


class InvalidReference(InvalidRequestError):
    """Neither a tag nor a digest."""


class DistributionNotFound(ContentAppError):
    """No distribution serves this path."""


class ContentNotFound(ContentAppError):
    """Every source said that it does not exist."""


class ContentDenied(ContentAppError):
    """Every source denied it."""


class MetadataInvalid(ContentAppError):
    """A remote's metadata breaks its grammar."""


@dataclass
class ContentUnavailable(ContentAppError):
    """No source can deliver it now.

    `reason` is a plain sentence for people; `phrase` a truthful network phrase that pullers know as transient;
    `retry_after_seconds` the time to the first trial.
    """

    reason: str
    phrase: str = "connection refused"
    retry_after_seconds: float = 5.0

    def __str__(self) -> str:
        return f"{self.reason}: {self.phrase}"


class StorageError(ContentAppError):
    """The storage could not do what was asked."""


class ArtifactNotFound(StorageError):
    """Nothing is stored under that digest."""


class ArtifactDamaged(StorageError):
    """What is stored under that digest has another size or can't be read."""


class NoSpace(StorageError):
    """The quota or the disk is full."""


class StorageUnavailable(StorageError):
    """The folder can't be written or read at all."""


class CatalogUnavailable(ContentAppError):
    """The database does not answer."""


class LeaderLost(ContentAppError):
    """The process that held a flight ended without an outcome."""


class UpstreamError(ContentAppError):
    """One exchange with a remote failed.

    host: ``host:port`` that was actually talked to, "" if none was. is_permanent: asking again changes nothing.
    phrase: the truthful network phrase for devices.
    """

    is_permanent = False
    phrase = "connection refused"

    def __init__(self, message: str, *, host: str = "") -> None:
        super().__init__(message)
        self.host = host


class ConnectError(UpstreamError):
    """No connection: refused, unreachable, name unknown, TLS failed. `phrase` says which."""

    def __init__(self, message: str, *, host: str = "", phrase: str = "connection refused") -> None:
        super().__init__(message, host=host)
        self.phrase = phrase


class UpstreamTimeout(UpstreamError):
    """Nothing came within the remote's timeouts."""

    phrase = "i/o timeout"


class TransferInterrupted(UpstreamError):
    """The body ended, was reset or stalled before its announced end."""

    phrase = "unexpected EOF"


class AddressRefused(UpstreamError):
    """A redirect or realm led to an address that this remote may not send us to."""

    is_permanent = True


class RedirectRefused(UpstreamError):
    """Too many redirects, https → http, or no usable Location."""

    is_permanent = True


class ChallengeInvalid(UpstreamError):
    """A WWW-Authenticate that can't be answered safely."""

    is_permanent = True


class UpstreamProtocolError(UpstreamError):
    """The answer contradicts the request: content coding, wrong range, bad length, endless head."""

    is_permanent = True
    phrase = "unexpected EOF"


class HostCooling(UpstreamError):
    """The host that a redirect or realm names is cooling down."""

    def __init__(self, message: str, *, host: str, retry_after_seconds: float) -> None:
        super().__init__(message, host=host)
        self.retry_after_seconds = retry_after_seconds


class UpstreamStatusError(UpstreamError):
    """An answer whose status is not the content: 401, 403, 404, 429, 5xx and the like.

    retry_after_seconds: of its Retry-After, None without one. credentials_refused: configured credentials were refused
    at the token server or at ``/v2/`` itself, which cools the whole remote.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        host: str = "",
        retry_after_seconds: float | None = None,
        credentials_refused: bool = False,
    ) -> None:
        super().__init__(message, host=host)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.credentials_refused = credentials_refused

    @property
    def is_permanent(self) -> bool:  # type: ignore[override]
        """502–504, 429 and 408 may pass; other statuses won't change by asking again at once."""
        return self.status not in {408, 429, 502, 503, 504}
