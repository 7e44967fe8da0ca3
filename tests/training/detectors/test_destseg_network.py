"""DeSTSeg's networks, map, score and losses: shapes of any teacher, and figures by other ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flawscope.config import FeatureSettings
from flawscope.training.detectors.destseg_loss import segmentation_loss, student_loss
from flawscope.training.detectors.destseg_network import DestsegNetwork, DestsegNetworks, likeness
from flawscope.training.features.backbone import Backbone, stages_of, untrained_backbone
from flawscope.training.segmentation.evidence import evidence

YES, NO = torch.tensor([True]), torch.tensor([False])


def teacher_of(name: str, stages: tuple[int, ...] | None) -> Backbone:
    torch.manual_seed(0)
    return untrained_backbone(FeatureSettings(backbone=name, stages=stages))


def images(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8))


# --- the networks


@pytest.mark.parametrize(
    ("name", "stages", "size"),
    [
        ("mobilenetv2_035", (1, 2, 3), (64, 64)),
        ("mobilenetv2_035", (0, 4), (70, 90)),
        ("scattering", (1, 2), (48, 80)),
        ("scattering", (2,), (33, 47)),
        pytest.param("vit_tiny_patch16_224", None, (224, 224), marks=pytest.mark.long),
    ],
)
def test_the_student_has_the_stages_of_any_teacher(
    name: str, stages: tuple[int, ...] | None, size: tuple[int, int]
) -> None:
    teacher = teacher_of(name, stages)
    networks = DestsegNetworks(teacher, size, 8, 1, 8)
    batch = images(size)
    expected = teacher(batch)
    features, logits = networks(batch, expected)
    assert [stage.shape for stage in features] == [stage.shape for stage in expected]
    assert logits.shape == (2, 1, *expected[0].shape[-2:])
    maps, scores = DestsegNetwork(teacher, networks, size, 100)(batch)
    assert (maps.shape, scores.shape) == ((2, *size), (2,))


def test_no_gradient_of_the_head_reaches_student_or_teacher() -> None:
    teacher = teacher_of("mobilenetv2_035", (1, 2))
    networks = DestsegNetworks(teacher, (32, 32), 8, 1, 8)
    batch = images((32, 32))
    features, logits = networks(batch, teacher(batch))
    logits.sum().backward()
    assert all(parameter.grad is None for parameter in (*networks.student.parameters(), *teacher.parameters()))
    assert all(parameter.grad is not None for parameter in networks.head.parameters())
    sum(stage.sum() for stage in features).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in networks.student.parameters())


def test_likeness_sums_to_the_cosine_and_is_exact_on_small_integers() -> None:
    first = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    second = torch.tensor([4.0, 3.0]).reshape(1, 2, 1, 1)
    assert likeness([first], [second]).flatten().tolist() == pytest.approx([12 / 25, 12 / 25])
    draw = torch.Generator().manual_seed(0)
    fine, coarse = (
        [torch.randn((2, channels, side, side), generator=draw) for _ in range(2)]
        for channels, side in ((5, 8), (7, 4))
    )
    joined = likeness([fine[0], coarse[0]], [fine[1], coarse[1]])
    assert joined.shape == (2, 12, 8, 8)
    cosine = nn.functional.cosine_similarity(fine[0], fine[1], dim=1)
    torch.testing.assert_close(joined[:, :5].sum(dim=1), cosine)
    coarse_cosine = nn.functional.cosine_similarity(coarse[0], coarse[1], dim=1)[:, None]
    larger = nn.functional.interpolate(coarse_cosine, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(joined[:, 5:].sum(dim=1), larger[:, 0])


@pytest.mark.parametrize("top", [1, 7, 10_000])
def test_the_score_is_the_mean_of_the_highest_pixels_of_the_enlarged_map(top: int) -> None:
    teacher = teacher_of("scattering", (1, 2))
    networks = DestsegNetworks(teacher, (32, 40), 8, 1, 8)
    network = DestsegNetwork(teacher, networks, (32, 40), top)
    batch = images((32, 40))
    with torch.inference_mode():
        maps, scores = network(batch)
        logits = networks(batch, teacher(batch))[1]
    larger = nn.functional.interpolate(logits, size=(32, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps, evidence(larger)[:, 0])
    for anomaly_map, score in zip(maps.numpy(), scores, strict=True):
        assert float(score) == pytest.approx(np.sort(anomaly_map.ravel())[::-1][:top].mean(), rel=1e-5)


# --- the losses


def test_a_student_that_gives_the_teachers_features_has_no_loss_whatever_their_length() -> None:
    teacher = teacher_of("scattering", (1, 2))
    features = stages_of(teacher, (32, 32))
    labels = torch.zeros((1, 1, 32, 32), dtype=torch.bool)
    noisy = [stage + torch.randn(stage.shape, generator=torch.Generator().manual_seed(0)) for stage in features]
    assert float(student_loss(noisy, [3 * stage for stage in noisy], labels, YES)) == pytest.approx(0, abs=1e-5)
    # The cosine of opposite features is -1 at every position of both stages.
    assert float(student_loss(noisy, [-stage for stage in noisy], labels, YES)) == pytest.approx(4, abs=1e-5)


def test_without_a_pair_the_cells_that_the_label_reaches_do_not_count() -> None:
    expected, labels = torch.ones((1, 2, 4, 4)), torch.zeros((1, 1, 16, 16), dtype=torch.bool)
    labels[:, :, 3, 4] = True  # one pixel, in row 0, column 1 of the cells
    assert float(student_loss([expected], [-expected], labels, YES)) == pytest.approx(2)
    assert float(student_loss([expected], [-expected], labels, NO)) == pytest.approx(2 * 15 / 16)


def test_the_loss_of_the_head_is_the_focal_loss_and_the_whole_absolute_error() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((1, 1, 8, 8), generator=draw) - 3
    labels = torch.rand((1, 1, 8, 8), generator=draw) < 0.4
    own = torch.where(labels, logits.sigmoid(), 1 - logits.sigmoid())
    focal, error = -((1 - own) ** 4) * own.log(), (logits.sigmoid() - labels.float()).abs()
    torch.testing.assert_close(segmentation_loss(logits, labels, NO, 4.0, 0.1), focal.mean() + error.mean())
    counts = ~labels | (logits.sigmoid() > 0.1)
    weighted = (focal * counts).mean() + error.mean()
    torch.testing.assert_close(segmentation_loss(logits, labels, YES, 4.0, 0.1), weighted)
    torch.testing.assert_close(segmentation_loss(logits, labels, YES, 4.0, None), focal.mean() + error.mean())
