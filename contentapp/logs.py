"""Structured logs on stderr, as JSON or for people, and one line a request.

All lines of a process go through one buffer that a thread of its own writes out, so that neither a slow reader of
stderr nor the disk behind it ever holds the event loop. A child of fork has an empty buffer and a thread of its own.
Lines are lost only when the process is killed (at most FLUSH_SECONDS of them), or when the reader falls MAX_PENDING
behind: those are counted and told. A child that ends by os._exit must call `close_logs` before.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import structlog

from contentapp.core.redaction import HIDDEN, is_secret_name, redact_text

FLUSH_SECONDS = 0.25
FLUSH_LINES = 256
MAX_PENDING = 50_000  # lines
MAX_FILE_WRITE = 64 * 1024
MAX_PATH = 512
MAX_TEXT = 8192
MAX_DEPTH = 4
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

EventDict = MutableMapping[str, Any]


class LineWriter:
    """Writes whole lines to a descriptor from a thread that is started by the first line."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno
        self._is_file = stat.S_ISREG(os.fstat(fileno).st_mode)
        self._reset()

    def _reset(self) -> None:
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._some = threading.Event()  # there is something to write
        self._now = threading.Event()  # and it should not wait for more
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def write(self, line: str, *, is_urgent: bool = False) -> None:
        """Add one line, with its line feed. Never blocks before `close`; urgent ones are written at once."""
        lines = self._lines
        if len(lines) >= MAX_PENDING:
            self._dropped += 1
            return
        lines.append(line)
        pending = len(lines)
        if pending == 1:
            self._begin()
        if is_urgent or pending == FLUSH_LINES:
            self._now.set()

    def flush(self) -> None:
        """Write what is pending, in the caller's thread."""
        with self._writing:
            for piece in self._pieces():
                self._write_all(piece)
        # A line that came while others were taken did not find the buffer empty, so it has woken nobody.
        if self._lines:
            self._some.set()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Write what is pending, or give up after the timeout when stderr stalls. Later lines are written at once."""
        self._is_closed = True
        self._some.set()
        self._now.set()
        if self._thread is None:
            self.flush()
        else:
            self._thread.join(timeout_seconds)

    def after_fork(self) -> None:
        """In a child: what is pending is the parent's to write, its thread is not here, its locks may be held."""
        self._reset()

    def _begin(self) -> None:
        """There is a first line: wake the thread, or be it when there is none any more."""
        if self._is_closed:
            self.flush()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
            self._thread.start()
        self._some.set()

    def _run(self) -> None:
        while not self._is_closed:
            self._some.wait()
            self._some.clear()
            self._now.wait(FLUSH_SECONDS)
            self._now.clear()
            self.flush()
        self.flush()

    def _pieces(self) -> Iterator[bytes]:
        """Whole lines, as many as one write may hold: a pipe shared with other processes keeps those in one piece."""
        limit = MAX_FILE_WRITE if self._is_file else select.PIPE_BUF
        lines: list[bytes] = []
        size = 0
        for line in self._take():
            encoded = line.encode("utf-8", "backslashreplace")
            if lines and size + len(encoded) > limit:
                yield b"".join(lines)
                lines, size = [], 0
            lines.append(encoded)
            size += len(encoded)
        yield b"".join(lines)

    def _take(self) -> Iterator[str]:
        for _ in range(len(self._lines)):
            yield self._lines.popleft()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            yield f'{{"level":"warning","event":"log lines dropped: stderr is too slow","count":{dropped}}}\n'

    def _write_all(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(self.fileno, view) :]
            except BlockingIOError:
                select.select((), (self.fileno,), (), 1.0)
            except OSError:  # nobody reads it any more: no reason to stop
                return


@dataclass(slots=True)
class _Logs:
    """What `configure_logs` has set up in this process."""

    writer: LineWriter
    render: Callable[[EventDict], str]
    is_json: bool
    shows_requests: bool


