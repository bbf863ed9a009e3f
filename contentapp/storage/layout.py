"""Where things lie under a storage's root.

    artifacts/<algorithm>/<2 hex>/<rest>                                   complete and verified
    partials/<sha256 of key, hex>-<pid>-<random>.part                      a partial; its writer holds a lock on it
    partials/<the same>.part.progress.json                                 its note
    partials/<the same>.part.progress.json.tmp                             the next one, not whole yet

A partial is suspended when it has a note that verifies, and nobody writes it: so is one whose writer was killed.

Files are 0600, folders 0700. Everything else is foreign, and left alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from contentapp.core.digest import ENCODED_LENGTHS, Digest
from contentapp.core.errors import InvalidDigest
from contentapp.storage.base import StoredArtifact

# `.kept`: the name that earlier versions gave what they had suspended; nothing is known of such bytes.
PARTIAL = re.compile(r"[0-9a-f]{64}-[0-9]+-[0-9a-f]{16}(\.kept)?\.part")
NOTE = re.compile(r"[0-9a-f]{64}-[0-9]+-[0-9a-f]{16}\.part\.progress\.json(\.tmp)?")
SHARD = re.compile(r"[0-9a-f]{2}")
NOTE_SUFFIX = ".progress.json"
TEMPORARY_SUFFIX = NOTE_SUFFIX + ".tmp"


class Layout:
    """The names below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts = root / "artifacts"
        self.partials = root / "partials"
        self._prefix = str(self.artifacts)
        self._is_prepared = False

    def prepare(self) -> None:
        """Make the folders, until that has succeeded once: should they vanish, that is not for us to hide. OSError."""
        if not self._is_prepared:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_folder(self.artifacts)
            make_folder(self.partials)
            self._is_prepared = True

    def artifact(self, digest: Digest) -> str:
        """The path of an artifact; a string, since every hit makes one."""
        encoded = digest.encoded
        return f"{self._prefix}/{digest.algorithm}/{encoded[:2]}/{encoded[2:]}"

    def new_partial(self, key: str) -> Path:
        """A path that no partial has had."""
        return self.partials / f"{_prefix(key)}{os.getpid()}-{secrets.token_hex(8)}.part"

    def make_shard(self, digest: Digest) -> Path:
        """The folder of an artifact, made durably if it is new."""
        folder = self.artifacts / digest.algorithm / digest.encoded[:2]
        make_folder(folder.parent)
        make_folder(folder)
        return folder

    def shards(self) -> list[Path]:
        """All folders that may hold artifacts. OSError, also when there is no folder of artifacts at all."""
        algorithms = (folder for folder in _folders(self.artifacts) if folder.name in ENCODED_LENGTHS)
        return [shard for folder in algorithms for shard in _folders(folder) if SHARD.fullmatch(shard.name)]

    def found_partials(self) -> list[Path]:
        """All partials, of the living and of the dead. OSError."""
        with os.scandir(self.partials) as entries:
            return [Path(entry) for entry in entries if PARTIAL.fullmatch(entry.name) and _is_file(entry)]

    def partials_of(self, key: str) -> list[Path]:
        """All partials of one key, of the living and of the dead. OSError."""
        prefix = _prefix(key)
        return [path for path in self.found_partials() if path.name.startswith(prefix)]

    def found_notes(self) -> list[Path]:
        """All notes, temporary ones too; what bears such a name may be anything but a folder. OSError."""
        with os.scandir(self.partials) as entries:
            return [Path(entry) for entry in entries if NOTE.fullmatch(entry.name) and not _is_folder(entry)]


def is_of_key(partial: Path, key: str) -> bool:
    """Whether a partial was begun for this key."""
    return partial.name.startswith(_prefix(key))


def note_of(partial: Path) -> Path:
    """Where the note of a partial belongs."""
    return partial.with_name(partial.name + NOTE_SUFFIX)


def temporary_note_of(partial: Path) -> Path:
    """Where a note is written before it has its name."""
    return partial.with_name(partial.name + TEMPORARY_SUFFIX)


def partial_of(note: Path) -> Path:
    """The partial that a note, or a temporary one, belongs to."""
    return note.with_name(note.name.removesuffix(".tmp").removesuffix(NOTE_SUFFIX))


def make_folder(path: Path) -> None:
    """Make one folder, durably; nothing if it is there. OSError, also when its parent is missing."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_file(path: str) -> os.stat_result | None:
    """The status of a regular file; None when there is none by that name. OSError."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def stored_at(found: os.stat_result) -> datetime:
    """When the last byte of an artifact was written."""
    return datetime.fromtimestamp(found.st_mtime, UTC)


def artifacts_in(shard: Path) -> Iterator[StoredArtifact]:
    """The artifacts of one shard; one that vanishes meanwhile is left out. OSError."""
    algorithm = shard.parent.name
    try:
        with os.scandir(shard) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return
    for name in names:
        try:
            digest = Digest.parse(f"{algorithm}:{shard.name}{name}")
        except InvalidDigest:
            continue
        if (found := find_file(f"{shard}/{name}")) is not None:
            yield StoredArtifact(digest, found.st_size, stored_at(found))


def _prefix(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest() + "-"


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _folders(parent: Path) -> list[Path]:
    with os.scandir(parent) as entries:
        return [Path(entry) for entry in entries if _is_folder(entry)]
