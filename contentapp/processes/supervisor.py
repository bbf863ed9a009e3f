"""The supervisor: binds the sockets, forks content workers and the admin process, and keeps them running."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import uvloop

from contentapp import logs, metrics
from contentapp.config import Config, Listen
from contentapp.processes.admin import serve_admin
from contentapp.processes.prepare import prepare
from contentapp.processes.worker import BACKLOG, serve_content
from contentapp.services import run_dir

log = structlog.get_logger("contentapp.supervisor")

RESTART_SECONDS = 1.0
"""A process that dies sooner than this after its start is not started again before."""

KILL_SECONDS = 5.0
PR_SET_PDEATHSIG = 1
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


class StartFailed(Exception):
    """The program can't start; the text says why, in one line."""


def hold_signals() -> None:
    """Keep signals for the supervisor's own wait. Call it before any thread exists: one that does not would take
    them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@dataclass(slots=True)
class Child:
    """One process to keep running."""

    name: str
    run: Callable[[], None]
    pid: int = 0
    started: float = 0.0


@dataclass(slots=True)
class Supervisor:
    """Forks before any thread or loop exists, so that children share what was imported."""

    config: Config
    children: list[Child] = field(default_factory=list)
    due: dict[str, float] = field(default_factory=dict)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit code. `hold_signals` comes first."""
        _raise_file_limit()
        _lock_installation(self.config)
        metrics.prepare_metrics(run_dir(self.config))
        asyncio.run(prepare(self.config))
        self._plan()
        for child in self.children:
            self._start(child)
        try:
            self._watch()
        finally:
            self._stop()
        return 0

    def _plan(self) -> None:
        content = self.config.content
        sockets = _listen(content.listen, content.workers)
        for number, listening in enumerate(sockets):
            name = f"content-{number}"
            self.children.append(Child(name, _content(self.config, listening)))
        (admin,) = _listen(self.config.admin.listen, 1)
        self.children.append(Child("admin", _admin(self.config, admin)))

    def _start(self, child: Child) -> None:
        child.started = time.monotonic()
        child.pid = os.fork()
        if child.pid == 0:
            _become(child)

    def _watch(self) -> None:
        """Start again what dies, until a signal says stop."""
        while True:
            timeout = self._next_start()
            received = signal.sigtimedwait(SIGNALS, timeout)
            if received is not None and received.si_signo != signal.SIGCHLD:
                log.info("stopping", signal=signal.Signals(received.si_signo).name)
                return
            self._reap()
            self._restart()

    def _next_start(self) -> float:
        return max(0.0, min(self.due.values(), default=time.monotonic() + 3600.0) - time.monotonic())

    def _reap(self) -> None:
        for child in self.children:
            if child.pid and (ended := os.waitpid(child.pid, os.WNOHANG))[0]:
                log.error("process died", process=child.name, pid=child.pid, status=_ending(ended[1]))
                metrics.reap_worker(child.pid)
                child.pid = 0
                self.due[child.name] = max(time.monotonic(), child.started + RESTART_SECONDS)

    def _restart(self) -> None:
        for child in self.children:
            if child.pid == 0 and self.due.get(child.name, 0.0) <= time.monotonic():
                self.due.pop(child.name, None)
                self._start(child)

    def _stop(self) -> None:
        """Give everyone the grace period, then end them."""
        living = [child for child in self.children if child.pid]
        for child in living:
            os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.config.engine.grace_seconds + KILL_SECONDS
        while living and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, min(1.0, deadline - time.monotonic()))
            living = [child for child in living if not os.waitpid(child.pid, os.WNOHANG)[0]]
        for child in living:
            log.error("process killed: it did not stop in time", process=child.name)
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def _become(child: Child) -> None:
    """Be the child, and never return into the supervisor's code."""
    status = 1
    try:
        _die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.set_wakeup_fd(-1)
        child.run()
        status = 0
    except Exception:
        log.exception("process failed", process=child.name)
    finally:
        logs.close_logs()
        sys.stdout.flush()
        os._exit(status)


def _die_with_parent() -> None:
    """A supervisor that is killed takes its children along: they would keep its lock and its sockets (prctl(2))."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise StartFailed("the supervisor is gone")


def _content(config: Config, listening: socket.socket) -> Callable[[], None]:
    return lambda: uvloop.run(serve_content(config, listening))


def _admin(config: Config, listening: socket.socket) -> Callable[[], None]:
    return lambda: asyncio.run(serve_admin(config, listening))


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _listen(listen: Listen, count: int) -> list[socket.socket]:
    """One socket a process, spread by the kernel (SO_REUSEPORT); held here, so that a dead worker's queue waits."""
    sockets: list[socket.socket] = []
    port = listen.port
    if count > 1 and port:
        # Sockets of one user may share a port silently: so another program on it must be found out by one that may not.
        for one in _listen(listen, 1):
            one.close()
    try:
        for _ in range(count):
            family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
            one = socket.socket(family, socket.SOCK_STREAM)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((listen.host, port))
            one.listen(BACKLOG)
            one.setblocking(False)
            port = one.getsockname()[1]
            sockets.append(one)
    except OSError as error:
        raise StartFailed(f"can't listen on {listen}: {error.strerror or error}") from error
    return sockets


def _raise_file_limit() -> None:
    """A device costs up to three descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lock_installation(config: Config) -> None:
    """Two supervisors on one data_dir would take each other's space and counters."""
    folder = run_dir(config)
    try:
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartFailed(f"data_dir {config.data_dir} can't be used: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartFailed(f"another contentapp is running on data_dir {config.data_dir}") from None
