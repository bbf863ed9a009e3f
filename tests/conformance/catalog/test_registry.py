"""Tags and members."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta, timezone

import pytest

from contentapp.core.records import Kind, Member
from tests.conformance.catalog.conftest import Catalog
from tests.conformance.catalog.samples import MANIFEST_TYPE, digest, tag


async def test_an_unknown_tag_is_none(catalog: Catalog) -> None:
    assert await catalog.content.find_tag(1, "library/alpine", "latest") is None


async def test_a_tag_comes_back_as_it_was(catalog: Catalog) -> None:
    await catalog.content.record_tag(1, "library/alpine", tag())
    assert await catalog.content.find_tag(1, "library/alpine", "latest") == tag()


@pytest.mark.parametrize(("distribution", "name", "reference"), [(2, "a", "t"), (1, "b", "t"), (1, "a", "T")])
async def test_tags_are_scoped(catalog: Catalog, distribution: int, name: str, reference: str) -> None:
    await catalog.content.record_tag(1, "a", tag("t"))
    assert await catalog.content.find_tag(distribution, name, reference) is None


@pytest.mark.parametrize("older_first", [True, False])
async def test_the_tag_checked_last_stays(catalog: Catalog, older_first: bool) -> None:
    older, newer = tag(of=1, seconds=0.5), tag(of=2, seconds=1)
    for one in (older, newer) if older_first else (newer, older):
        await catalog.content.record_tag(1, "a", one)
    assert await catalog.content.find_tag(1, "a", "latest") == newer


async def test_a_tag_checked_at_the_same_time_replaces(catalog: Catalog) -> None:
    await catalog.content.record_tag(1, "a", tag(of=1))
    await catalog.content.record_tag(1, "a", tag(of=2))
    assert await catalog.content.find_tag(1, "a", "latest") == tag(of=2)


async def test_times_of_all_zones_are_ordered_by_their_instant(catalog: Catalog) -> None:
    later = tag(of=2, seconds=60)
    west = replace(later, checked_at=later.checked_at.astimezone(timezone(timedelta(hours=-11))))
    await catalog.content.record_tag(1, "a", west)
    await catalog.content.record_tag(1, "a", tag(of=1))
    found = await catalog.content.find_tag(1, "a", "latest")
    assert found == later
    assert found.checked_at.utcoffset() == timedelta(0)


async def test_a_naive_time_is_refused(catalog: Catalog) -> None:
    naive = replace(tag(), checked_at=tag().checked_at.replace(tzinfo=None))
    with pytest.raises(Exception, match="without a zone"):
        await catalog.content.record_tag(1, "a", naive)
    assert await catalog.content.find_tag(1, "a", "latest") is None


async def test_a_forgotten_tag_is_gone_and_can_be_forgotten_again(catalog: Catalog) -> None:
    await catalog.content.record_tag(1, "a", tag())
    await catalog.content.forget_tag(1, "a", "latest")
    await catalog.content.forget_tag(1, "a", "latest")
    assert await catalog.content.find_tag(1, "a", "latest") is None


async def test_tag_names_in_lexical_order(catalog: Catalog) -> None:
    for name in ("v10", "v2", "Latest", "latest", "1.0", "v1.é"):
        await catalog.content.record_tag(1, "a", tag(name))
    await catalog.content.record_tag(1, "ab", tag("other"))
    await catalog.content.record_tag(2, "a", tag("other"))
    assert await catalog.content.tag_names(1, "a") == sorted(["v10", "v2", "Latest", "latest", "1.0", "v1.é"])
    assert await catalog.content.tag_names(1, "none") == []


MANIFEST = Member(digest=digest(1), kind=Kind.MANIFEST, media_type=MANIFEST_TYPE, size=500)
BLOB = Member(digest=digest(1), kind=Kind.BLOB, media_type="application/octet-stream", size=500)


async def test_members_come_back_as_they_were(catalog: Catalog) -> None:
    other = Member(digest=digest(2), kind=Kind.BLOB)
    await catalog.content.record_members(1, "a", iter([MANIFEST, other]))
    assert await catalog.content.find_member(1, "a", digest(1)) == MANIFEST
    assert await catalog.content.find_member(1, "a", digest(2)) == other


async def test_no_members_at_all(catalog: Catalog) -> None:
    await catalog.content.record_members(1, "a", [])


@pytest.mark.parametrize(("distribution", "name", "number"), [(2, "a", 1), (1, "b", 1), (1, "a", 2)])
async def test_permission_is_scoped(catalog: Catalog, distribution: int, name: str, number: int) -> None:
    await catalog.content.record_members(1, "a", [MANIFEST])
    assert await catalog.content.find_member(distribution, name, digest(number)) is None


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (MANIFEST, MANIFEST, MANIFEST),
        (MANIFEST, replace(MANIFEST, media_type=""), MANIFEST),
        (MANIFEST, replace(MANIFEST, size=None), MANIFEST),
        (replace(MANIFEST, size=None), MANIFEST, MANIFEST),
        (replace(MANIFEST, media_type="", size=None), MANIFEST, MANIFEST),
        (MANIFEST, replace(MANIFEST, media_type="x", size=7), replace(MANIFEST, media_type="x", size=7)),
        (MANIFEST, BLOB, MANIFEST),
        (BLOB, MANIFEST, MANIFEST),
        (replace(BLOB, size=9), BLOB, BLOB),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_what_is_known_of_a_member_stays(
    catalog: Catalog, first: Member, second: Member, outcome: Member, together: bool
) -> None:
    if together:
        await catalog.content.record_members(1, "a", [first, second])
    else:
        await catalog.content.record_members(1, "a", [first])
        await catalog.content.record_members(1, "a", [second])
    assert await catalog.content.find_member(1, "a", digest(1)) == outcome


async def test_more_members_than_one_transaction_takes(catalog: Catalog) -> None:
    members = [Member(digest=digest(number), kind=Kind.BLOB) for number in range(12_345)]
    await catalog.content.record_members(1, "a", members)
    found = await asyncio.gather(*(catalog.content.find_member(1, "a", digest(n)) for n in (0, 4999, 5000, 12_344)))
    assert None not in found
