"""The demo's proxy: the real program in processes of its own, on free ports of loopback, in a folder that goes away."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contentapp.cli.demo_content import FILES_ROOT
from contentapp.cli.demo_remote import DemoRemote

PROGRAM = "from contentapp.cli.main import main; main()"
"""The command `contentapp` of this very installation, wherever its script lies."""

ADMIN = "admin"
START_SECONDS = 10.0
STOP_SECONDS = 5.0
ASK_SECONDS = 5.0
POLL_SECONDS = 0.02
GRACE_SECONDS = 2
WORKERS = 2
BASE_PATH = "quay.example"
FILES_BASE_PATH = "firmware"


class ProxyFailed(Exception):
    """The proxy did not start, ended, or did not answer an admin's question."""


class DemoProxy:
    """A running proxy. `port`: where devices go; `admin_port`: where admins go."""

    def __init__(self, folder: Path, image_remotes: Sequence[DemoRemote], file_remotes: Sequence[DemoRemote]) -> None:
        self.port, self.admin_port = _free_ports(2)
        self.log = folder / "contentapp.log"
        self.file = folder / "contentapp.yaml"
        self._data_dir = folder / "data"
        self.file.write_text(json.dumps(self._config(image_remotes, file_remotes), indent=2))  # JSON is YAML too
        self._process: subprocess.Popen[bytes] | None = None

    def _config(self, image_remotes: Sequence[DemoRemote], file_remotes: Sequence[DemoRemote]) -> dict[str, Any]:
        """Two distributions, each over the two remotes; retries are short, so that nobody has to wait for the end."""
        images = [{"name": remote.name, "type": "container", "url": remote.url} for remote in image_remotes]
        files = [
            {"name": f"{remote.name}-files", "type": "file", "url": f"{remote.url}{FILES_ROOT}"}
            for remote in file_remotes
        ]
        quick = {"policy": "on_demand", "max_retries": 1, "retry_backoff_seconds": 0.05}
        return {
            "data_dir": str(self._data_dir),
            "content": {"listen": f"127.0.0.1:{self.port}", "workers": WORKERS},
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            "cache": {"max_size": "256 MiB"},
            "log": {"format": "json"},
            "grace_seconds": GRACE_SECONDS,
            "remotes": [{**remote, **quick} for remote in (*images, *files)],
            "distributions": [
                {"base_path": BASE_PATH, "type": "container", "remotes": [remote["name"] for remote in images]},
                {"base_path": FILES_BASE_PATH, "type": "file", "remotes": [remote["name"] for remote in files]},
            ],
        }

    def start(self) -> float:
        """Start it; returns after how many seconds it was ready. ProxyFailed if it does not get there."""
        began = time.monotonic()
        command = [sys.executable, "-P", "-c", PROGRAM, "serve", "--config", str(self.file)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        while not (self._answers(self.port) and self._answers(self.admin_port)):
            if self._process.poll() is not None:
                raise ProxyFailed(f"the proxy ended with {self._process.returncode}")
            if time.monotonic() - began > START_SECONDS:
                raise ProxyFailed(f"the proxy was not ready after {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def stop(self) -> int:
        """SIGTERM, and its exit status; SIGKILL to all that is left of it after a while. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(GRACE_SECONDS + STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def ask(self, path: str) -> Any:
        """The JSON of a GET of the REST API, as the admin."""
        password = (self._data_dir / "admin-password").read_text().strip()
        login = base64.b64encode(f"{ADMIN}:{password}".encode()).decode()
        return json.loads(self._get(path, {"Authorization": f"Basic {login}"}))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of one metric's samples that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total = 0.0
        for line in self._get("/metrics", {}).decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(pair in sample for pair in wanted):
                total += float(value)
        return total

    def log_lines(self, count: int) -> list[str]:
        """The end of its log."""
        with suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-count:]
        return []

    def _get(self, path: str, headers: dict[str, str]) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=ASK_SECONDS)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ProxyFailed(f"no answer to GET {path}: {type(error).__name__}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ProxyFailed(f"GET {path} was answered with {response.status}")
        return body

    def _answers(self, port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@contextmanager
def stopped_at_the_end(proxy: DemoProxy) -> Iterator[DemoProxy]:
    """The proxy, which is not left running whatever happens."""
    try:
        yield proxy
    finally:
        proxy.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; the kernel gives them out in a random order, so they most likely still are."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _environment() -> dict[str, str]:
    """None of the user's own settings for a proxy: they go over those of the file."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONTENTAPP_")}
