"""A secret that can't be shown by accident."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from contentapp.core.errors import ContentAppError


class SecretUnavailable(ContentAppError):
    """The variable or file that holds it can't be read; the text names it, never its content."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is: given literally, in an environment variable or in a file (read at each use, so it can
    rotate).
    """

    literal: str | None = None
    env: str | None = None
    file: str | None = None

    def reveal(self) -> str:
        """The secret itself; SecretUnavailable when its variable or file is not there."""
        if self.literal is not None:
            return self.literal
        if self.env is not None:
            if (value := os.environ.get(self.env)) is None:
                raise SecretUnavailable(f"environment variable {self.env} is not set")
            return value
        try:
            return Path(self.file or "").read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SecretUnavailable(f"file {self.file} can't be read: {type(error).__name__}") from None

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__
