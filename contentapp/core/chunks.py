"""Chunk lists: the sha256 of each chunk of fixed size of a file, so that a wrong chunk is found by itself (P2).

As a document a list is one JSON object (RFC 8259, UTF-8), published beside its file as ``<file>.chunks.json``:

    {"version": 1, "algorithm": "sha256", "chunk_size": 4194304, "size": 5000000,
     "digest": "sha256:<hex of the whole>", "chunks": ["<hex of the first>", "<hex of the last>"]}

All chunks have `chunk_size` bytes but the last, which has what is left; an empty file has none. Hex is in lower case,
other members are ignored. Bounds: chunks of 64 KiB to 64 MiB, at most a million of them, documents up to
`max_list_size`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from hashlib import sha256

from contentapp.core.byterange import ByteRange
from contentapp.core.digest import Digest
from contentapp.core.errors import InvalidDigest, MetadataInvalid
from contentapp.core.settings import KIB, MIB

DEFAULT_CHUNK_SIZE = 4 * MIB
MIN_CHUNK_SIZE = 64 * KIB
MAX_CHUNK_SIZE = 64 * MIB
MAX_CHUNKS = 1_000_000
DIGEST_SIZE = 32

ENTRY_SIZE = 67
"""Bytes of an entry in a document: 64 of hex, two quotes, a comma."""

HEAD_SIZE = 64 * KIB
"""Bytes of all else in a document; also the longest value that a member other than ``chunks`` may have."""

MAX_LIST_SIZE = MAX_CHUNKS * ENTRY_SIZE + HEAD_SIZE
MAX_MEMBERS = 100

Data = bytes | bytearray | memoryview  # of single bytes

BLANKS = re.compile(r"[ \t\n\r]*")
ENTRY = re.compile(r'[ \t\n\r]*"([0-9a-f]{64})"')
NEXT_ENTRY = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"([0-9a-f]{64})"')
DECODER = json.JSONDecoder()


class InvalidChunkList(MetadataInvalid):
    """Not a chunk list, or one out of bounds; the text is a plain sentence that never repeats much of the document."""


@dataclass(frozen=True, slots=True)
class ChunkList:
    """The digests of a file's chunks; what exists is within the bounds and consistent, else InvalidChunkList.

    size: of the file in bytes. chunk_size: of every chunk but the last. digest: of the whole file. digests: the sha256
    of each chunk, 32 bytes each, packed in order.
    """

    size: int
    chunk_size: int
    digest: Digest
    digests: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size)
        if self.size < 0:
            raise InvalidChunkList("the chunk list has a negative size")
        expected = count_chunks(self.size, self.chunk_size)
        found, rest = divmod(len(self.digests), DIGEST_SIZE)
        if found != expected or rest:
            raise InvalidChunkList(f"the chunk list has {found} chunks where its size makes {expected}")

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return len(self.digests) // DIGEST_SIZE

    def span(self, index: int) -> ByteRange:
        """The bytes of a chunk. IndexError unless 0 <= index < count."""
        self._check(index)
        start = index * self.chunk_size
        return ByteRange(start, min(start + self.chunk_size, self.size))

    def index_of(self, offset: int) -> int:
        """The chunk that a byte is in. IndexError unless 0 <= offset < size."""
        if not 0 <= offset < self.size:
            raise IndexError(f"byte {offset} of {self.size}")
        return offset // self.chunk_size

    def expected(self, index: int) -> bytes:
        """The sha256 of a chunk, 32 bytes. IndexError unless 0 <= index < count."""
        self._check(index)
        return self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    def matches(self, index: int, digest: bytes) -> bool:
        """Whether this sha256 (32 bytes) is the chunk's. IndexError unless 0 <= index < count."""
        return self.expected(index) == digest

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise IndexError(f"chunk {index} of {self.count}")


def check_chunk_size(chunk_size: int) -> None:
    """InvalidChunkList unless chunks may have this size."""
    if not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
        raise InvalidChunkList(f"chunk_size must be {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE} bytes")


