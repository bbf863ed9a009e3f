"""The nouns of the domain as immutable records, in Pulp's and OCI's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from contentapp.core.digest import Digest
from contentapp.core.secret import Secret
from contentapp.core.settings import DistributionSettings, RemoteSettings


class Policy(StrEnum):
    """When a remote's artifacts are downloaded and whether they are kept."""

    IMMEDIATE = "immediate"
    ON_DEMAND = "on_demand"
    STREAMED = "streamed"


class ContentType(StrEnum):
    """The plugins that exist."""

    CONTAINER = "container"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A configured upstream. `id` is the catalog's; equality and caching go by it and by `revision`."""

    id: int
    name: str
    type: ContentType
    url: str
    policy: Policy = Policy.IMMEDIATE
    revision: int = 0
    username: str | None = None
    password: Secret | None = None
    credential_helper: str | None = None
    auth_hosts: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    ca_cert: str | None = None  # PEM text
    client_cert: str | None = None  # PEM text
    client_key: Secret | None = None  # PEM text
    proxy_url: str | None = None
    proxy_username: str | None = None
    proxy_password: Secret | None = None
    settings: RemoteSettings = field(default_factory=RemoteSettings)

    @property
    def has_credentials(self) -> bool:
        """Whether anything but anonymous access is configured; answers are then `private`."""
        return bool(self.username or self.credential_helper or self.client_cert or self.headers)

    @property
    def keeps(self) -> bool:
        """Whether what this remote delivers is stored."""
        return self.policy is not Policy.STREAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What devices see under one `base_path`; pull-through from `remotes`, in their order."""

    id: int
    name: str
    base_path: str
    type: ContentType
    remotes: tuple[Remote, ...] = ()
    registry_hosts: tuple[str, ...] = ()
    default_registry: bool = False
    revision: int = 0
    settings: DistributionSettings = field(default_factory=DistributionSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One (remote, URL) that can deliver one artifact. `path` is relative to the remote: what cooldowns are kept by."""

    remote: Remote
    url: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    scope: str = ""  # token scope, for registries: repository:<name>:pull


class Kind(StrEnum):
    """What a member of a registry repository is."""

    MANIFEST = "manifest"
    BLOB = "blob"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A digest that may be read under one (distribution, repository name): P8's permission."""

    digest: Digest
    kind: Kind
    media_type: str = ""
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag and the manifest it was last seen at."""

    name: str
    digest: Digest
    media_type: str
    checked_at: datetime
    remote_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What a path of a file distribution was last seen to be, once stored.

    `digest` is of the stored bytes. `is_digested`: it came from the remote's metadata, not from the bytes themselves.
    `etag`, `last_modified`: the remote's validators, verbatim, "" if none. `validator`: the ETag shown to devices for
    undigested bytes ("u-…"), "" if there is none. `revision` is for compare-and-set.
    """

    path: str
    digest: Digest
    size: int
    is_digested: bool
    etag: str = ""
    last_modified: str = ""
    validator: str = ""
    remote_id: int | None = None
    checked_at: datetime
    modified_at: datetime
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """One line of a remote's PULP_MANIFEST."""

    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingState:
    """What is known of a remote's PULP_MANIFEST. `present` is False when the remote has none."""

    remote_id: int
    present: bool
    etag: str = ""
    last_modified: str = ""
    checked_at: datetime
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """A stored, verified artifact. `flight` is the id of the attempt that verified it (for If-Range)."""

    digest: Digest
    size: int
    flight: str = ""
    stored_at: datetime
    modified_at: datetime
    last_used_at: datetime | None = None
