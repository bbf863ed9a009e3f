from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import InvalidDigest

A64, A128 = "a" * 64, "0f" * 64


@pytest.mark.parametrize("text", [f"sha256:{A64}", f"sha512:{A128}"])
def test_registered_digests(text: str) -> None:
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        A64,
        f"sha256:{A64[:-1]}",
        f"sha256:{A64}a",
        f"sha256:{A64[:-1]}g",
        f"sha256:{A64.upper()}",
        f"sha256:{A64[:-1]}\n",
        f"sha256:{A64}\n",
        f"sha256:{'١' * 64}",
        f"sha256: {A64[:-1]}",
        f"SHA256:{A64}",
        f" sha256:{A64}",
        f"sha256:{A128}",
        f"sha512:{A64}",
        f"sha384:{'a' * 96}",
        f"sha1:{'a' * 40}",
        f"md5:{'a' * 32}",
        f"blake3:{A64}",
        f"sha256+b64:{A64}",
        f"sha256::{A64[:-1]}",
        f"sha256:../{A64[:-3]}",
    ],
)
def test_everything_else_is_invalid(text: str) -> None:
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert caught.value.args == (text,)


@given(st.text())
def test_any_text_is_a_digest_or_invalid(text: str) -> None:
    with suppress(InvalidDigest):
        assert str(Digest.parse(text)) == text


@given(st.lists(st.binary()), st.sampled_from(["sha256", "sha512"]))
def test_running_hash_arrives_at_the_digest(pieces: list[bytes], algorithm: str) -> None:
    body = b"".join(pieces)
    digest = Digest.of(body, algorithm)
    assert digest.encoded == hashlib.new(algorithm, body).hexdigest()
    assert Digest.parse(str(digest)) == digest
    hasher = digest.hasher()
    for piece in pieces:
        hasher.update(piece)
    assert digest.matches(hasher)
    hasher.update(b"x")
    assert not digest.matches(hasher)
