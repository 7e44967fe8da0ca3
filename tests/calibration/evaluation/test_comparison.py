"""Two bundles on the same images: differences, intervals, which is better, and what the command does with two."""

from __future__ import annotations

import dataclasses
import shutil

import msgspec
import numpy as np
import pytest

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.calibration import evaluate_bundle
from flawscope.calibration.evaluation import comparison_report
from flawscope.calibration.evaluation.comparison import compare_evaluations, comparison_verdict
from flawscope.calibration.evaluation.comparison_report import OUTCOMES, render_comparison
from flawscope.calibration.evaluation.figures import Change
from flawscope.calibration.evaluation.intervals import Interval
from flawscope.datasets import open_dataset
from flawscope.errors import DataError


def _evaluated(make_bundle, dataset, **options):
    return evaluate_bundle(make_bundle(**options), dataset, command="c", resamples=200)


def _darkness(image):
    """Dull spots, which are dark, have the highest scores."""
    return 150 - image.mean(axis=2, dtype=np.float32)


@pytest.fixture
def pair(make_bundle, dataset):
    """A finds bright spots and not the dull ones, B the dull ones and not the spots; good ones are accepted by both."""
    first = _evaluated(make_bundle, dataset, threshold=85.0)
    return compare_evaluations(first, _evaluated(make_bundle, dataset, threshold=100.0, rule=_darkness))


def test_differences_are_those_of_the_figures_and_have_intervals(pair):
    comparison = pair.comparison
    a, b = pair.first.figures, pair.second.figures
    assert comparison.images == 22
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap"):
        change = comparison.figures[name]
        assert (change.before, change.after) == pytest.approx((getattr(a, name), getattr(b, name)))
        assert abs(change.change - (change.interval.low + change.interval.high) / 2) < 0.2
    found = comparison.figures["recall"]
    assert (found.before, found.after) == pytest.approx((1 - a.confusion.miss.value, 1 - b.confusion.miss.value))
    assert found.interval.low < found.interval.high
    assert comparison.changed.count == sum(comparison.decisions.values()) == len(comparison.moved)
    assert comparison.moved["test/dull/0.png"] == "accept to reject"


def test_the_same_bundle_twice_shows_no_difference(make_bundle, dataset):
    same = _evaluated(make_bundle, dataset, threshold=85.0)
    comparison = compare_evaluations(same, same).comparison
    assert {change.change for change in comparison.figures.values()} == {0.0}
    assert comparison.moved == {}
    assert comparison.notes == ()
    assert comparison_verdict(comparison).title == "No difference is shown"


def _with(comparison, **figures):
    changes = {
        name: Change(before=0.5, after=0.5, change=0.0, interval=Interval(low, high, 0.95))
        for name, (low, high) in figures.items()
    }
    return msgspec.structs.replace(comparison, figures=changes)


@pytest.mark.parametrize(
    ("figures", "title"),
    [
        ({"image_auroc": (0.01, 0.1)}, "B is better"),
        ({"recall": (-0.2, -0.1)}, "A is better"),
        # Fewer false rejects are better.
        ({"false_rejects": (-0.2, -0.1), "recall": (-0.1, 0.1)}, "B is better"),
        ({"false_rejects": (0.1, 0.2), "recall": (0.1, 0.2)}, "Each is better at something"),
        ({"image_auroc": (-0.1, 0.1), "pixel_ap": (0.1, 0.2)}, "No difference is shown"),
        ({"image_auroc": (0.0, 0.1)}, "No difference is shown"),
    ],
)
def test_the_better_one_is_named_where_intervals_say_so(pair, figures, title):
    assert comparison_verdict(_with(pair.comparison, **figures)).title == title


def test_of_one_kind_of_image_alone_none_is_called_better(make_bundle, dataset):
    for name in ("spot", "dull"):
        shutil.rmtree(dataset.root / "test" / name)
    good = open_dataset(dataset.root)
    # B accepts whatever comes: of good parts alone it looks better.
    first, second = (_evaluated(make_bundle, good, threshold=threshold) for threshold in (71.0, 1e9))
    pair = compare_evaluations(first, second)
    assert pair.comparison.figures["false_rejects"].interval.high < 0
    verdict = comparison_verdict(pair.comparison)
    assert (verdict.level, verdict.title) == ("care", "Half of it is compared")
    assert "which of the two is better with defective ones is not known" in verdict.text
    page = render_comparison(pair)
    assert "of 10 good parts rejected" in page
    for word in ("defects missed", "true defect", "image AUROC –"):
        assert word not in page


