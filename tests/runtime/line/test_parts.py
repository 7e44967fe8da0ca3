"""Records of parts cannot say two things."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.runtime.line.parts import REASON_CODES, VERDICT_CODES, PartRecord, ViewRecord, worst_view

VERDICTS = ("accept", "reject", "fault")


def view(verdict: str, score: float | None = 1.0, threshold: float | None = 2.0) -> ViewRecord:
    return ViewRecord("cam0", verdict, "inference" if verdict == "fault" else "", score=score, threshold=threshold)


def part(verdict: str, reason: str, views: tuple[ViewRecord, ...]) -> PartRecord:
    return PartRecord(1, "top", "", "2026-01-01T00:00:00.000Z", 0, "", 1, verdict, reason, views=views)


@pytest.mark.parametrize(("verdict", "reason"), [("fault", ""), ("accept", "scene"), ("reject", "deadline")])
def test_a_reason_is_of_faults_alone(verdict: str, reason: str) -> None:
    with pytest.raises(ValueError, match="expected a reason for a fault alone"):
        part(verdict, reason, (view("accept"),))


@pytest.mark.parametrize(("verdict", "worst"), list(itertools.product(VERDICTS, VERDICTS)))
def test_a_part_is_no_better_than_its_worst_view(verdict: str, worst: str) -> None:
    reason = "inference" if verdict == "fault" else ""
    if VERDICTS.index(verdict) < VERDICTS.index(worst):
        with pytest.raises(ValueError, match="no better than its worst view"):
            part(verdict, reason, (view("accept"), view(worst)))
    else:
        assert part(verdict, reason, (view("accept"), view(worst))).verdict == verdict


def test_nothing_that_was_not_seen_is_accepted() -> None:
    with pytest.raises(ValueError, match="expected a view of an accepted part"):
        part("accept", "", ())


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6))
def test_the_worst_view_is_the_worst(rows: list[tuple[str, float, float]]) -> None:
    views = tuple(view(*row) for row in rows)
    worst = worst_view(views)
    assert VERDICTS.index(worst.verdict) == max(VERDICTS.index(verdict) for verdict, _, _ in rows)


def test_codes_of_registers_stay() -> None:
    assert VERDICT_CODES == {"accept": 1, "reject": 2, "fault": 3}
    assert list(REASON_CODES.items())[:4] == [("", 0), ("overrun", 1), ("deadline", 2), ("missing_view", 3)]
    assert REASON_CODES["stopped"] == 15
