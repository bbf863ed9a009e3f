"""Ports on loopback that nobody else gets while a test needs them."""

from __future__ import annotations

import itertools
import os
import socket

FIRST_PORT, LAST_PORT = 12_000, 31_000
_numbers = itertools.count(os.getpid() * 997)  # so that processes side by side begin far from each other


def bound_socket(number: int = 0) -> socket.socket:
    """A TCP socket bound to this port of 127.0.0.1 (0: a free one) that does not listen: connecting is refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", number))
    return bound


class Port:
    """A port that stays ours, listening or refusing, until it is closed."""

    def __init__(self) -> None:
        self._reserved: socket.socket | None = bound_socket()
        self.number: int = self._reserved.getsockname()[1]

    def open(self) -> socket.socket:
        """The bound socket, for a server in this process, which closes it."""
        bound, self._reserved = self._reserved or bound_socket(self.number), None
        return bound

    def reserve(self) -> None:
        """Refuse connections on it again, after the server is gone."""
        if self._reserved is None:
            self._reserved = bound_socket(self.number)

    def close(self) -> None:
        """Give it back."""
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


def free_port() -> int:
    """A port that is free now, for a program that binds it itself.

    Below the ephemeral ones, which the kernel hands to every connection; no process gives the same one twice soon.
    """
    while True:
        number = FIRST_PORT + next(_numbers) % (LAST_PORT - FIRST_PORT)
        try:
            bound_socket(number).close()
        except OSError:
            continue
        return number