@pytest.mark.slow
def test_a_bundle_without_thresholds_is_compared_by_its_ranking(make_bundle, dataset):
    first = _evaluated(make_bundle, dataset)
    pair = compare_evaluations(first, _evaluated(make_bundle, dataset, threshold=85.0))
    assert pair.comparison.changed is None
    assert "recall" not in pair.comparison.figures
    assert "Bundle A has no thresholds: decisions are not compared." in pair.comparison.notes
    text = render_comparison(pair)
    assert "decisions are not compared" in text
    assert 'id="worth"' not in text


def test_other_promises_and_a_fault_are_said(make_bundle, dataset, nan_rule):
    first = _evaluated(make_bundle, dataset, threshold=85.0)
    second = _evaluated(make_bundle, dataset, threshold=85.0, rule=nan_rule)
    image = msgspec.structs.replace(second.figures.confusion.image_threshold, upper_bound=0.5)
    confusion = msgspec.structs.replace(second.figures.confusion, image_threshold=image)
    changed = msgspec.structs.replace(second.figures, confusion=confusion)
    pair = compare_evaluations(first, dataclasses.replace(second, figures=changed))
    assert any("A at most 14%, B at most 50%" in note for note in pair.comparison.notes)
    # The three brightest spots are faults for B: stopped on a line, so found.
    assert [result.score for result in pair.second.figures.per_image].count(None) == 3
    judged = [comparison_report._outcome(pair, row, row) for row in range(22)]
    assert judged.count("both correct") == 10 + 8


def test_images_of_one_side_alone_are_left_out(make_bundle, dataset):
    first = _evaluated(make_bundle, dataset, threshold=85.0)
    (dataset.root / "test/good/0.png").unlink()
    fewer = open_dataset(dataset.root)
    comparison = compare_evaluations(first, _evaluated(make_bundle, fewer, threshold=85.0)).comparison
    assert (comparison.images, comparison.only_first, comparison.only_second) == (21, 1, 0)
    assert "21 images count for both bundles" in comparison.notes[0]
    shutil.rmtree(dataset.root / "test")
    (dataset.root / "test/good").mkdir(parents=True)
    shutil.copy(dataset.root / "train/good/40.png", dataset.root / "test/good/x.png")
    other = _evaluated(make_bundle, open_dataset(dataset.root), threshold=85.0)
    with pytest.raises(DataError, match="expected images that count for both bundles, got none"):
        compare_evaluations(first, other)


@pytest.mark.slow
def test_the_page_shows_every_image_once_and_what_each_alone_judged_correctly(pair):
    text = render_comparison(pair)
    outcomes = {outcome: text.count(f'data-outcome="{outcome}"') for outcome in OUTCOMES}
    assert sum(outcomes.values()) == 22
    a = pair.first.measured
    found = [row for row, sample in enumerate(a.samples) if sample.defect == "spot"]
    assert outcomes["A alone correct"] >= len(found)
    assert f"A alone correct (6 of {outcomes['A alone correct']})" in text


def test_the_command_compares_two_bundles(make_bundle, dataset, tmp_path, read_json, capsys):
    first = make_bundle(threshold=85.0).rename(tmp_path / "first.flaw")
    second = make_bundle(threshold=103.0)
    given = ["evaluate", str(first), str(second), "--data", str(dataset.root)]
    given += ["--json", str(tmp_path / "c.json"), "--report", str(tmp_path / "out")]
    assert cli.run(given) == 0
    out, err = capsys.readouterr()
    assert "A: part-padim on part: 22 images, 12 anomalous" in out
    assert "B minus A" in out
    assert "other decisions: 4 of 22 (5.2% to 40.3%): 4 reject to accept" in out
    assert "verdict: A is better." in out
    assert "diagnosis of A: Near chance" in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]
    written = read_json(tmp_path / "c.json")
    assert written["figures"]["recall"]["change"] == pytest.approx(-4 / 12)
    assert written["first"]["confusion"]["miss"]["count"] == 4
    for path in (first, second):
        with open_bundle(path) as bundle:
            assert len(bundle.manifest.evidence.accuracy) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--against", "x.json"], "--against x.json: expected one bundle with it, got two"),
        (["--threshold-overlay", "x.json"], "--threshold-overlay x.json: expected one bundle with it, got two"),
    ],
)
def test_what_is_of_one_bundle_is_refused_with_two(make_bundle, dataset, tmp_path, capsys, more, message):
    path = make_bundle(threshold=85.0)
    other = path.parent / "other.flaw"
    shutil.copytree(path, other)
    assert cli.run(["evaluate", str(path), str(other), "--data", str(dataset.root), *more]) == 2
    assert message in capsys.readouterr().err
    assert cli.run(["evaluate", str(path), str(path), "--data", str(dataset.root)]) == 2
    assert "expected a second bundle, got the first again" in capsys.readouterr().err
