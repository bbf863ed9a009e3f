"""The YAML reader: lines, bounds, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.config.document import MAX_FILE_SIZE, Node, _safe, parse_document, read_document, resolve_scalar
from contentapp.config.problem import ConfigError


def plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {name: plain(child) for name, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("null", None),
        ("a: 1\nb: [x, 2.5, yes, ~, '3']\n", {"a": 1, "b": ["x", 2.5, True, None, "3"]}),
        ("a: !!str 5", {"a": "5"}),
        ("1.20: 1.20", {"1.20": 1.2}),
        ("on: 1:30", {"on": "1:30"}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: 1_000", {"a": 1000}),
        ("a: .inf", {"a": ".inf"}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        (
            "a: &x {b: 1}\nz: &y {b: 2, e: 4}\nd: {<<: [*x, *y]}\n",
            {"a": {"b": 1}, "z": {"b": 2, "e": 4}, "d": {"b": 1, "e": 4}},
        ),
    ],
)
def test_documents(text: str, value: object) -> None:
    assert plain(parse_document(text, "f")) == value


def test_nodes_know_their_lines() -> None:
    root = parse_document("a: 1\nb:\n  c:\n    - x\n    - y\n", "f.yaml")
    assert isinstance(root.value, dict)
    b = root.value["b"]
    assert isinstance(b.value, dict)
    c = b.value["c"]
    assert isinstance(c.value, list)
    assert (root.value["a"].line, b.line, c.line, c.value[1].line, c.file) == (1, 2, 3, 5, "f.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3\n", ("f.yaml:3", "'a'", "twice")),
        ("x: {a: 1, a: 2}", ("f.yaml:1", "twice")),
        ("a: [1\nb: 2", ("f.yaml:2", "is not YAML")),
        ("a: 1\n\tb: 2", ("f.yaml:2", "is not YAML")),
        ("a: !!python/object/apply:os.system [x]", ("f.yaml:1", "tags are not allowed")),
        ("a: !secret hunter2", ("tags are not allowed",)),
        ("a: *nobody", ("f.yaml:1", "alias without an anchor")),
        ("a: &a [*a]", ("alias without an anchor",)),
        ("--- 1\n--- 2\n", ("f.yaml:2", "more than one document")),
        ("[a, b]: 1", ("a key must be text",)),
        ("a: {<<: 5}", ("<< must name a mapping",)),
        ("[" * 100, ("deeper than 32",)),
        ("a: \x00", ("is not YAML",)),
    ],
)
def test_refused(text: str, parts: tuple[str, ...]) -> None:
    message = error_of(text)
    for part in parts:
        assert part in message
    assert "hunter2" not in message


def test_what_the_parser_quotes_is_not_repeated() -> None:
    assert "hunter2" not in error_of("a: !hunter2!x 5")
    assert _safe("found undefined tag handle '!hunter2!'") == "found undefined tag handle '…'"
    assert _safe("found character '\\t' that cannot start any token").startswith("found character")


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.monotonic()
    assert "more than 100000 values" in error_of("\n".join(lines))
    assert time.monotonic() - began < 5


def test_many_brackets_do_not_break_the_stack() -> None:
    assert "deeper" in error_of("[" * 200_000)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    for name, content, message in (
        ("large", b"#" * (MAX_FILE_SIZE + 1), "larger than"),
        ("latin", b"a: 1\nb: \xe9", ":2: is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_document(tmp_path / name)
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        read_document(tmp_path / "none")


@given(st.text(max_size=200))
def test_any_text_is_a_document_or_a_config_error(text: str) -> None:
    try:
        parse_document(text, "f")
    except ConfigError as error:
        assert error.problems


@given(st.text(alphabet="0123456789abcdefx._+-eE:~", max_size=2000))
def test_any_scalar_is_resolved(text: str) -> None:
    resolve_scalar(text)
