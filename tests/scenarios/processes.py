"""The processes of a proxy and what they use, as the kernel tells it; and limits that it is to live with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.programs import run
from tests.proxy import Proxy

KIB = 1024
SAMPLE_SECONDS = 0.05
LIMITED = (
    "import os, resource, sys; size = int(sys.argv[1]);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); os.execv(sys.argv[2], sys.argv[2:])"
)


def children(proxy: Proxy) -> list[int]:
    """The supervisor's children, the oldest first: content workers, then the admin process."""
    pid = proxy.service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def content_worker(proxy: Proxy) -> int:
    """The content worker, of which there must be one: the child that listens where devices connect."""
    inode = listening_inode(proxy.port)
    (found,) = (pid for pid in children(proxy)[:1] if inode in sockets(pid))
    return found


def tcp_sockets(port: int, state: str) -> list[str]:
    """The inodes of the sockets at a port of 127.0.0.1 that are in a state (hexadecimal, proc_net_tcp(5))."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [words[9] for words in lines if (words[1], words[3]) == (f"0100007F:{port:04X}", state)]


def listening_inode(port: int) -> str:
    """The inode of the socket that listens on a port."""
    (inode,) = tcp_sockets(port, "0A")
    return inode


def connections(port: int) -> list[str]:
    """The inodes of the established connections to a port."""
    return tcp_sockets(port, "01")


def sockets(pid: int) -> set[str]:
    """The inodes of the sockets a process has open."""
    return {target[8:-1] for target in open_files(pid) if target.startswith("socket:[")}


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to; a file without a name ends in `` (deleted)``."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(descriptor.readlink()))
    return found


def memory(pid: int) -> int:
    """Bytes of a process that are in memory and not only mapped from files: what grows when something is kept."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * KIB


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder, as long as they have a name."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def unnamed_size(pid: int, folder: Path) -> int:
    """Bytes of files of this folder that a process holds open although they have no name any more, each once."""
    sizes: dict[int, int] = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(descriptor.readlink())
            if target.startswith(str(folder)) and target.endswith(" (deleted)"):
                found = descriptor.stat()
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


@asynccontextmanager
async def watched(look: Callable[[], int]) -> AsyncIterator[list[int]]:
    """Looks every SAMPLE_SECONDS during the block; the values seen."""
    seen = [look()]

    async def watch() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            seen.append(await asyncio.to_thread(look))

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        seen.append(look())


def limit_file_size(proxy: Proxy, size: int) -> None:
    """From its next start on, no file of the proxy grows beyond `size` bytes: a disk that is full at a known place."""
    proxy.service.argv[:0] = [sys.executable, "-c", LIMITED, str(size)]


@asynccontextmanager
async def small_disk(folder: Path, size: int) -> AsyncIterator[bool]:
    """A filesystem of `size` bytes at `folder`; False, and an ordinary folder, where mounting is not permitted."""
    folder.mkdir()
    mounted = await run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield mounted.status == 0
    finally:
        if mounted.status == 0:
            (await run("umount", "--lazy", folder)).check()
