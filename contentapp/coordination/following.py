"""The follower's side of a lease, and the question what is under way."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto

from contentapp.coordination import wire
from contentapp.coordination.base import FlightProgress, Followed
from contentapp.coordination.snapshot import supersedes
from contentapp.core.errors import LeaderLost

MESSAGES_AT_ONCE = 512  # more than the kernel queues


class End(Enum):
    """How a following ended."""

    RELEASED = auto()
    GONE = auto()  # asked for before, or after, it was held there
    LEFT = auto()  # closed on this side
    LOST = auto()


class Channel:
    """The asking end of a connection: one reader, which may be woken by `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._waiter: asyncio.Future[None] | None = None
        self.is_closed = False

    async def wait(self) -> None:
        """Return when there may be something to receive."""
        if self.is_closed or self._waiter is not None:
            raise RuntimeError("closed, or read by somebody else")
        self._waiter = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if not self.is_closed:
                self._loop.remove_reader(self._sock.fileno())

    def receive(self) -> wire.Message | None:
        """See wire.receive."""
        return wire.receive(self._sock)

    def close(self) -> None:
        """Idempotent; wakes the reader."""
        if self.is_closed:
            return
        self._loop.remove_reader(self._sock.fileno())
        self.is_closed = True
        self._sock.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LocalFollowing:
    """A flight of whoever is at the other end of a connection; see coordination.base.Following.

    Nothing runs in the background: what nobody asks for waits in the kernel, and, when that is full, at the holder,
    which coalesces; what is then read at once is coalesced here. Cancelling the reader loses nothing.
    """

    def __init__(self, key: str, sock: socket.socket) -> None:
        self.key = key
        self._channel = Channel(sock)
        self._queue: deque[Followed] = deque()
        self._is_accepted = False
        self._end: End | None = None
        self._on_end: Callable[[LocalFollowing], None] | None = None

    def on_end(self, callback: Callable[[LocalFollowing], None]) -> None:
        """Call this when the connection has ended, for whatever reason."""
        self._on_end = callback

    async def accepted(self) -> bool:
        """Whether the other end holds the key."""
        while not self._is_accepted and self._end is None:
            await self._channel.wait()
            self._drain()
        return self._is_accepted

    def updates(self) -> AsyncIterator[Followed]:
        """See coordination.base.Following. One reader at a time; a later one goes on where the last one stopped."""
        return _Updates(self)

    async def next(self) -> Followed:
        """The next update. StopAsyncIteration; LeaderLost."""
        while True:
            self._drain()
            if self._queue:
                return self._queue.popleft()
            if self._end is End.LOST:
                raise LeaderLost(f"the process that was fetching {self.key} is gone")
            if self._end is not None:
                raise StopAsyncIteration
            await self._channel.wait()

    async def close(self) -> None:
        """Leave; descriptors that nobody has taken are closed. Idempotent."""
        self._leave(End.LEFT)

    def lose(self) -> None:
        """End it as if the holder had died."""
        self._leave(End.LOST)

    def _leave(self, end: End) -> None:
        if self._end is None:
            self._finish(end)
        while self._queue:
            _close(self._queue.popleft().fileno)

    def _drain(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            if self._end is not None:
                return
            try:
                message = self._channel.receive()
                self._take(message)
            except BlockingIOError:
                return
            except OSError:
                self._finish(End.LOST)

    def _take(self, message: wire.Message | None) -> None:
        if message is None:
            self._finish(End.LOST)
        elif message.op == "progress":
            self._append(message)
        else:
            message.close()
            self._take_control(message.op)

    def _take_control(self, op: str) -> None:
        if op == "following":
            self._is_accepted = True
        else:
            self._finish({"end": End.RELEASED, "gone": End.GONE}.get(op, End.LOST))

    def _finish(self, end: End) -> None:
        self._end = end
        self._channel.close()
        if self._on_end is not None:
            self._on_end(self)

    def _append(self, message: wire.Message) -> None:
        try:
            progress = wire.decode_progress(message)
        except OSError:
            message.close()
            raise
        fileno = message.filenos[0] if message.filenos else None
        for unwanted in message.filenos[1:]:
            os.close(unwanted)
        if self._queue and supersedes(progress, self._queue[-1].progress):
            last = self._queue.pop().fileno
            if fileno is None:
                fileno = last
            else:
                _close(last)
        self._queue.append(Followed(progress, fileno))


class _Updates:
    def __init__(self, following: LocalFollowing) -> None:
        self._following = following

    def __aiter__(self) -> _Updates:
        return self

    async def __anext__(self) -> Followed:
        return await self._following.next()


async def ask_transfers(sock: socket.socket, seconds: float) -> list[FlightProgress]:
    """What the process at the other end is fetching, as far as it says so within this time."""
    channel = Channel(sock)
    found: list[FlightProgress] = []
    try:
        wire.send(sock, wire.encode("transfers"))
        async with asyncio.timeout(seconds):
            while True:
                await channel.wait()
                if _has_ended(channel, found):
                    return found
    except (TimeoutError, OSError):
        return found
    finally:
        channel.close()


def _has_ended(channel: Channel, found: list[FlightProgress]) -> bool:
    for _ in range(MESSAGES_AT_ONCE):
        try:
            message = channel.receive()
        except BlockingIOError:
            return False
        if message is None or message.op != "progress":
            return True
        message.close()
        found.append(wire.decode_progress(message))
    return False


def _close(fileno: int | None) -> None:
    if fileno is not None:
        os.close(fileno)
