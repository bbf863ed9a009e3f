"""Logs: lines as JSON and for people, nothing secret, nothing lost, in forked processes too."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from contentapp import logs
from contentapp.core.redaction import is_secret_name, redact_text

Read = Callable[[], list[str]]


@pytest.fixture
def fileno(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield descriptor
    logs.close_logs()
    logs._logs = None
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    os.close(descriptor)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The lines so far."""

    def read() -> list[str]:
        logs.flush_logs()
        return (tmp_path / "log").read_text().splitlines()

    return read


def request(path: str = "/v2/quay.io/a/manifests/1", **fields: Any) -> None:
    given_fields: dict[str, Any] = {
        "request_id": "r1",
        "device": "10.0.0.7",
        "method": "GET",
        "status": 200,
        "size": 5,
        "seconds": 0.0015,
        "outcome": "hit",
        "distribution": "quay.io",
    }
    logs.log_request(path=path, **given_fields | fields)


class TestRequests:
    def test_json(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "info", fileno=fileno)
        request()
        [line] = map(json.loads, read())
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "info",
            "event": "request",
            "request_id": "r1",
            "device": "10.0.0.7",
            "method": "GET",
            "path": "/v2/quay.io/a/manifests/1",
            "status": 200,
            "size": 5,
            "seconds": 0.0015,
            "outcome": "hit",
            "distribution": "quay.io",
        }

    def test_console(self, fileno: int, read: Read) -> None:
        logs.configure_logs("console", "info", fileno=fileno)
        request()
        [line] = read()
        assert line.partition(" ")[2] == (
            "200 GET /v2/quay.io/a/manifests/1 hit 5 B 1.5 ms device=10.0.0.7 distribution=quay.io request_id=r1"
        )

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_a_query_is_cut_off(self, format_: str, fileno: int, read: Read) -> None:
        logs.configure_logs(format_, "info", fileno=fileno)
        request("/v2/x?token=hunter2&a=?b")
        [line] = read()
        assert "hunter2" not in line
        assert "?" not in line

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_odd_paths_stay_one_bounded_line(self, format_: str, fileno: int, read: Read) -> None:
        logs.configure_logs(format_, "info", fileno=fileno)
        request('/a"\n{"x":\r\x1b[31m\u2028\ud800' + "é" * 10_000, method="G\nT", request_id='"', distribution="\n")
        [line] = read()
        assert line.isascii()
        assert "\x1b" not in line
        assert len(line) < 4096

    @given(st.text(max_size=50), st.text(max_size=20))
    def test_any_text_is_valid_json(self, path: str, device: str) -> None:
        receiver, sender = os.pipe()
        handlers = logging.root.handlers[:]
        try:
            logs.configure_logs("json", "info", fileno=sender)
            request(path, device=device)
            logs.close_logs()
            line = json.loads(os.read(receiver, 65536))
        finally:
            logs._logs = None
            structlog.reset_defaults()
            logging.root.handlers[:] = handlers
            os.close(receiver)
            os.close(sender)
        assert (line["path"], line["device"]) == (path.partition("?")[0], device)

    def test_not_above_info(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "warning", fileno=fileno)
        request()
        assert read() == []

    def test_nothing_before_it_is_configured(self) -> None:
        request()


