"""The devices: curl that pulls as fast as it can, wrk for many small requests, and hundreds of slow readers."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.content import MANIFEST_TYPE
from benchmarks.process import BenchmarkError, find_program
from benchmarks.tls import TlsFiles

CURL_PROCESSES = 2
TIMEOUT_SECONDS = 300
CONNECTIONS = 64
TICKS_A_SECOND = 4
TICK_SECONDS = 1 / TICKS_A_SECOND
SMALL_BUFFER = 32 * 1024
HEAD_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a number of devices at once experienced. seconds: from the first one's start to the last one's end."""

    seconds: float
    slowest_first_byte_seconds: float
    received: int

    @property
    def megabytes_per_second(self) -> float:
        return self.received / self.seconds / 1e6


def pull(url: str, size: int, tls: TlsFiles | None) -> Pulled:
    """One device; the time is curl's own, without its start. Raises BenchmarkError unless exactly size bytes came."""
    [transfer] = _finish(_curl([url], [Path("/dev/null")], tls))
    _check(transfer, size)
    return Pulled(float(transfer["time_total"]), float(transfer["time_starttransfer"]), size)


def pull_many(url: str, size: int, devices: int, tls: TlsFiles | None) -> Pulled:
    """That many devices at once, spread over CURL_PROCESSES processes so that no single one is the limit."""
    shares = [devices // CURL_PROCESSES + (index < devices % CURL_PROCESSES) for index in range(CURL_PROCESSES)]
    started = time.perf_counter()
    running = [_curl([url] * share, [Path("/dev/null")] * share, tls) for share in shares if share]
    transfers = [transfer for process in running for transfer in _finish(process)]
    seconds = time.perf_counter() - started
    for transfer in transfers:
        _check(transfer, size)
    if len(transfers) != devices:
        raise BenchmarkError(f"{len(transfers)} of {devices} devices reported")
    return Pulled(seconds, max(float(transfer["time_starttransfer"]) for transfer in transfers), size * devices)


def verify(url: str, digest: str, devices: int, folder: Path, tls: TlsFiles | None) -> None:
    """Pulls with that many devices at once into files; raises BenchmarkError unless all have that digest."""
    files = [folder / f"pulled-{index}" for index in range(devices)]
    try:
        _finish(_curl([url] * devices, files, tls))
        for file in files:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if f"sha256:{found}" != digest:
                raise BenchmarkError(f"{url} gave bytes with the digest sha256:{found}")
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _curl(urls: Sequence[str], outputs: Sequence[Path], tls: TlsFiles | None) -> subprocess.Popen[str]:
    """HTTP/1.1 for all, as not every contender speaks another version."""
    command = [find_program("curl"), "--no-progress-meter", "--globoff", "--http1.1"]
    command += [
        "--max-time",
        f"{TIMEOUT_SECONDS}",
        "--write-out",
        "%{json}\\n",
        "--header",
        f"Accept: {MANIFEST_TYPE}, */*",
    ]
    if len(urls) > 1:
        command += ["--parallel", "--parallel-immediate", "--parallel-max", f"{len(urls)}"]
    if tls:
        command += ["--cacert", str(tls.certificate)]
    for url, output in zip(urls, outputs, strict=True):
        command += ["--output", str(output), url]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    try:
        output, errors = process.communicate(timeout=TIMEOUT_SECONDS + 10)
    finally:
        process.kill()
    if process.returncode != 0:
        raise BenchmarkError(f"curl ended with code {process.returncode}: {errors.strip()[-300:]}")
    return [json.loads(line) for line in output.splitlines()]


def _check(transfer: dict[str, Any], size: int) -> None:
    status, received = transfer["http_code"], transfer["size_download"]
    if status != 200 or received != size:
        raise BenchmarkError(f"a device got status {status} and {received} of {size} bytes from {transfer['url']}")


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk found over CONNECTIONS connections."""

    requests_per_second: float
    p99_milliseconds: float


def load(url: str, seconds: float) -> Load:
    """Asks for one manifest again and again; raises BenchmarkError if any answer was not a 200 or got lost."""
    command = [find_program("wrk"), "--threads", "2", "--connections", f"{CONNECTIONS}", "--duration", f"{seconds:g}s"]
    command += ["--latency", "--timeout", "10s", "--header", f"Accept: {MANIFEST_TYPE}", url]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", result.stdout)
    slow = re.search(r"99%\s+([0-9.]+)(us|ms|s|m)\s", result.stdout)
    if result.returncode != 0 or rate is None or slow is None:
        raise BenchmarkError(f"wrk failed: {(result.stdout + result.stderr).strip()[-300:]}")
    if trouble := re.search(r"Non-2xx.*|Socket errors.*", result.stdout):
        raise BenchmarkError(f"{url}: {trouble.group()}")
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[slow.group(2)]
    return Load(float(rate.group(1)), float(slow.group(1)) * unit)


class SlowDevices:
    """Connections that each read at most `rate` bytes a second, from one thread, into a small receive buffer.

    A device counts as fed once a 200 and more than its head has come. One whose connection ends raises BenchmarkError.
    """

    def __init__(self, urls: Sequence[str], rate: int, tls: TlsFiles | None) -> None:
        self._stack = ExitStack()
        self._sockets: list[socket.socket] = []
        self._received = [0] * len(urls)
        self._share = max(1, int(rate * TICK_SECONDS))
        context = tls.context() if tls else None
        try:
            for url in urls:
                self._sockets.append(self._stack.enter_context(_ask_slowly(url, context)))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> SlowDevices:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def fed(self) -> int:
        return sum(count > HEAD_SIZE for count in self._received)

    def read_for(self, seconds: float) -> Iterator[None]:
        """Reads as the devices do, and yields about once a second."""
        started = time.perf_counter()
        for tick in range(round(seconds / TICK_SECONDS)):
            for index, device in enumerate(self._sockets):
                self._received[index] += self._read(device, first=not self._received[index])
            if tick % TICKS_A_SECOND == 0:
                yield
            time.sleep(max(0.0, started + (tick + 1) * TICK_SECONDS - time.perf_counter()))

    def _read(self, device: socket.socket, *, first: bool) -> int:
        try:
            data = device.recv(self._share)
        except (BlockingIOError, ssl.SSLWantReadError):
            return 0
        if not data:
            raise BenchmarkError("a slow device was cut off")
        if first and not data.startswith(b"HTTP/1.1 200"):
            raise BenchmarkError(f"a slow device got {data[:60]!r}")
        return len(data)


def _ask_slowly(url: str, context: ssl.SSLContext | None) -> socket.socket:
    parts = urlsplit(url)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    plain.settimeout(30)
    plain.connect((parts.hostname, parts.port))
    device = context.wrap_socket(plain, server_hostname=parts.hostname) if context else plain
    device.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
    device.setblocking(False)
    return device
