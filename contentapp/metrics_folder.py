"""The folder in which several processes count together: prometheus-client's multiprocess mode, made safe.

Each process has files of its own there. The files of those that have ended are folded into one, never while somebody
reads; and a file's disk space is allocated before it is mapped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FOLDER = "metrics"
LOCK = "lock"
FOLDED = "folded"
FILE_SIZE = 1 << 16
ENTRY_OVERHEAD = 32  # bytes that an entry takes at most besides its key


class NoRoom(Exception):
    """The disk is full."""


def find_folder() -> Path | None:
    """The folder, or None where this process counts for itself."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return None if folder is None else Path(folder)


def prepare(run_dir: Path) -> None:
    """Make an empty folder below `run_dir`; this process and those it forks count in it from now on."""
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    os.environ[FOLDER_VARIABLE] = str(folder)
    if "prometheus_client" in sys.modules:
        from prometheus_client import values

        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def reserve_room() -> None:
    """Let the instruments that are made from now on count in files whose room is certain; see `_reserved_dict`."""
    from prometheus_client import values

    values.MmapedDict = _reserved_dict()  # type: ignore[attr-defined]


def fold_worker(folder: Path, pid: int) -> None:
    """Add the counts of a worker that has ended to the folded ones and remove its files; without room, they stay."""
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
    with locked(folder):
        for file in sorted(folder.glob(f"*_{pid}.db")):
            with suppress(NoRoom):  # then it goes on to count itself
                if file.stat().st_size:
                    _fold(file, folder / f"{file.name.partition('_')[0]}_{FOLDED}.db")
                file.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep everybody else who takes the lock out of the block: folds and scrapes of all processes.

    A scrape between a worker's counts being added to the folded ones and their removal would count them twice.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class FolderCollector:
    """The sum of all processes' files, without those that a new worker has made and not filled yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.multiprocess import MultiProcessCollector

        files = [str(file) for file in sorted(self.folder.glob("*.db")) if file.stat().st_size]
        return MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call,no-any-return]


def _fold(file: Path, into: Path) -> None:
    """Add one file's counts to another's, or nothing of them: NoRoom."""
    from prometheus_client.mmap_dict import MmapedDict

    counts = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
    sums = _reserved_dict()(str(into))
    try:
        for key, _, _, _ in counts:
            sums.read_value(key)  # makes room for what is missing
        if sums.is_in_memory:
            raise NoRoom
        for key, value, _, _ in counts:
            sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
    finally:
        sums.close()


@cache
def _reserved_dict() -> Any:
    """MmapedDict, but with its disk space allocated before it is mapped: on a full disk, a store to a page of a sparse
    file kills the process (SIGBUS, mmap(2)). Without room it goes on in memory, where no scrape finds it.
    """
    from prometheus_client.mmap_dict import MmapedDict

    class ReservedDict(MmapedDict):
        def __init__(self, filename: str, read_mode: bool = False) -> None:
            self.is_in_memory = False
            try:
                with Path(filename).open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, max(file.tell(), FILE_SIZE))
                super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
            except OSError:
                self._use_memory(b"")

        def _init_value(self, key: str) -> None:
            if self._used + len(key.encode()) + ENTRY_OVERHEAD > self._capacity and not self.is_in_memory:
                try:
                    os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
                except OSError:
                    content = self._m[: self._used]
                    self.close()  # type: ignore[no-untyped-call]
                    self._use_memory(content)
            super()._init_value(key)  # type: ignore[no-untyped-call]

        def _use_memory(self, content: bytes) -> None:
            self.is_in_memory = True
            fileno = os.memfd_create("contentapp-metrics", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fileno, max(FILE_SIZE, 2 * len(content)))
                os.pwrite(fileno, content, 0)
                super().__init__(f"/proc/self/fd/{fileno}")  # type: ignore[no-untyped-call]
            finally:
                os.close(fileno)

    return ReservedDict
