"""A server process under measurement: started, waited for, weighed and ended."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.002
STOP_SECONDS = 15.0
LAST_LINES = 12
PACKAGES = {"docker-registry": "docker-registry", "nginx": "nginx", "wrk": "wrk", "curl": "curl"}


class BenchmarkError(Exception):
    """Something could not be measured; the message says what and why."""


def find_program(name: str) -> str:
    """The path of an installed program, /usr/sbin included; raises BenchmarkError naming its Debian package."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise BenchmarkError(f"{name} is not installed (Debian package: {PACKAGES.get(name, name)})")
    return path


def free_port() -> int:
    """A loopback TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Weight:
    """Memory of a process and its descendants, in bytes. largest_rss is the peak of the largest one since its start."""

    largest_rss: int
    total_pss: int
    processes: int


class Process:
    """One server, with all the processes it starts. `start` gives the seconds until it answered 200."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self, port: int, path: str, tls: ssl.SSLContext | None, timeout_seconds: float = 30.0) -> float:
        with self.log.open("ab") as output:
            self._started_at = time.perf_counter()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_clean_environment(os.environ),
            )
        deadline = self._started_at + timeout_seconds
        while not _answers(port, path, tls):
            code = self._process.poll()
            if code is not None:
                raise BenchmarkError(f"{self.name} ended with code {code} while starting; {self._last_words()}")
            if time.perf_counter() > deadline:
                raise BenchmarkError(
                    f"{self.name} gave no 200 on {path} within {timeout_seconds:g} s; {self._last_words()}"
                )
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - self._started_at

    def stop(self) -> None:
        """Ends it and waits; kills what is left after STOP_SECONDS. Does nothing if it was not started."""
        process, self._process = self._process, None
        if process is None:
            return
        members = descendants(process.pid)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end(os.killpg, process.pid)  # also those whose parent died before
        for pid in members:
            _end(os.kill, pid)

    def check(self) -> None:
        """Raises BenchmarkError if it ended by itself, or somebody else ended it."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise BenchmarkError(f"{self.name} ended with code {code}; {self._last_words()}")

    def weigh(self) -> Weight:
        if self._process is None:
            raise BenchmarkError(f"{self.name} does not run")
        peaks, shares = [], []
        for pid in descendants(self._process.pid):
            try:
                peaks.append(_field(Path(f"/proc/{pid}/status"), "VmHWM:"))
                shares.append(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:"))
            except OSError:
                continue  # it ended meanwhile
        return Weight(max(peaks, default=0), sum(shares), len(peaks))

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(["its last lines:", *(f"    {line}" for line in lines)]) if lines else "it said nothing"


def _clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would change the proxy's or the registry's configuration behind the benchmark's back."""
    return {name: value for name, value in environment.items() if not name.startswith(("CONTENTAPP_", "REGISTRY_"))}


def _answers(port: int, path: str, tls: ssl.SSLContext | None) -> bool:
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=tls)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def descendants(pid: int) -> list[int]:
    """The process and all it started, itself first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    family = [pid]
    for member in family:
        family.extend(parents.get(member, ()))
    return family


def _field(path: Path, name: str) -> int:
    """A value in kB from a /proc file, in bytes."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def _end(send: Callable[[int, int], None], target: int) -> None:
    with suppress(ProcessLookupError):
        send(target, signal.SIGKILL)
