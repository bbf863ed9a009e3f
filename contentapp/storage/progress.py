"""The file beside a partial that holds its note (P6).

Written as a temporary one, fsync, rename, fsync of the folder; so there is always the old or the new one, whole. A
crash in between leaves a temporary one, which counts if it verifies and tells of more bytes: those were durable before
it was made.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from contentapp.storage.base import Note, Suspended
from contentapp.storage.claim import READ_FLAGS
from contentapp.storage.layout import is_of_key, note_of, sync_folder, temporary_note_of
from contentapp.storage.note import LARGEST_NOTE, decode, encode

CrashPoint = Callable[[str], None]

WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
# What says that there is no note to be had. Whatever else fails (no descriptors, no memory) tells nothing of it.
ABSENT = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EIO, errno.EBADMSG, errno.EUCLEAN})


def write_note(partial: Path, note: Note, crash_point: CrashPoint) -> None:
    """Put a note beside its partial, durably, in the place of the one before. OSError; ValueError as `encode`.

    By its one writer alone, and after the bytes it tells of are durable.
    """
    raw = encode(note)
    temporary = temporary_note_of(partial)
    try:
        _write(temporary, raw, crash_point)
        temporary.rename(note_of(partial))
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    crash_point("note-renamed")
    sync_folder(partial.parent)
    crash_point("note-durable")


def find_note(partial: Path) -> Suspended | None:
    """The note of a partial that nobody writes; None when there is none that verifies. Under the lock of names.

    A temporary note that is newer becomes the note. OSError for what says nothing of the note (ABSENT).
    """
    present = _read(note_of(partial), partial)
    newer = _read(temporary_note_of(partial), partial)
    if newer is None or (present is not None and present.note.offset >= newer.note.offset):
        return present
    return newer if _promote(partial) else present


def remove_notes(partial: Path) -> None:
    """Remove the notes of a partial, if there are any. OSError."""
    _remove(note_of(partial))
    remove_temporary_note(partial)


def remove_temporary_note(partial: Path) -> None:
    """Remove what a crash has left of a note that was being written, if there is any. OSError."""
    _remove(temporary_note_of(partial))


def _remove(path: Path) -> None:
    with suppress(IsADirectoryError):  # no note, and not ours
        path.unlink(missing_ok=True)


def _write(path: Path, raw: bytes, crash_point: CrashPoint) -> None:
    with os.fdopen(os.open(path, WRITE_FLAGS, 0o600), "wb") as file:
        crash_point("note-opened")
        file.write(raw)
        file.flush()
        crash_point("note-written")
        os.fsync(file.fileno())
    crash_point("note-synced")


def _promote(partial: Path) -> bool:
    """Whether the temporary note is the note now. It may have been written whole, but not have been synced."""
    temporary = temporary_note_of(partial)
    try:
        descriptor = os.open(temporary, READ_FLAGS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(note_of(partial))
        sync_folder(partial.parent)
    except OSError:
        return False
    return True


def _read(path: Path, partial: Path) -> Suspended | None:
    try:
        raw, found = _content(path)
        note = decode(raw)
        size = partial.stat(follow_symlinks=False).st_size
        noted_at = datetime.fromtimestamp(found.st_mtime, UTC)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return None
    except (ValueError, OverflowError):
        return None
    if not is_of_key(partial, note.key) or size < note.offset:
        return None
    return Suspended(note=note, noted_at=noted_at)


def _content(path: Path) -> tuple[bytes, os.stat_result]:
    """What a note's file holds, and its status. ValueError when it can't be a note; OSError."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no note")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(LARGEST_NOTE + 1), found  # one more: what is too large is seen to be
    finally:
        os.close(descriptor)
