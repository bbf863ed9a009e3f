"""Held: what an interrupted transfer has left on disk, read again before it is believed (P6)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from contentapp.core.errors import ArtifactDamaged, StorageError
from contentapp.core.settings import MIB
from contentapp.pipeline.note import Facts, MarkedHasher, dump_facts, parse_facts
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note, Storage

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Plan

log = structlog.get_logger("contentapp.held")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A partial whose `hasher.offset` bytes are what they were. size: of the whole, None if unknown.

    former: id of the attempt it was, if none of its bytes is missing, so that whatever a device has of it is the same.
    """

    writer: ArtifactWriter
    hasher: MarkedHasher
    size: int | None
    facts: Facts
    former: str


async def take_up(storage: Storage, plan: Plan) -> Held | None:
    """The partial of a plan's content, if there is one that it can go on with. It is read again and cut back to where
    it still is what was written down. One that can't be gone on with is removed.
    """
    try:
        found = await storage.resume(plan.key)
    except StorageError as error:
        log.warning("not resumed", key=plan.key, error=str(error))
        return None
    if found is None:
        return None
    writer, note = found
    facts = parse_facts(note.facts)
    try:
        if facts is not None and _fits(plan, note, facts):
            hasher = await asyncio.to_thread(_read_again, writer, note, MarkedHasher(plan.hasher(), note.step))
            if hasher.offset:
                log.info("resumed", key=plan.key, offset=hasher.offset, noted=note.offset)
                former = await _claim(writer, note, facts) if hasher.offset == note.offset else ""
                return Held(writer=writer, hasher=hasher, size=note.size, facts=facts, former=former)
    except StorageError as error:
        log.warning("not resumed", key=plan.key, error=str(error))
    except BaseException:
        await asyncio.shield(writer.suspend(note))
        raise
    await writer.abort()
    return None


async def _claim(writer: ArtifactWriter, note: Note, facts: Facts) -> str:
    """The id of the attempt it was, taken out of the note.

    Bytes that come from now on, under whatever name, may be lost and fetched otherwise, and who comes after us must not
    take this attempt for unbroken.
    """
    if not facts.attempt:
        return ""
    unclaimed = replace(note, facts=dump_facts(replace(facts, attempt="")))
    try:
        await asyncio.to_thread(writer.checkpoint, unclaimed)
    except StorageError as error:
        log.warning("note not written", key=note.key, error=str(error))
        return ""
    return facts.attempt


def _fits(plan: Plan, note: Note, facts: Facts) -> bool:
    """Whether the bytes can still be the wanted ones: without a digest only the same URL's, by a validator."""
    if plan.digest is None:
        return bool(facts.if_range) and facts.url in {source.url for source in plan.sources}
    return plan.size is None or note.size in {None, plan.size}


def _read_again(writer: ArtifactWriter, note: Note, hasher: MarkedHasher) -> MarkedHasher:
    """Hash what is there; blocking. The hash of as much as agrees with the note, to which the partial is cut."""
    reader = writer.follow()
    try:
        good = _agreeing(reader, note, hasher)
    finally:
        reader.close()
    if good.offset < note.offset:
        log.warning("partial cut back", key=note.key, noted=note.offset, good=good.offset)
        writer.cut(good.offset)
    return good


def _agreeing(reader: ArtifactReader, note: Note, hasher: MarkedHasher) -> MarkedHasher:
    good = hasher.copy()
    for mark in (*note.marks, note.mark):
        _read_to(reader, min(hasher.offset + note.step, note.offset), hasher)
        if hasher.hexdigest() != mark:
            return good
        good = hasher.copy()
    return good


def _read_to(reader: ArtifactReader, end: int, hasher: MarkedHasher) -> None:
    """What can't be read is missing, which makes the hash a wrong one."""
    while hasher.offset < end:
        try:
            data = reader.read(hasher.offset, min(MIB, end - hasher.offset))
        except ArtifactDamaged:
            return
        if not data:
            return
        hasher.update(data)
