"""Course: which sources the next attempt of a flight may use (P2, P3's suspects). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from contentapp.core.records import Source


class Course:
    """The sources of a flight in their order, as attempt after attempt uses them up.

    When several sources contributed to a wrong whole, nothing tells whose bytes were wrong: they become suspects, and
    are tried alone, from byte 0, one after the other. The first that brings the right bytes clears itself and convicts
    the others.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._left = list(sources)
        self._suspects: list[Source] = []
        self._mixed: list[Source] = []
        self._has_restarted = False

    @property
    def sources(self) -> list[Source]:
        """Those that the next attempt may begin with; none: the flight is over."""
        return self._suspects[:1] or self._left

    @property
    def suspects(self) -> list[str]:
        """The URLs of all that contributed to a wrong whole, as long as one of them is still to be tried alone."""
        return [source.url for source in self._mixed] if self._suspects else []

    @property
    def is_alone(self) -> bool:
        """Whether the next attempt must not go over to another source."""
        return bool(self._suspects)

    def failed(self, source: Source) -> None:
        """An attempt that began with this source came to nothing; those before it were passed over just now."""
        if self._suspects:
            self._suspects.pop(0)
        else:
            self._left = self._left[self._left.index(source) + 1 :]

    def prefer(self, source: Source) -> None:
        """The next attempt begins with this one."""
        self._left = [source, *(other for other in self._left if other is not source)]

    def none_answered(self) -> bool:
        """No source that the attempt might have begun with did answer; whether there are others to try."""
        if self._suspects:
            self._suspects.pop(0)
            return bool(self.sources)
        return False

    def changed(self, source: Source) -> None:
        """What the source has is not what it had: begin anew with it, but only once, then with the next one."""
        if self._has_restarted:
            self.failed(source)
        elif not self._suspects:
            self._left = self._left[self._left.index(source) :]
        self._has_restarted = True

    def mixed(self, contributors: Sequence[Source]) -> None:
        """A whole to which these, more than one, contributed was wrong."""
        self._mixed = list(contributors)
        self._suspects = list(contributors)
        urls = {source.url for source in contributors}
        self._left = [source for source in self._left if source.url not in urls]

    def cleared(self) -> None:
        """The right bytes have come: nobody is suspected any more."""
        self._suspects = []

    def convicted(self, source: Source) -> list[Source]:
        """Those whose bytes must have been wrong, now that this source's alone were right."""
        if not self._suspects:
            return []
        return [other for other in self._mixed if other.url != source.url]
