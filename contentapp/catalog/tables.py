"""The catalog's tables. Whoever changes one adds a migration; a test holds the two together.

Ids are never reused, so rows of what was removed can be left for later: the bulk tables carry no foreign keys to what
an operator edits, nothing reads a row whose parent is gone, and `sweep.py` removes such rows in short transactions.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    true,
)


class UtcTime(TypeDecorator[datetime]):
    """Aware datetimes in and out, kept in UTC with fixed width, so that their order is that of time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """A naive time is a ValueError: what zone it means can't be known."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Compared and ordered by code point on every database, since prefixes are looked up as ranges.
Name = Text().with_variant(Text(collation="C"), "postgresql")
Json = JSON(none_as_null=True)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

# What an operator edits. `settings` holds only what the resource overrides; `revision` grows with each change of a row.

remotes = Table(
    "remotes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pulp_id", Text, nullable=False, unique=True),
    Column("name", Name, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("username", Text),
    Column("password", Json),
    Column("credential_helper", Text),
    Column("auth_hosts", Json, nullable=False),
    Column("headers", Json, nullable=False),
    Column("ca_cert", Text),
    Column("client_cert", Text),
    Column("client_key", Json),
    Column("proxy_url", Text),
    Column("proxy_username", Text),
    Column("proxy_password", Json),
    Column("settings", Json, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    sqlite_autoincrement=True,
)

distributions = Table(
    "distributions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pulp_id", Text, nullable=False, unique=True),
    Column("name", Name, nullable=False, unique=True),
    Column("base_path", Name, nullable=False, unique=True),
    Column("type", Text, nullable=False),
    Column("registry_hosts", Json, nullable=False),
    Column("default_registry", Boolean, nullable=False),
    Column("settings", Json, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    sqlite_autoincrement=True,
)

distribution_remotes = Table(
    "distribution_remotes",
    metadata,
    Column("distribution_id", Integer, ForeignKey("distributions.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("remote_id", Integer, ForeignKey("remotes.id"), nullable=False, index=True),
    UniqueConstraint("distribution_id", "remote_id"),
    sqlite_with_rowid=False,
)

# What the data path learns of a registry, by (distribution, repository name).

tags = Table(
    "tags",
    metadata,
    Column("distribution_id", Integer, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("tag", Name, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("checked_at", UtcTime, nullable=False),
    Column("remote_id", Integer),
    sqlite_with_rowid=False,
)

members = Table(
    "members",
    metadata,
    Column("distribution_id", Integer, primary_key=True),
    Column("name", Name, primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("size", BigInteger),
    sqlite_with_rowid=False,
)

# What the data path learns of files, by distribution.

files = Table(
    "files",
    metadata,
    Column("distribution_id", Integer, primary_key=True),
    Column("path", Name, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("is_digested", Boolean, nullable=False),
    Column("etag", Text, nullable=False),
    Column("last_modified", Text, nullable=False),
    Column("validator", Text, nullable=False),
    Column("remote_id", Integer),
    Column("checked_at", UtcTime, nullable=False),
    Column("modified_at", UtcTime, nullable=False),
    Column("revision", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# PULP_MANIFESTs. A row of `listings` is one that is being added or the current one; entries of others are rubbish.

listings = Table(
    "listings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("remote_id", Integer, nullable=False, index=True),
    Column("is_current", Boolean, nullable=False),
    sqlite_autoincrement=True,
)

listing_states = Table(
    "listing_states",
    metadata,
    Column("remote_id", Integer, primary_key=True, autoincrement=False),
    Column("listing_id", Integer),
    Column("present", Boolean, nullable=False),
    Column("etag", Text, nullable=False),
    Column("last_modified", Text, nullable=False),
    Column("checked_at", UtcTime, nullable=False),
    Column("entries", Integer, nullable=False),
)

listed = Table(
    "listed",
    metadata,
    Column("listing_id", Integer, primary_key=True),
    Column("path", Name, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Bytes. The row stays when they are no longer stored; `eviction_at` is their place in the order of eviction.

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("is_stored", Boolean, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("size", BigInteger),
    Column("flight", Text, nullable=False),
    Column("stored_at", UtcTime),
    Column("modified_at", UtcTime, nullable=False),
    Column("last_used_at", UtcTime),
    Column("eviction_at", UtcTime),
    Index(None, "is_stored", "pinned", "eviction_at", "digest"),
    sqlite_with_rowid=False,
)

artifact_sources = Table(
    "artifact_sources",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("remote_id", Integer, primary_key=True, index=True),
    Column("path", Text, nullable=False),
    sqlite_with_rowid=False,
)

# With rowids: `digests` may have megabytes, which don't belong into the tree of the key.

chunk_lists = Table(
    "chunk_lists",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("chunk_size", Integer, nullable=False),
    Column("digests", LargeBinary, nullable=False),
    Column("is_proven", Boolean, nullable=False),
    Column("learned_from", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)


def below(path: Column[str], prefix: str) -> ColumnElement[bool]:
    """Whether a path starts with `prefix` ("" or ending in "/"), as a range that an index answers."""
    if not prefix:
        return true()
    after = prefix[:-1] + chr(ord("/") + 1)
    return (path >= prefix) & (path < after)
