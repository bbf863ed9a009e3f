"""The holder's end of one connection."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from contentapp.coordination import wire
from contentapp.coordination.base import FlightProgress
from contentapp.coordination.snapshot import Spool, supersedes

MAX_PENDING_TURNS = 64  # ends of attempts that one follower may have unread, beyond what the kernel holds


@dataclass(frozen=True, slots=True)
class _Outgoing:
    data: bytes
    progress: FlightProgress | None = None
    spool: Spool | None = None


class Connection:
    """Sends what it is given without ever waiting; what the other end does not take yet is kept, coalesced.

    It ends, calling `on_closed` once, when the other end goes, when `finish` has sent the rest, or by `abort`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[Connection, wire.Message], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_message = on_message
        self._on_closed = [on_closed]
        self._pending: deque[_Outgoing] = deque()
        self._given: Spool | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_finishing = False
        self.is_closed = False
        self._loop.add_reader(sock.fileno(), self._receive)

    def on_closed(self, callback: Callable[[Connection], None]) -> None:
        """Call this too when it has ended."""
        self._on_closed.append(callback)

    def expect_within(self, seconds: float) -> None:
        """Abort unless a message comes within this time."""
        self._timer = self._loop.call_later(seconds, self.abort)

    def send(self, data: bytes) -> None:
        """Send a message, after those before it."""
        self._post(_Outgoing(data))

    def send_progress(self, progress: FlightProgress, data: bytes, spool: Spool | None) -> None:
        """Send a snapshot, whose message is `data`; the spool's descriptor goes along the first time."""
        given = spool if spool is not self._given else None
        self._given = spool
        self._post(_Outgoing(data, progress, given))

    def finish(self, seconds: float) -> None:
        """End it when everything is sent, at the latest after this time."""
        self._is_finishing = True
        if not self._pending:
            self.abort()
        elif not self.is_closed:
            self._stop_timer()
            self._timer = self._loop.call_later(seconds, self.abort)

    def abort(self) -> None:
        """End it now."""
        if self.is_closed:
            return
        self.is_closed = True
        self._stop_timer()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        while self._pending:
            _drop(self._pending.popleft())
        for callback in self._on_closed:
            callback(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _receive(self) -> None:
        try:
            message = wire.receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            message = None
        if message is None:
            self.abort()
            return
        message.close()  # nobody has reason to pass a descriptor to a holder
        self._stop_timer()
        self._on_message(self, message)

    def _post(self, item: _Outgoing) -> None:
        if self.is_closed:
            return
        if self._pending:
            self._append(item)
        elif not self._sent(item) and not self.is_closed:
            self._keep(item)
            self._loop.add_writer(self._sock.fileno(), self._resume)

    def _append(self, item: _Outgoing) -> None:
        last = self._pending[-1]
        if item.progress is not None and last.progress is not None and supersedes(item.progress, last.progress):
            # The newer one inherits the descriptor that its predecessor did not get to pass on.
            self._pending.pop()
            self._keep(item if item.spool is not None else replace(item, spool=last.spool))
            _drop(last)
        elif len(self._pending) >= MAX_PENDING_TURNS and item.progress is not None:
            self.abort()
        else:
            self._keep(item)

    def _keep(self, item: _Outgoing) -> None:
        if item.spool is not None:
            item.spool.keep()
        self._pending.append(item)

    def _resume(self) -> None:
        while self._pending and self._sent(self._pending[0]):
            _drop(self._pending.popleft())
        if self.is_closed or self._pending:
            return
        self._loop.remove_writer(self._sock.fileno())
        if self._is_finishing:
            self.abort()

    def _sent(self, item: _Outgoing) -> bool:
        try:
            wire.send(self._sock, item.data, None if item.spool is None else item.spool.fileno)
        except BlockingIOError:
            return False
        except OSError:
            self.abort()
            return False
        return True


def _drop(item: _Outgoing) -> None:
    if item.spool is not None:
        item.spool.drop()
