"""The table of all images: its margins give the report's own counts, and its previews keep to their budget."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged_evaluations import by_product, small_evaluation, with_zones, without_thresholds

from flawscope.calibration import evaluate_bundle
from flawscope.calibration.evaluation import report_galleries, report_table
from flawscope.calibration.evaluation.report import render_report
from flawscope.calibration.evaluation.report_table import dials_of, image_table, make_previews
from flawscope.datasets import open_dataset
from flawscope.imaging.png import encode_png
from flawscope.progress import no_progress


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return small_evaluation(tmp_path_factory.mktemp("set"))


def _counts(rows, shift=0.0):
    """Count misses and false rejects as the page does."""
    rejected = [any(margin > shift for _, margin in json.loads(row.margins)) for row in rows]
    is_fault = [row.margins == "[]" for row in rows]
    return (
        sum(row.is_anomalous and not no and not fault for row, no, fault in zip(rows, rejected, is_fault, strict=True)),
        sum(not row.is_anomalous and (no or fault) for row, no, fault in zip(rows, rejected, is_fault, strict=True)),
    )


@pytest.mark.parametrize("change", [lambda same: same, with_zones, by_product], ids=["common", "zones", "products"])
def test_margins_give_the_counts_of_the_report(evaluation, change):
    evaluation = change(evaluation)
    table = image_table(evaluation, lambda *_: "", no_progress)
    confusion = evaluation.figures.confusion
    assert _counts(table.rows) == (confusion.miss.count, confusion.false_reject.count)
    assert confusion.false_reject.count > 1  # the fault is one
    # Wrong ones first: a page without script is read from the top.
    outcomes = [row.outcome for row in table.rows]
    assert outcomes == sorted(outcomes, key=["miss", "false reject", "fault", "correct"].index)
    assert outcomes.count("miss") == confusion.miss.count


def test_a_score_at_its_threshold_is_accepted(evaluation):
    _, margins = dials_of(evaluation)
    at = [row for row, found in enumerate(margins) if found and found[0][1] == 0.0]
    assert [float(evaluation.measured.scores[row]) for row in at] == [75.0]
    assert [evaluation.measured.outcomes[row].decision for row in at] == ["accept"]


@given(score=st.floats(width=32, allow_nan=False, allow_infinity=False), threshold=st.floats(-1e30, 1e30))
def test_a_margin_is_above_zero_exactly_where_the_score_is_above_its_threshold(score, threshold):
    assert (score - threshold > 0) == (score > threshold)


def test_each_zone_and_product_has_a_threshold_of_its_own_to_move(evaluation):
    zones, margins = dials_of(with_zones(evaluation))
    assert [(dial.name, dial.value) for dial in zones] == [("core", 62.5), ("rim <b>", 78.0)]
    assert {len(found) for found in margins} == {0, 2}
    products, margins = dials_of(by_product(evaluation))
    assert [(dial.name, dial.value) for dial in products] == [("a", 73.0), ("b", 78.0)]
    assert {which for found in margins for which, _ in found} == {0, 1}
    assert all(dial.low <= dial.value <= dial.high for dial in (*zones, *products))


def test_without_thresholds_the_page_begins_at_the_best_f1(evaluation):
    bare = without_thresholds(evaluation)
    (dial,), _ = dials_of(bare)
    assert (dial.name, dial.value) == ("", bare.figures.f1_threshold)
    table = image_table(bare, lambda *_: "", no_progress)
    assert not table.has_thresholds
    assert {(row.decision, row.outcome) for row in table.rows} == {("", "")}


def test_where_nothing_was_scored_there_is_no_threshold_to_move(make_bundle, dataset):
    nothing = make_bundle(threshold=75.0, rule=lambda image: np.full(image.shape[:2], np.nan, np.float32))
    table = image_table(evaluate_bundle(nothing, dataset, command="c", resamples=50), lambda *_: "", no_progress)
    assert (table.dials, table.moved_by, table.without_preview) == ("", "", 22)
    assert {row.score for row in table.rows} == {None}


def test_previews_are_as_large_as_the_budget_allows():
    def draw(row, side, quality):
        return "x" * (side * side // 8)

    few = make_previews(range(10), draw, no_progress)
    many = make_previews(range(1000), draw, no_progress)
    assert len(next(iter(few.values()))) == 480 * 480 // 8
    assert len(many) == 1000
    assert 100 < len(next(iter(many.values()))) < len(next(iter(few.values())))
    for found in (few, many):
        assert sum(map(len, found.values())) <= report_table._BUDGET


def test_where_not_all_previews_fit_the_last_rows_have_none():
    found = make_previews([3, 1, 2, 0], lambda row, side, quality: "x" * 400, no_progress, budget=1000)
    assert list(found) == [3, 1]


def test_an_image_that_could_not_be_scored_has_no_preview_and_the_others_have():
    found = make_previews([0, 1, 2], lambda row, side, quality: "" if row == 1 else "x", no_progress)
    assert sorted(found) == [0, 2]


def test_cards_are_drawn_smaller_where_they_would_be_too_heavy():
    def draw(side, quality):
        return ["x" * (side * side)] * 6

    assert {len(card) for card in report_galleries.within_budget(draw, len)} == {320 * 320}
    assert [len(card) for card in report_galleries.within_budget(lambda side, _: ["x" * side], len)] == [480]


@pytest.mark.slow
def test_a_report_of_a_thousand_images_stays_below_three_megabytes(make_bundle, tmp_path):
    # Noise: no image weighs more.
    rng, root = np.random.default_rng(0), tmp_path / "noise"
    for folder, count in (("train/good", 1), ("test/good", 500), ("test/spot", 500)):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 256, (64, 64, 3), np.uint8)
            (root / folder / f"{index}.png").write_bytes(encode_png(image))
    evaluation = evaluate_bundle(make_bundle(threshold=254.0), open_dataset(root), command="c", resamples=50)
    text = render_report(evaluation)
    assert text.count("<tr data-row=") == 1000
    assert text.count('alt="Image and map of') > 900
    assert len(text.encode()) < 3_000_000
