"""The drawn check: its figures, its verdict and its words."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from flawscope.drawn_check import (
    DrawnCheck,
    DrawnScores,
    advice_on,
    describe_check,
    pair_auroc,
    summarize_check,
    verdict_of,
)


def checked(normal: list[float], drawn: list[float], *, held_out: bool = True) -> DrawnCheck:
    bases = [index % len(normal) for index in range(len(drawn))]
    check = summarize_check(
        normal, [DrawnScores("spot", bases, drawn, [0.95] * len(drawn))], held_out=held_out, seconds=1.0
    )
    assert check is not None
    return check


@given(
    positive=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    negative=st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_the_area_is_that_of_scikit_learn_with_ties(positive: list[int], negative: list[int]) -> None:
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, [*positive, *negative])
    assert pair_auroc(np.array(positive, float), np.array(negative, float)) == pytest.approx(expected)
    assert checked([*map(float, negative)], [*map(float, positive)]).image_auroc == pytest.approx(expected)


@given(seed=st.integers(0, 2**32 - 1))
def test_an_interval_holds_its_value_and_stays_within_0_and_1(seed: int) -> None:
    random = np.random.default_rng(seed)
    check = checked(random.normal(size=12).tolist(), random.normal(0.5, size=48).tolist())
    assert 0.0 <= check.low <= check.image_auroc + 0.02
    assert check.image_auroc - 0.02 <= check.high <= 1.0


@given(seed=st.integers(0, 2**32 - 1))
def test_scores_of_pure_chance_are_called_near_chance(seed: int) -> None:
    random = np.random.default_rng(seed)
    assert checked(random.normal(size=20).tolist(), random.normal(size=96).tolist()).verdict == "near chance"


def test_verdicts_follow_their_rule() -> None:
    assert checked([1.0, 2.0, 3.0], [4.0] * 9).verdict == "told apart"
    assert verdict_of(0.95, 0.9, 0.95) == "told apart"
    assert verdict_of(0.8, 0.7, 0.95) == verdict_of(0.95, 0.9, 0.85) == "weak"
    assert verdict_of(0.69, 0.6, 0.95) == "near chance"
    assert verdict_of(0.95, 0.5, 0.95) == "near chance"
    # The map points elsewhere.
    assert verdict_of(0.95, 0.9, 0.74) == "near chance"
    # One normal image says nothing of how normal ones vary.
    assert checked([1.0], [4.0] * 9).verdict == "near chance"


def test_resampling_keeps_together_what_was_drawn_on_one_image() -> None:
    # Two of the normal images are easy and two are hopeless: drawing on one of them often adds no information.
    normal = [0.0, 0.0, 10.0, 10.0]
    drawn = [1.0, 1.0, 10.5, 10.5]
    few = summarize_check(normal, [DrawnScores("spot", [0, 1, 2, 3], drawn, [0.9] * 4)], held_out=True, seconds=0)
    many = summarize_check(
        normal, [DrawnScores("spot", [0, 1, 2, 3] * 50, drawn * 50, [0.9] * 200)], held_out=True, seconds=0
    )
    assert few is not None
    assert many is not None
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_without_images_of_both_kinds_there_is_no_check() -> None:
    assert summarize_check([], [DrawnScores("spot", [0], [1.0], [0.5])], held_out=True, seconds=0) is None
    assert summarize_check([1.0], [DrawnScores("spot", [], [], [])], held_out=True, seconds=0) is None


def test_the_line_says_where_the_images_are_from_and_what_is_weakest() -> None:
    good = describe_check(checked([1.0, 2.0, 3.0], [4.0] * 6))
    assert good.startswith("told apart: image AUROC 1.000")
    assert good.endswith("with 6 drawn defects on 3 normal images held out")
    learned = describe_check(checked([1.0, 2.0, 3.0], [0.0] * 6, held_out=False))
    assert learned.startswith("near chance: image AUROC 0.000")
    assert "that it learned from, which flatters it; weakest: spot 0.000" in learned


def test_advice_is_a_warning_near_chance_a_note_where_it_is_weak_and_none_otherwise() -> None:
    good = checked([1.0, 2.0, 3.0], [4.0] * 6)
    weak, bad = (msgspec.structs.replace(good, verdict=verdict) for verdict in ("weak", "near chance"))
    assert advice_on(good) is None
    assert str(advice_on(weak)).startswith("note: ")
    assert str(advice_on(bad)).startswith("warning: ")
    for check in (weak, bad):
        for word in ("weights", "mean, std and padding", "size of the input", "stages", "method"):
            assert word in str(advice_on(check))


def test_it_is_read_back_as_it_was_written() -> None:
    check = checked([1.0, 2.0, 3.0], [2.5] * 6)
    assert msgspec.json.decode(msgspec.json.encode(check), type=DrawnCheck) == check


@pytest.mark.parametrize(("drawn", "verdict"), [([9.0] * 6, "not judged"), ([0.0] * 6, "near chance")])
def test_images_that_were_learned_from_flatter_and_are_no_praise(drawn: list[float], verdict: str) -> None:
    assert checked([1.0, 2.0, 3.0], drawn, held_out=False).verdict == verdict
