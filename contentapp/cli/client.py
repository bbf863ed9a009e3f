"""The REST client: finds the admin listener in the configuration, and the admin's password on this host.

It is the standard library's http.client, since aiohttp alone would take longer to import than most commands take.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from contentapp.cli.option import Failed
from contentapp.config import Config, Listen

API_ROOT = "/pulp/api/v3/"
PASSWORD_VARIABLE = "CONTENTAPP_ADMIN_PASSWORD"  # noqa: S105 - a variable's name
PASSWORD_FILE = "admin-password"  # noqa: S105 - a file's name
USER = "admin"
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, never bound
TIMEOUT_SECONDS = 60.0
MAX_ANSWER = 256 << 20
PAGE_SIZE = 1000


class AdminClient:
    """Asks the admin API; Failed with one plain line for whatever goes wrong."""

    def __init__(self, config: Config, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        listen = config.admin.listen
        self._listen = Listen(ANY.get(listen.host, listen.host), listen.port)
        self._timeout_seconds = timeout_seconds
        self._password_file = config.data_dir / PASSWORD_FILE
        self._no_password = ""
        self._password = self._find_password()

    def __repr__(self) -> str:
        return f"AdminClient({self.url})"

    @property
    def url(self) -> str:
        """Where it asks."""
        return f"http://{self._listen}"

    def get(self, path: str) -> Any:
        """The JSON at a path below the API's root, or at a `pulp_href`."""
        return self._json("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a JSON object."""
        return self._json("POST", path, json.dumps(body).encode())

    def list(self, path: str, **filters: str) -> Iterator[dict[str, Any]]:
        """All results of a list, page by page."""
        found = self.get(f"{path}?{urlencode({**filters, 'limit': PAGE_SIZE})}")
        while True:
            yield from found["results"]
            if not found["next"]:
                return
            found = self.get(found["next"])

    def readiness(self) -> str:
        """Why it is not ready, "" if it is."""
        status, content = self._exchange("GET", "/readyz", None)
        return "" if status == HTTPStatus.OK else content.decode(errors="replace").strip()

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, content = self._exchange(method, path if path.startswith("/") else API_ROOT + path, body)
        try:
            answer = json.loads(content) if content else None
        except ValueError:
            raise Failed(f"what answers at {self.url} (status {status}) is not the admin API of contentapp") from None
        if status >= HTTPStatus.BAD_REQUEST:
            raise Failed(self._reason(status, answer))
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._listen.host, self._listen.port, timeout=self._timeout_seconds)
        try:
            connection.request(method, path, body, self._headers(body))
            return _read(connection.getresponse())
        except TimeoutError:
            raise self._unreachable(f"no answer within {self._timeout_seconds:g} s") from None
        except ConnectionRefusedError:
            raise self._unreachable("connection refused; is contentapp serve running?") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(_reason_of(error)) from None
        finally:
            connection.close()

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._password:
            login = f"{USER}:{self._password}".encode("utf-8", "surrogateescape")
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        return headers

    def _find_password(self) -> str:
        """Of the variable, else of the file; without one, what wants no login works all the same."""
        if password := os.environ.get(PASSWORD_VARIABLE):
            return password
        try:
            return read_password(self._password_file)
        except OSError as error:
            self._no_password = error.strerror or type(error).__name__
            return ""

    def _reason(self, status: int, answer: Any) -> str:
        if status == HTTPStatus.UNAUTHORIZED:
            return self._login_reason()
        if isinstance(answer, dict) and isinstance(answer.get("detail"), str):
            return str(answer["detail"])
        if isinstance(answer, dict):
            return "; ".join(_messages(answer))
        return f"the admin API at {self.url} answered with status {status}"

    def _login_reason(self) -> str:
        advice = f"run as the user that runs contentapp serve, or set {PASSWORD_VARIABLE}"
        if self._password and os.environ.get(PASSWORD_VARIABLE):
            return f"the admin API at {self.url} refuses the password in {PASSWORD_VARIABLE}"
        if self._password:
            return f"the admin API at {self.url} refuses the password in {self._password_file}; is it another's?"
        return f"the admin password in {self._password_file} can't be read: {self._no_password.lower()}; {advice}"

    def _unreachable(self, reason: str) -> Failed:
        return Failed(f"can't reach the admin API at {self.url}: {reason}")


def read_password(path: Path) -> str:
    """What the admin process has written there. OSError."""
    with path.open("rb") as file:
        return file.read(1024).decode("utf-8", "surrogateescape").strip()


def _read(answer: http.client.HTTPResponse) -> tuple[int, bytes]:
    """Status and body; IncompleteRead for one that ends early, or would never end."""
    content = answer.read(MAX_ANSWER)
    if answer.length:
        raise http.client.IncompleteRead(content)
    return answer.status, content


def _reason_of(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its host name is unknown"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http.client.IncompleteRead):
        return "its answer was cut short"
    return f"it does not speak HTTP ({type(error).__name__})"


def _messages(answer: Mapping[str, Any]) -> Iterator[str]:
    """Pulp's errors, field by field."""
    for name, messages in answer.items():
        for message in messages if isinstance(messages, list) else [messages]:
            yield str(message) if name == "non_field_errors" else f"{name}: {message}"
