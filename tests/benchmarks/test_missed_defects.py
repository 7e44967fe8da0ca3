"""The script that counts missed defects: thresholds, what is left out, and sums over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_scripts import load_script
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = load_script("missed_defects")


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_the_threshold_of_a_share_rejects_no_more_and_the_next_lower_score_would(values: list[int], share: float):
    normal = np.array(values, np.float64)
    threshold = SCRIPT.threshold_of_share(normal, share)
    assert (normal > threshold).mean() <= share + 1e-12
    if len(lower := normal[normal < threshold]):
        assert (normal > lower.max()).mean() > share - 1e-12


def test_only_images_that_nobody_has_seen_are_counted() -> None:
    scores = np.array([1.0, 2.0, 9.0, 1.5, 3.0, 0.5])
    types = ["good", "good", "good", "crack", "crack", "break"]
    normal = np.array([True, True, True, False, False, False])
    used = np.array([True, True, False, True, True, True])
    counts = SCRIPT.count(scores, types, normal, used, own=1.5, share=0.5)
    assert (counts.normal, counts.false_rejects) == (2, 1)
    # At half of the normal images rejected the threshold is 1; a score at a threshold is not above it.
    assert counts.defects["crack"] == {"images": 2, "missed": 1, "missed_at_share": 0, "auroc": 0.75}
    assert counts.defects["break"] == {"images": 1, "missed": 1, "missed_at_share": 1, "auroc": 0.0}


def test_seeds_are_summed() -> None:
    one = SCRIPT.Counts(10, 1, {"crack": {"images": 4, "missed": 1, "missed_at_share": 2, "auroc": 0.5}})
    two = SCRIPT.Counts(10, 2, {"crack": {"images": 4, "missed": 3, "missed_at_share": 1, "auroc": 0.7}})
    row = SCRIPT.summed([one, two])
    assert (row["seeds"], row["normal"], row["false_rejects"]) == (2, 20, 3)
    assert row["defects"]["crack"] == pytest.approx({"images": 8, "missed": 4, "missed_at_share": 3, "auroc": 0.6})
