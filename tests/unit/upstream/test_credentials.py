from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from contentapp.core.errors import ChallengeInvalid
from contentapp.core.secret import Secret
from contentapp.upstream.credentials import Credentials, CredentialSource, basic_authorization, run_helper
from tests.unit.upstream.asking import Clock, make_remote


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH for helpers."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def helper(folder: Path, script: str, name: str = "test") -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def test_the_protocol(programs: Path) -> None:
    helper(
        programs,
        f'read host; echo "$1 $host" >> {programs}/asked; '
        'echo "{\\"ServerURL\\":\\"$host\\",\\"Username\\":\\"u\\",\\"Secret\\":\\"s\\"}"; echo noise >&2',
    )
    assert await run_helper("test", "quay.io", 5) == Credentials("u", "s")
    assert await run_helper("docker-credential-test", "quay.io:5000", 5) == Credentials("u", "s")
    assert (programs / "asked").read_text() == "get quay.io\nget quay.io:5000\n"


async def test_an_identity_token(programs: Path) -> None:
    helper(programs, """echo '{"Username":"<token>","Secret":"refresh"}'""")
    found = await run_helper("test", "h", 5)
    assert found is not None and found.is_identity_token


@pytest.mark.parametrize(
    "script",
    ["echo 'credentials not found in native keychain'; exit 1", """echo '{"Username":"","Secret":""}'"""],
)
async def test_no_credentials_is_anonymous(programs: Path, script: str) -> None:
    helper(programs, script)
    assert await run_helper("test", "h", 5) is None


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo SECRET; exit 3",
        "echo SECRET",
        "echo '[]'",
        "echo '{}'",
        """echo '{"Username":"u"}'""",
        """echo '{"Username":5,"Secret":"SECRET"}'""",
        "head -c 200000 /dev/zero | tr '\\0' x",
        "yes",
        "kill -9 $$",
        """printf '{"Username":"u","Secret":"'; head -c 50000 /dev/zero | tr '\\0' x; echo '"}'""",
    ],
)
async def test_what_is_no_answer(programs: Path, script: str) -> None:
    helper(programs, script)
    with pytest.raises(ChallengeInvalid, match=r"docker-credential-test (failed with|answered)") as caught:
        await run_helper("test", "h", 5)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x; rm", "docker-credential-a/../b", "a\nb", "x" * 100])
async def test_names_that_are_no_program(programs: Path, name: str) -> None:
    with pytest.raises(ChallengeInvalid, match="no name of a program"):
        await run_helper(name, "h", 5)


async def test_a_helper_that_is_not_there(programs: Path) -> None:
    with pytest.raises(ChallengeInvalid, match="FileNotFoundError"):
        await run_helper("absent", "h", 5)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not is_alive(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_helper_that_hangs_is_killed_with_its_children(programs: Path) -> None:
    helper(programs, f"sleep 600 & echo $! > {programs}/child; echo $$ > {programs}/pid; wait")
    with pytest.raises(ChallengeInvalid, match="did not answer"):
        await run_helper("test", "h", 0.5)
    for name in ("pid", "child"):
        assert await gone(int((programs / name).read_text()))


async def test_cancelling_kills_the_helper(programs: Path) -> None:
    helper(programs, f"echo $$ > {programs}/pid.tmp; mv {programs}/pid.tmp {programs}/pid; exec sleep 600")
    task = asyncio.create_task(run_helper("test", "h", 60))
    while not (programs / "pid").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(int((programs / "pid").read_text()))


async def test_the_environment_is_minimal(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUAY_PASSWORD", "SECRET")
    monkeypatch.setenv("CONTENTAPP_X", "SECRET")
    monkeypatch.setenv("AWS_PROFILE", "p")
    helper(programs, f"env > {programs}/env; " + """echo '{"Username":"u","Secret":"s"}'""")
    await run_helper("test", "h", 5)
    environment = (programs / "env").read_text()
    assert "SECRET" not in environment
    assert "AWS_PROFILE=p" in environment
    assert f"PATH={programs}" in environment


def counting(programs: Path) -> None:
    helper(programs, f"echo x >> {programs}/runs; " + """echo '{"Username":"u","Secret":"s"}'""")


def runs(programs: Path) -> int:
    return len((programs / "runs").read_text().splitlines())


async def test_an_answer_is_kept_for_a_while_and_dropped_when_refused(programs: Path, clock: Clock) -> None:
    counting(programs)
    remote = make_remote("https://quay.io", credential_helper="test")
    source = CredentialSource(remote, "quay.io", clock=clock, helper_timeout_seconds=5)
    found = await asyncio.gather(*(source.find() for _ in range(5)))
    assert (set(found), runs(programs)) == ({Credentials("u", "s")}, 1)
    source.forget(Credentials("other", "s"))
    await source.find()
    assert runs(programs) == 1
    source.forget(Credentials("u", "s"))
    await source.find()
    assert runs(programs) == 2
    clock.now += 301
    await source.find()
    assert runs(programs) == 3


async def test_configured_credentials(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_PASSWORD", "one")
    remote = make_remote("https://quay.io", username="u", password=Secret(env="THE_PASSWORD"))
    source = CredentialSource(remote, "quay.io", clock=clock, helper_timeout_seconds=5)
    assert await source.find() == Credentials("u", "one")
    monkeypatch.setenv("THE_PASSWORD", "two")
    assert await source.find() == Credentials("u", "two")


async def test_none_configured(clock: Clock) -> None:
    source = CredentialSource(make_remote("https://quay.io"), "quay.io", clock=clock, helper_timeout_seconds=5)
    assert await source.find() is None


def test_basic() -> None:
    assert basic_authorization("u", "p:ä") == "Basic dTpwOsOk"
    with pytest.raises(ChallengeInvalid):
        basic_authorization("a:b", "p")
    assert "SECRET" not in repr(Credentials("u", "SECRET"))


def test_the_loop_is_not_held_by_a_helper(programs: Path) -> None:
    """A helper that takes its time leaves the loop free."""
    helper(programs, "sleep 0.3; " + """echo '{"Username":"u","Secret":"s"}'""")

    async def both() -> float:
        task = asyncio.create_task(run_helper("test", "h", 5))
        longest = 0.0
        while not task.done():
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)
        await task
        return longest

    assert asyncio.run(both()) < 0.2
