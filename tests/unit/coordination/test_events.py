"""Datagrams that nobody of ours sent, and peers that stay deaf for a while."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from contentapp.coordination import events as events_module
from contentapp.coordination.base import RESYNC
from contentapp.coordination.events import Events
from contentapp.coordination.sockets import SocketFolder


@pytest.mark.parametrize("data", [b"", b"x", b"{}", b"[1]", b'["a", 1]', b'["a", "b", "c"]', b"\xff" * 9000, b"1"])
async def test_what_is_no_event_is_dropped(tmp_path: Path, data: bytes) -> None:
    folder = SocketFolder(tmp_path, socket.SOCK_DGRAM)
    events = Events()
    events.start(folder)
    heard: list[str] = []
    events.subscribe("a", heard.append)
    with folder.connect(folder.names()[0]) as sock:
        sock.send(data)
        sock.send(b'["a", "good"]')
    while heard != ["good"]:
        await asyncio.sleep(0.002)
    events.close()
    folder.close()


async def test_a_deaf_peer_is_told_when_it_listens_again_or_forgotten_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "FIRST_RETRY_SECONDS", 0.005)
    monkeypatch.setattr(events_module, "LAST_RETRY_SECONDS", 0.01)
    folder = SocketFolder(tmp_path, socket.SOCK_DGRAM)
    events = Events()
    events.start(folder)
    deaf, _ = folder.bind()
    dying, _ = folder.bind()
    for _ in range(5000):
        events.publish("t", "x")
    await asyncio.sleep(0.05)
    dying.close()
    heard = set()
    while f'["{RESYNC}",""]'.encode() not in heard:
        try:
            heard.add(deaf.recv(9000))
        except BlockingIOError:
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)
    assert not events._owed
    assert len(folder.names()) == 2
    deaf.close()
    events.close()
    folder.close()