class _Clock:
    """UTC timestamps with milliseconds; the seconds are formatted once each."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.second = -1
        self.prefix = ""

    def now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self.second:
            self.prefix = time.strftime(self.form, time.gmtime(second))
            self.second = second
        return f"{self.prefix}.{int((now - second) * 1000):03d}"


_logs: _Logs | None = None
_json_clock = _Clock("%Y-%m-%dT%H:%M:%S")
_console_clock = _Clock("%H:%M:%S")


def configure_logs(format: str, level: str, *, fileno: int | None = None) -> None:  # noqa: A002
    """Send structlog and the standard library's logging to stderr (or `fileno`).

    format: json, console, or auto (console on a terminal); level: the least one that is shown. Children of fork inherit
    it. May be called again.
    """
    global _logs  # noqa: PLW0603
    close_logs()
    fileno = sys.__stderr__.fileno() if fileno is None and sys.__stderr__ else fileno or 2
    is_json = format == "json" or (format == "auto" and not os.isatty(fileno))
    least = LEVELS[level]
    _logs = _Logs(LineWriter(fileno), _render_json if is_json else _render_console, is_json, least <= logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            redact,
            _finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=False,  # so that loggers made before this follow it
    )
    logging.basicConfig(level=least, handlers=[_StandardHandler()], force=True)


def flush_logs() -> None:
    """Write what is pending now; blocks while stderr does."""
    if _logs is not None:
        _logs.writer.flush()


@atexit.register
def close_logs() -> None:
    """Write what is pending, and end the thread. Lines that come later are written as they come."""
    if _logs is not None:
        _logs.writer.close()


def _after_fork() -> None:
    if _logs is not None:
        _logs.writer.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def log_request(
    *,
    request_id: str,
    device: str,
    method: str,
    path: str,
    status: int,
    size: int,
    seconds: float,
    outcome: str,
    distribution: str,
) -> None:
    """One line for one request. Some microseconds: it is on the path of every hit.

    device: its address. path: raw, a query is cut off. size: bytes of the body that were sent. outcome: as in metrics.
    """
    logs = _logs
    if logs is None or not logs.shows_requests:
        return
    if "?" in path:
        path = path[: path.index("?")]
    if len(path) > MAX_PATH:
        path = f"{path[:MAX_PATH]}…"
    if logs.is_json:
        line = (
            f'{{"time":"{_json_clock.now()}Z","level":"info","event":"request","request_id":{quoted(request_id)},'
            f'"device":{quoted(device)},"method":{quoted(method)},"path":{quoted(path)},"status":{status},'
            f'"size":{size},"seconds":{seconds:.6f},"outcome":{quoted(outcome)},'
            f'"distribution":{quoted(distribution)}}}\n'
        )
    else:
        line = (
            f"{_console_clock.now()} {status} {quoted(method)[1:-1]} {quoted(path)[1:-1]} {outcome or '-'} {size} B"
            f" {seconds * 1000:.1f} ms device={quoted(device)[1:-1]} distribution={quoted(distribution)[1:-1]}"
            f" request_id={quoted(request_id)[1:-1]}\n"
        )
    logs.writer.write(line)


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: no value under a secret's name, and no credential inside a text, comes through."""
    return {name: HIDDEN if is_secret_name(name) and value else _redacted(value) for name, value in event.items()}


def _redacted(value: object, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        return redact(None, "", {str(name): _redacted(inner, depth + 1) for name, inner in value.items()})
    if isinstance(value, list | tuple | set | frozenset) and depth < MAX_DEPTH:
        return [_redacted(inner, depth + 1) for inner in value]
    text = redact_text(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _finish(_logger: object, _method: str, event: EventDict) -> str:
    return _logs.render(event) if _logs is not None else _render_json(event)


def _render_json(event: EventDict) -> str:
    first = {"time": f"{_json_clock.now()}Z", "level": event.pop("level", "info"), "event": event.pop("event", "")}
    return json.dumps({**first, **event}, default=str) + "\n"


def _render_console(event: EventDict) -> str:
    """One line, with a traceback below it; control characters stay escaped."""
    trace = event.pop("exception", "")
    head = f"{_console_clock.now()} {event.pop('level', 'info'):<7} {quoted(str(event.pop('event', '')))[1:-1]}"
    rest = "".join(f" {quoted(name)[1:-1]}={json.dumps(value, default=str)}" for name, value in event.items())
    below = "".join(f"\n    {quoted(line)[1:-1]}" for line in str(trace).splitlines())
    return f"{head}{rest}{below}\n"


class _LineLogger:
    """What structlog calls with a finished line."""

    def __init__(self, *_args: object) -> None:
        pass

    def debug(self, line: str) -> None:
        if _logs is not None:
            _logs.writer.write(line)

    info = msg = debug

    def warning(self, line: str) -> None:
        if _logs is not None:
            _logs.writer.write(line, is_urgent=True)

    warn = error = critical = exception = fatal = warning


class _StandardHandler(logging.Handler):
    """Takes the standard library's records through the same redaction to the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: EventDict = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
                event = structlog.processors.format_exc_info(None, "", event)
            line = _finish(None, "", redact(None, "", event))
            if _logs is not None:
                _logs.writer.write(line, is_urgent=record.levelno >= logging.WARNING)
        except Exception:  # noqa: BLE001 # a line that can't be made must not break who logs it
            self.handleError(record)
