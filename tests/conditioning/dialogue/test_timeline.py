"""Lines get their places, films their legal length, and the fill its level."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comfyui_happyhorse.conditioning.dialogue.document import Line
from comfyui_happyhorse.conditioning.dialogue.duration import Duration
from comfyui_happyhorse.conditioning.dialogue.timeline import Span, place
from comfyui_happyhorse.errors import GeometryError


def said(seconds, speaker="A", start=None, pause=None):
    """A line of this natural length."""
    duration = Duration(10.0 * bool(seconds), 0.0, seconds * 1.2, seconds, seconds * 0.8)
    return duration, Line(speaker, "English", "", start=start, pause=pause)


def test_lines_follow_with_lead_gap_turn_and_tail():
    timeline = place([said(1.0), said(2.0), said(1.5, "B")])
    assert [(span.start, span.end) for span in timeline.spans] == [
        (pytest.approx(0.30), pytest.approx(1.30)),
        (pytest.approx(1.65), pytest.approx(3.65)),
        (pytest.approx(4.15), pytest.approx(5.65)),
    ]
    # 5.65 + 0.40 = 6.05 s = 151.25 frames; the next 4k+1 is 153.
    assert (timeline.frames, timeline.seconds) == (153, 6.12)
    assert timeline.fill == pytest.approx(4.5 / 6.12)
    assert timeline.level == "good"
    assert timeline.spans[0] == Span(0, pytest.approx(0.3), pytest.approx(1.3), 1.2, 1.0, 0.8)


def test_a_film_that_just_fits_is_not_a_step_longer():
    """4.34 + 0.30 + 0.40 s are 126 frames in floats a hair more than 5.04; legal is 129, and 5.00 s is 125."""
    assert place([said(4.30)]).frames == 125
    assert place([said(4.31)]).frames == 129


def test_pauses_and_starts_are_kept():
    timeline = place([said(1.0, pause=2.0), said(1.0, start=5.0), said(1.0, "B", pause=3.0)])
    assert [span.start for span in timeline.spans] == [pytest.approx(0.3), 5.0, pytest.approx(6.5)]
    assert timeline.seconds >= 7.5 + 3.0
    assert place([said(1.0, pause=2.0), said(1.0)]).spans[1].start == pytest.approx(3.3)
    assert place([said(1.0, start=-1.0)]).spans[0].start == 0.0


def test_overlaps_and_outside_are_named():
    timeline = place(
        [said(3.0), said(1.0, "B", start=1.0), said(1.0, "B", start=2.5), said(1.0, "C", start=9.9)],
        frames=249,
    )
    assert timeline.overlaps == ((0, 1), (0, 2))
    assert timeline.outside == (3,)
    assert timeline.level == "over"


@pytest.mark.parametrize(
    ("seconds", "frames", "level"),
    [
        (2.24, 125, "under"),
        (2.26, 125, "good"),
        (3.99, 125, "good"),
        (4.01, 125, "tight"),
        (4.30, 125, "tight"),
        (4.80, 125, "over"),  # ends at 5.10 of 5.00
        (19.1, 501, "over"),  # 19.1 of 20.04 s is 95.3 %
        (0.0, 125, "good"),
    ],
)
def test_levels(seconds, frames, level):
    assert place([said(seconds)], frames=frames).level == level


def test_a_last_word_close_to_the_end_is_tight():
    assert place([said(3.0, start=1.0)], frames=125).level == "good"
    assert place([said(3.0, start=1.75)], frames=125).level == "tight"


def test_no_lines():
    timeline = place([])
    assert (timeline.frames, timeline.spans, timeline.fill, timeline.level) == (13, (), 0.0, "good")


def test_an_illegal_length_is_refused():
    with pytest.raises(GeometryError, match="counts are 4k"):
        place([said(1.0)], frames=124)


LINES = st.lists(
    st.builds(
        said,
        st.floats(0, 20),
        st.sampled_from("AB"),
        st.none() | st.floats(0, 30),
        st.none() | st.floats(0, 5),
    ),
    max_size=8,
)


@given(LINES)
@settings(max_examples=60, deadline=None)
def test_an_automatic_film_is_legal_and_holds_everything(lines):
    timeline = place(lines)
    assert timeline.frames % 4 == 1
    assert timeline.outside == ()
    assert timeline.seconds == timeline.frames / 25
    end = max((span.end for span in timeline.spans if span.natural), default=0)
    assert timeline.seconds >= end + 0.4 - 1e-3
    for (duration, line), span in zip(lines, timeline.spans, strict=True):
        assert span.end - span.start == pytest.approx(duration.natural)
        assert line.start is None or span.start == line.start
