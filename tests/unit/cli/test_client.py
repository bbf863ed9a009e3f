"""The REST client: login, pages, and one plain line for whatever goes wrong."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contentapp.cli.client import AdminClient
from contentapp.cli.option import Failed
from contentapp.config import load_config
from tests.unit.cli.conftest import AdminServer, Run

COOLDOWNS = "GET /pulp/api/v3/cooldowns/?limit=1000"
EMPTY: dict[str, Any] = {"count": 0, "next": None, "previous": None, "results": []}


def sent_login(server: AdminServer) -> str:
    headers = server.asked[-1][2]
    return base64.b64decode(headers.get("Authorization", "Basic ").removeprefix("Basic ")).decode()


def test_the_password_comes_from_the_data_folder(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(COOLDOWNS, (200, EMPTY))
    (tmp_path / "admin-password").write_text("geheim\n")
    assert run("cooldown", "list", "--config", server.config(tmp_path)).status == 0
    assert sent_login(server) == "admin:geheim"


def test_or_from_the_variable_which_wins(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(COOLDOWNS, (200, EMPTY))
    (tmp_path / "admin-password").write_text("other\n")
    run("cooldown", "list", "--config", server.config(tmp_path), CONTENTAPP_ADMIN_PASSWORD="geheim")
    assert sent_login(server) == "admin:geheim"


def test_without_one_it_asks_all_the_same(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(COOLDOWNS, (200, EMPTY))
    assert run("cooldown", "list", "--config", server.config(tmp_path)).status == 0
    assert sent_login(server) == ""


def test_a_refused_login_says_which_password(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(COOLDOWNS, (401, {"detail": "Invalid username/password."}))
    config = server.config(tmp_path)
    ran = run("cooldown", "list", "--config", config)
    assert ran.messages.startswith(
        f"error: the admin password in {tmp_path}/admin-password can't be read: no such file or directory; run as"
    )
    ran = run("cooldown", "list", "--config", config, CONTENTAPP_ADMIN_PASSWORD="geheim")
    assert "refuses the password in CONTENTAPP_ADMIN_PASSWORD" in ran.messages
    assert "geheim" not in ran.messages
    (tmp_path / "admin-password").write_text("geheim\n")
    ran = run("cooldown", "list", "--config", config)
    assert f"refuses the password in {tmp_path}/admin-password" in ran.messages
    assert "geheim" not in ran.messages
    assert ran.status == 1


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (503, {"detail": "the catalog is closed"}, "error: the catalog is closed\n"),
        (400, {"remote": ["must be text"]}, "error: remote: must be text\n"),
        (400, {"a": ["b", "c"], "non_field_errors": ["d"]}, "error: a: b; a: c; d\n"),
        (500, [], "error: the admin API at {url} answered with status 500\n"),
        (200, b"<html>", "error: what answers at {url} (status 200) is not the admin API of contentapp\n"),
        (404, b"not here", "error: what answers at {url} (status 404) is not the admin API of contentapp\n"),
    ],
)
def test_errors_are_one_line(
    run: Run, server: AdminServer, tmp_path: Path, status: int, answer: Any, message: str
) -> None:
    server.script(COOLDOWNS, (status, answer))
    ran = run("cooldown", "list", "--config", server.config(tmp_path))
    assert (ran.status, ran.output) == (1, "")
    assert ran.messages == message.replace("{url}", f"http://127.0.0.1:{server.port}")


def test_nobody_listens(run: Run, closed_port: int, tmp_path: Path) -> None:
    config = AdminServer(closed_port).config(tmp_path)
    for command in (["status"], ["verify"], ["gc"], ["transfer", "list"], ["cooldown", "clear"]):
        ran = run(*command, "--config", config)
        assert (ran.status, ran.output) == (1, "")
        assert ran.messages == (
            f"error: can't reach the admin API at http://127.0.0.1:{closed_port}: connection refused;"
            " is contentapp serve running?\n"
        )


@contextmanager
def says(content: bytes) -> Iterator[int]:
    """A port that sends this to whoever connects, and then nothing more until they leave."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(content)
                if content:
                    connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "it does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "its answer was cut short"),
    ],
)
def test_what_is_no_http_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    with says(content) as port:
        client = AdminClient(load_config(AdminServer(port).config(tmp_path), {}))
        with pytest.raises(Failed, match=rf"can't reach the admin API at http://127.0.0.1:{port}: {reason}"):
            client.get("status/")


def test_what_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with says(b"") as port:
        client = AdminClient(load_config(AdminServer(port).config(tmp_path), {}), timeout_seconds=0.1)
        with pytest.raises(Failed, match=r"no answer within 0\.1 s"):
            client.get("status/")


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("0.0.0.0:8081", "http://127.0.0.1:8081"),
        ("[::]:8081", "http://[::1]:8081"),
        ("10.1.2.3:1", "http://10.1.2.3:1"),
        ("localhost:1", "http://localhost:1"),
    ],
)
def test_any_address_is_asked_on_loopback(tmp_path: Path, listen: str, url: str) -> None:
    file = tmp_path / "contentapp.yaml"
    file.write_text(f'admin: {{listen: "{listen}"}}\n')
    assert AdminClient(load_config(file, {})).url == url


def test_it_never_shows_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTENTAPP_ADMIN_PASSWORD", "geheim")
    assert "geheim" not in repr(AdminClient(load_config(AdminServer(1).config(tmp_path), {})))


def test_all_pages_are_read(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(COOLDOWNS, (200, {"next": "/pulp/api/v3/next", "results": [{"number": 1}, {"number": 2}]}))
    server.script("GET /pulp/api/v3/next", (200, {"next": None, "results": [{"number": 3}]}))
    ran = run("cooldown", "list", "--format", "json", "--config", server.config(tmp_path))
    assert json.loads(ran.output) == [{"number": number} for number in (1, 2, 3)]
