"""Who is measured: one server in a folder of its own, with a cache that can be thrown away."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import Process, Weight, free_port
from benchmarks.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Setting:
    """What a contender is started with. upstream: the origin's URL, always plain; tls: for its devices."""

    upstream: str
    workers: int
    tls: TlsFiles | None = None


class Contender(ABC):
    """A subclass says how it is configured; `start` and `stop` may follow one another any number of times."""

    name: str
    ready_path: str
    prefix = "/v2"
    """What comes before `<repository>/blobs/…` in its URLs."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder = folder
        self.setting = setting
        self.port = 0
        self._process: Process | None = None

    @abstractmethod
    def prepare(self) -> Process:
        """Writes its configuration into `folder`, for `port` and `setting`; gives the process, not started."""

    def start(self, *, empty: bool) -> float:
        """Starts it, with an empty cache or the one it has; gives the seconds to its first 200."""
        if empty:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process = self.prepare()
        context = self.setting.tls.context() if self.setting.tls else None
        return self._process.start(self.port, self.ready_path, context)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def discard(self) -> None:
        """Stops it and throws away all it wrote."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self) -> None:
        """Raises BenchmarkError if it should run and does not."""
        if self._process is not None:
            self._process.check()

    def weigh(self) -> Weight:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.weigh()

    def url(self, path: str) -> str:
        """Of a path like `<repository>/blobs/<digest>`."""
        return f"{'https' if self.setting.tls else 'http'}://127.0.0.1:{self.port}{self.prefix}/{path}"
