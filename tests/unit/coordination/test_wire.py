"""Messages between processes of one host."""

from __future__ import annotations

import array
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.coordination import wire
from contentapp.coordination.base import FlightProgress, FlightState

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        one.setblocking(False)
        two.setblocking(False)
        yield one, two


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


texts = st.text(max_size=50)
snapshots = st.builds(
    FlightProgress,
    key=texts,
    attempt=texts,
    state=st.sampled_from(FlightState),
    size=st.none() | st.integers(0, 1 << 62),
    arrived=st.integers(0, 1 << 62),
    keep=st.booleans(),
    is_windowed=st.booleans(),
    remote=texts,
    started_at=st.floats(0, 1e10),
    followers=st.integers(0, 1000),
    detail=texts,
    head=texts,
)


@given(snapshots)
def test_snapshots_survive_the_way(progress: FlightProgress) -> None:
    values = json.loads(wire.encode_progress(progress))
    assert wire.decode_progress(wire.Message(values["op"], values)) == progress


def test_messages_keep_their_bounds_and_their_descriptors(pair: Pair) -> None:
    one, two = pair
    with tempfile.TemporaryFile() as file:
        file.write(b"spool")
        file.flush()
        wire.send(one, wire.encode("first"))
        wire.send(one, wire.encode("second"), file.fileno())
        wire.send(one, wire.encode("third"))
    messages = [wire.receive(two) for _ in range(3)]
    assert [message and message.op for message in messages] == ["first", "second", "third"]
    second = messages[1]
    assert second is not None
    (fileno,) = second.filenos
    assert os.pread(fileno, 10, 0) == b"spool"
    assert not os.get_inheritable(fileno)
    second.close()
    with pytest.raises(BlockingIOError):
        wire.receive(two)
    one.close()
    assert wire.receive(two) is None


@pytest.mark.parametrize(
    "data", [b"x", b"\xff\xfe", b"[]", b"{}", b'{"op": 1}', b"{" * 10_000, b"x" * (wire.MESSAGE_SIZE + 5)]
)
def test_what_is_no_message_breaks_the_connection(pair: Pair, data: bytes) -> None:
    one, two = pair
    before = descriptors()
    with tempfile.TemporaryFile() as file:
        one.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))])
    with pytest.raises(wire.MessageInvalid):
        wire.receive(two)
    assert descriptors() == before


def test_more_descriptors_than_one_message_has_are_refused_and_closed(pair: Pair) -> None:
    one, two = pair
    before = descriptors()
    rights = array.array("i", [one.fileno()] * 40)
    one.sendmsg([b'{"op": "x"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(wire.MessageInvalid):
        wire.receive(two)
    assert descriptors() == before


@pytest.mark.parametrize(
    "progress",
    [
        None,
        [],
        {},
        {"key": "x"},
        {"key": 1, "state": "running"},
        {"key": "x", "state": "flying"},
        {"key": "x", "state": "running", "arrived": "many"},
        {"key": "x", "state": "running", "surprise": 1},
    ],
)
def test_what_is_no_snapshot(progress: object) -> None:
    with pytest.raises(wire.MessageInvalid):
        wire.decode_progress(wire.Message("progress", {"progress": progress}))
