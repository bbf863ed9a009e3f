"""Coordination of all processes of one host: lock files, Unix sockets and a small database in one folder."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from contentapp.coordination import wire
from contentapp.coordination.base import Admission, FlightProgress, Following, Lease
from contentapp.coordination.cooldown_store import MAX_ROWS, CooldownStore
from contentapp.coordination.cooldowns import Cooldowns
from contentapp.coordination.events import Events
from contentapp.coordination.following import LocalFollowing, ask_transfers
from contentapp.coordination.holder import HeldLease, HolderServer, Pace
from contentapp.coordination.lease_file import HeldFile, LeaseFolder
from contentapp.coordination.limits import Limits
from contentapp.coordination.sockets import SocketFolder
from contentapp.coordination.worker import Worker
from contentapp.core.cooldown import CooldownRule, CooldownState, Scope

logger = logging.getLogger("contentapp.coordination")

FIRST_BACKOFF_SECONDS = 0.001
LAST_BACKOFF_SECONDS = 0.1


class LocalCoordination:
    """See coordination.base.Coordination. One for each process, made after it was forked; all of it in one loop.

    run_dir: a folder that all processes of the host share; what survives a restart is in it. holder_wait_seconds: how
    long one asks a holder that has the lock and does not answer (a stopped process) before going on without it, at the
    price of a second transfer. ask_seconds: how long another process may take to tell its transfers. close_seconds: how
    long slow followers may take for the last messages when this closes. Where the folder can't be used, each part does
    what it can for this process alone, and says so once in the log.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
        holder_wait_seconds: float = 5.0,
        ask_seconds: float = 0.5,
        close_seconds: float = 1.0,
        max_cooldowns: int = MAX_ROWS,
    ) -> None:
        self._run_dir = run_dir
        self._pace = pace or Pace()
        self._holder_wait_seconds = holder_wait_seconds
        self._ask_seconds = ask_seconds
        self._close_seconds = close_seconds
        self._clock = clock
        self._max_cooldowns = max_cooldowns
        self._is_started = False

    async def start(self) -> None:
        """Open all of it, and remove what dead processes left."""
        self._held: dict[str, HeldLease] = {}
        self._followings: set[LocalFollowing] = set()
        self._files_worker = Worker("contentapp-leases")
        self._data_worker = Worker("contentapp-cooldowns")
        self._events = Events()
        self._server = HolderServer(self._held, self._pace)
        self._leases: LeaseFolder | None = None
        self._sockets: SocketFolder | None = None
        self._event_sockets: SocketFolder | None = None
        self._is_started = True
        await self._start_sockets()
        await self._data_worker.run(self._open_data)
        self._cooldowns = Cooldowns(self._store, self._data_worker, self._clock)

    async def close(self) -> None:
        """Release what is held, leave what is followed. Idempotent."""
        if not self._is_started:
            return
        self._is_started = False
        for following in tuple(self._followings):
            following.lose()
        for lease in tuple(self._held.values()):
            await self._release(lease)
        await self._server.close(self._close_seconds)
        self._events.close()
        await self._files_worker.close()
        await self._data_worker.run(self._close_data)
        await self._data_worker.close()
        for folder in (self._sockets, self._event_sockets):
            if folder is not None:
                folder.close()

    async def lease(self, key: str) -> Lease | Following:
        """See coordination.base.Coordination. Never waits longer than `holder_wait_seconds` and the disk.

        What may happen between asking for the lock and hearing the holder's answer:

        - The holder releases: it answers "gone", or nobody listens; then the lock is asked for again.
        - The holder dies: the connection is refused, or ends; the same.
        - The holder has the lock, but its loop has not heard of it yet: it keeps us until it has (holder.HeldLease).
        - The holder is stopped, or hangs: nobody answers; the time runs out.
        - Two tasks of this process ask at once: the second one waits for what the first one finds.
        """
        deadline = asyncio.get_running_loop().time() + self._holder_wait_seconds
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            held = self._held.get(key)
            found = await (self._acquire_or_follow(key, deadline) if held is None else self._follow_here(held))
            if found is not None:
                return found
            if held is None:
                await asyncio.sleep(backoff)  # only a holder about to go, or to die, gets us here
                backoff = min(2 * backoff, LAST_BACKOFF_SECONDS)
            if asyncio.get_running_loop().time() >= deadline and key not in self._held:
                logger.warning("the holder of a lease does not answer; going on without it")
                return self._hold_alone(key)

    async def transfers(self) -> list[FlightProgress]:
        """See coordination.base.Coordination."""
        found = self._server.transfers()
        if self._sockets is not None:
            names = [name for name in self._sockets.names() if name != self._server.name]
            for others in await asyncio.gather(*(self._ask_transfers(name) for name in names)):
                found += others
        return found

    async def admit(self, scopes: Sequence[Scope]) -> Admission:
        """See coordination.base.Coordination."""
        return await self._cooldowns.admit(scopes)

    async def cooldown(self, scope: Scope) -> CooldownState | None:
        """See coordination.base.Coordination."""
        return await self._cooldowns.cooldown(scope)

    async def record_failure(self, scope: Scope, rule: CooldownRule, reason: str) -> CooldownState:
        """See coordination.base.Coordination."""
        return await self._cooldowns.record_failure(scope, rule, reason)

    async def record_success(self, scopes: Sequence[Scope]) -> None:
        """See coordination.base.Coordination."""
        await self._cooldowns.record_success(scopes)

    async def end_trials(self, scopes: Sequence[Scope]) -> None:
        """See coordination.base.Coordination."""
        await self._cooldowns.end_trials(scopes)

    async def cooldowns(self) -> list[tuple[Scope, CooldownState]]:
        """See coordination.base.Coordination."""
        return await self._cooldowns.cooldowns()

    async def clear_cooldowns(self, scopes: Sequence[Scope] | None = None) -> int:
        """See coordination.base.Coordination."""
        return await self._cooldowns.clear(scopes)

    async def reserve(self, name: str, amount: float, rate: float, burst: float) -> float:
        """See coordination.base.Coordination."""
        return await self._data_worker.run(self._limits.reserve, name, amount, rate, burst)

    def publish(self, topic: str, message: str = "") -> None:
        """See coordination.base.Coordination."""
        self._events.publish(topic, message)

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        """See coordination.base.Coordination."""
        self._events.subscribe(topic, callback)

    async def _start_sockets(self) -> None:
        try:
            sockets, event_sockets, leases = await self._files_worker.run(self._open_folders)
            self._sockets, self._event_sockets = sockets, event_sockets
            self._events.start(event_sockets)
            self._server.start(sockets)
            self._leases = leases
        except OSError as error:
            logger.warning("%s can't be used (%s): this process shares nothing with others", self._run_dir, error)

    def _open_folders(self) -> tuple[SocketFolder, SocketFolder, LeaseFolder]:
        sockets = SocketFolder(self._run_dir / "sockets", socket.SOCK_SEQPACKET)
        try:
            events = SocketFolder(self._run_dir / "events", socket.SOCK_DGRAM)
        except OSError:
            sockets.close()
            raise
        leases = LeaseFolder(self._run_dir / "leases")
        left = sockets.reap() + events.reap() + leases.reap()
        if left:
            logger.info("removed %d files of dead processes", left)
        return sockets, events, leases

    def _open_data(self) -> None:
        self._store = CooldownStore(self._run_dir, self._clock, max_rows=self._max_cooldowns)
        self._limits = Limits(self._run_dir / "limits.sqlite3", self._clock)
        self._store.start()
        self._limits.start()

    def _close_data(self) -> None:
        self._store.close()
        self._limits.close()

    async def _acquire_or_follow(self, key: str, deadline: float) -> Lease | Following | None:
        lease = HeldLease(key, self._pace, self._release)
        self._held[key] = lease
        owner = await self._acquire(lease)
        if lease.is_held:
            return lease
        return await self._follow(owner, key, deadline) if owner else None

    async def _acquire(self, lease: HeldLease) -> str:
        """Settle the lease; who else has it."""
        result: HeldFile | str = ""
        file: HeldFile | None = None
        is_held = False
        try:
            if self._leases is not None:
                result = await self._files_worker.run_or_undo(
                    _undo_acquire, self._leases.acquire, lease.key, self._server.name
                )
                file = result if isinstance(result, HeldFile) else None
            is_held = self._leases is None or file is not None
        except OSError as error:
            logger.warning("can't lock %s (%s): it is fetched for this process alone", lease.key, error)
            is_held = True
        finally:
            if not is_held:
                del self._held[lease.key]
            lease.settle(is_held=is_held, file=file)
        return result if isinstance(result, str) else ""

    async def _follow(self, owner: str, key: str, deadline: float) -> Following | None:
        """The following of another process's lease, or None if it does not hold it (any more)."""
        try:
            if self._sockets is None:
                return None
            sock = self._sockets.connect(owner)
        except OSError:
            return None
        following = LocalFollowing(key, sock)
        try:
            wire.send(sock, wire.encode("follow", key=key))
            return await self._accepted(following, deadline)
        except (OSError, TimeoutError):
            await following.close()
            return None

    async def _follow_here(self, lease: HeldLease) -> Following | None:
        await lease.settled.wait()
        if not lease.is_held:
            return None
        following = LocalFollowing(lease.key, self._server.follow(lease))
        return await self._accepted(following, asyncio.get_running_loop().time() + self._holder_wait_seconds)

    async def _accepted(self, following: LocalFollowing, deadline: float) -> Following | None:
        is_accepted = False
        try:
            async with asyncio.timeout_at(deadline):
                is_accepted = await following.accepted()
        finally:
            if not is_accepted:
                await following.close()
        if not is_accepted:
            return None
        self._followings.add(following)
        following.on_end(self._followings.discard)
        return following

    def _hold_alone(self, key: str) -> Lease:
        lease = HeldLease(key, self._pace, self._release)
        self._held[key] = lease
        lease.settle(is_held=True)
        return lease

    async def _release(self, lease: HeldLease) -> None:
        """Forget it first: a follower that asks from now on hears "gone", and the lock is free soon after."""
        if self._held.get(lease.key) is lease and lease.is_held:
            del self._held[lease.key]
            lease.end()
            if lease.file is not None:
                await self._files_worker.run(lease.file.release)

    async def _ask_transfers(self, name: str) -> list[FlightProgress]:
        try:
            if self._sockets is None:
                return []
            sock = self._sockets.connect(name)
        except OSError:
            return []
        return await ask_transfers(sock, self._ask_seconds)


def _undo_acquire(result: HeldFile | str) -> None:
    if isinstance(result, HeldFile):
        result.release()
