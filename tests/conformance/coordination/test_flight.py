"""What followers see of a flight: every attempt and how it ended, the newest of the rest; P4."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from contentapp.coordination.base import Coordination, FlightProgress, FlightState, Followed, Following, Lease
from contentapp.core.errors import LeaderLost
from tests.conformance.coordination.conftest import Open, Spawn, until
from tests.conformance.coordination.test_lease import KEY, follow, lead

RUNNING, WRONG, VERIFIED = FlightState.RUNNING, FlightState.WRONG, FlightState.VERIFIED


def at(attempt: str, state: FlightState = RUNNING, arrived: int = 0, **more: object) -> FlightProgress:
    return FlightProgress(key=KEY, attempt=attempt, state=state, arrived=arrived, **more)  # type: ignore[arg-type]


@contextmanager
def spool(text: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(text)
        file.flush()
        yield file.fileno()


def read(followed: Followed, size: int = 100) -> bytes:
    """What is in its spool, which is closed."""
    assert followed.fileno is not None
    try:
        return os.pread(followed.fileno, size, 0)
    finally:
        os.close(followed.fileno)


async def rest(updates: AsyncIterator[Followed]) -> list[tuple[str, str, bytes | None]]:
    return [
        (item.progress.attempt, str(item.progress.state), None if item.fileno is None else read(item))
        async for item in updates
    ]


async def test_a_snapshot_arrives_whole(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    progress = FlightProgress(
        key=KEY,
        attempt="a-1",
        state=FlightState.UNAVAILABLE,
        size=1 << 40,
        arrived=17,
        keep=False,
        is_windowed=True,
        remote="quay",
        started_at=1234.5,
        followers=3,
        detail='{"reason": "„cooling“"}',
        head='{"etag": "\\"x\\""}',
    )
    lease.publish(progress)
    following = await follow(two)
    update = await anext(following.updates())
    assert update == Followed(progress, None)
    await following.close()


async def test_nothing_is_seen_before_the_first_publish(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    reader = asyncio.ensure_future(anext(following.updates()))
    await asyncio.sleep(0.02)
    assert not reader.done()
    lease.publish(at("1", FlightState.CONNECTING))
    assert (await reader).progress.state is FlightState.CONNECTING
    await following.close()


async def test_the_spool_comes_once_an_attempt_also_to_those_who_come_late(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    early = await follow(two)
    with spool(b"first"), spool(b"second") as fileno:
        lease.publish(at("1", FlightState.CONNECTING))
        lease.publish(at("1", RUNNING, 1), fileno)
        late = await follow(two)
        lease.publish(at("1", RUNNING, 6))
        lease.publish(at("1", VERIFIED, 6))
    await lease.release()
    for following in (early, late):
        seen = await rest(following.updates())
        assert [item[2] for item in seen if item[2] is not None] == [b"second"]
        assert seen[-1][:2] == ("1", "verified")
        await following.close()


async def test_a_new_attempt_brings_its_own_spool_and_takes_the_old_one_away(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    with spool(b"bad") as bad, spool(b"good") as good:
        lease.publish(at("1", RUNNING, 3), bad)
        lease.publish(at("1", WRONG, 3))
        lease.publish(at("2", FlightState.CONNECTING))
        between = await follow(two)
        lease.publish(at("2", RUNNING, 4), good)
    seen = between.updates()
    first = await anext(seen)
    if first.fileno is None:  # it was read before the spool came
        first = await anext(seen)
    assert first.progress.attempt == "2"
    assert read(first) == b"good"
    await between.close()


async def test_a_slow_follower_misses_no_attempt_and_no_end_but_most_of_what_arrived(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    attempts = [str(number) for number in range(20)]
    for attempt in attempts:
        with spool(attempt.encode()) as fileno:
            lease.publish(at(attempt, RUNNING, 1), fileno)
            for arrived in range(500):
                lease.publish(at(attempt, RUNNING, arrived, detail=str(arrived)))
            lease.publish(at(attempt, WRONG if attempt != "19" else VERIFIED, 500))
    await lease.release()
    seen = await rest(following.updates())
    assert [item[0] for item in seen if item[1] in {"wrong", "verified"}] == attempts
    assert [item[2] for item in seen if item[2] is not None] == [attempt.encode() for attempt in attempts]
    assert [item[0] for item in seen] == sorted((item[0] for item in seen), key=int)
    assert len(seen) <= 3 * len(attempts), "what nobody needs was sent"
    await following.close()


async def test_a_follower_that_reads_late_gets_the_newest_at_once(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    for arrived in range(1, 3000):
        lease.publish(at("1", RUNNING, arrived))
    await asyncio.sleep(0.05)
    assert (await anext(following.updates())).progress.arrived == 2999
    await following.close()


async def test_the_first_bytes_are_told_at_once_and_the_last_in_the_end(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    updates = following.updates()
    lease.publish(at("1", RUNNING, 0))
    assert (await anext(updates)).progress.arrived == 0
    lease.publish(at("1", RUNNING, 1))
    lease.publish(at("1", RUNNING, 2))
    await lease.release()
    assert [update.progress.arrived async for update in updates][-1] == 2
    await following.close()


async def test_reading_can_be_cancelled_and_goes_on_without_a_loss(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    reader = asyncio.ensure_future(anext(following.updates()))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    with spool(b"x") as fileno:
        lease.publish(at("1", RUNNING, 1), fileno)
    assert read(await anext(following.updates())) == b"x"
    await following.close()


async def test_leaving_with_unread_spools_leaks_none(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    for attempt in "123":
        with spool(b"x") as fileno:
            lease.publish(at(attempt, RUNNING, 1), fileno)
            lease.publish(at(attempt, WRONG, 1))
    update = await anext(following.updates())
    os.close(update.fileno or -1)
    await following.close()
    with pytest.raises(StopAsyncIteration):
        await anext(following.updates())


async def test_a_message_that_is_too_long_is_the_publishers_error(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    following = await follow(two)
    with pytest.raises(ValueError, match="longer than"):
        lease.publish(at("1", RUNNING, head="x" * 200_000))
    lease.publish(at("1", RUNNING, head="x" * 100_000))
    assert len((await anext(following.updates())).progress.head) == 100_000
    await following.close()


async def test_a_hundred_followers_see_all_of_it(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    lease = await lead(one)
    followings = [await follow(two) for _ in range(100)]
    readers = [asyncio.ensure_future(rest(following.updates())) for following in followings]
    with spool(b"bad") as bad, spool(b"good") as good:
        lease.publish(at("1", RUNNING, 3), bad)
        await asyncio.sleep(0.01)
        lease.publish(at("1", WRONG, 3))
        lease.publish(at("2", RUNNING, 4), good)
        await asyncio.sleep(0.01)
    lease.publish(at("2", VERIFIED, 4))
    await lease.release()
    for seen in await asyncio.gather(*readers):
        assert [item[2] for item in seen if item[2]] == [b"bad", b"good"]
        assert [item[:2] for item in seen if item[1] != "running"] == [("1", "wrong"), ("2", "verified")]
    for following in followings:
        await following.close()


async def test_transfers_of_all_processes_with_their_followers(open_one: Open, spawn: Spawn) -> None:
    one, two, child = await open_one(), await open_one(), await spawn()
    lease = await lead(one)
    lease.publish(at("1", RUNNING, 5, followers=2))
    await lead(one, "a lease without a flight")
    assert await child.do("lease", key="other") == "leads"
    await child.do("publish", key="other", attempt="9", state="running", arrived=7)
    following = await follow(two)
    for coordination in (one, two):
        found = {progress.key: progress for progress in await coordination.transfers()}
        assert sorted(found) == sorted([KEY, "other"])
        assert (found[KEY].followers, found[KEY].arrived) == (3, 5)
        assert found["other"].attempt == "9"
    await following.close()


async def test_transfers_do_not_wait_for_a_process_that_hangs(open_one: Open, spawn: Spawn) -> None:
    one, child = await open_one(), await spawn()
    (await lead(one)).publish(at("1"))
    child.stop()
    async with asyncio.timeout(3):
        assert [progress.key for progress in await one.transfers()] == [KEY]


async def test_children_follow_a_flight_of_this_process(open_one: Open, spawn: Spawn) -> None:
    one = await open_one()
    children = await asyncio.gather(spawn(), spawn())
    lease = await lead(one)
    for child in children:
        await child.ask("follow", key=KEY)
    await until(lambda: lease.followers() == 2)
    with spool(b"bad") as bad:
        lease.publish(at("1", RUNNING, 3), bad)
    lease.publish(at("1", WRONG, 3))
    with spool(b"good") as good:
        lease.publish(at("2", RUNNING, 4), good)
    lease.publish(at("2", VERIFIED, 4))
    await lease.release()
    for child in children:
        seen = await child.answer()
        assert ["1", "wrong"] in seen["states"]
        assert seen["states"][-1] == ["2", "verified"]
        assert sorted(seen["spools"]) == ["1", "2"]
        assert seen["end"] == "released"


async def test_a_hundred_followers_survive_the_leaders_death_with_its_bytes(open_one: Open, spawn: Spawn) -> None:
    """kill -9 of the holder: all hear of it, all can read what had arrived, one of them goes on."""
    one, two, child = await open_one(), await open_one(), await spawn()
    assert await child.do("lease", key=KEY) == "leads"
    followings = [await follow((one, two)[number % 2]) for number in range(100)]
    updates = [following.updates() for following in followings]
    digest = await child.do("spool", key=KEY, attempt="1", size=1000)
    firsts = [await anext(items) for items in updates]
    await child.kill()
    await asyncio.gather(*(expect_lost(items) for items in updates))
    assert len(digest) == 64
    assert len({read(first, 2000) for first in firsts}) == 1
    await go_on(followings, [one, two])


async def expect_lost(updates: AsyncIterator[Followed]) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(LeaderLost):
            await anext(updates)


async def go_on(followings: list[Following], coordinations: list[Coordination]) -> None:
    for following in followings:
        await following.close()
    found = await asyncio.gather(*(coordinations[n % 2].lease(KEY) for n in range(100)))
    assert sum(isinstance(item, Lease) for item in found) == 1
    for item in found:
        if isinstance(item, Following):
            await item.close()


async def test_the_next_holder_takes_over_from_a_dead_one(open_one: Open, spawn: Spawn) -> None:
    one = await open_one()
    for _ in range(3):
        child = await spawn()
        assert await child.do("lease", key=KEY) == "leads"
        following = await follow(one)
        await child.kill()
        await expect_lost(following.updates())
        await following.close()
    await (await lead(one)).release()
