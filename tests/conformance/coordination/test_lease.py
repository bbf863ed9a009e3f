"""One holder at a time, whoever else asks; P4's foundation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contentapp.coordination.base import Coordination, FlightProgress, FlightState, Following, Lease
from contentapp.core.errors import LeaderLost
from tests.conformance.coordination.child import contend
from tests.conformance.coordination.conftest import Open, Place, Spawn, until

KEY = "artifact:sha256:" + "a" * 64


async def lead(coordination: Coordination, key: str = KEY) -> Lease:
    found = await coordination.lease(key)
    assert isinstance(found, Lease)
    return found


async def follow(coordination: Coordination, key: str = KEY) -> Following:
    found = await coordination.lease(key)
    assert isinstance(found, Following)
    return found


async def test_the_first_leads_and_all_others_follow(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    followings = [await follow(two), await follow(one), await follow(two)]
    assert lease.key == followings[0].key == KEY
    assert lease.followers() == 3
    await lease.release()
    for following in followings:
        assert [update async for update in following.updates()] == []
        await following.close()


async def test_other_keys_are_other_leases(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    for number, coordination in enumerate([one, two, one, two]):
        await lead(coordination, f"key {number}")


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "a/b\0c", "ключ", "\udcff", "k" * 5000])
async def test_a_key_may_be_any_text(open_one: Open, key: str) -> None:
    one, two = await open_one(), await open_one()
    await lead(one, key)
    await (await follow(two, key)).close()


async def test_after_release_another_may_lead(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    for coordination in (one, two, one):
        lease = await lead(coordination)
        await lease.release()
        await lease.release()


async def test_nothing_is_left_of_a_released_lease(open_one: Open, place: Place) -> None:
    one = await open_one()
    before = place.implementation.leftovers(place.where)
    for number in range(50):
        await (await lead(one, f"key {number}")).release()
    assert place.implementation.leftovers(place.where) == before


async def test_closing_releases(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    lease.publish(FlightProgress(key=KEY, attempt="1", state=FlightState.VERIFIED))
    following = await follow(two)
    await one.close()
    assert [update.progress.state async for update in following.updates()] == [FlightState.VERIFIED]
    await following.close()
    await lead(two)


async def test_closing_a_follower_wakes_its_readers(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    await lead(one)
    following = await follow(two)
    reader = asyncio.ensure_future(anext(following.updates()))
    await asyncio.sleep(0)
    await two.close()
    with pytest.raises(LeaderLost):
        await reader


async def test_the_holder_learns_of_followers_that_come_and_go(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    counts: list[int] = []
    lease.on_followers_changed(lambda: counts.append(lease.followers()))
    first = await follow(two)
    await until(lambda: counts == [1])
    second = await follow(two)
    await until(lambda: counts == [1, 2])
    await first.close()
    await until(lambda: counts == [1, 2, 1])
    await second.close()
    await until(lambda: counts == [1, 2, 1, 0])


async def test_tasks_that_ask_at_the_same_moment_get_one_holder(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    found = await asyncio.gather(*((one, two)[number % 2].lease(KEY) for number in range(60)))
    leases = [item for item in found if isinstance(item, Lease)]
    assert len(leases) == 1
    assert leases[0].followers() == 59
    await leases[0].release()
    for item in found:
        if isinstance(item, Following):
            assert [update async for update in item.updates()] == []
            await item.close()


async def test_asking_can_be_cancelled_at_any_moment(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    for turns in range(12):
        asking = asyncio.ensure_future(one.lease(KEY))
        waiting = asyncio.ensure_future(two.lease(KEY))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = asking.done()
        asking.cancel()
        found = await waiting
        if was_done and not asking.cancelled():
            held = await asking
            await (held.release() if isinstance(held, Lease) else held.close())
        await (found.release() if isinstance(found, Lease) else found.close())
        lease = await lead(two)
        await lease.release()


async def test_never_two_holders_among_many_tasks_and_processes(open_one: Open, spawn: Spawn, tmp_path: Path) -> None:
    one, two = await open_one(), await open_one()
    children = await asyncio.gather(spawn(), spawn())
    for child in children:
        await child.ask("contend", key=KEY, folder=str(tmp_path), tasks=6, rounds=10)
    here = [contend((one, two)[number % 2], KEY, str(tmp_path), 10) for number in range(8)]
    violations = sum(await asyncio.gather(*here))
    violations += sum([await child.answer() for child in children])
    assert violations == 0
