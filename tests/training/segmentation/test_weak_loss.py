"""The loss for coarse labels: exact weights and values on a few pixels, and gradients where a pixel does not count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flawscope.training.segmentation.weak_loss import TAU, focal_loss, weak_focal_loss, weak_weights

YES, NO = True, False


def image(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows)[None, None]


def test_a_pixel_counts_outside_the_box_and_inside_only_above_the_threshold() -> None:
    probabilities = torch.tensor([[0.0, 0.05, 0.1, 0.1001, 1.0], [0.0, 0.05, 0.1, 0.1001, 1.0]])
    labels = torch.tensor([[NO] * 5, [YES] * 5])
    assert weak_weights(probabilities, labels, TAU).tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]


def test_at_the_lowest_threshold_only_a_certain_good_pixel_is_left_out_and_at_the_highest_the_whole_box() -> None:
    probabilities, labels = torch.tensor([0.0, 1e-6, 1.0]), torch.tensor([YES, YES, YES])
    assert weak_weights(probabilities, labels, 0.0).tolist() == [0, 1, 1]
    assert weak_weights(probabilities, labels, 1.0).tolist() == [0, 0, 0]


def test_without_an_exponent_the_focal_loss_is_the_cross_entropy() -> None:
    logits, labels = torch.tensor([0.0, 0.0, 2.0, -3.0]), torch.tensor([YES, NO, YES, YES])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    torch.testing.assert_close(focal_loss(logits, labels, 0.0), expected)


def test_the_focal_loss_at_even_odds_is_exactly_log_2_over_a_power_of_two() -> None:
    logits, labels = torch.zeros(2), torch.tensor([YES, NO])
    for gamma in (0, 1, 2, 4):
        assert focal_loss(logits, labels, gamma).tolist() == pytest.approx([math.log(2) / 2**gamma] * 2, rel=1e-6)


@given(logit=st.floats(-30, 30), label=st.booleans(), gamma=st.floats(0, 5))
def test_the_focal_loss_is_the_formula_of_the_paper_and_symmetric_in_the_two_labels(
    logit: float, label: bool, gamma: float
) -> None:
    of_label, of_other = (1 / (1 + math.exp(sign * (logit if label else -logit))) for sign in (-1, 1))
    expected = of_other**gamma * -math.log(of_label)
    loss = focal_loss(torch.tensor([logit], dtype=torch.float64), torch.tensor([label]), gamma)
    mirrored = focal_loss(torch.tensor([-logit], dtype=torch.float64), torch.tensor([not label]), gamma)
    assert float(loss) == pytest.approx(expected, rel=1e-6, abs=1e-12)  # the logarithm loses digits near 1
    assert float(mirrored) == float(loss)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 4.0])
def test_the_focal_loss_and_its_gradient_stay_finite_for_logits_no_float_can_hold_the_odds_of(gamma: float) -> None:
    logits = torch.tensor([-500.0, -500.0, 500.0, 500.0, 0.0], requires_grad=True)
    losses = focal_loss(logits, torch.tensor([YES, NO, YES, NO, YES]), gamma)
    losses.sum().backward()
    assert losses.tolist()[:4] == pytest.approx([500.0, 0.0, 0.0, 500.0])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[[0, 3]].tolist() == pytest.approx([-1.0, 1.0])


def test_pixels_of_weight_0_get_no_gradient_and_all_others_the_same_as_without_weights() -> None:
    sure_good, unsure, sure_bad = -6.0, 0.0, 6.0
    rows = [[sure_good, unsure, sure_bad], [sure_good, unsure, sure_bad]]
    labels = torch.tensor([[YES, YES, YES], [NO, NO, NO]])[None, None]
    coarse = torch.tensor([True])
    gradients = []
    for tau in (TAU, None):
        logits = image(rows).requires_grad_(True)
        weak_focal_loss(logits, labels, coarse, 2.0, tau).backward()
        assert logits.grad is not None
        gradients.append(logits.grad[0, 0])
    weak, full = gradients
    assert weak[0, 0] == 0.0 != full[0, 0]
    counted = torch.tensor([[NO, YES, YES], [YES, YES, YES]])
    torch.testing.assert_close(weak[counted], full[counted], rtol=0, atol=0)


def test_pixels_of_weight_0_stay_in_the_denominator() -> None:
    logits = image([[-20.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[[[YES, NO, NO, NO]]]])
    loss = weak_focal_loss(logits, labels, torch.tensor([True]), 0.0, TAU)
    assert float(loss) == pytest.approx(3 * math.log(2) / 4, rel=1e-6)


def test_real_outlines_count_in_full_beside_boxes_in_one_batch() -> None:
    logits = torch.full((2, 1, 1, 1), -20.0, requires_grad=True)
    labels = torch.ones((2, 1, 1, 1), dtype=torch.bool)
    weak_focal_loss(logits, labels, torch.tensor([True, False]), 0.0, TAU).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([0.0, -0.5])


def test_no_gradient_flows_through_the_weights() -> None:
    probabilities = torch.tensor([0.2, 0.05], requires_grad=True)
    assert not weak_weights(probabilities, torch.tensor([YES, YES]), TAU).requires_grad
