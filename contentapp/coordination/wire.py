"""What processes of one host say to each other about leases: JSON objects over SOCK_SEQPACKET sockets.

The kernel keeps the bounds of such messages, sends each whole or not at all, and keeps a passed descriptor with its
message; so there is no framing, and a half-sent message can't be.

    follower → holder   {"op": "follow", "key": …}
    holder → follower   {"op": "following"}, then {"op": "progress", "progress": {…}} [+ a descriptor] …, {"op": "end"}
                        or {"op": "gone"}: it does not hold this key (any more)
    anyone → holder     {"op": "transfers"}
    holder → anyone     {"op": "progress", …} …, {"op": "end"}

A connection that ends without "end" or "gone" means that the holder died.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from contentapp.coordination.base import FlightProgress, FlightState

MESSAGE_SIZE = 128 * 1024
FDS_SIZE = 4 * array.array("i").itemsize

_buffer = bytearray(MESSAGE_SIZE + 1)  # of the loop's thread; a message is copied out of it before anything else runs


class MessageInvalid(OSError):
    """The other end does not speak this language."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `op`, the rest of its object, and descriptors that now belong to the receiver."""

    op: str
    values: Mapping[str, Any]
    filenos: tuple[int, ...] = ()

    def close(self) -> None:
        """Close the descriptors, if nobody wants them."""
        for fileno in self.filenos:
            os.close(fileno)


def encode(op: str, **values: object) -> bytes:
    """One message. ValueError: it is too long."""
    data = json.dumps({"op": op, **values}, separators=(",", ":")).encode()
    if len(data) > MESSAGE_SIZE:
        raise ValueError(f"a message of {len(data)} bytes is longer than {MESSAGE_SIZE}")
    return data


FOLLOWING = encode("following")
GONE = encode("gone")
END = encode("end")


def encode_progress(progress: FlightProgress) -> bytes:
    """A snapshot as a message."""
    return encode("progress", progress=asdict(progress))


def check_size(progress: FlightProgress) -> None:
    """ValueError if the snapshot's message would be too long; cheap for those that are far from it."""
    size = sum(map(len, (progress.key, progress.attempt, progress.remote, progress.detail, progress.head)))
    if size > MESSAGE_SIZE // 8:  # JSON may write one character in six
        encode_progress(progress)


def decode_progress(message: Message) -> FlightProgress:
    """The snapshot in a message. MessageInvalid."""
    values = message.values.get("progress")
    if not isinstance(values, dict) or any(not _fits(name, value) for name, value in values.items()):
        raise MessageInvalid("not a flight's progress")
    try:
        return FlightProgress(**{**values, "state": FlightState(values["state"])})
    except (TypeError, ValueError, KeyError) as error:
        raise MessageInvalid("not a flight's progress") from error


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "FlightState": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "float": (float, int),
}
_FIELDS = {field.name: _TYPES[str(field.type)] for field in fields(FlightProgress)}


def _fits(name: str, value: object) -> bool:
    return isinstance(value, _FIELDS.get(name, ()))


def send(sock: socket.socket, data: bytes, fileno: int | None = None) -> None:
    """Send one message, with a copy of a descriptor. BlockingIOError: no room now; other OSErrors: nobody is there."""
    rights = [] if fileno is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fileno]))]
    sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Message | None:
    """The next message, None at the end of the connection. BlockingIOError: none yet; other OSErrors: it is broken."""
    size, ancillary, flags, _ = sock.recvmsg_into(
        [_buffer], socket.CMSG_SPACE(FDS_SIZE), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    filenos = _filenos(ancillary)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or (filenos and not size):
            raise MessageInvalid("a message was cut")
        return _decode(bytes(_buffer[:size]), filenos) if size else None
    except BaseException:
        for fileno in filenos:
            os.close(fileno)
        raise


def _filenos(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)


def _decode(data: bytes, filenos: tuple[int, ...]) -> Message:
    try:
        values = json.loads(data)
    except ValueError as error:
        raise MessageInvalid("not JSON") from error
    if not isinstance(values, dict) or not isinstance(values.get("op"), str):
        raise MessageInvalid("not a message")
    return Message(values["op"], values, filenos)