class TestEvents:
    def test_json(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "info", fileno=fileno)
        log = structlog.get_logger()
        log.info("remote cools down", remote="quay", seconds=300.0)
        log.debug("not shown")
        [line] = map(json.loads, read())
        assert line.pop("time")
        assert line == {"level": "info", "event": "remote cools down", "remote": "quay", "seconds": 300.0}

    def test_console(self, fileno: int, read: Read) -> None:
        logs.configure_logs("console", "debug", fileno=fileno)
        structlog.get_logger().debug("a\nb", path="x\x1b", n=1)
        [line] = read()
        assert line.partition(" ")[2] == 'debug   a\\nb path="x\\u001b" n=1'

    def test_auto_is_json_off_a_terminal(self, fileno: int, read: Read) -> None:
        logs.configure_logs("auto", "info", fileno=fileno)
        structlog.get_logger().info("x")
        assert json.loads(read()[0])["event"] == "x"

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_secrets_are_hidden(self, format_: str, fileno: int, read: Read) -> None:
        logs.configure_logs(format_, "info", fileno=fileno)
        structlog.get_logger().warning(
            "GET https://u:hunter2@h/p?sig=hunter2 failed",
            password="hunter2",
            headers={"Authorization": "hunter2", "x": ["Bearer hunter2", b"Basic hunter2"]},
            refresh_token="hunter2",
            Set_Cookie="hunter2",
            error=ValueError("url http://hunter2@h/"),
        )
        [line] = read()
        assert "hunter2" not in line
        assert "https://***@h/p?***" in line

    @pytest.mark.parametrize("format_", ["json", "console"])
    def test_exceptions(self, format_: str, fileno: int, read: Read) -> None:
        logs.configure_logs(format_, "info", fileno=fileno)
        try:
            raise ValueError("Authorization: Bearer hunter2")
        except ValueError:
            structlog.get_logger().exception("failed")
            logging.getLogger("lib").exception("failed too")
        text = "\n".join(read())
        assert text.count("Traceback") == 2
        assert "ValueError: Authorization: Bearer ***" in text
        assert "hunter2" not in text
        if format_ == "json":
            assert [json.loads(line)["level"] for line in read()] == ["error", "error"]

    def test_the_standard_library(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "warning", fileno=fileno)
        logging.getLogger("a.b").warning("token at %s", "https://h/?token=hunter2")
        logging.getLogger("a.b").info("not shown")
        [line] = map(json.loads, read())
        assert (line["level"], line["logger"], line["event"]) == ("warning", "a.b", "token at https://h/?***")

    def test_a_record_that_can_not_be_made_breaks_nothing(
        self, fileno: int, read: Read, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logs.configure_logs("json", "info", fileno=fileno)
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logging.getLogger("a").info("%d", "x")
        logging.getLogger("a").info("after")
        assert [json.loads(line)["event"] for line in read()] == ["after"]

    def test_context_is_added(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "info", fileno=fileno)
        with structlog.contextvars.bound_contextvars(request_id="r9"):
            structlog.get_logger().info("x")
        assert json.loads(read()[0])["request_id"] == "r9"


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "redacted"),
        [
            ("plain text", "plain text"),
            ("https://h/p@sha256:x", "https://h/p@sha256:x"),
            ("https://user:p@ss@h/p", "https://***@h/p"),
            ("https://h/p?a=b&c=d rest", "https://h/p?*** rest"),
            ("/v2/x?token=t", "/v2/x?***"),
            ("why? because", "why? because"),
            ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
            ("authorization: basic dTpw", "authorization: basic ***"),
            ("BEARER abc", "BEARER ***"),
            ('Bearer realm="x"', 'Bearer realm="x"'),
            ("Basic authentication failed", "Basic authentication failed"),
        ],
    )
    def test_texts(self, text: str, redacted: str) -> None:
        assert redact_text(text) == redacted

    @pytest.mark.parametrize(
        "name",
        ["password", "proxy_password", "Authorization", "Set-Cookie", "api_key", "client_key", "token", "X-Auth-Token"],
    )
    def test_secret_names(self, name: str) -> None:
        assert is_secret_name(name)

    @pytest.mark.parametrize("name", ["remote", "path", "key", "digest", "author"])
    def test_other_names(self, name: str) -> None:
        assert not is_secret_name(name)

    @given(st.text(alphabet="abcXYZ019:@/._-", min_size=1, max_size=20))
    def test_userinfo_never_comes_through(self, secret: str) -> None:
        marked = f"hunter2{secret.replace('/', '')}"
        assert "hunter2" not in redact_text(f"see https://u:{marked}@host/path now")


