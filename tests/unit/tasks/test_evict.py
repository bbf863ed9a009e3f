"""Eviction (P9): watermarks, order, and what stays."""

from __future__ import annotations

import asyncio

from tests.unit.tasks.conftest import LIMIT, Installation


async def fill(installation: Installation, count: int, size: int = 100) -> list[str]:
    """Artifacts of one size, the first one used longest ago; stored in another order than that."""
    digests = {}
    for number in sorted(range(count), key=lambda number: -(number * 7 % count)):
        body = bytes([number]) * size
        digests[number] = str(await installation.add(body, used=number))
    return [digests[number] for number in range(count)]


async def left(installation: Installation) -> set[str]:
    return {str(artifact.digest) async for artifact in installation.storage.scan()}


async def test_nothing_goes_below_the_high_watermark(installation: Installation) -> None:
    digests = await fill(installation, 9)
    assert await installation.eviction(high=0.9).run() == 0
    assert await left(installation) == set(digests)


async def test_above_the_high_watermark_the_least_recently_used_go_down_to_the_low_one(
    installation: Installation,
) -> None:
    digests = await fill(installation, 9)
    assert await installation.eviction(high=0.8, low=0.45).run() == 500
    assert await left(installation) == set(digests[5:])
    assert (await installation.storage.use()).stored == 400
    assert {str(record.digest) for record in await installation.upkeep.artifacts("", 100)} == set(digests[5:])


async def test_every_process_hears_of_it(installation: Installation) -> None:
    digests = await fill(installation, 9)
    await installation.eviction(high=0.8, low=0.8).run()
    assert await installation.heard() == [f"artifact:{digests[0]}"]


async def test_forced_goes_down_to_the_low_watermark_although_there_is_room(installation: Installation) -> None:
    digests = await fill(installation, 7)
    assert await installation.eviction(high=0.9, low=0.5).run(is_forced=True) == 200
    assert await left(installation) == set(digests[2:])


async def test_a_write_that_waits_gets_its_room(installation: Installation) -> None:
    digests = await fill(installation, 8)
    assert await installation.eviction(high=0.9, low=0.85).run(wanted=450) == 300
    assert await left(installation) == set(digests[3:])


async def test_a_write_that_can_never_fit_drives_nothing_out(installation: Installation) -> None:
    digests = await fill(installation, 8)
    assert await installation.eviction(high=0.9, low=0.85).run(wanted=LIMIT + 1) == 0
    assert await left(installation) == set(digests)


async def test_pinned_stays(installation: Installation) -> None:
    digests = await fill(installation, 9)
    await installation.pin(next(record.digest for record in await installation.upkeep.evictable(1)))
    assert await installation.eviction(high=0.8, low=0.8).run() == 100
    assert await left(installation) == set(digests) - {digests[1]}


async def test_what_has_no_live_source_stays(installation: Installation) -> None:
    orphan = await installation.add(b"x" * 100, used=-1, is_live=False)
    digests = await fill(installation, 9)
    assert await installation.eviction(high=0.8, low=0.1).run() == 900
    assert await left(installation) == {str(orphan)}
    assert not set(digests) & await left(installation)


async def test_in_use_stays_until_it_is_not(installation: Installation) -> None:
    digests = await fill(installation, 9)
    (oldest,) = await installation.upkeep.evictable(1)
    eviction = installation.eviction(high=0.8, low=0.05)
    reader = await installation.storage.open(oldest.digest)
    try:
        assert await eviction.run() == 800
        assert await left(installation) == {digests[0]}
    finally:
        reader.close()
    assert await eviction.run(is_forced=True) == 100


async def test_it_ends_when_nothing_more_can_go(installation: Installation) -> None:
    for number in range(9):
        await installation.add(bytes([number]) * 100, is_live=False)
    async with asyncio.timeout(5):
        assert await installation.eviction(high=0.8).run() == 0


async def test_a_record_whose_file_is_gone_goes_too(installation: Installation) -> None:
    digests = await fill(installation, 9)
    (oldest,) = await installation.upkeep.evictable(1)
    installation.path(oldest.digest).unlink()
    await installation.eviction(high=0.8, low=0.8).run()
    assert await installation.catalog.find_artifact(oldest.digest) is None
    assert digests[0] not in await left(installation)


async def test_two_at_a_time_free_it_once(installation: Installation) -> None:
    await fill(installation, 9)
    eviction = installation.eviction(high=0.8, low=0.5)
    assert sorted(await asyncio.gather(eviction.run(), eviction.run(450))) == [0, 400]
    assert len(await left(installation)) == 5
