"""``contentapp chunks``: the list it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest

from contentapp.cli import chunks
from contentapp.core.chunks import ChunkHasher, ChunkList, dump_chunk_list, parse_chunk_list
from contentapp.core.settings import KIB, MIB
from tests.unit.cli.conftest import Run

BODY = bytes(range(256)) * (40 * KIB)  # 10 MiB
PROGRAM = (sys.executable, "-c", "from contentapp.cli.main import main; main()", "chunks")


def listed(data: bytes, chunk_size: int = 4 * MIB) -> ChunkList:
    hasher = ChunkHasher(chunk_size)
    hasher.update(data)
    return hasher.finish()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(BODY)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def program(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own, for what it does with standard output."""
    environ = os.environ | {"PYTHONUNBUFFERED": ""}  # with buffers an error may come late
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE, env=environ, **options)


# -- what it writes


def test_the_list_lies_beside_the_file(run: Run, image: Path) -> None:
    ran = run("chunks", image)
    target = image.with_name("disk.qcow2.chunks.json")
    assert target.read_bytes() == dump_chunk_list(listed(BODY))
    assert (ran.status, ran.messages) == (0, "")
    assert ran.output == f"{target}: 3 chunks of 4.0 MiB, 10.0 MiB in all, {listed(BODY).digest}\n"
    assert names(image.parent) == {image.name, target.name}
    assert S_IMODE(target.stat().st_mode) == S_IMODE(image.stat().st_mode), "who may read the file may read its list"


@pytest.mark.parametrize(
    ("size", "bytes_"), [("64KiB", 64 * KIB), ("65536", 64 * KIB), ("1 MiB", MIB), ("1MB", 10**6), ("64MiB", 64 * MIB)]
)
def test_the_size_of_chunks(run: Run, image: Path, size: str, bytes_: int) -> None:
    assert run("chunks", image, "--chunk-size", size, "--output", "list.json").status == 0
    assert parse_chunk_list(image.with_name("list.json").read_bytes()) == listed(BODY, bytes_)


@pytest.mark.parametrize("size", [0, 1, chunks.READ_SIZE, 4 * MIB, 4 * MIB + 1])
def test_files_of_all_sizes(run: Run, image: Path, size: int) -> None:
    image.write_bytes(BODY[:size])
    assert run("chunks", image).status == 0
    assert parse_chunk_list(image.with_name(f"{image.name}.chunks.json").read_bytes()) == listed(BODY[:size])


def test_an_older_list_is_replaced(run: Run, image: Path) -> None:
    for data in (BODY, BODY[:5]):
        image.write_bytes(data)
        assert run("chunks", image, "--output", "list.json").status == 0
        assert parse_chunk_list(image.with_name("list.json").read_bytes()) == listed(data)


def test_as_json(run: Run, image: Path) -> None:
    assert json.loads(run("chunks", image, "--format", "json").output) == {
        "file": str(image),
        "output": f"{image}.chunks.json",
        "size": len(BODY),
        "chunk_size": 4 * MIB,
        "chunks": 3,
        "digest": str(listed(BODY).digest),
    }


def test_to_standard_output(image: Path) -> None:
    done = program(image, "--output", "-", "--format", "json", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, dump_chunk_list(listed(BODY)), b"")
    assert names(image.parent) == {image.name}


def test_standard_output_that_is_full(image: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = program(image, "--output", "-", stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        b"error: can't write to standard output: no space left on device\n",
    )


def test_it_reads_no_configuration(run: Run, image: Path) -> None:
    for arguments in (("--config", "nowhere.yaml"), ()):
        assert run("chunks", image, *arguments, CONTENTAPP_CONFIG="nowhere.yaml").status == 0


def test_a_bar_on_a_terminal(image: Path) -> None:
    """Only there: elsewhere standard error stays empty, see above."""
    ours, its = pty.openpty()
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([*PROGRAM, str(image)], stdout=subprocess.DEVNULL, stderr=its, env=environ) as process:
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # how Linux says that the other end is closed
    os.close(ours)
    assert process.returncode == 0
    assert b"10.0/10.0 MiB" in shown


# -- what it refuses


@pytest.mark.parametrize("size", ["63KiB", "65MiB", "0", "-1", "4 apples", "", "nan"])
def test_chunks_that_can_not_be(run: Run, image: Path, size: str) -> None:
    ran = run("chunks", image, "--chunk-size", size)
    assert (ran.status, ran.output) == (2, "")
    assert ran.messages.endswith("is not a size from 64KiB to 64MiB (see contentapp chunks --help)\n")
    assert names(image.parent) == {image.name}


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--nothing"]])
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    ran = run("chunks", *arguments)
    assert (ran.status, ran.messages.count("\n")) == (2, 1)


def test_a_file_that_can_not_be_read(run: Run, tmp_path: Path) -> None:
    ran = run("chunks", "Nowhere.img")
    assert (ran.status, ran.output) == (1, "")
    assert ran.messages == "error: can't read Nowhere.img: no such file or directory\n"
    (tmp_path / "old.json").touch()
    assert run("chunks", "Nowhere.img", "--output", "old.json").messages == ran.messages
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("pipe", "not a regular file"),
        ("/dev/null", "not a regular file"),
        (".", "is a directory"),
        ("/", "is a directory"),
    ):
        ran = run("chunks", name, "--output", "list.json")
        assert (ran.status, ran.messages) == (1, f"error: can't read {name}: {reason}\n")
    assert names(tmp_path) == {"pipe", "old.json"}


