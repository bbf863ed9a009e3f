"""What the commands ask, and how they show the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contentapp.cli.output import counted, human_seconds, human_size, printable
from tests.unit.cli.conftest import AdminServer, Run

ROOT = "/pulp/api/v3/"
TASK = f"{ROOT}tasks/1/"
COOLDOWN = {
    "remote": "quay",
    "scope": "artifact",
    "subject": "sha256:00",
    "reason": "digest mismatch on sha256:00",
    "retry_after": 212,
    "level": 1,
    "trial": False,
}
STATUS = {
    "versions": [{"version": "1.2.3"}],
    "storage": {"total": 1000, "used": 250, "free": 750, "disk_free": 4096},
    "artifacts": 1,
    "cooldowns": 0,
    "transfers": 2,
}


def page(*results: Any) -> tuple[int, Any]:
    return 200, {"count": len(results), "next": None, "previous": None, "results": list(results)}


def test_cooldown_list(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(f"GET {ROOT}cooldowns/?limit=1000", page(COOLDOWN))
    ran = run("cooldown", "list", "--config", server.config(tmp_path))
    for text in ("quay", "artifact sha256:00", "212 s", "digest mismatch on sha256:00"):
        assert text in ran.output
    assert ran.status == 0


@pytest.mark.parametrize(
    ("changes", "shown"),
    [({"retry_after": 0}, "trial is next"), ({"trial": True, "retry_after": 5}, "on trial"), ({}, "212 s")],
)
def test_when_it_is_asked_again(
    run: Run, server: AdminServer, tmp_path: Path, changes: dict[str, Any], shown: str
) -> None:
    server.script(f"GET {ROOT}cooldowns/?limit=1000", page({**COOLDOWN, **changes}))
    assert shown in run("cooldown", "list", "--config", server.config(tmp_path)).output


def test_what_a_remote_says_does_not_reach_the_terminal_as_it_is(run: Run, server: AdminServer, tmp_path: Path) -> None:
    reason = "\x1b]0;owned\x07[bold]x[/bold]\r\n\u202e"
    server.script(f"GET {ROOT}cooldowns/?limit=1000", page({**COOLDOWN, "reason": reason}))
    output = run("cooldown", "list", "--config", server.config(tmp_path)).output
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(output)
    assert "[bold]x[/bold]" in output


@pytest.mark.parametrize("command", ["cooldown", "transfer"])
def test_filters_are_passed_on(run: Run, server: AdminServer, tmp_path: Path, command: str) -> None:
    server.script(f"GET {ROOT}{command}s/?remote=a%26b&limit=1000", page())
    ran = run(command, "list", "--remote", "a&b", "--config", server.config(tmp_path))
    assert ran.status == 0
    assert ran.output.startswith("nothing is ")


@pytest.mark.parametrize(("arguments", "body"), [([], {}), (["quay"], {"remote": "quay"})])
def test_cooldown_clear(
    run: Run, server: AdminServer, tmp_path: Path, arguments: list[str], body: dict[str, str]
) -> None:
    server.script(f"POST {ROOT}cooldowns/clear/", (200, {"cleared": 2}))
    config = server.config(tmp_path)
    assert run("cooldown", "clear", *arguments, "--config", config).output == "cleared 2 cooldowns\n"
    assert json.loads(server.asked[-1][3]) == body
    assert server.asked[-1][2]["Content-Type"] == "application/json"
    ran = run("cooldown", "clear", *arguments, "--config", config, "--format", "json")
    assert json.loads(ran.output) == {"cleared": 2}


TRANSFER = {
    "key": "sha256:00ab",
    "remote": "quay",
    "state": "running",
    "arrived": 1 << 20,
    "size": None,
    "age": 3.2,
    "followers": 4,
    "keep": True,
    "windowed": False,
}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ("sha256:00ab", "quay", "running", "1.0 MiB", "?", "3 s", "4", "yes")),
        ({"keep": False}, ("no",)),
        ({"windowed": True}, ("in memory",)),
        ({"state": "suspended", "remote": None, "size": 3 << 20}, ("suspended", "?", "3.0 MiB", "yes")),
    ],
)
def test_transfer_list(
    run: Run, server: AdminServer, tmp_path: Path, changes: dict[str, Any], shown: tuple[str, ...]
) -> None:
    transfer = {**TRANSFER, **changes}
    server.script(f"GET {ROOT}transfers/?limit=1000", page(transfer))
    config = server.config(tmp_path)
    cells = [cell.strip() for cell in run("transfer", "list", "--config", config).output.split("\u2502")]
    assert set(shown) <= set(cells)
    assert json.loads(run("transfer", "list", "--config", config, "--format", "json").output) == [transfer]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["sha256:00ab"], ["sha256:00ab"]),
        (["sha256:01"], ["sha256:01cd"]),
        (["sha256:00ab", "1/"], ["sha256:00ab", "1/a b"]),
        (["sha256:00a", "sha256:00ab"], ["sha256:00ab"]),
        (["sha256:01cd", "sha256:01"], ["sha256:01cd"]),
    ],
)
def test_transfer_cancel(run: Run, server: AdminServer, tmp_path: Path, arguments: list[str], keys: list[str]) -> None:
    known = [{**TRANSFER, "key": key} for key in ("sha256:00ab", "sha256:00ab", "sha256:01cd", "1/a b")]
    server.script(f"GET {ROOT}transfers/?limit=1000", page(*known))
    server.script(f"POST {ROOT}transfers/cancel/", (200, {"cancelled": 2}))
    config, count = server.config(tmp_path), 2 * len(keys)
    assert run("transfer", "cancel", *arguments, "--config", config).output == f"cancelled {count} transfers\n"
    assert [json.loads(body) for _, _, _, body in server.asked[1:]] == [{"key": key} for key in keys]
    ran = run("transfer", "cancel", *arguments, "--config", config, "--format", "json")
    assert json.loads(ran.output) == {"cancelled": count}


def test_a_whole_key_may_begin_another(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(f"GET {ROOT}transfers/?limit=1000", page({**TRANSFER, "key": "1/a"}, {**TRANSFER, "key": "1/ab"}))
    server.script(f"POST {ROOT}transfers/cancel/", (200, {"cancelled": 1}))
    assert run("transfer", "cancel", "1/a", "--config", server.config(tmp_path)).output == "cancelled 1 transfer\n"
    assert json.loads(server.asked[-1][3]) == {"key": "1/a"}


@pytest.mark.parametrize(
    ("known", "arguments", "message"),
    [
        (["1/a"], ["1/a", "2"], "no transfer has a key that begins with 2"),
        ([], ["\x1b"], "no transfer has a key that begins with \ufffd"),
        (["1/b", "1/a", "2/c"], ["2/c", "1/"], "2 transfers have a key that begins with 1/: 1/a, 1/b"),
        (
            [f"1/{number:02}\x1b" for number in range(12)],
            ["1"],
            "12 transfers have a key that begins with 1: "
            + ", ".join(f"1/{number:02}\ufffd" for number in range(10))
            + " and 2 more",
        ),
    ],
)
def test_a_wrong_key_cancels_nothing(
    run: Run, server: AdminServer, tmp_path: Path, known: list[str], arguments: list[str], message: str
) -> None:
    server.script(f"GET {ROOT}transfers/?limit=1000", page(*({**TRANSFER, "key": key} for key in known)))
    ran = run("transfer", "cancel", *arguments, "--config", server.config(tmp_path))
    assert (ran.status, ran.output, ran.messages) == (1, "", f"error: {message}\n")
    assert [method for method, *_ in server.asked] == ["GET"]


def test_what_could_not_be_cancelled_is_told(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(f"GET {ROOT}transfers/?limit=1000", page(TRANSFER))
    server.script(f"POST {ROOT}transfers/cancel/", (504, {"detail": "it has not ended"}))
    ran = run("transfer", "cancel", "sha256", "--config", server.config(tmp_path))
    assert (ran.status, ran.output, ran.messages) == (1, "", "error: it has not ended\n")


def test_status(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script("GET /readyz", (200, b"ok\n"))
    server.script(f"GET {ROOT}status/", (200, STATUS))
    ran = run("status", "--config", server.config(tmp_path))
    assert (ran.status, ran.output) == (
        0,
        f"contentapp 1.2.3 at http://127.0.0.1:{server.port}: ready\n"
        "storage: 250 B of 1000 B used (25 %), 4.0 KiB free on the disk\n"
        "catalog: 1 artifact\n"
        "transfers: 2\n"
        "cooldowns: 0\n",
    )


def test_status_tells_what_cools_down(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script("GET /readyz", (200, b"ok\n"))
    server.script(f"GET {ROOT}status/", (200, {**STATUS, "cooldowns": 12}))
    answer = page(COOLDOWN, {**COOLDOWN, "scope": "remote", "subject": ""})
    answer[1]["count"] = 12
    server.script(f"GET {ROOT}cooldowns/?limit=10", answer)
    assert run("status", "--config", server.config(tmp_path)).output.endswith(
        "cooldowns: 12\n"
        "  remote quay (artifact sha256:00): 212 s: digest mismatch on sha256:00\n"
        "  remote quay: 212 s: digest mismatch on sha256:00\n"
        "  and 2 more; see contentapp cooldown list\n"
    )


def test_status_of_what_is_not_ready(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script("GET /readyz", (503, b"storage: the disk is gone\n"))
    server.script(f"GET {ROOT}status/", (200, {**STATUS, "storage": None, "artifacts": None}))
    config = server.config(tmp_path)
    ran = run("status", "--config", config)
    assert ran.status == 1
    assert ": not ready: storage: the disk is gone\nstorage: can't be used\ncatalog: the catalog does" in ran.output
    ran = run("status", "--config", config, "--format", "json")
    answer = json.loads(ran.output)
    assert (ran.status, answer["ready"], answer["reason"]) == (1, False, "storage: the disk is gone")


# -- tasks


def task(state: str = "running", done: int = 0, **fields: Any) -> tuple[int, Any]:
    report = {"message": "Reading artifacts again", "done": done, "total": 4}
    ended = None if state in {"running", "waiting"} else "2024-01-01T00:00:00.000000Z"
    reports = [] if state == "waiting" else [report]
    return 200, {"name": "repair", "state": state, "finished_at": ended, "progress_reports": reports, **fields}


RESULT = {"verified": 3, "damaged": 1, "missing": 0, "adopted": 0, "size": 2048}


def test_verify_waits_and_tells(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(f"POST {ROOT}repair/", (202, {"task": TASK}))
    server.script(f"GET {TASK}", task("waiting"), task(done=2), task(done=2), task("completed", 4, result=RESULT))
    ran = run("verify", "--config", server.config(tmp_path))
    assert (ran.status, ran.output) == (0, "3 artifacts verified (2.0 KiB), 1 damaged, 0 missing\n")
    assert ran.messages == "Reading artifacts again: 2 of 4\nReading artifacts again: 4 of 4\n"


def test_gc_waits_and_tells(run: Run, server: AdminServer, tmp_path: Path) -> None:
    result = {"evicted_size": 2048, "partials": 1, "adopted": 0, "damaged": 0, "swept": 2}
    server.script(f"POST {ROOT}orphans/cleanup/", (202, {"task": TASK}))
    server.script(f"GET {TASK}", task("completed", 4, result=result))
    ran = run("gc", "--force", "--config", server.config(tmp_path))
    assert ran.output == "2.0 KiB evicted, 1 partial removed, 0 artifacts adopted, 0 damaged, 2 rows swept\n"
    assert json.loads(server.asked[0][3]) == {"force": True}


@pytest.mark.parametrize(("command", "path"), [("verify", "repair/"), ("gc", "orphans/cleanup/")])
def test_no_wait_returns_the_task(run: Run, server: AdminServer, tmp_path: Path, command: str, path: str) -> None:
    server.script(f"POST {ROOT}{path}", (202, {"task": TASK}))
    config = server.config(tmp_path)
    assert run(command, "--no-wait", "--config", config).output == f"{TASK}\n"
    ran = run(command, "--no-wait", "--config", config, "--format", "json")
    assert json.loads(ran.output) == {"task": TASK}


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        ("failed", {"description": "the disk is gone"}, "error: repair failed: the disk is gone\n"),
        ("canceled", None, "error: repair canceled: no reason is given\n"),
    ],
)
def test_a_tasks_error_is_told(
    run: Run, server: AdminServer, tmp_path: Path, state: str, error: Any, told: str
) -> None:
    server.script(f"POST {ROOT}repair/", (202, {"task": TASK}))
    server.script(f"GET {TASK}", task(state, error=error))
    ran = run("verify", "--config", server.config(tmp_path))
    assert (ran.status, ran.output) == (1, "")
    assert ran.messages.endswith(told)


def test_verify_as_json(run: Run, server: AdminServer, tmp_path: Path) -> None:
    server.script(f"POST {ROOT}repair/", (202, {"task": TASK}))
    server.script(f"GET {TASK}", task("completed", 4, result=RESULT))
    ran = run("verify", "--format", "json", "--config", server.config(tmp_path))
    assert json.loads(ran.output)["result"] == RESULT


# -- apply


RESOURCES = """
remotes:
  - {name: quay, type: container, url: "https://quay.io", username: u, password: geheim, ca_cert: {file: ca.pem}}
  - {name: other, type: file, url: "https://h/", username: u, password: {file: secret}, sock_read_timeout: 45s}
