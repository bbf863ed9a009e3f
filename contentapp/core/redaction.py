"""What must not be shown, and how to cut it out of a text: the second line of defence, behind not passing it on."""

from __future__ import annotations

import re

HIDDEN = "***"
SECRET_WORDS = ("password", "passwd", "secret", "token", "authorization", "cookie", "api_key", "apikey", "private_key")
SECRET_NAMES = frozenset({"auth", "client_key", "credentials", "x-api-key"})

USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s\"'<>]*@")
QUERY = re.compile(r"\?[^\s\"'<>=?&]+=[^\s\"'<>]*")
URL_QUERY = re.compile(r"(://[^\s\"'<>?]*)\?[^\s\"'<>]+")
SCHEME = re.compile(
    r"\b(bearer|basic)(\s+|%20)(?!(?:realm|auth|authentication|authorization|challenges?|tokens?|credentials)\b)"
    r"[^\s\"',;<>]+",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a field, header or key of this name holds a secret."""
    lowered = name.lower().replace("-", "_")
    return lowered in SECRET_NAMES or any(word in lowered for word in SECRET_WORDS)


def redact_text(text: str) -> str:
    """The text without URL userinfo, query strings and credentials of an Authorization header."""
    if "://" in text:
        text = USERINFO.sub(rf"\1{HIDDEN}@", text)
        text = URL_QUERY.sub(rf"\1?{HIDDEN}", text)
    if "?" in text:
        text = QUERY.sub(f"?{HIDDEN}", text)
    if "asic" in text or "earer" in text or "ASIC" in text or "EARER" in text:
        text = SCHEME.sub(rf"\1 {HIDDEN}", text)
    return text
