"""Secrets, certificates and headers of a remote. Nothing given here is ever shown."""

from __future__ import annotations

import binascii
import re
from pathlib import Path
from typing import Any

from contentapp.config.document import Node
from contentapp.config.kind import Kind, resolve_path, text_of
from contentapp.config.problem import Invalid, Report

MAX_SECRET = 64 * 1024
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110, 5.6.2: token
HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]{0,8192}")
PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)-----END \1-----", re.DOTALL)

CONNECTION_HEADERS = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
    ]
)
ENGINE_HEADERS = frozenset(
    [
        "range",
        "if-range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "accept-encoding",
    ]
)


class SecretMapping(dict[str, str]):
    """``{literal: …}``, ``{env: …}`` or ``{file: …}``: what core.secret.Secret takes; printing it shows nothing."""

    def __repr__(self) -> str:
        return "{***}"

    __str__ = __repr__


class SecretValue(Kind):
    """A secret itself, or where it is."""

    is_secret = True
    FORMS = "must be text, {env: NAME} or {file: PATH}"

    def read(self, node: Node, key: str, report: Report) -> SecretMapping | None:
        if node.value is None:
            raise Invalid(self.FORMS)
        if isinstance(node.value, dict):
            return self._place(node, node.value)
        text = text_of(node)
        if not text or len(text) > MAX_SECRET or "\0" in text:
            raise Invalid(self.FORMS)
        self.check_literal(text)
        return SecretMapping(literal=text)

    def _place(self, node: Node, pairs: dict[str, Node]) -> SecretMapping:
        if len(pairs) != 1:
            raise Invalid(self.FORMS)
        [(form, place)] = pairs.items()
        text = text_of(place)
        if form == "env" and text and ENV_NAME.fullmatch(text):
            return SecretMapping(env=text)
        if form == "file" and text and "\0" not in text and len(text) <= 4096:
            return SecretMapping(file=str(resolve_path(text, node)))
        raise Invalid(self.FORMS)

    def check_literal(self, text: str) -> None:
        """Invalid when the secret given literally can't be right."""

    @property
    def range(self) -> str:
        return "text, {env: NAME} or {file: PATH}"


class SecretKey(SecretValue):
    """A private key in PEM."""

    FORMS = "must be a private key in PEM, {env: NAME} or {file: PATH}"

    def check_literal(self, text: str) -> None:
        check_private_key(text)

    @property
    def range(self) -> str:
        return "PEM text, {env: NAME} or {file: PATH}"


class Certificates(Kind):
    """Certificates in PEM, or the file they are in, which is read at once."""

    is_secret = True  # long, and a client's may hold its key
    FORMS = "must be certificates in PEM, or {file: PATH} of them"

    def read(self, node: Node, key: str, report: Report) -> str | None:
        text = self._from_file(node) if isinstance(node.value, dict) else text_of(node)
        if not text or len(text) > MAX_SECRET * 16:
            raise Invalid(self.FORMS)
        check_certificates(text)
        return text

    def _from_file(self, node: Node) -> str:
        pairs = node.value
        path = text_of(pairs["file"]) if isinstance(pairs, dict) and list(pairs) == ["file"] else None
        if not path or "\0" in path:
            raise Invalid(self.FORMS)
        return read_text(resolve_path(path, node))

    @property
    def range(self) -> str:
        return "PEM text, or {file: PATH}"


class Headers(Kind):
    """Header fields, as a list of one-field mappings (Pulp's form) or as one mapping; read as a list of pairs."""

    is_secret = True
    FORMS = "must be a list of mappings such as [{X-Name: value}]"

    def read(self, node: Node, key: str, report: Report) -> Any:
        items = node.value if isinstance(node.value, list) else [node]
        if len(items) > 64:
            raise Invalid("must be at most 64 headers")
        headers: list[Header] = []
        for item in items:
            if not isinstance(item.value, dict):
                raise Invalid(self.FORMS)
            headers += [self._header(name, child, report, key) for name, child in item.value.items()]
        return headers

    def _header(self, name: str, node: Node, report: Report, key: str) -> Header:
        value = text_of(node)
        lowered = name.lower()
        at = f"{key}.{name[:60]}" if HEADER_NAME.fullmatch(name) else key
        if at == key:
            report.problem(node, key, "has a header name that is not a token of RFC 9110", show=False)
        elif lowered in CONNECTION_HEADERS:
            report.problem(node, at, "belongs to the connection and can't be set", show=False)
        elif lowered in ENGINE_HEADERS:
            report.problem(node, at, "is set by each request itself and can't be set here", show=False)
        elif value is None or not HEADER_VALUE.fullmatch(value) or value != value.strip():
            report.problem(node, at, "must be text of one line without control characters", show=False)
        elif lowered == "authorization":
            report.warning(
                node, at, "is a literal credential; username with password: {env: …} keeps it out of the file"
            )
        return Header({name: value or ""})

    @property
    def range(self) -> str:
        return "list of {NAME: VALUE}"


class Header(dict[str, str]):
    """One header field as a mapping; printing it shows its name alone, since the value may be a key."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: ***" for name in self) + "}"

    __str__ = __repr__


def read_text(path: Path) -> str:
    """A small text file; Invalid names the file and why it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SECRET * 16 + 1).decode()
    except OSError as error:
        raise Invalid(f"file {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"file {path} is not text") from None


def check_certificates(text: str) -> None:
    """A cheap look: PEM blocks of DER sequences, at least one a certificate; Invalid."""
    labels = [_check_block(label, body) for label, body in PEM_BLOCK.findall(text)]
    if "CERTIFICATE" not in labels:
        raise Invalid("must hold -----BEGIN CERTIFICATE----- … -----END CERTIFICATE-----")


def check_private_key(text: str) -> None:
    """A cheap look: an unencrypted private key in PEM; Invalid."""
    labels = [_check_block(label, body) for label, body in PEM_BLOCK.findall(text)]
    if not any(label.endswith("PRIVATE KEY") for label in labels):
        raise Invalid("must hold -----BEGIN PRIVATE KEY----- … -----END PRIVATE KEY-----")


def _check_block(label: str, body: str) -> str:
    if not label.endswith(("CERTIFICATE", "PRIVATE KEY")):
        return label
    if "ENCRYPTED" in label or "ENCRYPTED" in body:
        raise Invalid("must be a private key without a passphrase")
    try:
        der = binascii.a2b_base64("".join(body.split()), strict_mode=True)
    except (binascii.Error, ValueError):
        der = b""
    if der[:1] != b"\x30":
        raise Invalid(f"holds a damaged {label} block")
    return label