def count_chunks(size: int, chunk_size: int) -> int:
    """The chunks of a file of `size` bytes; InvalidChunkList when there are too many."""
    count = -(-size // chunk_size)
    if count > MAX_CHUNKS:
        raise InvalidChunkList(f"the file makes more than {MAX_CHUNKS} chunks of {chunk_size} bytes")
    return count


def max_list_size(size: int | None = None) -> int:
    """The bytes that the document of a file of this size can have; of any file without one. Read no more than that."""
    most = MAX_CHUNKS if size is None else min(MAX_CHUNKS, -(-size // MIN_CHUNK_SIZE))
    return most * ENTRY_SIZE + HEAD_SIZE


def parse_chunk_list(data: bytes) -> ChunkList:
    """The list that a document holds; InvalidChunkList says in a sentence why it holds none.

    Blocking, about 1 µs an entry, and other threads get their turn in between; in a thread if `data` may be above some
    hundred KiB. Whatever `data` is, it takes no more memory than a few times its length.
    """
    if len(data) > MAX_LIST_SIZE:
        raise InvalidChunkList(f"the chunk list is larger than {MAX_LIST_SIZE} bytes")
    try:
        members = _Document(data.decode()).read()
    except UnicodeDecodeError:
        raise InvalidChunkList("the chunk list is not UTF-8") from None
    if _integer(members, "version") != 1:
        raise InvalidChunkList("the chunk list has a version other than 1")
    if members.get("algorithm") != "sha256":
        raise InvalidChunkList("the chunk list has an algorithm other than sha256")
    digests = members.get("chunks")
    if not isinstance(digests, bytes):
        raise InvalidChunkList("the chunk list has no chunks")
    return ChunkList(
        size=_integer(members, "size"),
        chunk_size=_integer(members, "chunk_size"),
        digest=_digest(members.get("digest")),
        digests=digests,
    )


def dump_chunk_list(chunks: ChunkList) -> bytes:
    """The one document of a list, with a newline at its end; `parse_chunk_list` reads it back."""
    document = {
        "version": 1,
        "algorithm": "sha256",
        "chunk_size": chunks.chunk_size,
        "size": chunks.size,
        "digest": str(chunks.digest),
        "chunks": chunks.digests.hex(" ", -DIGEST_SIZE).split(),
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _integer(members: dict[str, object], name: str) -> int:
    value = members.get(name)
    if type(value) is not int:  # a bool is an int to isinstance
        raise InvalidChunkList(f"the chunk list has no whole number as its {name}")
    return value


def _digest(value: object) -> Digest:
    if not isinstance(value, str):
        raise InvalidChunkList("the chunk list has no digest of the whole")
    try:
        return Digest.parse(value)
    except InvalidDigest:
        raise InvalidChunkList("the chunk list's digest is not algorithm:encoded") from None


class _Document:
    """The members of the one object, each value read by itself.

    The json module would take the text of a hostile document in one go: 67 MB of ``[[],[],…`` are over a gigabyte of
    objects, and no thread runs meanwhile. Here other values than the chunks are bounded, in length and number, and the
    chunks are packed as they are read.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> dict[str, object]:
        """The members, ``chunks`` as packed digests. InvalidChunkList."""
        members: dict[str, object] = {}
        self._expect("{")
        if not self._take("}"):
            self._member(members)
            while self._take(","):
                self._member(members)
            self._expect("}")
        self._skip_blanks()
        if self._at != len(self._text):
            raise InvalidChunkList("the chunk list goes on behind its end")
        return members

    def _member(self, members: dict[str, object]) -> None:
        name = self._name()
        if name in members or len(members) == MAX_MEMBERS:
            raise InvalidChunkList(f"the chunk list has a member twice, or more than {MAX_MEMBERS} members")
        members[name] = self._chunks() if name == "chunks" else self._value()

    def _name(self) -> str:
        name = self._value()
        if not isinstance(name, str):
            raise self._broken()
        self._expect(":")
        return name

    def _value(self) -> object:
        self._skip_blanks()
        try:
            value, length = DECODER.raw_decode(self._text[self._at : self._at + HEAD_SIZE])
        except (ValueError, RecursionError):
            raise self._broken() from None
        self._at += length
        return value

    def _chunks(self) -> bytes:
        self._expect("[")
        if self._take("]"):
            return b""
        digests = bytearray()
        entry = ENTRY.match(self._text, self._at)
        while entry:
            digests += bytes.fromhex(entry[1])
            self._at = entry.end()
            entry = NEXT_ENTRY.match(self._text, self._at)
        if not digests or self._take(","):
            number = len(digests) // DIGEST_SIZE + 1
            raise InvalidChunkList(f"entry {number} of the chunk list is not a sha256 in lower-case hex")
        self._expect("]")
        return bytes(digests)

    def _skip_blanks(self) -> None:
        blanks = BLANKS.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at

    def _take(self, mark: str) -> bool:
        """Whether this is what comes next; it is behind us then."""
        self._skip_blanks()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise self._broken()

    def _broken(self) -> InvalidChunkList:
        return InvalidChunkList(
            f"the chunk list is not a JSON object with values up to {HEAD_SIZE} bytes (at character {self._at})"
        )


class _Cutter:
    """Takes bytes cut anywhere, gives the sha256 of each chunk that they complete."""

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._hasher = sha256()
        self.begun = 0
        """Bytes of the chunk that is not complete."""

    def feed(self, data: Data) -> list[bytes]:
        """The digests of the chunks that are now complete, in order."""
        digests = []
        rest = memoryview(data)
        while rest:
            part, rest = self._split(rest)
            self._hasher.update(part)
            self.begun += len(part)
            if self.begun == self._chunk_size:
                digests.append(self.cut())
        return digests

    def _split(self, data: memoryview) -> tuple[memoryview, memoryview]:
        room = self._chunk_size - self.begun
        return data[:room], data[room:]

    def cut(self) -> bytes:
        """End the chunk here, whatever is in it."""
        digest = self._hasher.digest()
        self._hasher, self.begun = sha256(), 0
        return digest


class ChunkHasher:
    """Makes the list of a file from its bytes, in order and cut anywhere.

    digest: of the whole, when the caller itself verifies that the bytes match it; else it is made here, by a second
    sha256. InvalidChunkList for a chunk_size out of bounds. Hashes inline: at most 64 KiB at a time on an event loop.
    """

    def __init__(self, chunk_size: int = DEFAULT_CHUNK_SIZE, *, digest: Digest | None = None) -> None:
        check_chunk_size(chunk_size)
        self._chunk_size = chunk_size
        self._digest = digest
        self._whole = sha256()
        self._cutter = _Cutter(chunk_size)
        self._digests = bytearray()
        self._size = 0

    def update(self, data: Data) -> None:
        """What follows. InvalidChunkList when that makes more than MAX_CHUNKS chunks; it is of no more use then."""
        self._size += len(data)
        count_chunks(self._size, self._chunk_size)
        if self._digest is None:
            self._whole.update(data)
        self._digests += b"".join(self._cutter.feed(data))

    def finish(self) -> ChunkList:
        """The list of all bytes given; to be called once."""
        if self._cutter.begun:
            self._digests += self._cutter.cut()
        digest = self._digest or Digest("sha256", self._whole.hexdigest())
        return ChunkList(self._size, self._chunk_size, digest, bytes(self._digests))


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """A chunk that has arrived whole, and whether it is what the list says."""

    index: int
    is_right: bool


class ChunkVerifier:
    """Compares the bytes of a file with its list, in order and cut anywhere, from the start of chunk `index` on.

    IndexError unless 0 <= index <= count. Hashes inline: at most 64 KiB at a time on an event loop.
    """

    def __init__(self, chunks: ChunkList, index: int = 0) -> None:
        if not 0 <= index <= chunks.count:
            raise IndexError(f"chunk {index} of {chunks.count}")
        self._chunks = chunks
        self._cutter = _Cutter(chunks.chunk_size)
        self._index = index

    @property
    def offset(self) -> int:
        """Where in the file the next byte belongs."""
        return min(self._index * self._chunks.chunk_size, self._chunks.size) + self._cutter.begun

    def feed(self, data: Data) -> list[CheckedChunk]:
        """The chunks that are now complete, in order. ValueError for bytes behind the end of the file."""
        if self.offset + len(data) > self._chunks.size:
            raise ValueError("more bytes than the file has")
        found = [self._compare(digest) for digest in self._cutter.feed(data)]
        if self._cutter.begun and self.offset == self._chunks.size:
            found.append(self._compare(self._cutter.cut()))
        return found

    def _compare(self, digest: bytes) -> CheckedChunk:
        checked = CheckedChunk(self._index, self._chunks.matches(self._index, digest))
        self._index += 1
        return checked