class TestWriter:
    def test_nothing_is_lost_or_torn(self, fileno: int, read: Read) -> None:
        logs.configure_logs("json", "info", fileno=fileno)

        def many(name: str) -> None:
            for number in range(2000):
                request(request_id=f"{name}{number}")

        threads = [threading.Thread(target=many, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = {json.loads(line)["request_id"] for line in read()}
        assert found == {f"{name}{number}" for name in "ab" for number in range(2000)}

    def test_lines_come_by_themselves(self) -> None:
        receiver, sender = os.pipe()
        writer = logs.LineWriter(sender)
        writer.write("a\n")
        assert os.read(receiver, 100) == b"a\n"
        writer.write("b\n", is_urgent=True)
        assert os.read(receiver, 100) == b"b\n"
        writer.close()
        os.close(receiver)
        os.close(sender)

    def test_lines_after_close_are_written_at_once(self) -> None:
        receiver, sender = os.pipe()
        writer = logs.LineWriter(sender)
        writer.write("a\n")
        writer.close()
        writer.write("b\n")
        os.close(sender)
        assert os.read(receiver, 100) == b"a\nb\n"
        os.close(receiver)

    def test_a_reader_that_stalls_holds_nobody_and_is_told(self) -> None:
        receiver, sender = os.pipe()
        writer = logs.LineWriter(sender)
        line = "x" * 1000 + "\n"
        for _ in range(logs.MAX_PENDING + 1000):
            writer.write(line)
        assert len(writer._lines) <= logs.MAX_PENDING
        collected: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(receiver, collected))
        reader.start()
        writer.close(timeout_seconds=60)
        os.close(sender)
        reader.join()
        os.close(receiver)
        lines = b"".join(collected).decode().splitlines()
        told = [json.loads(line)["count"] for line in lines if line.startswith("{")]
        assert told
        assert len(lines) - len(told) + sum(told) == logs.MAX_PENDING + 1000

    def test_a_reader_that_is_gone_breaks_nothing(self) -> None:
        receiver, sender = os.pipe()
        os.close(receiver)
        writer = logs.LineWriter(sender)
        writer.write("a\n")
        writer.flush()
        writer.close()
        os.close(sender)

    def test_a_descriptor_that_does_not_block(self) -> None:
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        writer = logs.LineWriter(sender)
        for _ in range(500):
            writer.write("x" * 999 + "\n")
        collected: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(receiver, collected))
        reader.start()
        writer.close()
        os.close(sender)
        reader.join()
        os.close(receiver)
        assert sum(map(len, collected)) == 500_000

    def test_pipes_get_whole_lines_a_write(self) -> None:
        receiver, sender = os.pipe()
        writer = logs.LineWriter(sender)
        for _ in range(100):
            writer._lines.append("x" * 99 + "\n")
        assert {len(piece) for piece in writer._pieces()} == {4000, 2000}
        os.close(receiver)
        os.close(sender)


def _read_all(descriptor: int, into: list[bytes]) -> None:
    while chunk := os.read(descriptor, 1 << 20):
        into.append(chunk)


FORKS = """
import os, sys
from contentapp import logs

def request(name):
    rest = {"device": "d", "method": "GET", "path": "/", "outcome": "hit", "distribution": ""}
    logs.log_request(request_id=name, status=200, size=0, seconds=0.1, **rest)

logs.configure_logs("json", "info")
request("parent-before")
children = []
for number in range(3):
    if (pid := os.fork()) == 0:
        for line in range(1000):
            request(f"child{number}-{line}")
        logs.close_logs()
        os._exit(0)
    children.append(pid)
request("parent-after")
for pid in children:
    os.waitpid(pid, 0)
"""


def test_forked_processes_lose_and_repeat_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], stderr=subprocess.PIPE, check=True, timeout=60)
    found = sorted(json.loads(line)["request_id"] for line in done.stderr.splitlines())
    children = [f"child{number}-{line}" for number in range(3) for line in range(1000)]
    assert found == sorted([*children, "parent-before", "parent-after"])


def test_lines_are_written_at_exit() -> None:
    code = "from contentapp import logs; logs.configure_logs('json', 'info')"
    code += "; import structlog; structlog.get_logger().info('x')"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, timeout=60)
    assert json.loads(done.stderr)["event"] == "x"