"""


def test_apply_sends_what_the_files_say(run: Run, server: AdminServer, tmp_path: Path, authority: Any) -> None:
    server.script(f"POST {ROOT}apply/", (200, {"changes": [], "warnings": ["remotes.quay.policy: as on_demand"]}))
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "remotes.yaml").write_text(RESOURCES)
    (folder / "ca.pem").write_text(authority.certificate.read_text())
    (folder / "distributions.yaml").write_text(
        "content: {workers: 2}\ndistributions: [{base_path: quay.io, type: container, remotes: [quay]}]\n"
    )
    files = ["-f", folder / "remotes.yaml", "-f", folder / "distributions.yaml"]
    ran = run("apply", *files, "--prune", "--dry-run", "--config", server.config(tmp_path))
    assert (ran.status, ran.output) == (0, "nothing is declared\n")
    sent = json.loads(server.asked[-1][3])
    quay, other = sent["resources"]["remotes"]
    assert quay["password"] == "geheim"
    assert quay["ca_cert"].startswith("-----BEGIN CERTIFICATE-----")
    assert other["password"] == {"file": str(folder / "secret")}
    assert other["sock_read_timeout"] == 45
    assert sent["resources"]["distributions"][0]["remotes"] == ["quay"]
    assert (sent["prune"], sent["dry_run"]) == (True, True)
    assert "warning: remotes.quay.policy: as on_demand\n" in ran.messages
    assert "content: is a global setting" in ran.messages
    assert "geheim" not in ran.output + ran.messages


def test_apply_tells_what_changes(run: Run, server: AdminServer, tmp_path: Path) -> None:
    changes = [
        {"action": "updated", "kind": "remote", "name": "quay", "fields": ["url", "policy"]},
        {"action": "unchanged", "kind": "remote", "name": "ghcr", "fields": []},
    ]
    server.script(f"POST {ROOT}apply/", (200, {"changes": changes, "warnings": []}))
    (tmp_path / "empty.yaml").write_text("")
    arguments = ["apply", "-f", tmp_path / "empty.yaml", "--config", server.config(tmp_path)]
    output = run(*arguments).output
    assert "url, policy" in output
    assert "would be" not in output
    assert "would be updated" in run(*arguments, "--dry-run").output
    assert json.loads(run(*arguments, "--format", "json").output)["changes"] == changes


def test_apply_refuses_a_bad_file_before_it_asks(run: Run, server: AdminServer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text('remotes: [{name: a, type: file, url: "ftp://x", polcy: y}]\n')
    ran = run("apply", "-f", bad, "--config", server.config(tmp_path))
    assert ran.status == 1
    assert [line.startswith(f"error: {bad}:1: remotes.a.") for line in ran.messages.splitlines()] == [True, True]
    assert server.asked == []


# -- how values look


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (150 * 1024, "150 KiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 62, "4096 PiB"),
        (None, "?"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "60 s"),
        (599, "599 s"),
        (600, "10 min"),
        (7200, "2 h 0 min"),
        (9000, "2 h 30 min"),
        (None, "?"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 cats"), (1, "1 cat"), (2, "2 cats")])
def test_counts(number: int, text: str) -> None:
    assert counted(number, "cat") == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (3, "3"), ("a\x1bb", "a\ufffdb"), ("ä€", "ä€"), ("a\nb", "a\ufffdb")]
)
def test_printable(value: object, text: str) -> None:
    assert printable(value) == text
