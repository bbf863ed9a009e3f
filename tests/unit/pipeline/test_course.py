"""The course of a flight over its sources: failures, suspects, fresh starts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.records import ContentType, Remote, Source
from contentapp.pipeline.course import Course


def source(number: int) -> Source:
    remote = Remote(id=number, name=f"remote-{number}", type=ContentType.FILE, url=f"http://r{number}/")
    return Source(remote=remote, url=f"http://r{number}/file", path="file")


A, B, C, D = (source(number) for number in range(4))


def test_one_failure_after_the_other_uses_the_sources_up() -> None:
    course = Course([A, B, C])
    assert course.sources == [A, B, C]
    course.failed(B)  # A did not answer
    assert course.sources == [C]
    course.failed(C)
    assert course.sources == []
    assert not course.none_answered()


def test_suspects_are_tried_alone_and_the_first_right_one_convicts_the_others() -> None:
    course = Course([A, B, C, D])
    course.mixed([A, C])
    assert (course.is_alone, course.sources) == (True, [A])
    assert course.convicted(A) == [C]
    course.failed(A)
    assert course.sources == [C]
    assert course.convicted(C) == [A]
    course.failed(C)
    assert (course.is_alone, course.sources) == (False, [B, D])
    assert course.convicted(B) == []


def test_a_suspect_that_does_not_answer_is_passed_over() -> None:
    course = Course([A, B])
    course.mixed([A, B])
    assert course.none_answered()
    assert course.sources == [B]
    assert not course.none_answered()
    assert course.sources == []


def test_what_has_changed_is_begun_anew_once_then_comes_the_next() -> None:
    course = Course([A, B, C])
    course.changed(B)
    assert course.sources == [B, C]
    course.changed(B)
    assert course.sources == [C]
    course.changed(C)
    assert course.sources == []


def test_a_suspect_that_has_changed_is_begun_anew_once() -> None:
    course = Course([A, B])
    course.mixed([A, B])
    course.changed(A)
    assert course.sources == [A]
    course.changed(A)
    assert course.sources == [B]


@given(st.data())
def test_every_course_ends(data: st.DataObject) -> None:
    """Whatever happens: each source is begun with, suspected and tried alone at most once; one fresh start."""
    sources = [A, B, C, D][: data.draw(st.integers(1, 4))]
    course, attempts = Course(sources), 0
    while course.sources:
        attempts += 1
        assert attempts <= 3 * len(sources) + 1
        began = data.draw(st.sampled_from(course.sources))
        event = data.draw(st.sampled_from(["failed", "changed", "mixed", "none"]))
        if event == "mixed" and not course.is_alone:
            others = [other for other in sources if other is not began]
            course.mixed([began, *others[:1]])
        elif event == "changed":
            course.changed(began)
        elif event == "none" and not course.none_answered():
            break
        elif began in course.sources:
            course.failed(began)
