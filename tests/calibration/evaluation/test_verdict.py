"""The verdict: the worst problem gives it, and the next step is about that."""

from __future__ import annotations

import msgspec
import pytest
from judged_evaluations import small_evaluation

from flawscope.calibration import evaluate_bundle
from flawscope.calibration.evaluation.diagnosis import BOUND, EDGE
from flawscope.calibration.evaluation.evaluation_notes import SEEN_BEFORE
from flawscope.calibration.evaluation.figures import Fault
from flawscope.calibration.evaluation.intervals import Interval, rate
from flawscope.calibration.evaluation.verdict import verdict_of
from flawscope.datasets import open_dataset


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Figures of a bundle with nothing to find fault with."""
    found = small_evaluation(tmp_path_factory.mktemp("set")).figures
    confusion = msgspec.structs.replace(found.confusion, miss=rate(0, 200), false_reject=rate(2, 200))
    return msgspec.structs.replace(
        found,
        images=400,
        anomalous=200,
        image_auroc=0.99,
        intervals={"image_auroc": Interval(0.98, 1.0, 0.95)},
        confusion=confusion,
        diagnosis=(),
        notes=(),
        faults=(),
    )


def _with(figures, **changes):
    return msgspec.structs.replace(figures, **changes)


def _missed(figures, count, n=200):
    return _with(figures, confusion=msgspec.structs.replace(figures.confusion, miss=rate(count, n)))


def test_a_bundle_without_a_fault_is_ready_for_a_trial(figures):
    verdict = verdict_of(figures)
    assert (verdict.level, verdict.title) == ("good", "Ready for a trial")
    assert "It missed 0 of 200 defective parts and rejected 2 of 200 good ones." in verdict.text
    assert "at most 14% of the good parts" in verdict.text
    assert "flawscope bench" in verdict.step


@pytest.mark.parametrize(
    ("changes", "level", "title", "step"),
    [
        ({"latency_ms": None}, "bad", "Does not work", "doctor"),
        ({"image_auroc": 0.6}, "bad", "Does not work", "weights"),
        ({"intervals": {"image_auroc": Interval(0.2, 0.4, 0.95)}, "image_auroc": 0.3}, "bad", "Does not", "exchanged"),
        ({"anomalous": 0}, "care", "Half of it is measured", "test/DEFECT"),
        ({"anomalous": 400}, "care", "Half of it is measured", "test/good"),
        ({"confusion": None}, "care", "It decides nothing yet", "flawscope calibrate BUNDLE"),
        ({"faults": (Fault(image="a", reason="b"),)}, "care", "Not every image", "Faults"),
        ({"diagnosis": (f"bolt: {BOUND}: 9 of 10.",)}, "care", "It rejects more", "as they come now"),
        ({"diagnosis": (f"{EDGE}: 76 images.",)}, "care", "The threshold needs more images", "Collect more"),
        ({"notes": (f"3 {SEEN_BEFORE}.",)}, "care", "Tested on what it knows", "neither trained nor"),
    ],
)
def test_each_problem_has_its_verdict_and_its_next_step(figures, changes, level, title, step):
    verdict = verdict_of(_with(figures, **changes))
    assert verdict.level == level
    assert verdict.title.startswith(title)
    assert step in verdict.step


def _only(figures, kind):
    """Figures of which one kind was tested."""
    good, bad = (rate(2, 200), rate(0, 0)) if kind == "good" else (rate(0, 0), rate(3, 200))
    confusion = msgspec.structs.replace(figures.confusion, false_reject=good, miss=bad)
    count = 0 if kind == "good" else 200
    return _with(figures, images=200, anomalous=count, confusion=confusion, image_auroc=None, intervals={})


def test_of_good_parts_alone_it_says_what_was_rejected_and_how_many_defects_to_add(figures):
    verdict = verdict_of(_only(figures, "good"))
    assert verdict.text == (
        "It rejected 2 of 200 good parts; at most 3.1% with 95% confidence. "
        "How defective parts are judged is not known."
    )
    assert "29 without a miss show that at most 10% are missed" in verdict.step
    seen = f"3 {SEEN_BEFORE}."
    assert verdict_of(_with(_only(figures, "good"), notes=(seen,))).text.endswith(f" is not known. {seen}")


def test_of_defects_alone_it_says_what_was_missed(figures):
    verdict = verdict_of(_only(figures, "defective"))
    assert verdict.text == "It missed 3 of 200 defective parts. How good parts are judged is not known."
    assert "test/good" in verdict.step


def test_good_parts_alone_can_break_the_bound(figures):
    broken = _with(_only(figures, "good"), diagnosis=(f"{BOUND}: 90 of 200.",))
    assert verdict_of(broken).title == "It rejects more than it promises"
    undecided = _with(_only(figures, "good"), confusion=None)
    assert verdict_of(undecided).text == (
        "The bundle has no thresholds. "
        "All 200 test images show good parts: whether scores tell them apart is not known."
    )


def test_a_cross_fitted_threshold_at_the_edge_is_not_calibrated_on_images_that_were_learned(figures):
    threshold = msgspec.structs.replace(figures.confusion.image_threshold, guarantee="estimated")
    confusion = msgspec.structs.replace(figures.confusion, image_threshold=threshold)
    verdict = verdict_of(_with(figures, confusion=confusion, diagnosis=(f"{EDGE}: 64 images.",)))
    assert verdict.step == "Collect more images of good parts, and train again on all of them with --set cross_fit=20."


def test_what_does_not_work_comes_before_all_else(figures):
    worst = _with(_missed(figures, 100), image_auroc=0.5, faults=(Fault(image="a", reason="b"),))
    assert verdict_of(worst).title == "Does not work"


def test_few_defects_prove_little(figures):
    verdict = verdict_of(_missed(figures, 0, 8))
    assert verdict.title == "Promising, but little evidence"
    assert "at most 31.2% are missed" in verdict.text
    assert "29 without a miss" in verdict.step


def test_misses_that_another_threshold_would_find_say_at_which_one(make_bundle, dataset):
    # Good 71 to 80, spots 100 to 107: at 103 half of the spots are missed, and at the best F1 none of them.
    for index in range(4):
        (dataset.root / f"test/dull/{index}.png").unlink()
    dataset = open_dataset(dataset.root)
    figures = evaluate_bundle(make_bundle(threshold=103.0), dataset, command="c", resamples=50).figures
    assert figures.f1_threshold == 90.0
    verdict = verdict_of(figures)
    assert verdict.title == "It misses defects"
    assert "At 90, it would miss 0 and reject 0 of 10 good parts of these images." in verdict.step


def test_misses_that_no_threshold_finds_ask_for_another_detector(figures):
    # At the best F1 it would miss as many.
    verdict = verdict_of(_with(_missed(figures, 20), f1_threshold=1000.0))
    assert verdict.title == "It misses defects"
    assert "another method" in verdict.step
