"""How records get the offsets that they had: every gap is filled with what committed readers never see."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_visa.archive.files import Frame
from mini_visa.archive.importing import FILLERS_MAX, RUN_RECORDS_MAX, steps


def frames(offsets: list[int]) -> list[Frame]:
    return [Frame(offset, 0, b"k", b"v", []) for offset in offsets]


def written(offsets: list[int], end: int) -> tuple[list[int], int]:
    """Where a log that does these steps has the frames, and where it ends."""
    at, found = 0, []
    for step in steps(iter(frames(offsets)), end):
        assert not (step.frames and step.aborted)
        assert step.marker or not step.aborted, "aborted records have a marker behind them"
        assert len(step.frames) <= RUN_RECORDS_MAX and step.aborted <= FILLERS_MAX
        if step.frames and step.frames[0].key == b"k":
            found += [(frame.offset, at + place) for place, frame in enumerate(step.frames)]
        at += step.offsets
    assert all(wanted == got for wanted, got in found)
    return [wanted for wanted, _ in found], at


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sets(st.integers(0, 300), max_size=60), st.integers(0, 40))
def test_every_record_gets_its_offset_and_the_log_its_end(offsets, behind):
    ordered = sorted(offsets)
    end = (ordered[-1] + 1 if ordered else 0) + behind
    assert written(ordered, end) == (ordered, end)


@settings(deadline=None)
@given(st.integers(0, 5 * FILLERS_MAX))
def test_long_gaps_never_leave_one_offset_over(first):
    assert written([first], first + 1) == ([first], first + 1)


def test_what_is_behind_the_end_is_left_out():
    assert written([0, 1, 5, 6], 6) == ([0, 1, 5], 6)


def test_a_transactions_marker_is_one_marker_and_not_aborted_records():
    (run, rest) = steps(iter(frames([0, 1, 3])), 4)
    assert (len(run.frames), run.marker, run.aborted) == (2, True, 0)
    assert (len(rest.frames), rest.marker) == (1, False)
