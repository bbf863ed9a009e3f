"""Publish/subscribe between processes."""

from __future__ import annotations

import asyncio

from contentapp.coordination.base import RESYNC
from tests.conformance.coordination.conftest import Open, Spawn, until


async def test_everybody_hears_it_the_publisher_too(open_one: Open, spawn: Spawn) -> None:
    one, two, child = await open_one(), await open_one(), await spawn()
    heard: list[tuple[str, str]] = []
    one.subscribe("changed", lambda message: heard.append(("one", message)))
    two.subscribe("changed", lambda message: heard.append(("two", message)))
    two.subscribe("other", lambda message: heard.append(("other", message)))
    await child.do("subscribe", topic="changed")
    one.publish("changed", "ünï\udcff")
    await until(lambda: len(heard) == 2)
    assert sorted(heard) == [("one", "ünï\udcff"), ("two", "ünï\udcff")]
    while await child.do("heard") != [["changed", "ünï\udcff"]]:
        await asyncio.sleep(0.005)
    await child.do("publish_event", topic="changed", message="from the child")
    await until(lambda: ("two", "from the child") in heard)


async def test_messages_keep_their_order(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    heard: list[str] = []
    two.subscribe("t", heard.append)
    for number in range(50):
        one.publish("t", str(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await until(lambda: heard[-1:] == ["49"])
    assert heard == [str(number) for number in range(50)]


async def test_who_missed_something_is_told_so(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    heard: list[str] = []
    resyncs: list[str] = []
    two.subscribe("t", heard.append)
    two.subscribe(RESYNC, resyncs.append)
    for number in range(5000):  # more than the kernel keeps for one who does not read
        one.publish("t", str(number))
    await until(lambda: bool(resyncs))
    assert heard[:1] == ["0"]
    assert len(heard) < 5000


async def test_what_is_too_long_to_say_becomes_a_resync(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    here: list[str] = []
    there: list[str] = []
    one.subscribe("t", here.append)
    two.subscribe("t", there.append)
    two.subscribe(RESYNC, there.append)
    one.publish("t", "x" * 20_000)
    await until(lambda: bool(there))
    assert there == [""]
    assert here == ["x" * 20_000]


async def test_dead_processes_disturb_nobody(open_one: Open, spawn: Spawn) -> None:
    one, two = await open_one(), await open_one()
    child = await spawn()
    await child.kill()
    heard: list[str] = []
    two.subscribe("t", heard.append)
    one.publish("t")
    one.publish("t", "second")
    await until(lambda: heard == ["", "second"])


async def test_a_callback_that_fails_does_not_keep_others_from_hearing(open_one: Open) -> None:
    one = await open_one()
    heard: list[str] = []
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    def fail(_message: str) -> None:
        raise ValueError("mine")

    one.subscribe("t", fail)
    one.subscribe("t", heard.append)
    one.publish("t", "x")
    await until(lambda: heard == ["x"])
    assert len(failures) == 1
