"""What a running proxy lets out, and the search for secrets in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote

from tests.proxy import Proxy
from tests.scenarios.device import Answer, ask

API = ("status/", "cooldowns/", "transfers/", "tasks/")


async def all_said(proxy: Proxy, answers: Iterable[Answer] = ()) -> str:
    """Its log, its metrics, what the API and the health checks answer, and these answers to devices, in one text."""
    said = [proxy.output()]
    said += [json.dumps(await proxy.admin(f"/pulp/api/v3/{path}")) for path in API]
    said += [(await ask(f"{url}/{path}")).body.decode() for url in (proxy.url, proxy.admin_url) for path in ("readyz",)]
    said.append((await ask(f"{proxy.admin_url}/metrics")).body.decode())
    for answer in answers:
        said.append(f"{answer.reason}\n{dict(answer.headers)}\n{answer.body.decode(errors='replace')}")
    return "\n".join(said)


def written(secret: str) -> set[str]:
    """The ways in which a secret could show up in a text."""
    forms = {secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    return forms | {base64.b64encode(secret.encode()).decode().rstrip("=")}


async def assert_unsaid(proxy: Proxy, secrets: Iterable[str], answers: Iterable[Answer] = ()) -> None:
    """None of these secrets, nor user:password in base64, has been let out."""
    said = await all_said(proxy, answers)
    for secret in secrets:
        for form in written(secret):
            at = said.find(form)
            assert at < 0, f"{form!r} in: …{said[max(0, at - 300) : at + 100]}…"
