"""WWW-Authenticate (RFC 9110 §11.6.1), and which of its challenges we can answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from yarl import URL

from contentapp.core.errors import ChallengeInvalid
from contentapp.upstream.target import parse_target

MAX_SIZE = 16 * 1024  # of all fields together
MAX_CHALLENGES = 16
MAX_PARAMETERS = 32
MAX_REALM = 2048
MAX_SERVICE = 512
MAX_SCOPE = 4096

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105
SEPARATORS = re.compile(r"[ \t,]*")
SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)[ \t]*")
PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")(?=[ \t]*(?:,|$))')
TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
ESCAPE = re.compile(r"\\(.)")
VISIBLE = re.compile(r"[ -~]*")


@dataclass(slots=True)
class Challenge:
    """One challenge as it was sent; scheme and names of parameters in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BearerChallenge:
    """Where to get a token (distribution's token spec)."""

    realm: URL
    service: str
    scope: str


@dataclass(frozen=True, slots=True)
class BasicChallenge:
    """User name and password are wanted (RFC 7617)."""


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """All challenges of all fields; ChallengeInvalid for what breaks the grammar or the bounds."""
    if sum(map(len, values)) > MAX_SIZE:
        raise ChallengeInvalid("WWW-Authenticate is too long")
    found = [challenge for value in values for challenge in _challenges(value)]
    if len(found) > MAX_CHALLENGES:
        raise ChallengeInvalid("WWW-Authenticate holds too many challenges")
    return found


def _challenges(value: str) -> Iterator[Challenge]:
    current: Challenge | None = None
    position = _skip(value, 0)
    while position < len(value):
        # Within a list only the "=" tells a parameter of this challenge from the next challenge.
        if current is not None and (match := PARAMETER.match(value, position)):
            _add(current, match)
        elif match := SCHEME.match(value, position):
            if current is not None:
                yield current
            current = Challenge(match[1].lower())
            if not PARAMETER.match(value, match.end()) and (blob := TOKEN68.match(value, match.end())):
                match = blob if match[0][-1:] in {" ", "\t"} else match
        else:
            raise ChallengeInvalid("WWW-Authenticate is malformed")
        position = _skip(value, match.end())
    if current is not None:
        yield current


def _skip(value: str, position: int) -> int:
    match = SEPARATORS.match(value, position)
    return match.end() if match else position


def _add(challenge: Challenge, match: re.Match[str]) -> None:
    name = match[1].lower()
    if name in challenge.parameters or len(challenge.parameters) >= MAX_PARAMETERS:
        raise ChallengeInvalid("WWW-Authenticate repeats a parameter or has too many")
    challenge.parameters[name] = match[2] if match[2] is not None else ESCAPE.sub(r"\1", match[3])


def choose_challenge(values: Sequence[str]) -> BearerChallenge | BasicChallenge | None:
    """The challenge to answer: a Bearer one before Basic, None if neither is there.

    ChallengeInvalid when the header breaks its grammar, or the only one we know can't be answered safely.
    """
    by_scheme: dict[str, Challenge] = {}
    for challenge in parse_challenges(values):
        by_scheme.setdefault(challenge.scheme, challenge)
    if "bearer" in by_scheme:
        return _bearer(by_scheme["bearer"].parameters)
    return BasicChallenge() if "basic" in by_scheme else None


def _bearer(parameters: Mapping[str, str]) -> BearerChallenge:
    realm, service = parameters.get("realm", ""), parameters.get("service", "")
    scope = parameters.get("scope", "")
    if len(realm) > MAX_REALM or len(service) > MAX_SERVICE or len(scope) > MAX_SCOPE:
        raise ChallengeInvalid("the Bearer challenge is too long")
    if not VISIBLE.fullmatch(realm + service + scope):
        raise ChallengeInvalid("the Bearer challenge holds odd characters")
    try:
        return BearerChallenge(parse_target(realm), service, scope)
    except ValueError:
        raise ChallengeInvalid("the Bearer challenge has no usable realm") from None
