"""Login, errors and headers, whatever is asked for."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.unit.api.conftest import PASSWORD, ROOT, Admin

LOGIN = {"Authorization": aiohttp.encode_basic_auth("admin", PASSWORD)}
WRITES = ["cooldowns/clear/", "repair/", "orphans/cleanup/", "apply/"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/livez", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        (f"{ROOT}status/", 200),
        (f"{ROOT}docs/api.json", 404),
    ],
)
async def test_open_to_all(admin: Admin, path: str, status: int) -> None:
    assert (await admin.ask("GET", path))[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/livez/",
        "/status/",
        f"{ROOT}",
        f"{ROOT}status",
        f"{ROOT}cooldowns/",
        f"{ROOT}cooldowns/clear/",
        f"{ROOT}transfers/",
        f"{ROOT}tasks/",
        f"{ROOT}repair/",
        f"{ROOT}orphans/cleanup/",
        f"{ROOT}apply/",
        f"{ROOT}docs/",
        f"{ROOT}status/../cooldowns/",
        f"{ROOT}%63ooldowns/",
        "//livez",
        "/livez%2f..%2fmetrics",
    ],
)
async def test_all_else_wants_a_login(admin: Admin, path: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        status, headers, _ = await admin.ask(method, path)
        assert status == 401
        assert headers["WWW-Authenticate"].startswith('Basic realm="contentapp"')


async def test_a_wrong_login_is_refused_and_told_so(admin: Admin) -> None:
    wrong = {"Authorization": aiohttp.encode_basic_auth("admin", "wrong")}
    status, _, answer = await admin.ask("GET", f"{ROOT}cooldowns/", headers=wrong)
    assert (status, answer) == (401, {"detail": "Invalid username/password."})


@pytest.mark.parametrize("path", ["/", "/nothing", f"{ROOT}nothing/", f"{ROOT}remotes/", f"{ROOT}tasks/x/y/"])
async def test_unknown_paths_are_404_in_json(admin: Admin, path: str) -> None:
    assert await admin.call("GET", path) == (404, {"detail": "Not found."})


async def test_a_wrong_method_is_405_in_json(admin: Admin) -> None:
    status, headers, answer = await admin.ask("DELETE", f"{ROOT}transfers/", headers=LOGIN)
    assert (status, answer) == (405, {"detail": 'Method "DELETE" not allowed.'})
    assert headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    "path", ["/livez", "/nothing", f"{ROOT}status/", f"{ROOT}cooldowns/", f"{ROOT}apply/", "/metrics"]
)
@pytest.mark.parametrize("headers", [{}, LOGIN])
async def test_no_answer_is_for_caches_or_guesses(admin: Admin, path: str, headers: dict[str, str]) -> None:
    _, found, _ = await admin.ask("GET", path, headers=headers)
    assert found["Cache-Control"] == "no-store"
    assert found["X-Content-Type-Options"] == "nosniff"
    assert found["Server"] == "contentapp"


# -- writes: JSON, bounded, with known fields


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_what_a_form_of_another_site_can_send_is_refused(admin: Admin, path: str, content_type: str) -> None:
    headers = {**LOGIN, "Content-Type": content_type}
    status, _, answer = await admin.ask("POST", ROOT + path, headers=headers, data=b"{}")
    assert status == 415
    assert "application/json" in answer["detail"]


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("body", ["{", "[]", "1", '"x"', "null", "nonsense", "[" * 100_000, "\xff", "NaN"])
async def test_what_is_no_json_object_is_refused(admin: Admin, path: str, body: str) -> None:
    headers = {**LOGIN, "Content-Type": "application/json"}
    status, _, answer = await admin.ask("POST", ROOT + path, headers=headers, data=body.encode("latin-1"))
    assert status == 400
    assert list(answer) == ["non_field_errors"]


@pytest.mark.parametrize("path", WRITES)
async def test_an_unknown_field_is_refused(admin: Admin, path: str) -> None:
    assert await admin.call("POST", path, {"forse": True}) == (400, {"forse": ["no such field"]})


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("orphans/cleanup/", {"force": 1}, {"force": ["must be true or false"]}),
        ("cooldowns/clear/", {"remote": None}, {"remote": ["must be text"]}),
        ("apply/", {"resources": []}, {"resources": ["must be an object"]}),
        ("apply/", {"prune": "yes"}, {"prune": ["must be true or false"]}),
    ],
)
async def test_a_field_of_the_wrong_type_is_refused(admin: Admin, path: str, body: object, message: object) -> None:
    assert await admin.call("POST", path, body) == (400, message)


@pytest.mark.parametrize(("path", "limit"), [("cooldowns/clear/", 1 << 20), ("apply/", 8 << 20)])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_are_bounded(admin: Admin, path: str, limit: int, is_chunked: bool) -> None:
    body = json.dumps({"x": "y" * limit}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 1 << 16):
            yield body[at : at + (1 << 16)]

    headers = {**LOGIN, "Content-Type": "application/json"}
    data = chunks() if is_chunked else io.BytesIO(body)
    status, _, answer = await admin.ask("POST", ROOT + path, headers=headers, data=data)
    assert (status, answer) == (413, {"detail": f"The limit is {limit} bytes."})


async def test_a_catalog_that_does_not_answer_is_503(admin: Admin) -> None:
    await admin.services.shared.engine.close()
    status, answer = await admin.call("POST", "apply/", {"resources": {}})
    assert status == 503
    assert "catalog" in answer["detail"]
    status, _, answer = await admin.ask("GET", f"{ROOT}status/")
    assert (status, answer["database_connection"]) == (200, {"connected": False})
    status, _, answer = await admin.ask("GET", "/readyz")
    assert status == 503
    assert answer.startswith("catalog: ")
    assert (await admin.ask("GET", "/livez"))[0] == 200
    assert (await admin.ask("GET", "/metrics"))[0] == 200


async def test_a_bug_tells_nothing(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken() -> None:
        raise RuntimeError("geheim")

    monkeypatch.setattr(admin.services.shared.coordination, "transfers", broken)
    status, answer = await admin.call("GET", "transfers/")
    assert status == 500
    assert "geheim" not in answer["detail"]
