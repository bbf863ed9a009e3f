"""Socket folders: deep paths, dead sockets, private to one user."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from contentapp.coordination.sockets import DRAFT_SECONDS, SocketFolder, check_peer

KINDS = [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]


@pytest.fixture(params=KINDS, ids=["seqpacket", "dgram"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SocketFolder]:
    found = SocketFolder(tmp_path / ("deep" * 40) / "sockets", request.param)
    yield found
    found.close()


def test_it_works_deeper_than_an_address_is_long(folder: SocketFolder) -> None:
    sock, name = folder.bind()
    with sock, folder.connect(name):
        assert folder.names() == [name]
        assert name.startswith(f"{os.getpid()}-")


def test_only_its_user_can_enter(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir(mode=0o755)
    SocketFolder(tmp_path / "sockets", socket.SOCK_DGRAM).close()
    assert (tmp_path / "sockets").stat().st_mode & 0o777 == 0o700


def test_dead_sockets_are_reaped_and_living_ones_are_not(folder: SocketFolder) -> None:
    alive, name = folder.bind()
    folder.bind()[0].close()
    folder.bind()[0].close()
    with alive:
        assert folder.reap() == 2
        assert folder.names() == [name]
        assert folder.reap() == 0


def test_a_socket_with_a_full_backlog_is_alive(tmp_path: Path) -> None:
    folder = SocketFolder(tmp_path, socket.SOCK_SEQPACKET)
    sock, _ = folder.bind()
    with sock:
        sock.listen(0)
        clients = []
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                clients.append(folder.connect(folder.names()[0]))
        assert folder.reap() == 0
        for client in clients:
            client.close()
    folder.close()


def test_drafts_are_reaped_when_they_are_old(tmp_path: Path) -> None:
    folder = SocketFolder(tmp_path, socket.SOCK_SEQPACKET)
    for name in ("new", "old"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(folder.address(name))
    os.utime(tmp_path / "old", (0, (tmp_path / "new").stat().st_mtime - DRAFT_SECONDS - 1))
    assert folder.reap() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    folder.close()


class Scan(list["os.DirEntry[str]"]):
    """What os.scandir gives."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_draft_that_gets_its_name_while_others_are_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SocketFolder(tmp_path, socket.SOCK_SEQPACKET)
    real_scandir, listings = os.scandir, iter([False, True])  # of names, of drafts

    def scandir(path: int) -> Scan:
        with real_scandir(path) as entries:
            found = Scan(entries)
        if next(listings):  # the other process goes on between the listing and the look
            (tmp_path / "1-a.sock.draft").rename(tmp_path / "1-a.sock")
        return found

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(folder.address("1-a.sock.draft"))
        sock.listen()
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            assert folder.reap() == 0
        assert folder.names() == ["1-a.sock"]
    folder.close()


@pytest.mark.parametrize("name", ["", "../other.sock", "/etc/passwd"])
def test_a_name_never_leads_out_of_the_folder(folder: SocketFolder, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        folder.connect(name)


def test_another_users_process_is_refused(folder: SocketFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        check_peer(one)
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        with pytest.raises(PermissionError):
            check_peer(one)
