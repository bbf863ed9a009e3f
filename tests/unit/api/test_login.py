"""Who gets in, and what wrong passwords cost."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from pathlib import Path

import pytest

from contentapp.api.login import FORGET_SECONDS, MAX_ADDRESSES, MAX_WAITING, Login, Verdict
from contentapp.api.password import PASSWORD_FILE, ensure_password


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


RIGHT = basic("admin:secret")


def login_of(**options: float) -> Login:
    delays = {"first_delay_seconds": 0.0, "last_delay_seconds": 0.0, **options}
    return Login("secret", **delays)  # type: ignore[arg-type]


@pytest.mark.parametrize("authorization", [RIGHT, RIGHT.replace("Basic", "basic"), f" {RIGHT} "])
async def test_the_admin_gets_in(authorization: str) -> None:
    assert await login_of().check("a", authorization) is Verdict.ADMITTED


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic é",
        "Bearer secret",
        RIGHT.removeprefix("Basic "),
        RIGHT + "x",
        basic("admin:"),
        basic("admin:secre"),
        basic("admin:secrets"),
        basic("admin:SECRET"),
        basic("root:secret"),
        basic("adminsecret"),
        basic(":secret"),
        basic(""),
    ],
)
async def test_nobody_else_does(authorization: str | None) -> None:
    assert await login_of().check("a", authorization) is Verdict.REFUSED


async def test_wrong_logins_wait_longer_each_time_up_to_a_limit() -> None:
    login = login_of(first_delay_seconds=0.02, last_delay_seconds=0.05)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(4):
        started = loop.time()
        await login.check("a", basic("admin:wrong"))
        times.append(loop.time() - started)
    assert times[0] >= 0.019
    assert times[1] >= 0.039
    assert 0.049 <= times[3] < 0.5


async def test_others_do_not_wait_and_neither_does_the_admin() -> None:
    login = login_of(first_delay_seconds=60.0, last_delay_seconds=60.0)
    waiting = asyncio.create_task(login.check("a", basic("admin:wrong")))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await login.check("b", RIGHT) is Verdict.ADMITTED
        assert await login.check("a", RIGHT) is Verdict.ADMITTED
        assert await login.check("a", None) is Verdict.REFUSED
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_guessing_in_parallel_is_bounded_per_address() -> None:
    login = login_of(first_delay_seconds=60.0, last_delay_seconds=60.0)
    waiting = [asyncio.create_task(login.check("a", basic(f"admin:{number}"))) for number in range(MAX_WAITING)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await login.check("a", basic("admin:wrong")) is Verdict.BUSY
        assert await login.check("a", RIGHT) is Verdict.BUSY, "else the answer would tell a guess from a hit at once"
        assert await login.check("b", RIGHT) is Verdict.ADMITTED
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert await login.check("a", RIGHT) is Verdict.ADMITTED


async def test_what_is_known_of_addresses_is_bounded_and_forgotten() -> None:
    now = 0.0
    login = Login("secret", clock=lambda: now, first_delay_seconds=0.0, last_delay_seconds=0.0)
    for number in range(MAX_ADDRESSES + 5):
        await login.check(str(number), basic("admin:wrong"))
    assert len(login._addresses) == MAX_ADDRESSES
    now += FORGET_SECONDS + 1
    assert login._known(str(MAX_ADDRESSES)) is None


def test_it_never_shows_the_password() -> None:
    assert "secret" not in repr(login_of())


# -- the password's file


def test_the_password_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        password = ensure_password(tmp_path)
    finally:
        os.umask(old)
    file = tmp_path / PASSWORD_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == f"{password}\n"
    assert len(password) >= 40
    assert ensure_password(tmp_path) == password
    assert [path.name for path in tmp_path.iterdir()] == [PASSWORD_FILE]


def test_no_two_passwords_are_alike(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert ensure_password(tmp_path) != ensure_password(tmp_path / "other")


def test_the_admin_may_write_another_one(tmp_path: Path) -> None:
    (tmp_path / PASSWORD_FILE).write_text("of my own\r\n")
    assert ensure_password(tmp_path) == "of my own"


def test_an_empty_file_is_no_password(tmp_path: Path) -> None:
    (tmp_path / PASSWORD_FILE).write_text("\n")
    assert len(ensure_password(tmp_path)) >= 40


def test_what_cannot_be_written_raises_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / PASSWORD_FILE).mkdir()
    with pytest.raises(OSError):
        ensure_password(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PASSWORD_FILE]
