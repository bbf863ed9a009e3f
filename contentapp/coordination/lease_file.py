"""The lock files of leases: one for each key that somebody holds, freed by the kernel when its holder dies."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

TRIES = 16
DRAFT = "draft-"


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A lock file that this process holds."""

    path: Path
    fileno: int

    def release(self) -> None:
        """Remove the file, then free the lock: who opened it before, and locks it now, finds its name gone."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self.fileno)


class LeaseFolder:
    """Lock files, named by the sha256 of their key; their content names the holder's socket. Blocking.

    A file is written and locked under a draft's name, and then linked to its own. So whoever finds it finds it
    complete, and locked by a living holder or left by a dead one; there is no moment in between.

    - Two create at once: link() lets one win; the other reads the winner's name.
    - A holder dies: the kernel unlocks. Whoever locks the left-over unlinks it while holding its lock, then starts
      again; others who had it open get the lock later, see that its name is gone or another file's, and start again.
    - A holder releases while another has the file open: the same.
    - A left-over is being removed while another finds it locked: the other reads the dead holder's name, can't connect,
      and asks again.

    A lock belongs to the open file, so a child forked without exec would keep it: processes are created before.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path

    def acquire(self, key: str, owner: str) -> HeldFile | str:
        """The locked file, or the name of the owner who has it; "" if it kept changing hands. OSError."""
        path = self._path / hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        for _ in range(TRIES):
            found = _find_owner(path)
            if found is not None:
                return found
            created = self._create(path, owner)
            if created is not None:
                return created
        return ""

    def reap(self) -> int:
        """Remove what dead processes left; the number removed."""
        return sum(_remove_if_left(path) for path in self._path.iterdir())

    def _create(self, path: Path, owner: str) -> HeldFile | None:
        draft = self._path / f"{DRAFT}{secrets.token_hex(8)}"
        fileno = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fileno, owner.encode())
            fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.hardlink_to(draft)
        except (FileExistsError, BlockingIOError, FileNotFoundError):
            # Somebody else was first; or, the last two, a starting process reaped the draft before it was locked.
            os.close(fileno)
            return None
        except BaseException:
            os.close(fileno)
            raise
        finally:
            draft.unlink(missing_ok=True)
        return HeldFile(path, fileno)


def _find_owner(path: Path) -> str | None:
    """Who has it locked, or None when the name is free now."""
    try:
        fileno = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _locked(fileno):
            _unlink_if_same(path, fileno)
            return None
        return os.pread(fileno, 255, 0).decode(errors="replace")
    finally:
        os.close(fileno)


def _remove_if_left(path: Path) -> bool:
    try:
        fileno = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _locked(fileno) and _unlink_if_same(path, fileno)
    finally:
        os.close(fileno)


def _locked(fileno: int) -> bool:
    try:
        fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink_if_same(path: Path, fileno: int) -> bool:
    """Remove the name if it still means this open file, whose lock we hold: then nobody else may remove it."""
    try:
        if not os.path.samestat(path.stat(), os.fstat(fileno)):
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True
