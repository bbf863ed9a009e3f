"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
JSON = sa.JSON()
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    create_resources()
    create_content()
    create_indexes()


def create_resources() -> None:
    """What an operator edits."""
    op.create_table(
        "remotes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("pulp_id", sa.Text, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("username", sa.Text, nullable=True),
        sa.Column("password", JSON, nullable=True),
        sa.Column("credential_helper", sa.Text, nullable=True),
        sa.Column("auth_hosts", JSON, nullable=False),
        sa.Column("headers", JSON, nullable=False),
        sa.Column("ca_cert", sa.Text, nullable=True),
        sa.Column("client_cert", sa.Text, nullable=True),
        sa.Column("client_key", JSON, nullable=True),
        sa.Column("proxy_url", sa.Text, nullable=True),
        sa.Column("proxy_username", sa.Text, nullable=True),
        sa.Column("proxy_password", JSON, nullable=True),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_remotes"),
        sa.UniqueConstraint("pulp_id", name="uq_remotes_pulp_id"),
        sa.UniqueConstraint("name", name="uq_remotes_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "distributions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("pulp_id", sa.Text, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("base_path", NAME, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("registry_hosts", JSON, nullable=False),
        sa.Column("default_registry", sa.Boolean, nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_distributions"),
        sa.UniqueConstraint("pulp_id", name="uq_distributions_pulp_id"),
        sa.UniqueConstraint("name", name="uq_distributions_name"),
        sa.UniqueConstraint("base_path", name="uq_distributions_base_path"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "distribution_remotes",
        sa.Column("distribution_id", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("remote_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("distribution_id", "position", name="pk_distribution_remotes"),
        sa.ForeignKeyConstraint(
            ["distribution_id"],
            ["distributions.id"],
            name="fk_distribution_remotes_distribution_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["remote_id"], ["remotes.id"], name="fk_distribution_remotes_remote_id"),
        sa.UniqueConstraint("distribution_id", "remote_id", name="uq_distribution_remotes_distribution_id_remote_id"),
        sqlite_with_rowid=False,
    )


def create_content() -> None:
    """What the data path learns."""
    op.create_table(
        "tags",
        sa.Column("distribution_id", sa.Integer, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("tag", NAME, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("checked_at", TIME, nullable=False),
        sa.Column("remote_id", sa.Integer, nullable=True),
        sa.PrimaryKeyConstraint("distribution_id", "name", "tag", name="pk_tags"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "members",
        sa.Column("distribution_id", sa.Integer, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("distribution_id", "name", "digest", name="pk_members"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "files",
        sa.Column("distribution_id", sa.Integer, nullable=False),
        sa.Column("path", NAME, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("is_digested", sa.Boolean, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("last_modified", sa.Text, nullable=False),
        sa.Column("validator", sa.Text, nullable=False),
        sa.Column("remote_id", sa.Integer, nullable=True),
        sa.Column("checked_at", TIME, nullable=False),
        sa.Column("modified_at", TIME, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("distribution_id", "path", name="pk_files"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "listings",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("remote_id", sa.Integer, nullable=False),
        sa.Column("is_current", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_listings"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "listing_states",
        sa.Column("remote_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("listing_id", sa.Integer, nullable=True),
        sa.Column("present", sa.Boolean, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("last_modified", sa.Text, nullable=False),
        sa.Column("checked_at", TIME, nullable=False),
        sa.Column("entries", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("remote_id", name="pk_listing_states"),
    )
    op.create_table(
        "listed",
        sa.Column("listing_id", sa.Integer, nullable=False),
        sa.Column("path", NAME, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("listing_id", "path", name="pk_listed"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("is_stored", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=True),
        sa.Column("flight", sa.Text, nullable=False),
        sa.Column("stored_at", TIME, nullable=True),
        sa.Column("modified_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("eviction_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("digest", name="pk_artifacts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "artifact_sources",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("remote_id", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("digest", "remote_id", name="pk_artifact_sources"),
        sqlite_with_rowid=False,
    )


def create_indexes() -> None:
    op.create_index("ix_distribution_remotes_remote_id", "distribution_remotes", ["remote_id"])
    op.create_index("ix_listings_remote_id", "listings", ["remote_id"])
    op.create_index(
        "ix_artifacts_is_stored_pinned_eviction_at_digest",
        "artifacts",
        ["is_stored", "pinned", "eviction_at", "digest"],
    )
    op.create_index("ix_artifact_sources_remote_id", "artifact_sources", ["remote_id"])
