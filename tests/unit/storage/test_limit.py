from __future__ import annotations

import os
from pathlib import Path

import pytest

from contentapp.storage.limit import LimitNotKept, first_limit


def share(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize * 8 // 10


def test_made_at_the_first_start_and_kept(tmp_path: Path) -> None:
    root = tmp_path / "a" / "data"
    limit = first_limit(root)
    assert limit == pytest.approx(share(tmp_path), rel=0.05)
    assert (root / "cache-size").read_text() == f"{limit}\n"
    assert [path.name for path in root.iterdir()] == ["cache-size"]
    (root / "cache-size").write_text("12345\n")
    assert first_limit(root) == 12345


@pytest.mark.parametrize("content", [b"", b"\n", b"0\n", b"-5", b"ten", b"1e9", b"1\n2\n", b"\xff", b"9" * 100, b" 5"])
def test_a_damaged_file_is_reported_with_a_limit_to_go_on_with(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache-size").write_bytes(content)
    with pytest.raises(LimitNotKept, match="cache-size") as raised:
        first_limit(tmp_path)
    assert raised.value.limit == pytest.approx(share(tmp_path), rel=0.05)
    assert (tmp_path / "cache-size").read_bytes() == content


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LimitNotKept) as raised:
        first_limit(tmp_path / "file" / "data")
    assert raised.value.limit == pytest.approx(share(tmp_path), rel=0.05)
