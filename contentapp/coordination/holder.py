"""The holder's side of leases: what it publishes, and the socket where other processes ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from contentapp.coordination import wire
from contentapp.coordination.base import FlightProgress
from contentapp.coordination.connection import Connection
from contentapp.coordination.lease_file import HeldFile
from contentapp.coordination.snapshot import Spool, is_turn
from contentapp.coordination.sockets import SocketFolder, check_peer

logger = logging.getLogger("contentapp.coordination")

ACCEPTS_AT_ONCE = 64
ACCEPT_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """update_seconds: shortest time between two messages that only say that bytes arrived; drain_seconds: how long a
    slow follower may take for the last messages; hello_seconds: how long a connection may say nothing."""

    update_seconds: float = 0.005
    drain_seconds: float = 5.0
    hello_seconds: float = 5.0


class HeldLease:
    """A lease of this process, from the moment it is being acquired; see coordination.base.Lease.

    settled: set when it is known whether it could be had; `is_held` says it. Followers that come before are kept: they
    have read our name in the lock file, so it is ours, but this loop has not yet heard of it from its thread.
    """

    def __init__(self, key: str, pace: Pace, release: Callable[[HeldLease], Awaitable[None]]) -> None:
        self.key = key
        self.settled = asyncio.Event()
        self.is_held = False
        self.file: HeldFile | None = None
        self.progress: FlightProgress | None = None
        self._loop = asyncio.get_running_loop()
        self._pace = pace
        self._release = release
        self._is_over = False
        self._spool: Spool | None = None
        self._data = b""
        self._encoded: FlightProgress | None = None
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._followers: set[Connection] = set()
        self._early: list[Connection] = []
        self._callbacks: list[Callable[[], None]] = []

    def publish(self, progress: FlightProgress, fileno: int | None = None) -> None:
        """See coordination.base.Lease. After release it does nothing."""
        if self._is_over:
            return
        wire.check_size(progress)
        turns = fileno is not None or is_turn(progress, self.progress)
        if turns:
            self._replace_spool(progress, fileno)
        self.progress = progress
        wait = self._sent_at + self._pace.update_seconds - self._loop.time()
        if turns or (wait <= 0 and self._timer is None):
            self._send_to_all()
        elif self._timer is None and self._followers:
            self._timer = self._loop.call_later(wait, self._send_to_all)

    def followers(self) -> int:
        """See coordination.base.Lease."""
        return len(self._followers)

    def on_followers_changed(self, callback: Callable[[], None]) -> None:
        """See coordination.base.Lease."""
        self._callbacks.append(callback)

    async def release(self) -> None:
        """See coordination.base.Lease. Idempotent."""
        await self._release(self)

    def settle(self, *, is_held: bool, file: HeldFile | None = None) -> None:
        """Whether it could be had; those who waited for this follow, or ask elsewhere."""
        self.is_held = is_held
        self.file = file
        self._is_over = not is_held
        self.settled.set()
        for connection in self._early:
            self.join(connection)
        self._early.clear()

    def join(self, connection: Connection) -> None:
        """One more follower."""
        if self._is_over:
            connection.send(wire.GONE)
            connection.finish(self._pace.drain_seconds)
        elif not self.settled.is_set():
            self._early.append(connection)
        elif not connection.is_closed:
            self._add(connection)

    def end(self) -> None:
        """Send the followers the last snapshot and the end."""
        self._is_over = True
        if self._timer is not None:
            self._send_to_all()
        followers, self._followers = self._followers, set()
        self._callbacks.clear()
        for connection in followers:
            connection.send(wire.END)
            connection.finish(self._pace.drain_seconds)
        self._drop_spool()

    def _add(self, connection: Connection) -> None:
        connection.on_closed(self._leave)
        self._followers.add(connection)
        connection.send(wire.FOLLOWING)
        if self.progress is not None:
            connection.send_progress(self.progress, self._encode(self.progress), self._spool)
        self._tell_changed()

    def _leave(self, connection: Connection) -> None:
        if connection in self._followers:
            self._followers.discard(connection)
            self._tell_changed()

    def _tell_changed(self) -> None:
        for callback in self._callbacks:
            self._loop.call_soon(callback)

    def _send_to_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = self._loop.time()
        if self._followers and self.progress is not None:
            data = self._encode(self.progress)
            for connection in tuple(self._followers):
                connection.send_progress(self.progress, data, self._spool)

    def _encode(self, progress: FlightProgress) -> bytes:
        """Encoded once for all followers."""
        if self._encoded is not progress:
            self._data = wire.encode_progress(progress)
            self._encoded = progress
        return self._data

    def _replace_spool(self, progress: FlightProgress, fileno: int | None) -> None:
        """A new attempt's spool, or none yet, comes for the last one's."""
        is_same_attempt = self.progress is not None and self.progress.attempt == progress.attempt
        if fileno is None and is_same_attempt:
            return
        self._drop_spool()
        if fileno is not None:
            self._spool = Spool(fileno)

    def _drop_spool(self) -> None:
        if self._spool is not None:
            self._spool.drop()
            self._spool = None


class HolderServer:
    """Answers other processes' questions about this process's leases.

    Without a folder it does so only for this process, over socket pairs.
    """

    def __init__(self, held: Mapping[str, HeldLease], pace: Pace) -> None:
        self._held = held
        self._pace = pace
        self._connections: set[Connection] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._folder: SocketFolder | None = None
        self._sock: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.name = ""

    def start(self, folder: SocketFolder) -> None:
        """Listen in the folder. OSError."""
        self._sock, self.name = folder.bind()
        self._folder = folder
        self._listen()

    async def close(self, seconds: float) -> None:
        """Listen no more, and let connections that are about to finish do so within this time."""
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.finish(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), seconds + 1.0)
        for connection in tuple(self._connections):
            connection.abort()

    def follow(self, lease: HeldLease) -> socket.socket:
        """A follower's end of a connection to a lease of this very process. OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setblocking(False)
        lease.join(self._adopt(ours))
        return theirs

    def transfers(self) -> list[FlightProgress]:
        """The snapshots of this process's leases."""
        return [
            replace(lease.progress, followers=lease.progress.followers + lease.followers())
            for lease in self._held.values()
            if lease.progress is not None
        ]

    def _listen(self) -> None:
        self._pause = None
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def _stop_listening(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._sock is not None and self._folder is not None:
            self._folder.remove(self.name)
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if self._sock is None:
                return
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._pause_accepting(error)
                return
            self._welcome(sock)

    def _pause_accepting(self, error: OSError) -> None:
        """Out of descriptors: the backlog stays readable, and would keep the loop busy with nothing."""
        logger.warning("cannot accept a follower: %s", error)
        loop = asyncio.get_running_loop()
        if self._sock is not None:
            loop.remove_reader(self._sock.fileno())
        self._pause = loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            check_peer(sock)
        except OSError as error:
            logger.warning("refused a connection: %s", error)
            sock.close()
            return
        self._adopt(sock).expect_within(self._pace.hello_seconds)

    def _adopt(self, sock: socket.socket) -> Connection:
        connection = Connection(sock, on_message=self._answer, on_closed=self._forget)
        self._connections.add(connection)
        self._is_idle.clear()
        return connection

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._is_idle.set()

    def _answer(self, connection: Connection, message: wire.Message) -> None:
        if message.op == "follow":
            self._answer_follow(connection, message.values.get("key"))
        elif message.op == "transfers":
            self._answer_transfers(connection)
        else:
            connection.abort()

    def _answer_follow(self, connection: Connection, key: object) -> None:
        lease = self._held.get(key) if isinstance(key, str) else None
        if lease is not None:
            lease.join(connection)
            return
        connection.send(wire.GONE)
        connection.finish(self._pace.drain_seconds)

    def _answer_transfers(self, connection: Connection) -> None:
        for progress in self.transfers():
            connection.send(wire.encode_progress(progress))
        connection.send(wire.END)
        connection.finish(self._pace.drain_seconds)
