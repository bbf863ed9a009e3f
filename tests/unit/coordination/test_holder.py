"""The holder's side: slow, silent and babbling followers, and those who come early."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator

import pytest

from contentapp.coordination import wire
from contentapp.coordination.base import FlightProgress, FlightState
from contentapp.coordination.connection import MAX_PENDING_TURNS
from contentapp.coordination.following import LocalFollowing
from contentapp.coordination.holder import HeldLease, HolderServer, Pace
from contentapp.coordination.sockets import SocketFolder
from contentapp.core.errors import LeaderLost

PACE = Pace(update_seconds=0.005, drain_seconds=0.05, hello_seconds=0.05)
Server = tuple[HolderServer, dict[str, HeldLease], SocketFolder]


@pytest.fixture
async def server(tmp_path: object) -> AsyncIterator[Server]:
    held: dict[str, HeldLease] = {}
    folder = SocketFolder(tmp_path / "sockets", socket.SOCK_SEQPACKET)  # type: ignore[operator]
    found = HolderServer(held, PACE)
    found.start(folder)
    yield found, held, folder
    for lease in held.values():
        lease.end()
    await found.close(0.05)
    assert folder.names() == []
    folder.close()


async def nothing(_lease: HeldLease) -> None:
    return


def lease_of(held: dict[str, HeldLease], key: str = "key") -> HeldLease:
    held[key] = HeldLease(key, PACE, nothing)
    return held[key]


def progress(attempt: int, state: FlightState = FlightState.RUNNING, arrived: int = 0) -> FlightProgress:
    return FlightProgress(key="key", attempt=str(attempt), state=state, arrived=arrived)


def ask(server: Server, data: bytes) -> socket.socket:
    sock = server[2].connect(server[0].name)
    if data:
        wire.send(sock, data)
    return sock


async def answer(sock: socket.socket) -> wire.Message | None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return wire.receive(sock)
        except BlockingIOError:
            ready = loop.create_future()
            loop.add_reader(sock, lambda ready=ready: ready.done() or ready.set_result(None))  # type: ignore[misc]
            await ready
            loop.remove_reader(sock)


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", wire.encode("dance"), wire.encode("follow"), wire.encode("follow", key=1)]
)
async def test_who_says_nothing_or_nonsense_is_sent_away(server: Server, data: bytes) -> None:
    with ask(server, data) as sock:
        async with asyncio.timeout(2):
            last = await answer(sock)
            while last is not None:
                assert last.op == "gone"
                last = await answer(sock)


async def test_a_key_that_is_not_held_is_gone(server: Server) -> None:
    following = LocalFollowing("other", ask(server, wire.encode("follow", key="other")))
    assert not await following.accepted()
    await following.close()


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_follower_that_comes_before_the_loop_knows_waits_for_it(server: Server, is_held: bool) -> None:
    lease = lease_of(server[1])
    following = LocalFollowing("key", ask(server, wire.encode("follow", key="key")))
    accepting = asyncio.ensure_future(following.accepted())
    await asyncio.sleep(0.02)
    assert not accepting.done()
    lease.settle(is_held=is_held)
    assert await accepting is is_held
    await following.close()


async def test_arrivals_are_paced_and_turns_are_not(server: Server) -> None:
    lease = lease_of(server[1])
    lease.settle(is_held=True)
    following = LocalFollowing("key", server[0].follow(lease))
    assert await following.accepted()
    lease.publish(progress(1, FlightState.CONNECTING))
    for arrived in range(100):
        lease.publish(progress(1, arrived=arrived))
    assert (await following.next()).progress.arrived == 0
    assert (await following.next()).progress.arrived == 99
    lease.publish(progress(1, FlightState.VERIFIED, 100))
    assert (await following.next()).progress.state is FlightState.VERIFIED
    await following.close()


async def test_a_follower_that_never_reads_is_dropped_in_the_end_and_leaks_nothing(server: Server) -> None:
    lease = lease_of(server[1])
    lease.settle(is_held=True)
    following = LocalFollowing("key", server[0].follow(lease))
    assert await following.accepted()
    for attempt in range(2000):
        with tempfile.TemporaryFile() as file:
            lease.publish(progress(attempt), file.fileno())
        lease.publish(progress(attempt, FlightState.WRONG))
        if not lease.followers():
            break
    assert MAX_PENDING_TURNS // 2 < attempt < 1999
    attempts = []
    with pytest.raises(LeaderLost):
        while True:
            followed = await following.next()
            attempts.append(int(followed.progress.attempt))
            wire.Message("", {}, () if followed.fileno is None else (followed.fileno,)).close()
    assert sorted(set(attempts)) == list(range(attempts[-1] + 1))
    await following.close()


async def test_a_slow_follower_does_not_keep_a_release_waiting(server: Server) -> None:
    lease = lease_of(server[1])
    lease.settle(is_held=True)
    following = LocalFollowing("key", server[0].follow(lease))
    for arrived in range(3000):
        lease.publish(progress(arrived % 7, arrived=arrived))
        if arrived > 2000 and lease.followers() == 0:
            break
    async with asyncio.timeout(0.5):
        lease.end()
        await server[0].close(0.05)
    await following.close()
