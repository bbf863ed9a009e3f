"""Lists of a registry: the body of a tag list, its pages, and the Link to the next one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from urllib.parse import quote, urlsplit

from contentapp.core.errors import ContentAppError, MetadataInvalid
from contentapp.core.origin_path import decode_path
from contentapp.plugins.base import ContentPath
from contentapp.plugins.container import TAG, endpoint, parse, resource

MAX_TAGS = 200_000
LINK = re.compile(r'<([^<>"\s]*)>((?:\s*;\s*[A-Za-z0-9!#$&+.^_`|~*-]+(?:\s*=\s*(?:"[^"]*"|[^\s",;<>]+))?)*)')
REL_NEXT = re.compile(r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next(?=\s|;|\Z))', re.IGNORECASE)


def parse_tag_list(body: bytes, *, max_tags: int = MAX_TAGS) -> tuple[str, ...]:
    """The tags of a remote's answer, in its order; ``null`` is none. What is no tag is left out: it can't be pulled.

    MetadataInvalid for anything but the spec's object, and for more than `max_tags`.
    """
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise MetadataInvalid("the tag list is not JSON") from None
    tags = document.get("tags", []) if isinstance(document, dict) else document
    tags = [] if tags is None else tags
    if not isinstance(document, dict) or not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise MetadataInvalid("the tag list is not an object with tags")
    if len(tags) > max_tags:
        raise MetadataInvalid(f"the tag list has more than {max_tags} tags")
    return tuple(tag for tag in tags if TAG.fullmatch(tag))


def tag_list(name: str, tags: Iterable[str]) -> bytes:
    """The body of our own answer; `name` is the whole name that the device asked for."""
    return json.dumps({"name": name, "tags": list(tags)}, separators=(",", ":")).encode("ascii")


def tags_page(tags: Iterable[str], path: ContentPath) -> tuple[Sequence[str], str]:
    """The page that `path` asks of all the tags we know, in the spec's order, and its Link, "" on the last page."""
    rest = sorted(tag for tag in set(tags) if tag > path.last)
    page = rest if path.page_size is None else rest[: path.page_size]
    if not page or len(page) == len(rest):
        return page, ""
    return page, _link(replace(path, last=page[-1], continuation=()))


def next_link(header: str | None, path: ContentPath) -> str:
    """Our Link to the next page of the list `path`, from a remote's Link; "" when there is none that can be trusted.

    Only the query of the remote's target is used, and only if the target is the same list, on whatever host: it is
    never dialled, and its parameters come back to us through `container.parse`.
    """
    try:
        target = urlsplit(_next_target(header or ""))
        if not decode_path(target.path).endswith("/" + resource(path)):
            return ""
        following = parse(f"/v2/{path.name}/{resource(path)}", target.query)
    except (ValueError, ContentAppError):
        return ""
    # A remote's link that forgets the filter would make the next page an unfiltered one.
    artifact_type = following.artifact_type or path.artifact_type
    following = replace(following, namespace=path.namespace, artifact_type=artifact_type)
    has_parameters = resource(following) != endpoint(following)
    return _link(following) if has_parameters and following != path else ""


def _next_target(header: str) -> str:
    return next((match[1] for match in LINK.finditer(header) if REL_NEXT.search(match[2])), "")


def _link(path: ContentPath) -> str:
    url = f"/v2/{path.name}/{endpoint(path)}"
    if path.namespace:
        url += f"{'&' if '?' in url else '?'}ns={quote(path.namespace, safe='')}"
    return f'<{url}>; rel="next"'
