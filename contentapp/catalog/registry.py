"""Tags, and what may be read under a repository name (P8), by distribution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, and_, bindparam, case, delete, func, or_, select
from sqlalchemy.dialects.sqlite import Insert

from contentapp.catalog.engine import Queries, batches, upsert
from contentapp.catalog.tables import members, tags
from contentapp.core.digest import Digest
from contentapp.core.records import Kind, Member, Tag

THIS_TAG = and_(
    tags.c.distribution_id == bindparam("distribution"),
    tags.c.name == bindparam("repository"),
    tags.c.tag == bindparam("reference"),
)
SELECT_TAG = select(tags).where(THIS_TAG)
DELETE_TAG = delete(tags).where(THIS_TAG)
SELECT_TAG_NAMES = (
    select(tags.c.tag)
    .where(tags.c.distribution_id == bindparam("distribution"), tags.c.name == bindparam("repository"))
    .order_by(tags.c.tag)
)
SELECT_MEMBER = select(members).where(
    members.c.distribution_id == bindparam("distribution"),
    members.c.name == bindparam("repository"),
    members.c.digest == bindparam("reference"),
)


class RegistryQueries(Queries):
    """What the data path knows of registries."""

    async def find_tag(self, distribution: int, name: str, tag: str) -> Tag | None:
        row = await self._find(SELECT_TAG, {"distribution": distribution, "repository": name, "reference": tag})
        return None if row is None else tag_record(row)

    async def record_tag(self, distribution: int, name: str, tag: Tag) -> None:
        """Insert or replace, unless what is there was checked later."""
        await self._change(tag_upsert(), tag_row(distribution, name, tag))

    async def forget_tag(self, distribution: int, name: str, tag: str) -> None:
        await self._change(DELETE_TAG, {"distribution": distribution, "repository": name, "reference": tag})

    async def tag_names(self, distribution: int, name: str) -> Sequence[str]:
        rows = await self._all(SELECT_TAG_NAMES, {"distribution": distribution, "repository": name})
        return [row.tag for row in rows]

    async def find_member(self, distribution: int, name: str, digest: Digest) -> Member | None:
        key = {"distribution": distribution, "repository": name, "reference": str(digest)}
        row = await self._find(SELECT_MEMBER, key)
        return None if row is None else member_record(row)

    async def record_members(self, distribution: int, name: str, members: Iterable[Member]) -> None:
        """Insert, or complete what is there, whatever the order they come in; see `member_upsert`."""
        for batch in batches(members):
            await self._change(member_upsert(), [member_row(distribution, name, member) for member in batch])


def tag_upsert() -> Insert:
    insert = upsert(tags)
    return insert.on_conflict_do_update(
        index_elements=list(tags.primary_key),
        set_={name: insert.excluded[name] for name in ("digest", "media_type", "checked_at", "remote_id")},
        where=insert.excluded.checked_at >= tags.c.checked_at,
    )


def member_upsert() -> Insert:
    """What is known stays: a manifest that something else calls a blob is a manifest still.

    Nothing is written when nothing is new, since the same manifest is recorded again at each revalidation.
    """
    insert = upsert(members)
    known, new = members.c, insert.excluded
    is_contradicted = and_(known.kind == Kind.MANIFEST, new.kind != Kind.MANIFEST)
    kind = case((is_contradicted, known.kind), else_=new.kind)
    media_type = case((or_(is_contradicted, new.media_type == ""), known.media_type), else_=new.media_type)
    size = func.coalesce(new.size, known.size)
    return insert.on_conflict_do_update(
        index_elements=list(members.primary_key),
        set_={"kind": kind, "media_type": media_type, "size": size},
        where=or_(known.kind != kind, known.media_type != media_type, known.size.is_distinct_from(size)),
    )


def tag_row(distribution: int, name: str, tag: Tag) -> dict[str, Any]:
    return {
        "distribution_id": distribution,
        "name": name,
        "tag": tag.name,
        "digest": str(tag.digest),
        "media_type": tag.media_type,
        "checked_at": tag.checked_at,
        "remote_id": tag.remote_id,
    }


def tag_record(row: Row[Any]) -> Tag:
    return Tag(
        name=row.tag,
        digest=Digest.parse(row.digest),
        media_type=row.media_type,
        checked_at=row.checked_at,
        remote_id=row.remote_id,
    )


def member_row(distribution: int, name: str, member: Member) -> dict[str, Any]:
    return {
        "distribution_id": distribution,
        "name": name,
        "digest": str(member.digest),
        "kind": member.kind.value,
        "media_type": member.media_type,
        "size": member.size,
    }


def member_record(row: Row[Any]) -> Member:
    return Member(digest=Digest.parse(row.digest), kind=Kind(row.kind), media_type=row.media_type, size=row.size)