def test_an_output_that_can_not_be_written(run: Run, image: Path) -> None:
    (image.parent / "folder").mkdir()
    os.mkfifo(image.parent / "pipe")
    for output, reason in (
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("nowhere/list", "its folder does not exist or is not writable"),
        ("x" * 300, "file name too long"),
    ):
        ran = run("chunks", image, "--output", output)
        assert (ran.status, ran.output) == (1, "")
        assert ran.messages == f"error: can't write {output}: {reason}\n"
    assert names(image.parent) == {image.name, "folder", "pipe"}


def test_an_output_that_fails_leaves_nothing(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = image.with_name("list.json")
    old.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = run("chunks", image, "--output", old)
    assert (ran.status, ran.messages) == (1, f"error: can't write {old}: no space left on device\n")
    assert names(image.parent) == {image.name, old.name}
    assert old.read_text() == "old"


def test_it_is_durable_before_it_has_its_name(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, synced, fsync = image.with_name("list.json"), [], os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        synced.append((path, path.is_dir() or path.read_bytes() == dump_chunk_list(listed(BODY)), target.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    assert run("chunks", image, "--output", target).status == 0
    (list_, is_whole, before), (folder, _, after) = synced
    assert (list_.parent, is_whole, before) == (image.parent, True, False)
    assert (folder, after) == (image.parent, True)


def test_what_a_killed_run_left_is_no_hindrance(run: Run, image: Path) -> None:
    left = image.with_name(f".{os.getpid()}.chunks.json.new")
    left.write_text("left")
    assert run("chunks", image, "--output", "list.json").status == 0
    assert names(image.parent) == {image.name, "list.json"}


@pytest.mark.parametrize("how", ["name", "link", "symlink"])
def test_the_file_itself_is_never_replaced(run: Run, image: Path, how: str) -> None:
    output = image if how == "name" else image.with_name("other")
    if how == "link":
        output.hardlink_to(image)
    elif how == "symlink":
        output.symlink_to(image)
    ran = run("chunks", image, "--output", output)
    assert (ran.status, ran.messages) == (2, "error: --output is the file itself (see contentapp chunks --help)\n")
    assert image.read_bytes() == BODY


@pytest.mark.parametrize("change", ["grows", "grows unseen", "shrinks", "is written", "is replaced"])
def test_a_file_that_changes_while_it_is_read(
    run: Run, image: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_ = chunks._hash

    def meanwhile(opened: Any, size: int, chunk_size: int) -> ChunkList:
        made = hash_(opened, size, chunk_size)
        match change:
            case "grows":
                image.write_bytes(BODY + b"x")
            case "grows unseen":
                found = image.stat()
                image.write_bytes(BODY + b"x")
                os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
            case "shrinks":
                os.truncate(image, 5)
            case "is written":
                os.utime(image, ns=(1, image.stat().st_mtime_ns + 1))
            case _:
                found = image.stat()
                other = image.with_name("other")
                other.write_bytes(BODY[::-1])
                os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
                other.replace(image)
        return made

    monkeypatch.setattr(chunks, "_hash", meanwhile)
    ran = run("chunks", image)
    assert (ran.status, ran.output) == (1, "")
    assert ran.messages == f"error: the file {image} changed while it was read; try again when it is complete\n"
    assert names(image.parent) == {image.name}


def test_a_file_that_never_ends_is_not_read_for_ever(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is one byte more than there was, though its size and time look the same."""
    monkeypatch.setattr(chunks, "_hash", lambda _opened, _size, chunk_size: listed(BODY + b"x", chunk_size))
    ran = run("chunks", image)
    assert ran.messages == f"error: the file {image} changed while it was read; try again when it is complete\n"

    class Endless:
        def read(self, count: int) -> bytes:
            return bytes(count)

    monkeypatch.undo()
    made = chunks._hash(Endless(), 5 * MIB, MIB)  # type: ignore[arg-type]
    assert made.size == 5 * MIB + 1


def test_a_file_that_is_too_large_for_such_chunks_is_not_read(run: Run, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1_000_000 * 64 * KIB + 1)
    ran = run("chunks", large, "--chunk-size", "64KiB")
    assert (ran.status, ran.output) == (1, "")
    assert ran.messages == (
        "error: the file makes more than 1000000 chunks of 65536 bytes; give a larger --chunk-size\n"
    )
    assert names(tmp_path) == {"large"}


def test_names_do_not_reach_the_terminal_as_they_are(run: Run, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"a\x1b]0;x\x07\xff")
    for expected in (1, 0):
        ran = run("chunks", odd)
        assert ran.status == expected
        assert not {"\x1b", "\x07", "\udcff"} & set(ran.output + ran.messages)
        odd.write_bytes(b"x")


def test_help_has_examples_and_bounds(run: Run) -> None:
    text = run("chunks", "--help").output
    assert "\n    contentapp chunks disk.qcow2\n" in text
    text = " ".join(text.split())
    for part in ("64KiB", "64MiB", "default: 4MiB", "FILE.chunks.json"):
        assert part in text
