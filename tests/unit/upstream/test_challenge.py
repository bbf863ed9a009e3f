from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.errors import ChallengeInvalid
from contentapp.upstream.challenge import (
    BasicChallenge,
    BearerChallenge,
    Challenge,
    choose_challenge,
    parse_challenges,
)

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull"'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        (" , ", []),
        ("Basic", [Challenge("basic")]),
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        ('BASIC REALM = "x" , charset=UTF-8', [Challenge("basic", {"realm": "x", "charset": "UTF-8"})]),
        (r'Basic realm="a\"b\\c, d=e"', [Challenge("basic", {"realm": 'a"b\\c, d=e'})]),
        ("Negotiate abc/+==", [Challenge("negotiate")]),
        ("Negotiate, Basic", [Challenge("negotiate"), Challenge("basic")]),
        (
            'Newauth realm="apps", type=1, title="Login to \\"apps\\"", Basic realm="simple"',
            [
                Challenge("newauth", {"realm": "apps", "type": "1", "title": 'Login to "apps"'}),
                Challenge("basic", {"realm": "simple"}),
            ],
        ),
        ("Negotiate abc=, Basic realm=x", [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (
            'Bearer realm="r",scope="repository:a:pull,push repository:b:pull",error="invalid_token"',
            [
                Challenge(
                    "bearer",
                    {"realm": "r", "scope": "repository:a:pull,push repository:b:pull", "error": "invalid_token"},
                )
            ],
        ),
    ],
)
def test_grammar(value: str, expected: list[Challenge]) -> None:
    assert parse_challenges([value]) == expected


@pytest.mark.parametrize(
    "value",
    [
        'realm="x"',
        'Basic realm="x',
        'Bearer realm="a", realm="b"',
        'Bearer REALM="a", realm="b"',
        "Bearer realm=a/b:c",
        'Bearer realm="a" service="b"',
        "=",
        '"quoted"',
        "Bearer " + ", ".join(f"p{n}=v" for n in range(40)),
        ", ".join(f"Scheme{n}" for n in range(20)),
        "Bearer " + "x" * 20000,
        "Bäsic",
    ],
)
def test_what_breaks_grammar_or_bounds(value: str) -> None:
    with pytest.raises(ChallengeInvalid):
        choose_challenge([value])


@given(st.text(max_size=80), st.text(alphabet='Bearer= ,"\\realm\t/x', max_size=60))
def test_any_text_is_parsed_or_refused(first: str, second: str) -> None:
    for value in (first, second, f"Bearer {second}"):
        try:
            choose_challenge([value])
        except ChallengeInvalid:
            continue


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=50))
def test_every_quoted_string_comes_back(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_challenges([f'Basic realm="{quoted}", x=y']) == [Challenge("basic", {"realm": text, "x": "y"})]


def test_bearer() -> None:
    chosen = choose_challenge([HUB])
    assert isinstance(chosen, BearerChallenge)
    assert str(chosen.realm) == "https://auth.docker.io/token"
    assert (chosen.service, chosen.scope) == ("registry.docker.io", "repository:library/busybox:pull")


def test_bearer_comes_before_basic_in_whatever_order() -> None:
    assert isinstance(choose_challenge(['Basic realm="x"', HUB]), BearerChallenge)
    assert isinstance(choose_challenge([f'Basic realm="x", {HUB}']), BearerChallenge)


def test_basic_and_none() -> None:
    assert choose_challenge(["Negotiate", "Basic realm=x"]) == BasicChallenge()
    assert choose_challenge(["Negotiate"]) is None
    assert choose_challenge([]) is None


@pytest.mark.parametrize(
    "parameters",
    [
        'service="s"',
        'realm="/token"',
        'realm="ftp://h/"',
        'realm="file:///etc/passwd"',
        'realm="https://user:pass@h/"',
        'realm="https://h/' + "x" * 3000 + '"',
        'realm="https://h/",service="' + "s" * 600 + '"',
        'realm="https://h/",scope="' + "s" * 5000 + '"',
        'realm="https://h/",scope="ä"',
        'realm="https://h/",service="a\tb"',
    ],
)
def test_bearer_that_can_not_be_answered(parameters: str) -> None:
    with pytest.raises(ChallengeInvalid):
        choose_challenge([f"Bearer {parameters}"])
