"""Documents: answers that are whole in memory: the registry's ping, manifests and lists, and listings of folders."""

from __future__ import annotations

from contentapp.core.chunks import dump_chunk_list
from contentapp.core.conditional import content_tag, names_content
from contentapp.core.digest import Digest
from contentapp.core.errors import ContentNotFound
from contentapp.core.records import Distribution, FileEntry, ListedFile
from contentapp.pipeline.chunklists import ChunkLists
from contentapp.pipeline.discovery import Discovery
from contentapp.pipeline.frame import Representation, frame
from contentapp.pipeline.listing import Listings
from contentapp.pipeline.lookup import Lookup, now
from contentapp.pipeline.manifest import ManifestBody, Manifests
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.resolve import Content
from contentapp.pipeline.respond import Device
from contentapp.pipeline.route import CONTENT_ROOT, REGISTRY_ROOT, Route, Router
from contentapp.plugins import folder
from contentapp.plugins.base import Wanted

FOLDER_LIMIT = 10_000
"""Files below a folder that are looked at for its listing."""

PING_HEADERS = {
    "Content-Type": "application/json",
    "Docker-Distribution-Api-Version": "registry/2.0",
    "Cache-Control": "no-store",
}


class Documents:
    """Makes and sends documents."""

    def __init__(
        self,
        router: Router,
        manifests: Manifests,
        discovery: Discovery,
        listings: Listings,
        lookup: Lookup,
        chunk_lists: ChunkLists,
    ) -> None:
        self._router = router
        self._manifests = manifests
        self._discovery = discovery
        self._listings = listings
        self._lookup = lookup
        self._chunk_lists = chunk_lists

    def answers(self, request: DeviceRequest, device: Device) -> bool:
        """Answer what belongs to no distribution: the ping, and the list of distributions. Whether it was that."""
        if request.raw_path in {REGISTRY_ROOT, f"{REGISTRY_ROOT}/"}:
            device.send_document(200, PING_HEADERS, b"{}")
            return True
        if request.raw_path in {CONTENT_ROOT, CONTENT_ROOT.rstrip("/")}:
            entries = _distribution_entries(self._router.distributions)
            _send_folder(request, device, CONTENT_ROOT, entries)
            return True
        return False

    async def deliver(self, request: DeviceRequest, route: Route, device: Device) -> str:
        """Answer a manifest, a list or a folder; the outcome."""
        if route.path.wanted is Wanted.MANIFEST:
            return await self._manifest(request, route, device)
        if route.path.wanted is Wanted.FOLDER:
            await self._folder(request, route, device)
            return "hit"
        is_tags = route.path.wanted is Wanted.TAGS
        listed = await (self._discovery.tags(route) if is_tags else self._discovery.referrers(route))
        headers = {
            "Content-Type": listed.media_type,
            "Cache-Control": "no-cache",
            "Cache-Status": "contentapp; fwd=miss",
        }
        if listed.link:
            headers["Link"] = listed.link
        if listed.is_filtered:
            headers["OCI-Filters-Applied"] = "artifactType"
        device.send_document(200, headers, listed.body)
        return "miss"

    async def send_chunk_list(self, request: DeviceRequest, device: Device, content: Content) -> bool:
        """Answer with the proven list of a content's chunk digests; False if there is none."""
        chunks = None if content.digest is None else await self._chunk_lists.known(content.digest)
        if chunks is None:
            return False
        body = dump_chunk_list(chunks)
        digest = Digest.of(body)
        answer = frame(
            request,
            Representation(
                media_type="application/json",
                size=len(body),
                digest=digest,
                etag=content_tag(digest),
                is_current=lambda opaque: names_content(opaque, digest, lambda _: False),
                is_verified=True,
                is_private=content.is_private,
            ),
            now(),
        )
        sent = body[answer.start : answer.end] if answer.status in {200, 206} else b""
        device.send_document(answer.status, answer.headers, sent)
        return True

    async def _manifest(self, request: DeviceRequest, route: Route, device: Device) -> str:
        manifest = await self._manifests.get(route)
        answer = frame(request, _representation(route, manifest), now())
        body = manifest.body[answer.start : answer.end] if answer.status in {200, 206} else b""
        device.send_document(answer.status, answer.headers, body)
        return manifest.outcome

    async def _folder(self, request: DeviceRequest, route: Route, device: Device) -> None:
        """What the remotes list and what is stored, below one folder."""
        prefix = folder.folder_prefix(route.name)
        files: list[FileEntry | ListedFile] = []
        for remote in route.distribution.remotes:
            state = await self._listings.ready(remote)
            if state is not None and state.present:
                files += await self._lookup.catalog.listed_below(remote.id, prefix, FOLDER_LIMIT)
        files += await self._lookup.catalog.files_below(route.distribution.id, prefix, FOLDER_LIMIT)
        if not files and route.name:
            raise ContentNotFound(f"nothing is known below {route.path.name}/")
        _send_folder(request, device, f"{CONTENT_ROOT}{route.path.name}/", folder.folder_entries(prefix, files))


def _representation(route: Route, manifest: ManifestBody) -> Representation:
    digest = manifest.digest
    return Representation(
        media_type=manifest.media_type,
        size=len(manifest.body),
        digest=digest,
        etag=content_tag(digest),
        is_current=lambda opaque: names_content(opaque, digest, lambda _: False),
        last_modified=manifest.modified_at,
        is_verified=True,
        is_private=any(remote.has_credentials for remote in route.distribution.remotes),
        is_immutable=route.path.digest is not None,
        docker_digest=digest,
        cache_status=manifest.cache_status,
    )


def _distribution_entries(distributions: tuple[Distribution, ...]) -> tuple[folder.FolderEntry, ...]:
    names = sorted({item.base_path for item in distributions if item.type == "file"})
    return tuple(folder.FolderEntry(name=name, is_folder=True) for name in names)


def _send_folder(request: DeviceRequest, device: Device, path: str, entries: tuple[folder.FolderEntry, ...]) -> None:
    headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Vary": "Accept"}
    if _wants_json(request.headers.get("Accept", "")):
        headers["Content-Type"] = "application/json"
        device.send_document(200, headers, folder.folder_json(path, entries))
        return
    headers["Content-Type"] = "text/html; charset=utf-8"
    headers["Content-Security-Policy"] = "default-src 'none'"
    device.send_document(200, headers, folder.folder_html(path, entries).encode())


def _wants_json(accept: str) -> bool:
    """JSON is named, and before HTML if that is named too."""
    json_at, html_at = accept.find("application/json"), accept.find("text/html")
    return json_at >= 0 and (html_at < 0 or json_at < html_at)
