"""``contentapp demo`` as a person runs it: all of it, piped, interrupted, and with a world that is not as it tells."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from contentapp.cli import demo as demo_module
from contentapp.cli.demo_remote import DemoRemote
from tests.programs import POLL_SECONDS, Service, run
from tests.proxy import PROGRAM

STEPS = [
    "Two remotes",
    "which nobody has pulled before",
    "abort: the device was fed from the first byte on",
    "retry: the device asked to go on at byte",
    "failover: the right bytes came from origin",
    "digest mismatch on sha256:",
    "they are verified before their first byte",
    "digest mismatch of three artifacts",
    "A second device pulls the same image",
    "one transfer for all: origin was asked once and sent 1.00 times the size",
    "Both remotes are stopped",
    "503 connection refused",
    "3 bodies with a wrong digest, all from mirror",
    "Nothing is left behind.",
]


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


async def test_everything_happens_as_it_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    done = await run(PROGRAM, "demo", env={"TMPDIR": str(tmp_path)}, timeout=90)
    text = " ".join(done.check().output.decode().split())
    assert [step for step in STEPS if step not in text] == []
    positions = [text.index(step) for step in STEPS]
    assert positions == sorted(positions)
    assert done.messages == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


async def test_piped_it_is_plain_text_and_the_users_own_settings_do_not_reach_it(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("nonsense: true\n")
    folder = tmp_path / "tmp"
    folder.mkdir()
    own = {"CONTENTAPP_CONFIG": str(broken), "CONTENTAPP_CONTENT__WORKERS": "none"}
    piped = {"TERM": "xterm-256color", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = await run(PROGRAM, "demo", env={"TMPDIR": str(folder), **own, **piped}, cwd=tmp_path, timeout=90)
    lines = done.check().output.decode("ascii").splitlines()
    assert not [line for line in lines if "\x1b" in line or len(line) > 100 or line != line.rstrip()]
    assert list(folder.iterdir()) == []


async def test_sigterm_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    service = Service([PROGRAM, "demo"], log=tmp_path / "demo.log", env={"TMPDIR": str(folder)})
    async with service:
        async with asyncio.timeout(60):
            while "failover" not in service.output():
                await asyncio.sleep(POLL_SECONDS)
        assert await service.stop() == 143
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


def test_what_differs_is_said_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that is not corrupt: no abort happens, so none may be told."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def honest(name: str, resources: object, *, bytes_per_second: float, is_corrupt: bool) -> DemoRemote:
        make = partial(DemoRemote, name, resources, bytes_per_second=bytes_per_second)  # type: ignore[arg-type]
        return make(is_corrupt=False)

    monkeypatch.setattr(demo_module, "DemoRemote", honest)
    done = CliRunner().invoke(demo_module.demo)
    assert done.exit_code == 1
    assert "It went otherwise: the first answer was 200 OK, 4,198,400 of 4,198,400 bytes, complete" in " ".join(
        done.output.split()
    )
    assert "the end of the proxy's log" in done.output
    assert "abort" not in done.output
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_proxy_that_does_not_start_is_said_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("contentapp.cli.demo_proxy.PROGRAM", "import sys; sys.exit('no such program')")
    done = CliRunner().invoke(demo_module.demo)
    assert done.exit_code == 1
    assert "the proxy ended with 1" in done.output
    assert "no such program" in done.output
    assert list(tmp_path.iterdir()) == []


async def test_it_is_known_to_the_command_line() -> None:
    done = (await run(sys.executable, "-c", "from contentapp.cli.main import main; main()", "demo", "--help")).check()
    assert "without the internet" in done.output.decode()
