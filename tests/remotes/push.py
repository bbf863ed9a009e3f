"""Push to a real registry over HTTP (OCI distribution-spec 1.1, "Push"): monolithic, children before parents."""

from __future__ import annotations

import io

import aiohttp
from yarl import URL

from tests.remotes.images import Image, Index, Part


async def push_http(base_url: str, name: str, tag: str, image: Image | Index) -> None:
    """Push everything of an image or index, tagged; a status that is not success raises ClientResponseError."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        for blob in dict.fromkeys(image.blobs):
            await push_blob(session, f"{base_url}/v2/{name}", blob)
        for manifest in image.manifests:
            await push_manifest(session, f"{base_url}/v2/{name}", manifest.digest, manifest)
        await push_manifest(session, f"{base_url}/v2/{name}", tag, image.manifest)


async def push_blob(session: aiohttp.ClientSession, repository_url: str, blob: Part) -> None:
    """POST for a place to upload to, then one PUT with the whole body."""
    async with session.post(f"{repository_url}/blobs/uploads/") as answer:
        place = answer.url.join(URL(answer.headers["Location"], encoded=True))
    headers = {"Content-Type": "application/octet-stream"}
    async with session.put(place.update_query(digest=blob.digest), data=io.BytesIO(blob.body), headers=headers):
        pass


async def push_manifest(session: aiohttp.ClientSession, repository_url: str, reference: str, manifest: Part) -> None:
    """PUT under a tag or a digest."""
    headers = {"Content-Type": manifest.media_type}
    async with session.put(f"{repository_url}/manifests/{reference}", data=manifest.body, headers=headers):
        pass
