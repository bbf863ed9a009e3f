"""A remote that is a container registry: the pull half of OCI distribution-spec 1.1."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from tests.remotes.content import Content, content_of, digest_of
from tests.remotes.faults import Answer
from tests.remotes.images import OCI_INDEX, Image, Index, Part, manifest_body
from tests.remotes.scripted import ScriptedRemote
from tests.remotes.tokens import TokenServer

ROUTE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs|tags|referrers)/(?P<reference>[^/]+)")


@dataclass
class RepositoryContent:
    """What one repository name holds."""

    manifests: dict[str, Part] = field(default_factory=dict)
    blobs: dict[str, Content] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def manifest(self, reference: str) -> Part | None:
        """By tag or by digest."""
        return self.manifests.get(self.tags.get(reference, reference))

    def referrers(self, digest: str) -> list[Part]:
        """The manifests whose subject has this digest."""
        return [part for part in self.manifests.values() if part.subject == digest]


class RegistryRemote(ScriptedRemote):
    """Repositories by name.

    head: what HEAD of a manifest does: "digest" (as the spec says), "bare" (no Docker-Content-Digest), "refused" (405).
    digest_header: whether GET sends Docker-Content-Digest. referrers: whether that API exists, else 404 and the tag
    scheme. page_size: most tags and referrers in one answer, the rest through Link. credentials: Basic user and
    password it wants. tokens: the token server whose bearer tokens it wants instead.
    """

    def __init__(
        self,
        *,
        head: str = "digest",
        digest_header: bool = True,
        referrers: bool = True,
        page_size: int | None = None,
        credentials: tuple[str, str] | None = None,
        tokens: TokenServer | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(tls=tls)
        self.repositories: dict[str, RepositoryContent] = {}
        self.head, self.digest_header, self.has_referrers, self.page_size = head, digest_header, referrers, page_size
        self.credentials, self.tokens = credentials, tokens

    # -- what it holds

    def push(self, name: str, tag: str | None, image: Image | Index) -> str:
        """Hold an image or index under a name, tagged unless `tag` is None; its digest."""
        held = self.repositories.setdefault(name, RepositoryContent())
        held.blobs.update((blob.digest, content_of(blob.body)) for blob in image.blobs)
        for manifest in image.manifests:
            self.push_manifest(name, manifest)
        if tag is not None:
            held.tags[tag] = image.digest
        return image.digest

    def push_manifest(self, name: str, manifest: Part, *, tag: str | None = None) -> str:
        """Hold one manifest, whatever its content; its digest."""
        held = self.repositories.setdefault(name, RepositoryContent())
        held.manifests[manifest.digest] = manifest
        if tag is not None:
            held.tags[tag] = manifest.digest
        if manifest.subject and not self.has_referrers:
            self._tag_referrers(held, manifest.subject)
        return manifest.digest

    def push_blob(self, name: str, body: bytes | Content) -> str:
        """Hold one blob, of any size; its digest."""
        content = content_of(body)
        digest = digest_of(content)
        self.repositories.setdefault(name, RepositoryContent()).blobs[digest] = content
        return digest

    @staticmethod
    def _tag_referrers(held: RepositoryContent, subject: str) -> None:
        """Keep the index that the referrers tag scheme wants ("Unavailable Referrers API")."""
        index = Part(OCI_INDEX, referrers_body(held.referrers(subject)))
        held.manifests[index.digest] = index
        held.tags[subject.replace(":", "-")] = index.digest

    # -- what it answers

    async def answer(self, request: web.BaseRequest) -> Answer:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.path in ("/v2", "/v2/"):
            return json_answer(request, {})
        route = ROUTE.fullmatch(request.path)
        held = self.repositories.get(route["name"]) if route else None
        if route is None or held is None:
            return error_answer(request, 404, "NAME_UNKNOWN")
        answers = {
            "manifests": self._manifest,
            "blobs": self._blob,
            "tags": self._tags,
            "referrers": self._referrers,
        }
        return answers[route["kind"]](request, held, route)

    def _refusal(self, request: web.BaseRequest) -> Answer | None:
        """401 with a challenge unless the request may come in."""
        given = request.headers.get("Authorization", "")
        if self.tokens is not None:
            route = ROUTE.fullmatch(request.path)
            scope = f"repository:{route['name']}:pull" if route else ""
            if self.tokens.accepts(given, scope):
                return None
            return error_answer(request, 401, "UNAUTHORIZED", {"WWW-Authenticate": self.tokens.challenge(scope)})
        if self.credentials is not None and given != aiohttp.encode_basic_auth(*self.credentials):
            return error_answer(request, 401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="registry"'})
        return None

    def _manifest(self, request: web.BaseRequest, held: RepositoryContent, route: re.Match[str]) -> Answer:
        if request.method == "HEAD" and self.head == "refused":
            return error_answer(request, 405, "UNSUPPORTED")
        part = held.manifest(route["reference"])
        if part is None:
            return error_answer(request, 404, "MANIFEST_UNKNOWN")
        headers = CIMultiDict({"Content-Type": part.media_type, "ETag": f'"{part.digest}"'})
        if self.digest_header and not (request.method == "HEAD" and self.head == "bare"):
            headers["Docker-Content-Digest"] = part.digest
        return Answer(path=request.path, headers=headers, content=content_of(part.body))

    def _blob(self, request: web.BaseRequest, held: RepositoryContent, route: re.Match[str]) -> Answer:
        content = held.blobs.get(route["reference"])
        if content is None:
            return error_answer(request, 404, "BLOB_UNKNOWN")
        digest = route["reference"]
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": f'"{digest}"'}
        if self.digest_header:
            headers["Docker-Content-Digest"] = digest
        return Answer(path=request.path, headers=CIMultiDict(headers), content=content, honours_range=True)

    def _tags(self, request: web.BaseRequest, held: RepositoryContent, route: re.Match[str]) -> Answer:
        """Sorted tags behind `last`, at most `n` (distribution-spec, "Listing Tags")."""
        wanted = int(request.query.get("n", self.page_size or len(held.tags)))
        size = min(wanted, self.page_size or wanted)
        left = [tag for tag in sorted(held.tags) if tag > request.query.get("last", "")]
        answer = json_answer(request, {"name": route["name"], "tags": left[:size]})
        if size and len(left) > size:
            answer.headers["Link"] = f'</v2/{route["name"]}/tags/list?n={size}&last={left[size - 1]}>; rel="next"'
        return answer

    def _referrers(self, request: web.BaseRequest, held: RepositoryContent, route: re.Match[str]) -> Answer:
        """The index of referrers, filtered by artifactType if asked for ("Listing Referrers"); pages by `at`."""
        if not self.has_referrers:
            return error_answer(request, 404, "NOT_FOUND")
        wanted = request.query.get("artifactType")
        found = [part for part in held.referrers(route["reference"]) if wanted in (None, part.artifact_type)]
        at = int(request.query.get("at", "0"))
        end = at + self.page_size if self.page_size else len(found)
        answer = Answer(path=request.path, content=content_of(referrers_body(found[at:end])))
        answer.headers["Content-Type"] = OCI_INDEX
        if wanted is not None:
            answer.headers["OCI-Filters-Applied"] = "artifactType"
        if end < len(found):
            answer.headers["Link"] = f'<{request.path}?at={end}>; rel="next"'
        return answer


def referrers_body(found: list[Part]) -> bytes:
    """An index of these manifests."""
    return manifest_body(OCI_INDEX, manifests=[part.descriptor() for part in found])


def json_answer(request: web.BaseRequest, value: Any, *, status: int = 200) -> Answer:
    """A JSON body."""
    headers = CIMultiDict({"Content-Type": "application/json", "Docker-Distribution-Api-Version": "registry/2.0"})
    return Answer(path=request.path, status=status, headers=headers, content=content_of(json.dumps(value).encode()))


def error_answer(request: web.BaseRequest, status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    """The spec's error JSON."""
    answer = json_answer(request, {"errors": [{"code": code, "message": code.lower()}]}, status=status)
    answer.headers.update(headers or {})
    return answer
