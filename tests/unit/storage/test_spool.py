"""Short writes, which a local disk hardly ever makes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import StorageUnavailable
from contentapp.storage import spool as spool_module
from contentapp.storage.background import Background
from contentapp.storage.quota import DiskSpace, MemoryLedger
from contentapp.storage.reservation import Reservation
from contentapp.storage.spool import BATCH_SIZE, Spool, after, as_views, batches

PLENTY = DiskSpace(1 << 50, 1 << 50)


def make_spool(path: Path, background: Background, *, is_durable: bool = False) -> Spool:
    target = os.open(path, os.O_WRONLY | os.O_CREAT)
    source = os.open(path, os.O_RDONLY)
    reservation = Reservation(MemoryLedger(1 << 40, lambda: PLENTY), 1 << 30)
    return Spool(target, source, reservation, background, os.close, is_durable=is_durable)


@given(buffers=st.lists(st.binary(max_size=10), max_size=10), data=st.data())
def test_after(buffers: list[bytes], data: st.DataObject) -> None:
    body = b"".join(buffers)
    count = data.draw(st.integers(0, len(body)))
    assert b"".join(after(as_views(buffers), count)) == body[count:]


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
async def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    real = os.writev

    def short(descriptor: int, buffers: Sequence[memoryview]) -> int:
        return real(descriptor, [b"".join(buffers)[:most]])

    monkeypatch.setattr(os, "writev", short)
    background = Background(1)
    spool = make_spool(tmp_path / "file", background)
    spool.append(as_views([b"abcde", b"", b"fghij", b"k" * 50]))
    spool.append(as_views([b"end"]))
    spool.close()
    body = b"abcdefghij" + b"k" * 50 + b"end"
    assert (tmp_path / "file").read_bytes() == body
    assert spool.written == len(body)
    await background.close()


async def test_a_write_that_takes_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: 0)
    background = Background(1)
    spool = make_spool(tmp_path / "file", background)
    with pytest.raises(StorageUnavailable, match="nothing was taken"):
        spool.append(as_views([b"abc"]))
    spool.close()
    await background.close()


@given(sizes=st.lists(st.integers(0, 40), max_size=30), limit=st.integers(1, 50), most=st.integers(1, 5))
def test_batches(sizes: list[int], limit: int, most: int) -> None:
    views = as_views([bytes(size) for size in sizes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "BATCH_SIZE", limit)
        patch.setattr(spool_module, "IOV_MAX", most)
        found = list(batches(views))
    assert [view for batch in found for view in batch] == views
    for batch in found:
        assert len(batch) <= most
        assert len(batch) <= 1 or sum(view.nbytes for view in batch) <= limit


async def test_a_writev_takes_no_more_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = os.writev

    def watched(descriptor: int, buffers: Sequence[memoryview]) -> int:
        sizes.append(sum(buffer.nbytes for buffer in buffers))
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", watched)
    background = Background(1)
    spool = make_spool(tmp_path / "file", background)
    spool.append(as_views([bytes(BATCH_SIZE // 4)] * 10))
    spool.close()
    assert sizes == [BATCH_SIZE, BATCH_SIZE, BATCH_SIZE // 2]
    await background.close()


def drain(background: Background) -> None:
    """Until all that was put aside is done."""
    done = threading.Event()
    assert background.aside(done.set)
    assert done.wait(10)


@pytest.mark.parametrize("is_durable", [True, False])
async def test_early_writeback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_durable: bool) -> None:
    """Each byte of what will be synced is handed over once, in order; spools that never are, are left alone."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(spool_module, "STEP", 100)
    monkeypatch.setattr(spool_module, "start_writeback", lambda _, offset, size: ranges.append((offset, size)))
    background = Background(1)
    spool = make_spool(tmp_path / "file", background, is_durable=is_durable)
    for size in (99, 1, 250, 10):
        spool.append(as_views([bytes(size)]))
        drain(background)
    spool.close()
    await background.close()
    assert ranges == ([(0, 100), (100, 250)] if is_durable else [])


async def test_what_replaces_what_was_cut_is_handed_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(spool_module, "STEP", 100)
    monkeypatch.setattr(spool_module, "start_writeback", lambda _, offset, size: ranges.append((offset, size)))
    background = Background(1)
    spool = make_spool(tmp_path / "file", background, is_durable=True)
    spool.append(as_views([bytes(150)]))
    drain(background)
    spool.cut(20)
    spool.append(as_views([bytes(100)]))
    drain(background)
    spool.close()
    await background.close()
    assert ranges == [(0, 150), (20, 100)]


async def test_a_slow_disk_holds_up_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One early writeback at a time; the next one takes all that has come meanwhile. The file may be closed by then."""
    ranges: list[tuple[int, int]] = []
    go_on = threading.Event()

    def slow(descriptor: int, offset: int, size: int) -> None:
        assert go_on.wait(10)
        assert os.fstat(descriptor).st_size >= offset + size
        ranges.append((offset, size))

    monkeypatch.setattr(spool_module, "STEP", 100)
    monkeypatch.setattr(spool_module, "start_writeback", slow)
    background = Background(1)
    spool = make_spool(tmp_path / "file", background, is_durable=True)
    for _ in range(3):
        spool.append(as_views([bytes(100)]))
    go_on.set()
    drain(background)
    go_on.clear()
    spool.append(as_views([bytes(100)]))
    spool.close()
    go_on.set()
    await background.close()
    assert ranges == [(0, 100), (100, 300)]


async def test_after_close_nothing_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "STEP", 100)
    background = Background(1)
    spool = make_spool(tmp_path / "file", background, is_durable=True)
    await background.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    spool.append(as_views([bytes(100)]))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    spool.close()
