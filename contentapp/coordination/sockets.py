"""A folder of Unix sockets, one for each process."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import struct
import time
from pathlib import Path

SUFFIX = ".sock"
BACKLOG = 1024
BUFFER_SIZE = 256 * 1024
DRAFT_SECONDS = 60.0


class SocketFolder:
    """Sockets in a folder that only this user can enter. Names outlive a process that was killed: see `reap`.

    They are reached through the folder's descriptor, since an address has 107 bytes and a data folder may lie deep.
    """

    def __init__(self, path: Path, kind: socket.SocketKind) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        self._path = path
        self._kind = kind
        self._fileno = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def bind(self) -> tuple[socket.socket, str]:
        """A new socket, listening if it is of a kind that listens, and its name."""
        name = f"{os.getpid()}-{secrets.token_hex(6)}{SUFFIX}"
        draft = f"{name}.draft"
        sock = self._socket()
        try:
            sock.bind(self.address(draft))
            if self._kind is not socket.SOCK_DGRAM:
                sock.listen(BACKLOG)
            # Only now does it get a name: one that refuses connections is taken for a dead process's, and removed.
            os.rename(draft, name, src_dir_fd=self._fileno, dst_dir_fd=self._fileno)
        except BaseException:
            sock.close()
            self.remove(draft)
            raise
        return sock, name

    def connect(self, name: str) -> socket.socket:
        """A socket connected to a process of this user. OSError: refused or not found, if it died."""
        sock = self._socket()
        try:
            sock.connect(self.address(name))
            check_peer(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def address(self, name: str) -> str:
        """What bind, connect and sendto take for a name."""
        if "/" in name or not name:
            raise FileNotFoundError(name)
        return f"/proc/self/fd/{self._fileno}/{name}"

    def names(self) -> list[str]:
        """All sockets, dead ones too."""
        with os.scandir(self._fileno) as entries:
            return [entry.name for entry in entries if entry.name.endswith(SUFFIX)]

    def remove(self, name: str) -> None:
        """Remove a name; not an error if there is none, or if the folder can't be written."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fileno)

    def reap(self) -> int:
        """Remove the sockets of dead processes; the number removed."""
        left = [name for name in self.names() if self._is_dead(name)] + self._old_drafts()
        for name in left:
            self.remove(name)
        return len(left)

    def close(self) -> None:
        """Forget the folder; sockets bound in it go on."""
        os.close(self._fileno)

    def _socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, self._kind)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
        return sock

    def _is_dead(self, name: str) -> bool:
        try:
            self.connect(name).close()
        except ConnectionRefusedError:
            return True
        except OSError:  # gone already, or alive with a full backlog
            return False
        return False

    def _old_drafts(self) -> list[str]:
        newest = time.time() - DRAFT_SECONDS
        with os.scandir(self._fileno) as entries:
            return [entry.name for entry in entries if _is_old_draft(entry, newest)]


def _is_old_draft(entry: os.DirEntry[str], newest: float) -> bool:
    if entry.name.endswith(SUFFIX):
        return False
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # its process has just given it its name
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_mtime < newest


def check_peer(sock: socket.socket) -> None:
    """PermissionError unless the other end of a connection belongs to this user (SO_PEERCRED, unix(7))."""
    if sock.type == socket.SOCK_DGRAM:
        return
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.geteuid():
        raise PermissionError(f"a process of user {uid} is at the other end")
