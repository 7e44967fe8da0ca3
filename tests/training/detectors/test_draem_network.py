"""DRAEM's networks, map, score and loss: exact where numbers are small, and against other ways to the same figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flawscope.training.detectors.draem_loss import draem_loss
from flawscope.training.detectors.draem_network import DraemNetwork, DraemNetworks, UNet, pixels_of
from flawscope.training.segmentation.evidence import evidence
from flawscope.training.segmentation.ssim import ssim


class Given(nn.Module):
    """Stands for both networks: the logits are those it was given, whatever the image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels, self.logits


# --- the networks


@given(
    sides=st.tuples(st.integers(16, 45), st.integers(16, 45)),
    width=st.integers(1, 5),
    depth=st.integers(1, 4),
    skips=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_any_sides_come_back_as_they_were(sides: tuple[int, int], width: int, depth: int, skips: bool) -> None:
    network = UNet(3, 2, width, depth, skips=skips).eval()
    with torch.inference_mode():
        assert network(torch.rand((2, 3, *sides))).shape == (2, 2, *sides)


def test_channels_double_up_to_eight_times_the_width() -> None:
    network = UNet(3, 3, 4, 4, skips=False)
    assert [block[0][0].out_channels for block in network.down] == [4, 8, 16, 32, 32]  # type: ignore[index, union-attr]


def test_what_rebuilds_sees_the_image_by_its_bottleneck_alone() -> None:
    """A change of one pixel reaches everything that the coarsest cell reaches, not that pixel by itself."""
    torch.manual_seed(0)
    image = torch.rand((1, 3, 32, 32))
    spot = image.clone()
    spot[:, :, 5, 5] = 1 - spot[:, :, 5, 5]

    def sharpness(skips: bool) -> float:
        torch.manual_seed(1)
        network = UNet(3, 1, 4, 4, skips=skips).eval()
        with torch.inference_mode():
            change = (network(image) - network(spot)).abs()[0, 0]
        return float(change.max() / change.mean())

    assert sharpness(False) < 10 < sharpness(True)


def test_the_logit_is_the_difference_of_two_classes() -> None:
    torch.manual_seed(0)
    networks = DraemNetworks(2, 1, 2, 1).eval()
    pixels = torch.rand((2, 3, 8, 8))
    with torch.inference_mode():
        rebuilt, logits = networks(pixels)
        classes = networks.segmentation(torch.cat([rebuilt, pixels], dim=1))
    assert (rebuilt.shape, logits.shape) == ((2, 3, 8, 8), (2, 1, 8, 8))
    torch.testing.assert_close(logits.sigmoid(), classes.softmax(dim=1)[:, 1:])


def test_pixels_are_shares_of_white() -> None:
    image = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(pixels_of(image)[0, :, 0, 0], torch.tensor([0.0, 0.2, 1.0]))


# --- map and score


@given(
    seed=st.integers(0, 1000),
    sides=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    window=st.sampled_from([1, 3, 21]),
)
@settings(max_examples=30, deadline=None)
def test_the_score_is_the_largest_mean_of_a_window_cut_at_the_border(
    seed: int, sides: tuple[int, int], window: int
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).integers(-3, 9, (2, 1, *sides)).astype(np.float32))
    maps, scores = DraemNetwork(Given(logits), window)(torch.zeros((2, *sides, 3), dtype=torch.uint8))  # type: ignore[arg-type]
    torch.testing.assert_close(maps, evidence(logits)[:, 0])
    half = window // 2
    for anomaly_map, score in zip(maps.numpy().astype(np.float64), scores, strict=True):
        means = [
            anomaly_map[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1].mean()
            for row in range(sides[0])
            for column in range(sides[1])
        ]
        assert float(score) == pytest.approx(max(means), rel=1e-5)


# --- the loss


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    rebuilt, clean = (torch.rand((2, 3, 16, 16), generator=draw) for _ in range(2))
    labels = torch.zeros((2, 1, 16, 16), dtype=torch.bool)
    labels[:, :, 4:9, 4:9] = True
    return rebuilt, torch.randn((2, 1, 16, 16), generator=draw), clean, labels


YES, NO = torch.tensor([True, True]), torch.tensor([False, False])


def test_a_paired_image_is_compared_as_a_whole_and_the_focal_loss_is_the_published_one() -> None:
    rebuilt, logits, clean, labels = batch()
    loss = draem_loss(rebuilt, logits, clean, labels, is_paired=YES, is_coarse=NO, gamma=2.0, tau=0.1)
    probability = torch.where(labels, logits.sigmoid(), 1 - logits.sigmoid())
    focal = (-((1 - probability) ** 2) * probability.log()).mean()
    expected = (rebuilt - clean).square().mean() + 1 - ssim(rebuilt, clean).mean() + focal
    torch.testing.assert_close(loss, expected)


def test_without_a_pair_what_is_rebuilt_inside_the_label_is_taken_as_right() -> None:
    rebuilt, logits, clean, labels = batch()
    rebuilt.requires_grad_(True)
    loss = draem_loss(rebuilt, logits, clean, labels, is_paired=NO, is_coarse=NO, gamma=2.0, tau=0.1)
    other = torch.where(labels, torch.rand_like(clean), clean)  # what lies there is never looked at
    again = draem_loss(rebuilt, logits, other, labels, is_paired=NO, is_coarse=NO, gamma=2.0, tau=0.1)
    assert float(loss.detach()) == float(again.detach())
    paired = draem_loss(rebuilt, logits, clean, labels, is_paired=YES, is_coarse=NO, gamma=2.0, tau=0.1)
    assert float(paired.detach()) > float(loss.detach()) + 0.01


def test_a_box_counts_where_the_network_sees_a_defect_in_it() -> None:
    rebuilt, logits, clean, labels = batch()
    logits = torch.where(logits > 0.5, logits, torch.full_like(logits, -9.0))  # sure of being normal, or not
    fine, coarse = (
        draem_loss(rebuilt, logits, clean, labels, is_paired=YES, is_coarse=mark, gamma=2.0, tau=0.1)
        for mark in (NO, YES)
    )
    ignored = labels & (logits < 0)
    missing = (1 - logits.sigmoid()) ** 2 * -logits.sigmoid().log()
    torch.testing.assert_close(fine - coarse, missing[ignored].sum() / logits.numel())
