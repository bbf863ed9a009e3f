"""Who we are to a remote: its configured user name and password, or what a credential helper gives."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from contentapp.core.errors import ChallengeInvalid
from contentapp.core.records import Remote

PREFIX = "docker-credential-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
IDENTITY_TOKEN = "<token>"  # noqa: S105
MAX_OUTPUT = 64 * 1024
MAX_LENGTH = 32 * 1024
NOT_FOUND = b"credentials not found"
CACHE_SECONDS = 300.0
# What helpers of the clouds are known to read. Our own variables may hold other remotes' secrets and stay here.
ENVIRONMENT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"}
    | {"HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "GNUPGHOME"}
)
ENVIRONMENT_PREFIXES = ("AWS_", "AZURE_", "CLOUDSDK_", "GOOGLE_")


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password; an identity token (OAuth2 refresh token) has the user name ``<token>``."""

    username: str
    password: str = field(repr=False)

    @property
    def is_identity_token(self) -> bool:
        """Whether the password is a refresh token, good at a token realm only."""
        return self.username == IDENTITY_TOKEN

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return basic_authorization(self.username, self.password)


def basic_authorization(username: str, password: str) -> str:
    """``Basic …``; ChallengeInvalid for a user name that RFC 7617 can't carry."""
    if ":" in username:
        raise ChallengeInvalid("a user name with a colon can't be sent")
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


class CredentialSource:
    """One remote's credentials; a helper's answer is kept for `CACHE_SECONDS`, or until it is refused."""

    def __init__(
        self, remote: Remote, server: str, *, clock: Callable[[], float], helper_timeout_seconds: float
    ) -> None:
        self._remote = remote
        self._server = server
        self._clock = clock
        self._timeout = helper_timeout_seconds
        self._lock = asyncio.Lock()
        self._kept: Credentials | None = None
        self._kept_until = 0.0

    async def find(self) -> Credentials | None:
        """The credentials, None for anonymous. SecretUnavailable; ChallengeInvalid when the helper fails."""
        remote = self._remote
        if remote.username:
            return Credentials(remote.username, remote.password.reveal() if remote.password else "")
        if not remote.credential_helper:
            return None
        async with self._lock:
            # Whoever waited for the lock finds what its holder was given.
            if self._clock() >= self._kept_until:
                self._kept = await run_helper(remote.credential_helper, self._server, self._timeout)
                self._kept_until = self._clock() + CACHE_SECONDS
            return self._kept

    def forget(self, refused: Credentials) -> None:
        """These were refused: ask the helper anew next time."""
        if self._kept == refused:
            self._kept_until = 0.0


async def run_helper(name: str, server: str, timeout_seconds: float) -> Credentials | None:
    """Ask ``docker-credential-<name> get`` (docker-credential-helpers protocol); None when it has none for the server.

    ChallengeInvalid names the helper, and never repeats its output.
    """
    if not NAME.fullmatch(name.removeprefix(PREFIX)):
        raise ChallengeInvalid("credential_helper is no name of a program")
    program = PREFIX + name.removeprefix(PREFIX)
    conversation = Conversation()
    try:
        async with asyncio.timeout(timeout_seconds):
            await conversation.hold(program, server)
    except OSError as error:
        reason = "did not answer in time" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
        raise ChallengeInvalid(f"credential helper {program} {reason}") from None
    return _read_output(program, conversation.status, bytes(conversation.output))


class Conversation(asyncio.SubprocessProtocol):
    """One run of a helper. `output`: at most a little over MAX_OUTPUT bytes; `status`: -1 while it has not ended."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.status = -1
        self._has_said_all = asyncio.Event()
        self._has_exited = asyncio.Event()

    async def hold(self, program: str, server: str) -> None:
        """Say the server's name and listen to the end. Nothing of it is left then, its own children included."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.subprocess_exec(
            lambda: self,
            program,
            "get",
            stderr=asyncio.subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if _is_passed_on(key)},
            cwd="/",
            start_new_session=True,
        )
        try:
            stdin = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
            stdin.write(server.encode() + b"\n")
            stdin.close()
            await self._has_said_all.wait()
            self.status = -1 if (status := transport.get_returncode()) is None else status
        finally:
            if transport.get_returncode() is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(transport.get_pid(), signal.SIGKILL)
            transport.close()
            await self._has_exited.wait()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Keep what it says, within bounds."""
        if len(self.output) <= MAX_OUTPUT:
            self.output += data
        else:
            self._has_said_all.set()

    def process_exited(self) -> None:
        """It is gone, and waited for."""
        self._has_exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and its pipes are closed."""
        self._has_said_all.set()


def _is_passed_on(key: str) -> bool:
    return key in ENVIRONMENT or key.startswith(ENVIRONMENT_PREFIXES)


def _read_output(program: str, status: int, output: bytes) -> Credentials | None:
    if status != 0 and NOT_FOUND in output[:1024]:
        return None
    if status != 0 or len(output) > MAX_OUTPUT:
        raise ChallengeInvalid(f"credential helper {program} failed with status {status}")
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise ChallengeInvalid(f"credential helper {program} answered something else than credentials") from None
    if not isinstance(username, str) or not isinstance(secret, str) or len(username) + len(secret) > MAX_LENGTH:
        raise ChallengeInvalid(f"credential helper {program} answered something else than credentials")
    return Credentials(username, secret) if username or secret else None
