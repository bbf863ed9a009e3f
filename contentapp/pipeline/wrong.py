"""What can be wrong with a body that has come."""

from __future__ import annotations

from contentapp.core.errors import ContentAppError, ContentUnavailable


class ExpectationOutdated(ContentUnavailable):
    """The metadata had changed upstream, so what was asked for is no longer what is wanted: resolve again."""


class WrongBytes(ContentAppError):
    """The body is not what the digest or the size says."""


class WrongSize(WrongBytes):
    """Not as long as a manifest or listing says. Either may be wrong, and whoever can publish a manifest can make it
    so: the pair (remote, artifact) and the remote must not cool for it.
    """


class WrongChunk(WrongBytes):
    """A chunk is not what a proven list says, at any source; what comes before it is right."""
