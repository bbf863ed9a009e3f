"""The content listener over TLS, with podman and curl that trust a private CA, and a certificate renewed meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.clients.devices import BASE_PATH
from tests.clients.pullers import Podman
from tests.clients.servers import DockerRegistry
from tests.programs import require_program, run
from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.authority import Authority
from tests.remotes.images import make_image

pytestmark = pytest.mark.clients

RELOAD_SECONDS = 30


@pytest.fixture
async def proxy(origin: DockerRegistry, authority: Authority, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy that serves TLS with the authority's certificate "content"."""
    issued = authority.issue("content")
    tls = {"certificate": str(issued.certificate), "key": str(issued.key)}
    config = {**pull_through("container", BASE_PATH, {"origin": origin.url}), "content": {"tls": tls}}
    async with running_proxy(tmp_path, config) as started:
        yield started


async def shown_serial(proxy: Proxy) -> int:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return x509.load_der_x509_certificate(shown).serial_number


async def test_podman_trusts_certs_d(
    proxy: Proxy, origin: DockerRegistry, podman: Podman, authority: Authority
) -> None:
    image = make_image(layers=2, layer_size=3 * 512 * 1024)
    await origin.push("app", "1.0", image)
    name = f"{proxy.address}/{BASE_PATH}/app:1.0"
    assert "unknown authority" in (await podman.pull(name)).messages
    podman.trust(authority.certificate)
    for _ in ("cold", "warm"):
        (await podman.pull(name)).check()
        assert await podman.digest(name) == image.digest
        (await podman.run("rmi", "--all", "--force")).check()


async def test_certificate_is_reloaded(proxy: Proxy, origin: DockerRegistry, authority: Authority) -> None:
    renewed = authority.issue("content")
    async with asyncio.timeout(RELOAD_SECONDS):
        while await shown_serial(proxy) != renewed.serial:
            await asyncio.sleep(0.1)
    ping = (require_program("curl"), "--silent", "--fail", "--cacert", authority.certificate, f"{proxy.url}/v2/")
    (await run(*ping)).check()


async def test_broken_certificate_keeps_the_old_one(proxy: Proxy, authority: Authority) -> None:
    before = await shown_serial(proxy)
    (authority.folder / "content.crt").write_text("not a certificate")
    for _ in range(30):
        assert await shown_serial(proxy) == before
        await asyncio.sleep(0.1)
    renewed = authority.issue("content")
    async with asyncio.timeout(RELOAD_SECONDS):
        while await shown_serial(proxy) != renewed.serial:
            await asyncio.sleep(0.1)


async def test_blob_over_tls(proxy: Proxy, origin: DockerRegistry, authority: Authority, tmp_path: Path) -> None:
    image = make_image(layers=1, layer_size=3 * 1024 * 1024)
    await origin.push("app", "1.0", image)
    layer, output = image.layers[0], tmp_path / "layer"
    base = f"{proxy.url}/v2/{BASE_PATH}/app"
    fetch = (require_program("curl"), "--silent", "--show-error", "--fail", "--cacert", authority.certificate)
    (await run(*fetch, "--output", output, f"{base}/manifests/1.0")).check()
    for _ in ("cold", "warm"):
        (await run(*fetch, "--output", output, f"{base}/blobs/{layer.digest}")).check()
        assert hashlib.sha256(output.read_bytes()).hexdigest() == layer.digest.partition(":")[2]
