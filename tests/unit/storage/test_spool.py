"""Short writes, which a local disk hardly ever makes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import StorageUnavailable
from contentapp.storage import spool as spool_module
from contentapp.storage.background import Background
from contentapp.storage.quota import DiskSpace, MemoryLedger, Reservation
from contentapp.storage.spool import Spool, after, as_views

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
    spool.close()
    assert ranges == ([(0, 100), (100, 250)] if is_durable else [])
    await background.close()
