"""Patches from stages: pooling, up-sampling, the choice of channels, and scale or whitening."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dataset import training_images, write_rgb
from torch import Tensor, nn

from flawscope.config import PadimConfig, build_config
from flawscope.errors import ArgumentError, DataError
from flawscope.progress import no_progress
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_extraction import iterate_patches, measure_transform
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.features.whitening import FLOOR
from flawscope.training.loop.image_batches import load_batches


class Ladder(nn.Module):
    """Two stages by plain averaging: 3 channels at half size, then 6 at a quarter."""

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = nn.functional.avg_pool2d(image, 2)
        coarse = nn.functional.avg_pool2d(image, 4)
        return [fine, torch.cat([coarse, 2 * coarse], dim=1)]


def ladder() -> Backbone:
    return Backbone(Ladder(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def images(count: int = 2, side: int = 8, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    return torch.from_numpy(values)


def test_an_image_is_normalised_by_mean_and_deviation_of_its_channels() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            seen.append(image)
            return [image]

    image = images(1)
    Backbone(Spy(), mean, std)(image)
    expected = (image.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    torch.testing.assert_close(seen[0].double(), expected, atol=2e-6, rtol=0)
    assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_patches_are_one_row_per_position_of_the_finest_stage(pool: bool, upsample: str) -> None:
    features = PatchFeatures(ladder(), pool=pool, upsample=upsample)
    patches = features(images())
    assert patches.shape == (2, 16, 9)
    assert patches.dtype == torch.float32
    assert features.layout((8, 8)) == ((4, 4), 9)


def test_without_pooling_and_with_nearest_the_rows_are_the_stages_own_values() -> None:
    image = images(1)
    fine, coarse = ladder()(image)
    patches = PatchFeatures(ladder(), pool=False, upsample="nearest")(image)[0].reshape(4, 4, 9)
    for y in range(4):
        for x in range(4):
            assert torch.equal(patches[y, x, :3], fine[0, :, y, x])
            assert torch.equal(patches[y, x, 3:], coarse[0, :, y // 2, x // 2])


def test_pooling_is_the_mean_of_nine_with_zeros_beyond_the_border() -> None:
    image = images(1)
    fine = ladder()(image)[0][0]
    patches = PatchFeatures(ladder(), pool=True, upsample="nearest")(image)[0].reshape(4, 4, 9)
    padded = torch.zeros((3, 6, 6))
    padded[:, 1:5, 1:5] = fine
    for y, x in ((0, 0), (1, 2), (3, 3)):
        expected = padded[:, y : y + 3, x : x + 3].sum(dim=(1, 2)) / 9
        torch.testing.assert_close(patches[y, x, :3], expected, atol=1e-6, rtol=1e-6)


def test_bilinear_means_half_pixel_centres() -> None:
    image = images(1)
    coarse = ladder()(image)[1][0]
    patches = PatchFeatures(ladder(), pool=False, upsample="bilinear")(image)[0].reshape(4, 4, 9)
    torch.testing.assert_close(patches[0, 0, 3:], coarse[:, 0, 0], atol=1e-6, rtol=1e-6)  # edges are repeated
    expected = (0.75 * 0.75) * coarse[:, 0, 0] + (0.25 * 0.75) * (coarse[:, 0, 1] + coarse[:, 1, 0])
    expected += (0.25 * 0.25) * coarse[:, 1, 1]
    torch.testing.assert_close(patches[1, 1, 3:], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [(0,), (8,), (1, 2), (3, 7), (0, 2, 3, 8), tuple(range(9))])
def test_choosing_channels_equals_slicing_the_full_output(upsample: str, channels: tuple[int, ...]) -> None:
    image = images()
    full = PatchFeatures(ladder(), pool=True, upsample=upsample)(image)
    chosen = PatchFeatures(ladder(), pool=True, upsample=upsample, channels=channels)(image)
    assert torch.equal(chosen, full[..., list(channels)])


def test_layers_kept_apart_are_each_transformed_and_made_unit_length_alone() -> None:
    image = images()
    matrix = torch.block_diag(torch.rand(3, 2) + 1, torch.rand(6, 4) + 1)
    plain = PatchFeatures(ladder(), pool=True, upsample="bilinear")(image)
    for unit in (False, True):
        apart = PatchFeatures(
            ladder(), pool=True, upsample="bilinear", transform=matrix, unit=unit, layer_widths=(3, 6)
        )
        assert apart.widths((8, 8)) == (2, 4)
        first, second = plain[..., :3] @ matrix[:3, :2], plain[..., 3:] @ matrix[3:, 2:]
        if unit:
            first, second = (layer / layer.norm(dim=2, keepdim=True) for layer in (first, second))
        torch.testing.assert_close(apart(image), torch.cat([first, second], dim=2))


def test_layers_kept_apart_have_factors_of_their_own() -> None:
    image, factors = images(), torch.arange(1.0, 10.0)
    apart = PatchFeatures(ladder(), pool=True, upsample="nearest", transform=factors, layer_widths=(3, 6))
    joined = PatchFeatures(ladder(), pool=True, upsample="nearest", transform=factors)
    torch.testing.assert_close(apart(image), joined(image))
    plain = PatchFeatures(ladder(), pool=True, upsample="nearest", layer_widths=(3, 6))
    assert torch.equal(plain(image), PatchFeatures(ladder(), pool=True, upsample="nearest")(image))
    assert plain.widths((8, 8)) == (3, 6)
    assert joined.widths((8, 8)) == (9,)


def test_dropping_every_channel_of_the_finest_stage_keeps_its_grid() -> None:
    image = images(1)
    patches = PatchFeatures(ladder(), pool=False, upsample="nearest", channels=(4,))(image)
    assert patches.shape == (1, 16, 1)


def test_the_scale_multiplies_every_channel() -> None:
    image = images()
    scale = torch.tensor([1.0, 2.0, 0.5, 0.0, 4.0, 1.0, 1.0, 1.0, 8.0])
    plain = PatchFeatures(ladder(), pool=True, upsample="nearest")(image)
    scaled = PatchFeatures(ladder(), pool=True, upsample="nearest", transform=scale)(image)
    assert torch.equal(scaled, plain * scale)


def test_a_matrix_is_multiplied_from_the_right() -> None:
    image = images()
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 9)).astype(np.float32))
    plain = PatchFeatures(ladder(), pool=True, upsample="nearest")(image)
    turned = PatchFeatures(ladder(), pool=True, upsample="nearest", transform=matrix)(image)
    torch.testing.assert_close(turned.double(), plain.double() @ matrix.double(), atol=1e-4, rtol=1e-5)


def test_an_image_scores_the_same_alone_and_in_a_batch() -> None:
    image = images(3)
    features = PatchFeatures(ladder(), pool=True, upsample="bilinear")
    together = features(image)
    for index in range(3):
        torch.testing.assert_close(features(image[index : index + 1])[0], together[index], atol=1e-6, rtol=1e-6)


def scattering_config(**settings: object) -> PadimConfig:
    config, _ = build_config("padim", {"resize": 64, "stages": [1], "channels": 5, **settings})
    assert isinstance(config, PadimConfig)
    return config


def test_standardised_channels_have_unit_deviation_over_the_training_patches(tiny_root: Path) -> None:
    config = scattering_config()
    backbone, _ = build_backbone(config.features, None)
    paths = training_images(tiny_root)
    features = PatchFeatures(backbone, pool=False, upsample="nearest")
    scale = measure_transform(features, paths, config, no_progress)
    assert scale is not None
    scaled = PatchFeatures(backbone, pool=False, upsample="nearest", transform=scale)
    patches = torch.cat(list(iterate_patches(scaled, paths, config, "reading", no_progress))).flatten(0, 1).double()
    raw = torch.cat(list(iterate_patches(features, paths, config, "reading", no_progress))).flatten(0, 1).double()
    moving = raw.std(dim=0) > 1e-3 * raw.std(dim=0).max()
    assert int(moving.sum()) >= 20
    torch.testing.assert_close(
        patches.std(dim=0, correction=0)[moving], torch.ones(int(moving.sum())).double(), atol=1e-3, rtol=0
    )


def test_a_channel_that_never_moves_is_not_blown_up(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths = []
    for index in range(4):  # grey images: the opponent colours are exactly or nearly constant
        grey = generator.integers(0, 256, (64, 64, 1), np.uint8)
        paths.append(write_rgb(tmp_path / f"{index}.png", np.repeat(grey, 3, axis=2)))
    config = scattering_config()
    backbone, _ = build_backbone(config.features, None)
    scale = measure_transform(PatchFeatures(backbone, pool=False, upsample="nearest"), paths, config, no_progress)
    assert scale is not None
    assert bool(torch.isfinite(scale).all())
    assert float(scale.max() / scale.min()) <= 1001  # the floor is a thousandth of the liveliest channel
    scaled = PatchFeatures(backbone, pool=False, upsample="nearest", transform=scale)
    (patches,) = iterate_patches(scaled, paths, config, "reading", no_progress)
    assert float(patches[..., 1:3].std()) < 1e-2


def test_whitened_channels_are_uncorrelated_with_deviations_of_one_above_the_floor(tiny_root: Path) -> None:
    config = scattering_config(standardize="whiten")
    backbone, _ = build_backbone(config.features, None)
    paths = training_images(tiny_root)
    features = PatchFeatures(backbone, pool=True, upsample="nearest")
    matrix = measure_transform(features, paths, config, no_progress)
    assert matrix is not None
    assert matrix.shape == (75, 75)
    raw = torch.cat(list(iterate_patches(features, paths, config, "reading", no_progress))).flatten(0, 1)
    variances = np.linalg.eigvalsh(np.cov(raw.double().numpy(), rowvar=False, bias=True))
    expected = np.diag(variances / (variances + FLOOR * variances.max()))
    whitened = PatchFeatures(backbone, pool=True, upsample="nearest", transform=matrix)
    patches = torch.cat(list(iterate_patches(whitened, paths, config, "reading", no_progress))).flatten(0, 1)
    covariance = np.cov(patches.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, expected, atol=1e-2)
    assert np.median(np.diag(covariance)) > 0.5


@pytest.mark.parametrize("standardize", ["scale", "whiten"])
def test_images_without_any_variation_give_a_finite_transform(tmp_path: Path, standardize: str) -> None:
    paths = [write_rgb(tmp_path / f"{index}.png", np.full((64, 64, 3), 128, np.uint8)) for index in range(2)]
    config = scattering_config(standardize=standardize)
    backbone, _ = build_backbone(config.features, None)
    transform = measure_transform(PatchFeatures(backbone, pool=False, upsample="nearest"), paths, config, no_progress)
    assert transform is not None
    assert bool(torch.isfinite(transform).all())


@pytest.mark.parametrize(
    ("method", "backbone", "standardize", "ndim"),
    [
        ("padim", "scattering", "auto", 1),
        ("patchcore", "scattering", "auto", 2),
        ("padim", "resnet18", "auto", None),
        ("patchcore", "resnet18", "auto", None),
        ("patchcore", "scattering", "scale", 1),
        ("padim", "resnet18", "whiten", 2),
        ("patchcore", "resnet18", "scale", 1),
        ("patchcore", "scattering", "none", None),
    ],
)
def test_auto_standardises_scattering_alone(
    tiny_root: Path, method: str, backbone: str, standardize: str, ndim: int | None
) -> None:
    config, _ = build_config(method, {"backbone": backbone, "standardize": standardize, "resize": 64})
    features = PatchFeatures(ladder(), pool=False, upsample="nearest")
    transform = measure_transform(features, training_images(tiny_root)[:2], config, no_progress)
    assert (None if transform is None else transform.ndim) == ndim


def test_nan_from_the_network_names_an_image(tiny_root: Path) -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image * float("nan")]

    features = PatchFeatures(Backbone(Broken(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), pool=False, upsample="nearest")
    paths = training_images(tiny_root)[:3]
    with pytest.raises(
        DataError, match=re.escape(f"features: expected finite numbers, got NaN or infinity in one of {paths[0]}")
    ):
        list(iterate_patches(features, paths, scattering_config(), "reading", no_progress))


def test_images_too_small_for_the_stages_are_one_sentence() -> None:
    config, _ = build_config("padim", {"resize": 16, "stages": [1, 2, 3]})
    backbone, _ = build_backbone(config.features, None)
    with pytest.raises(
        ArgumentError, match=r"image size: expected one that .* got 16x16 pixels .* larger --image-size"
    ):
        PatchFeatures(backbone, pool=False, upsample="nearest").layout((16, 16))


@pytest.mark.parametrize("batch_size", [1, 3, 24, 50])
def test_batches_hold_every_image_once_and_in_order(tiny_root: Path, batch_size: int) -> None:
    paths = training_images(tiny_root)
    config = scattering_config()
    batches = list(load_batches(paths, config.preprocessing, batch_size, 2))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    expected = np.concatenate(list(load_batches(paths, config.preprocessing, len(paths), 1)))
    np.testing.assert_array_equal(np.concatenate(batches), expected)
