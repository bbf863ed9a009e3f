"""Running the program in this process, and a server that answers as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from contentapp.cli.main import main


@dataclass
class Ran:
    """What a run of the program came to."""

    status: object
    output: str
    messages: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call it as `run("status", "--format", "json")`; variables as keywords."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, **environ: str) -> Ran:
        for name in ("CONTENTAPP_CONFIG", "CONTENTAPP_FORMAT", "CONTENTAPP_ADMIN_PASSWORD"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ran(ended.value.code, said.out, said.err)

    return call


@dataclass
class AdminServer:
    """An admin API with scripted answers by method and path: (status, JSON or bytes), the last one again and again."""

    port: int
    answers: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, Mapping[str, str], bytes]] = field(default_factory=list)

    def script(self, request: str, *answers: tuple[int, Any]) -> None:
        self.answers[request] = list(answers)

    def answer(self, request: str) -> tuple[int, bytes]:
        answers = self.answers.get(request, [(404, {"detail": "Not found."})])
        status, body = answers[0] if len(answers) == 1 else answers.pop(0)
        return status, body if isinstance(body, bytes) else json.dumps(body).encode()

    def config(self, folder: Path) -> Path:
        """A configuration whose admin listener this is."""
        file = folder / "contentapp.yaml"
        file.write_text(f'data_dir: {folder}\nadmin: {{listen: "127.0.0.1:{self.port}"}}\n')
        return file


@pytest.fixture
def server() -> Iterator[AdminServer]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.asked.append((self.command, self.path, dict(self.headers), body))
            status, content = made.answer(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        made = AdminServer(listening.server_address[1])
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        listening.shutdown()
        thread.join()
