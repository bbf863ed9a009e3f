"""Chunk lists: their documents, and finding a wrong chunk in bytes cut anywhere."""

from __future__ import annotations

import json
import tracemalloc
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contentapp.core.byterange import ByteRange
from contentapp.core.chunks import (
    DEFAULT_CHUNK_SIZE,
    HEAD_SIZE,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_LIST_SIZE,
    MAX_MEMBERS,
    MIN_CHUNK_SIZE,
    CheckedChunk,
    ChunkHasher,
    ChunkList,
    ChunkVerifier,
    InvalidChunkList,
    count_chunks,
    dump_chunk_list,
    max_list_size,
    parse_chunk_list,
)
from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.core.settings import MIB

CHUNK = MIN_CHUNK_SIZE
WHOLE = Digest.of(b"whole")
HEX = "0123456789abcdef" * 4


def body(size: int) -> bytes:
    """Bytes whose chunks differ."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def listed(data: bytes, chunk_size: int = CHUNK) -> ChunkList:
    """The list, made the plain way."""
    parts = [data[start : start + chunk_size] for start in range(0, len(data), chunk_size)]
    return ChunkList(len(data), chunk_size, Digest.of(data), b"".join(sha256(part).digest() for part in parts))


def members(**changes: Any) -> dict[str, Any]:
    """Those of a list of two chunks; None leaves one out."""
    made: dict[str, Any] = {
        "version": 1,
        "algorithm": "sha256",
        "chunk_size": CHUNK,
        "size": CHUNK + 1,
        "digest": str(WHOLE),
        "chunks": [HEX, HEX[::-1]],
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def document(**changes: Any) -> bytes:
    return json.dumps(members(**changes)).encode()


TWO = ChunkList(CHUNK + 1, CHUNK, WHOLE, bytes.fromhex(HEX + HEX[::-1]))


# -- what a list says


def test_bounds() -> None:
    assert (MIN_CHUNK_SIZE, DEFAULT_CHUNK_SIZE, MAX_CHUNK_SIZE) == (64 << 10, 4 << 20, 64 << 20)
    assert (MAX_CHUNKS, MAX_LIST_SIZE) == (1_000_000, 67_000_000 + (64 << 10))


@pytest.mark.parametrize(
    ("size", "spans"),
    [
        (0, []),
        (1, [(0, 1)]),
        (CHUNK - 1, [(0, CHUNK - 1)]),
        (CHUNK, [(0, CHUNK)]),
        (CHUNK + 1, [(0, CHUNK), (CHUNK, CHUNK + 1)]),
        (2 * CHUNK, [(0, CHUNK), (CHUNK, 2 * CHUNK)]),
    ],
)
def test_spans(size: int, spans: list[tuple[int, int]]) -> None:
    chunks = listed(body(size))
    assert chunks.count == len(spans)
    assert [chunks.span(index) for index in range(chunks.count)] == [ByteRange(*span) for span in spans]


@settings(deadline=None)
@given(st.integers(1, MAX_CHUNKS), st.integers(MIN_CHUNK_SIZE, MAX_CHUNK_SIZE), st.data())
def test_every_byte_is_in_the_chunk_of_its_index(count: int, chunk_size: int, data: st.DataObject) -> None:
    size = (count - 1) * chunk_size + data.draw(st.integers(1, chunk_size))
    chunks = ChunkList(size, chunk_size, WHOLE, bytes(32 * count))
    offset = data.draw(st.integers(0, size - 1))
    span = chunks.span(chunks.index_of(offset))
    assert span.start <= offset < span.end
    assert chunks.span(count - 1).end == size


def test_each_chunk_has_its_digest() -> None:
    data = body(2 * CHUNK + 5)
    chunks = listed(data)
    for index in range(3):
        digest = sha256(data[index * CHUNK : (index + 1) * CHUNK]).digest()
        assert chunks.expected(index) == digest
        assert [chunks.matches(other, digest) for other in range(3)] == [other == index for other in range(3)]


@pytest.mark.parametrize("index", [-1, 2, 1000])
def test_no_such_chunk(index: int) -> None:
    for ask in (TWO.span, TWO.expected, lambda number: TWO.matches(number, b"")):
        with pytest.raises(IndexError):
            ask(index)


@pytest.mark.parametrize("offset", [-1, CHUNK + 1])
def test_no_such_byte(offset: int) -> None:
    with pytest.raises(IndexError):
        TWO.index_of(offset)


@pytest.mark.parametrize(
    ("size", "chunk_size", "length", "reason"),
    [
        (CHUNK, CHUNK - 1, 64, "chunk_size must be"),
        (CHUNK, MAX_CHUNK_SIZE + 1, 32, "chunk_size must be"),
        (CHUNK, 0, 32, "chunk_size must be"),
        (-1, CHUNK, 0, "a negative size"),
        (-CHUNK, CHUNK, 0, "a negative size"),
        (CHUNK, CHUNK, 0, "0 chunks where its size makes 1"),
        (CHUNK, CHUNK, 64, "2 chunks where its size makes 1"),
        (CHUNK, CHUNK, 33, "1 chunks where its size makes 1"),
        (0, CHUNK, 32, "1 chunks where its size makes 0"),
        (MAX_CHUNKS * CHUNK + 1, CHUNK, 32 * MAX_CHUNKS + 32, "more than 1000000 chunks"),
        (10**4000, CHUNK, 32, "more than 1000000 chunks"),
    ],
)
def test_a_list_that_contradicts_itself_does_not_exist(size: int, chunk_size: int, length: int, reason: str) -> None:
    with pytest.raises(InvalidChunkList, match=reason):
        ChunkList(size, chunk_size, WHOLE, bytes(length))


def test_the_most_chunks() -> None:
    assert ChunkList(MAX_CHUNKS * CHUNK, CHUNK, WHOLE, bytes(32 * MAX_CHUNKS)).count == MAX_CHUNKS
    assert count_chunks(MAX_CHUNKS * CHUNK, CHUNK) == MAX_CHUNKS


def test_its_digests_are_not_shown() -> None:
    assert len(repr(TWO)) < 300


# -- documents


def test_a_document() -> None:
    assert parse_chunk_list(document()) == TWO


def test_the_canonical_document() -> None:
    assert (
        dump_chunk_list(TWO)
        == (
            f'{{"version":1,"algorithm":"sha256","chunk_size":65536,"size":65537,"digest":"{WHOLE}",'
            f'"chunks":["{HEX}","{HEX[::-1]}"]}}\n'
        ).encode()
    )


@settings(deadline=None)
@given(st.integers(0, 5 * CHUNK), st.sampled_from([CHUNK, CHUNK + 1, MAX_CHUNK_SIZE]), st.binary(max_size=8))
def test_a_document_reads_back(size: int, chunk_size: int, seed: bytes) -> None:
    count = count_chunks(size, chunk_size)
    digests = b"".join(sha256(seed + bytes([index])).digest() for index in range(count))
    chunks = ChunkList(size, chunk_size, Digest.of(seed, "sha512"), digests)
    assert parse_chunk_list(dump_chunk_list(chunks)) == chunks
    assert len(dump_chunk_list(chunks)) <= max_list_size(size)


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(members(), indent=4).encode(),
        json.dumps(members(), indent="\t").replace("\n", "\r\n").encode(),
        b" \n" + document() + b" \r\n\t",
        document(name="disk.qcow2", made={"by": ["x", {"version": 2}], "at": 1.5e3}, note=[None]),
        json.dumps(members(größe=1, note="ü€𐀀"), ensure_ascii=False).encode(),
        json.dumps(dict(reversed(members().items()))).encode(),
        document().replace(b'"size"', b'"\\u0073ize"'),
    ],
    ids=["indented", "tabs", "blanks", "others", "not ascii", "order", "escaped name"],
)
def test_other_ways_to_write_it(data: bytes) -> None:
    assert parse_chunk_list(data) == TWO


def test_the_documented_example_and_bounds() -> None:
    page = (Path(__file__).parents[3] / "docs" / "chunks.md").read_text(encoding="utf-8")
    example = page.split("```json\n")[1].split("```")[0]
    assert parse_chunk_list(example.encode()) == listed(bytes(5_000_000), DEFAULT_CHUNK_SIZE)
    for bound in (MIN_CHUNK_SIZE, MAX_CHUNK_SIZE, f"{MAX_CHUNKS:,}", f"{MAX_LIST_SIZE:,}", f"{MAX_MEMBERS} members"):
        assert str(bound) in page


@pytest.mark.parametrize("empty", [b"[]", b"[ \n]"])
def test_of_an_empty_file(empty: bytes) -> None:
    data = document(size=0, chunks=[]).replace(b"[]", empty)
    assert parse_chunk_list(data) == ChunkList(0, CHUNK, WHOLE, b"")


TWICE = [document()[:-1] + f', "{name}": {json.dumps(value)}}}'.encode() for name, value in members().items()]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        # not the grammar
        (b"", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"<html>", "not a JSON object"),
        (b"\xef\xbb\xbf" + document(), "not a JSON object"),
        (document()[:-1], "not a JSON object"),
        (document()[:-1] + b",}", "not a JSON object"),
        (document() + b"x", "behind its end"),
        (document() + document(), "behind its end"),
        (document(size=1.0).replace(b"1.0,", b"1.0.0,"), "not a JSON object"),
        (document().replace(b'"size":', b'"size"'), "not a JSON object"),
        (document().replace(b'"size":', b"size:"), "not a JSON object"),
        (document().replace(b'"size":', b"7:"), "not a JSON object"),
        (document().replace(b'"size":', b"null:"), "not a JSON object"),
        (document().decode().encode("utf-16"), "not UTF-8"),
        (document(note="x").replace(b'"x"', b'"\xff"'), "not UTF-8"),
        # members
        (b"{}", "version"),
        (document(version=None), "no whole number as its version"),
        (document(version=2), "a version other than 1"),
        (document(version=True), "no whole number as its version"),
        (document(version=1.0), "no whole number as its version"),
        (document(version="1"), "no whole number as its version"),
        (document(algorithm=None), "an algorithm other than sha256"),
        (document(algorithm="md5"), "an algorithm other than sha256"),
        (document(algorithm="SHA256"), "an algorithm other than sha256"),
        (document(size=None), "no whole number as its size"),
        (document(size=True), "no whole number as its size"),
        (document(size=float(CHUNK + 1)), "no whole number as its size"),
        (document(size=str(CHUNK + 1)), "no whole number as its size"),
        (document(size=float("nan")), "no whole number as its size"),
        (document(size=-1, chunks=[]), "a negative size"),
        (document(size=0), "2 chunks where its size makes 0"),
        (document(size=CHUNK), "2 chunks where its size makes 1"),
        (document(size=2 * CHUNK + 1), "2 chunks where its size makes 3"),
        (document(size=10**4000), "more than 1000000 chunks"),
        (document().replace(b"65537", b"9" * 5000), "not a JSON object"),
        (document(chunk_size=None), "no whole number as its chunk_size"),
        (document(chunk_size=True), "no whole number as its chunk_size"),
        (document(chunk_size=0), "chunk_size must be"),
        (document(chunk_size=CHUNK - 1), "chunk_size must be"),
        (document(chunk_size=MAX_CHUNK_SIZE + 1), "chunk_size must be"),
        (document(digest=None), "no digest of the whole"),
        (document(digest=7), "no digest of the whole"),
        (document(digest=HEX), "digest is not algorithm:encoded"),
        (document(digest=f"sha256:{HEX.upper()}"), "digest is not algorithm:encoded"),
        (document(digest=f"md5:{HEX[:32]}"), "digest is not algorithm:encoded"),
        *((data, "a member twice") for data in TWICE),
        # chunks
        (document(chunks=None), "no chunks"),
        (document(chunks={}), "not a JSON object"),
        (document(chunks=HEX), "not a JSON object"),
        (document(chunks=[HEX]), "1 chunks where its size makes 2"),
        (document(chunks=[HEX, HEX[:-1]]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX, HEX + "0"]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX[:-2], HEX]), "entry 1 of the chunk list is not a sha256"),
        (document(chunks=[HEX, HEX[:-1] + "g"]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX.upper(), HEX]), "entry 1 of the chunk list is not a sha256"),
        (document(chunks=[HEX, "١" * 64]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX, f"sha256:{HEX}"]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX, None]), "entry 2 of the chunk list is not a sha256"),
        (document(chunks=[HEX, [HEX]]), "entry 2 of the chunk list is not a sha256"),
        (document().replace(b'"]', b'",]'), "entry 3 of the chunk list is not a sha256"),
        (document().replace(b'", "' + HEX[:1:-1].encode(), b'" "' + HEX[:1:-1].encode()), "not a JSON object"),
        (document().replace(b'"]', b'"'), "not a JSON object"),
    ],
)
def test_everything_else_is_invalid(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidChunkList, match=reason) as caught:
        parse_chunk_list(data)
    assert isinstance(caught.value, MetadataInvalid)
    assert "chunk" in str(caught.value)
    assert len(str(caught.value)) < 200


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_a_list_or_invalid(data: bytes) -> None:
    with pytest.raises(InvalidChunkList):
        parse_chunk_list(data)


@settings(deadline=None)
@given(st.data())
def test_any_change_of_a_document_is_a_list_or_invalid(data: st.DataObject) -> None:
    text = bytearray(document())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        chunks = parse_chunk_list(bytes(text))
    except InvalidChunkList:
        return
    assert chunks.count == count_chunks(chunks.size, chunks.chunk_size)


# -- hostile documents


def test_a_document_that_is_too_large_is_not_looked_at() -> None:
    with pytest.raises(InvalidChunkList, match="larger than"):
        parse_chunk_list(b" " * (MAX_LIST_SIZE - 100) + b"x" * 101)
    with pytest.raises(InvalidChunkList, match="not a JSON object"):
        parse_chunk_list(b" " * MAX_LIST_SIZE)


def test_the_largest_list_fits() -> None:
    chunks = ChunkList(MAX_CHUNKS * MAX_CHUNK_SIZE, MAX_CHUNK_SIZE, Digest.of(b"", "sha512"), bytes(32 * MAX_CHUNKS))
    data = dump_chunk_list(chunks)
    assert len(data) <= MAX_LIST_SIZE
    assert parse_chunk_list(data) == chunks


@pytest.mark.parametrize(
    ("size", "entries"), [(0, 0), (1, 1), (CHUNK, 1), (CHUNK + 1, 2), (1 << 60, MAX_CHUNKS), (None, MAX_CHUNKS)]
)
def test_how_long_a_document_may_be(size: int | None, entries: int) -> None:
    assert max_list_size(size) == 67 * entries + HEAD_SIZE


def test_other_members_are_bounded() -> None:
    most = {f"x{number}": number for number in range(MAX_MEMBERS - 6)}
    assert parse_chunk_list(document(**most)) == TWO
    with pytest.raises(InvalidChunkList, match="more than 100 members"):
        parse_chunk_list(document(**most, one="more"))


def test_other_values_are_bounded() -> None:
    assert parse_chunk_list(document(note="x" * (HEAD_SIZE - 2))) == TWO
    for note in ("x" * (HEAD_SIZE - 1), [1] * HEAD_SIZE):
        with pytest.raises(InvalidChunkList, match="values up to 65536 bytes"):
            parse_chunk_list(document(note=note))
    # A number that goes on behind the bound is no shorter number.
    with pytest.raises(InvalidChunkList, match="not a JSON object"):
        parse_chunk_list(document()[:-1] + b', "note": 0.' + b"1" * HEAD_SIZE + b"}")


def test_deep_nesting() -> None:
    for depth in (2000, 1_000_000):
        with pytest.raises(InvalidChunkList, match="not a JSON object"):
            parse_chunk_list(document(note=7)[:-2] + b"[" * depth)


def test_a_hostile_document_takes_no_more_memory_than_a_few_times_its_length() -> None:
    hostile = b'{"x":[' + b"[]," * MIB
    tracemalloc.start()
    try:
        with pytest.raises(InvalidChunkList):
            parse_chunk_list(hostile)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(hostile)
    finally:
        tracemalloc.stop()


# -- from bytes to a list, and back


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


sizes = st.one_of(
    st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 1]),
    st.integers(0, 4 * CHUNK),
)
cuttings = st.lists(st.one_of(st.sampled_from([CHUNK, 2 * CHUNK]), st.integers(0, 4 * CHUNK)), max_size=8)


@settings(deadline=None)
@given(sizes, cuttings, st.sampled_from([bytes, bytearray, memoryview]))
def test_a_list_is_made_from_bytes_cut_anywhere(size: int, cuts: list[int], kind: Any) -> None:
    data = body(size)
    hasher = ChunkHasher(CHUNK)
    for piece in pieces(data, cuts):
        hasher.update(kind(piece))
    assert hasher.finish() == listed(data)


def test_the_digest_of_the_whole_may_be_known() -> None:
    hasher = ChunkHasher(CHUNK, digest=WHOLE)
    hasher.update(body(CHUNK + 1))
    chunks = hasher.finish()
    assert (chunks.digest, chunks.digests) == (WHOLE, listed(body(CHUNK + 1)).digests)


@pytest.mark.parametrize("chunk_size", [0, MIN_CHUNK_SIZE - 1, MAX_CHUNK_SIZE + 1])
def test_no_list_of_such_chunks(chunk_size: int) -> None:
    with pytest.raises(InvalidChunkList, match="chunk_size must be"):
        ChunkHasher(chunk_size)


def test_too_many_chunks_are_found_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contentapp.core.chunks.MAX_CHUNKS", 2)
    hasher = ChunkHasher(CHUNK)
    hasher.update(bytes(2 * CHUNK))
    with pytest.raises(InvalidChunkList, match="more than 2 chunks"):
        hasher.update(b"x")


@settings(deadline=None)
@given(sizes, cuttings, st.data())
def test_exactly_the_wrong_chunks_are_found(size: int, cuts: list[int], data: st.DataObject) -> None:
    right = body(size)
    chunks = listed(right)
    first = data.draw(st.integers(0, chunks.count))
    wrong = data.draw(st.sets(st.integers(0, size - 1), max_size=3)) if size else set()
    received = bytearray(right)
    for place in wrong:
        received[place] ^= 1
    verifier = ChunkVerifier(chunks, first)
    found = [checked for piece in pieces(bytes(received)[first * CHUNK :], cuts) for checked in verifier.feed(piece)]
    bad = {chunks.index_of(place) for place in wrong}
    assert found == [CheckedChunk(index, index not in bad) for index in range(first, chunks.count)]
    assert verifier.offset == size


@settings(deadline=None)
@given(sizes, cuttings)
def test_a_chunk_is_told_with_its_last_byte(size: int, cuts: list[int]) -> None:
    data = body(size)
    verifier, arrived, told = ChunkVerifier(listed(data)), 0, 0
    for piece in pieces(data, cuts):
        assert verifier.offset == arrived
        told += len(verifier.feed(piece))
        arrived += len(piece)
        assert told == (-(-size // CHUNK) if arrived == size else arrived // CHUNK)


def test_bytes_behind_the_end() -> None:
    data = body(CHUNK + 1)
    verifier = ChunkVerifier(listed(data))
    verifier.feed(data)
    assert verifier.feed(b"") == []
    with pytest.raises(ValueError, match="more bytes than the file has"):
        verifier.feed(b"x")
    with pytest.raises(ValueError, match="more bytes than the file has"):
        ChunkVerifier(listed(data), 1).feed(b"xx")
    with pytest.raises(ValueError, match="more bytes than the file has"):
        ChunkVerifier(listed(data), 2).feed(b"x")


@pytest.mark.parametrize("index", [-1, 3])
def test_no_such_chunk_to_begin_with(index: int) -> None:
    with pytest.raises(IndexError):
        ChunkVerifier(TWO, index)
