"""The machine's own raw figures, without which the others say little."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from benchmarks.process import BenchmarkError, find_program

BLOCK = 1 << 20


def describe() -> dict[str, str]:
    """What it is, and which versions of the peers run on it."""
    return {
        "processor": f"{os.cpu_count()} × {_first_value(Path('/proc/cpuinfo'), 'model name')}",
        "memory": f"{int(_first_value(Path('/proc/meminfo'), 'MemTotal').split()[0]) / 2**20:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "nginx": _version("nginx", "-v"),
        "docker-registry": _version("docker-registry", "--version"),
        "curl": _version("curl", "--version"),
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def raw_figures(folder: Path, size: int) -> dict[str, float]:
    """sha256 on one core, write with fsync in the benchmark's folder, and one loopback stream; all in MB/s."""
    return {
        "sha256, one core": measure_sha256(min(size, 1 << 29)),
        "disk, write and fsync": measure_disk(folder, size),
        "loopback, sendfile to recv": measure_loopback(folder, size),
    }


def measure_sha256(size: int) -> float:
    block = os.urandom(BLOCK)
    started = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(size // BLOCK):
        digest.update(block)
    return _rate(size, started)


def measure_disk(folder: Path, size: int) -> float:
    block = os.urandom(BLOCK)
    os.sync()
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(size // BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _rate(size, started)


def measure_loopback(folder: Path, size: int) -> float:
    """One connection, a file sent by sendfile and read in blocks of 1 MiB."""
    with tempfile.TemporaryFile(dir=folder) as file, socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(size // BLOCK):
            file.write(bytes(BLOCK))
        file.flush()
        sender = threading.Thread(target=_send, args=(server, file), daemon=True)
        sender.start()
        with socket.create_connection(server.getsockname()[:2]) as device:
            started = time.perf_counter()
            buffer = bytearray(BLOCK)
            left = size // BLOCK * BLOCK
            while left and (count := device.recv_into(buffer)):
                left -= count
            rate = _rate(size, started)
        sender.join()
    return rate


def _send(server: socket.socket, file: IO[bytes]) -> None:
    connection, _ = server.accept()
    with connection:
        file.seek(0)
        connection.sendfile(file)


def _rate(size: int, started: float) -> float:
    return size / (time.perf_counter() - started) / 1e6


def _first_value(path: Path, key: str) -> str:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _version(program: str, option: str) -> str:
    try:
        path = find_program(program)
    except BenchmarkError:
        return "not installed"
    result = subprocess.run([path, option], capture_output=True, text=True, check=False)
    return (result.stdout + result.stderr).splitlines()[0].strip()
