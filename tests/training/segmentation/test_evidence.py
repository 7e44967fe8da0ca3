"""The map of logits: the formula, never negative, never falling, the logit itself where a defect is sure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flawscope.training.segmentation.evidence import SOFTNESS, evidence


@given(logit=st.floats(-60, 60))
def test_it_is_the_formula(logit: float) -> None:
    expected = SOFTNESS * math.log1p(math.exp(logit / SOFTNESS))
    assert float(evidence(torch.tensor(logit, dtype=torch.float64))) == pytest.approx(expected, rel=1e-9)


@given(first=st.floats(-80, 1e6, width=32), step=st.floats(0.0009765625, 1000, width=32))
def test_a_higher_logit_never_has_a_lower_map_and_none_is_negative(first: float, step: float) -> None:
    low, high = evidence(torch.tensor([first, first + step])).tolist()
    assert 0 < low <= high < math.inf


def test_even_odds_and_certainty() -> None:
    assert evidence(torch.tensor([0.0, 1000.0])).tolist() == pytest.approx([SOFTNESS * math.log(2), 1000.0])
