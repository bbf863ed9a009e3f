"""``contentapp chunks``: write the chunk list of a file, to be published beside it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from contentapp.cli.option import Failed, config_option, format_option

if TYPE_CHECKING:
    from contentapp.core.chunks import ChunkList

SUFFIX = ".chunks.json"
READ_SIZE = 1 << 20
STDOUT = "-"


def parsed_size(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Bytes of a size that chunks may have, as ``4MiB`` or a number. BadParameter."""
    from contentapp.config.quantity import parse_size
    from contentapp.core.chunks import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE

    size = parse_size(value)
    if size is None or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise click.BadParameter(f"{value!r} is not a size from 64KiB to 64MiB")
    return size


@click.command("chunks")
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@click.option(
    "--chunk-size",
    callback=parsed_size,
    default="4MiB",
    show_default=True,
    metavar="SIZE",
    help="Bytes of a chunk, from 64KiB to 64MiB.",
)
@click.option(
    "--output",
    "destination",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help=f"Where the list goes; - for standard output. Without: beside the file, as FILE{SUFFIX}.",
)
@config_option
@format_option
def chunks_command(*, source: Path, chunk_size: int, destination: Path | None, file: Path | None, output: str) -> None:
    """Write the chunk list of a file: the sha256 of each of its chunks, and of the whole.

    It is to be published beside the file, under its name with .chunks.json behind it. Needs no running proxy, and reads
    no configuration. The list appears whole or not at all; an older one is replaced.

    \b
    Examples:
      contentapp chunks disk.qcow2
      contentapp chunks disk.qcow2 --chunk-size 1MiB --output lists/disk.json
      contentapp chunks disk.qcow2 --output - | ssh mirror 'cat > /srv/disk.qcow2.chunks.json'
    """
    from contentapp.core.chunks import dump_chunk_list

    if str(destination) == STDOUT:
        _print(dump_chunk_list(_read(source, chunk_size)))
        return
    target = Path(f"{source}{SUFFIX}") if destination is None else destination
    _check_target(target, source)
    chunks = _read(source, chunk_size)
    _write(target, dump_chunk_list(chunks))
    _tell(source, target, chunks, output)


def _check_target(target: Path, source: Path) -> None:
    """Say before a long read what can be said; never replace the file itself, nor something like /dev/null."""
    from contentapp.cli.output import printable

    try:
        if not os.access(target.parent, os.W_OK):
            raise Failed(f"can't write {printable(target)}: its folder does not exist or is not writable")
        if target.exists() and not target.is_file():
            raise Failed(f"can't write {printable(target)}: not a regular file")
        if target.exists() and source.exists() and source.samefile(target):
            raise click.UsageError("--output is the file itself", click.get_current_context())
    except OSError as error:
        raise Failed(f"can't write {printable(target)}: {_reason(error)}") from None


def _read(source: Path, chunk_size: int) -> ChunkList:
    """The list of a file that nobody writes. Failed."""
    from contentapp.cli.output import printable

    try:
        with open(source, "rb", buffering=0, opener=_open) as opened:
            before = os.fstat(opened.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise Failed(f"can't read {printable(source)}: not a regular file")
            chunks = _hash(opened, before.st_size, chunk_size)
            if _identity(source.stat()) != _identity(before) or chunks.size != before.st_size:
                raise Failed(f"the file {printable(source)} changed while it was read; try again when it is complete")
    except OSError as error:
        raise Failed(f"can't read {printable(source)}: {_reason(error)}") from None
    return chunks


def _open(path: str, flags: int) -> int:
    """A pipe that nobody writes into would block it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    """Which file it is, and in which state."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash(opened: BinaryIO, size: int, chunk_size: int) -> ChunkList:
    """The list of what can be read up to `size`, and a byte more if the file has grown."""
    from contentapp.core.chunks import ChunkHasher, InvalidChunkList, count_chunks

    hasher, left = ChunkHasher(chunk_size), size + 1
    try:
        count_chunks(size, chunk_size)
        with _progress(size) as advance:
            while data := opened.read(min(READ_SIZE, left)):
                hasher.update(data)
                left -= len(data)
                advance(len(data))
    except InvalidChunkList as error:
        raise Failed(f"{error}; give a larger --chunk-size") from None
    return hasher.finish()


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    """What to call with the number of bytes that were read; a bar on a terminal, on stderr."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("", total=size)
        yield lambda count: bar.advance(shown, count)


def _print(document: bytes) -> None:
    """Failed, also when the reader has gone or the disk behind it is full."""
    try:
        # Not sys.stdout: what it could not write it tries again at the end of the program, with a traceback.
        with open(sys.stdout.fileno(), "wb", closefd=False) as stdout:
            stdout.write(document)
    except OSError as error:
        raise Failed(f"can't write to standard output: {_reason(error)}") from None


def _write(target: Path, document: bytes) -> None:
    """Whole and durable, or not at all. Failed."""
    from contentapp.cli.output import printable

    temporary = target.with_name(f".{os.getpid()}{SUFFIX}.new")
    try:
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"can't write {printable(target)}: {_reason(error)}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _tell(source: Path, target: Path, chunks: ChunkList, output: str) -> None:
    from contentapp.cli.output import counted, human_size, print_json, printable

    if output == "json":
        about = {"file": str(source), "output": str(target), "size": chunks.size, "chunk_size": chunks.chunk_size}
        print_json({**about, "chunks": chunks.count, "digest": str(chunks.digest)})
        return
    parts = f"{counted(chunks.count, 'chunk')} of {human_size(chunks.chunk_size)}"
    click.echo(f"{printable(target)}: {parts}, {human_size(chunks.size)} in all, {chunks.digest}")
