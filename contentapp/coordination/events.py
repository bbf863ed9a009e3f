"""Publish/subscribe between the processes of one host, over Unix datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable

from contentapp.coordination.base import RESYNC
from contentapp.coordination.sockets import SocketFolder

logger = logging.getLogger("contentapp.coordination")

MESSAGE_SIZE = 8 * 1024
MESSAGES_AT_ONCE = 64
FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 1.0


class Events:
    """Messages of topics, to all processes with a socket in the folder, and to this one.

    Nothing is kept for a peer whose queue is full: it is owed one RESYNC, tried until it fits or the peer is gone.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._folder: SocketFolder | None = None
        self._sock: socket.socket | None = None
        self._name = ""
        self._callbacks: dict[str, list[Callable[[str], None]]] = {}
        self._known: list[str] = []
        self._owed: set[str] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS

    def start(self, folder: SocketFolder) -> None:
        """Join the processes of this folder. OSError."""
        self._sock, self._name = folder.bind()
        self._folder = folder
        self._loop.add_reader(self._sock.fileno(), self._receive)

    def close(self) -> None:
        """Leave; what is owed to others is lost."""
        if self._retry is not None:
            self._retry.cancel()
        if self._sock is not None and self._folder is not None:
            self._folder.remove(self._name)
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        """See coordination.base.Coordination."""
        self._callbacks.setdefault(topic, []).append(callback)

    def publish(self, topic: str, message: str) -> None:
        """See coordination.base.Coordination."""
        self._deliver(topic, message)
        data = _encode(topic, message)
        if len(data) > MESSAGE_SIZE:
            data = _encode(RESYNC, "")
        for name in self._peers():
            if not self._was_sent(name, data):
                self._owe(name)

    def _peers(self) -> list[str]:
        if self._sock is None or self._folder is None:
            return []
        with contextlib.suppress(OSError):  # out of descriptors: those known so far
            self._known = [name for name in self._folder.names() if name != self._name]
        return self._known

    def _was_sent(self, name: str, data: bytes) -> bool:
        """False if the peer should be told later; one that is gone is forgotten."""
        if self._sock is None or self._folder is None:
            return True
        try:
            self._sock.sendto(data, self._folder.address(name))
        except ConnectionRefusedError:
            self._folder.remove(name)
        except FileNotFoundError:
            pass
        except OSError:  # its queue is full, or ours
            return False
        return True

    def _owe(self, name: str) -> None:
        self._owed.add(name)
        if self._retry is None:
            self._retry_seconds = FIRST_RETRY_SECONDS
            self._retry = self._loop.call_later(self._retry_seconds, self._settle)

    def _settle(self) -> None:
        self._retry = None
        self._owed = {name for name in self._owed if not self._was_sent(name, _encode(RESYNC, ""))}
        if self._owed:
            self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
            self._retry = self._loop.call_later(self._retry_seconds, self._settle)

    def _receive(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            if self._sock is None:
                return
            try:
                data = self._sock.recv(MESSAGE_SIZE + 1)
            except OSError:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            topic, message = json.loads(data)
        except (ValueError, TypeError):
            logger.warning("dropped a malformed event")
            return
        if isinstance(topic, str) and isinstance(message, str):
            self._deliver(topic, message)

    def _deliver(self, topic: str, message: str) -> None:
        for callback in self._callbacks.get(topic, ()):
            self._loop.call_soon(callback, message)


def _encode(topic: str, message: str) -> bytes:
    return json.dumps([topic, message], separators=(",", ":")).encode()
