"""The foreground: Otsu's threshold exactly, the side that lies in the middle, and splits that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import write_rgb
from torch import Tensor, nn

from flawscope.config import PatchcoreConfig, build_config
from flawscope.errors import DataError
from flawscope.progress import no_progress
from flawscope.training.detectors.patchcore import fit_patchcore
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.foreground import SEPARATION, measure_foreground, orient, otsu
from flawscope.training.features.patch_features import PatchFeatures


class Blocks(nn.Module):
    """One stage: the mean colour of 4 x 4 pixels."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(image, 4)]


def blocks() -> Backbone:
    return Backbone(Blocks(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def config(**chosen: object) -> PatchcoreConfig:
    plain = {"backbone": "blocks", "stages": [1], "resize": 40, "reweight": "none", "foreground": True}
    built, _ = build_config("patchcore", {**plain, **chosen})
    assert isinstance(built, PatchcoreConfig)
    return built


def write_parts(folder: Path, part: int, background: int, count: int = 4) -> list[Path]:
    """Write images of a bright or dark square in front of a background, each a little elsewhere, with noise."""
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        image = np.full((40, 40, 3), background, np.int64)
        y, x = generator.integers(6, 11, 2)
        image[y : y + 24, x : x + 24] = part
        image += generator.integers(-6, 7, image.shape)
        paths.append(folder / f"{number}.png")
        write_rgb(paths[-1], np.clip(image, 0, 255).astype(np.uint8))
    return paths


def test_the_threshold_of_two_groups_lies_between_them() -> None:
    split = otsu(np.array([1.0, 1.0, 2.0, 9.0, 10.0, 10.0]))
    assert (split.threshold, split.low, split.high) == (5.5, 4 / 3, 29 / 3)
    assert split.separation > 0.98
    assert otsu(np.full(5, 3.0)).separation == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=40))
def test_no_other_cut_leaves_less_variance_within(values: list[int]) -> None:
    found = np.sort(np.array(values, np.float64))
    split = otsu(found)
    if found.var() == 0:
        return

    def within(threshold: float) -> float:
        sides = (found[found <= threshold], found[found > threshold])
        return sum(float(((side - side.mean()) ** 2).sum()) for side in sides if len(side))

    least = min(within(threshold) for threshold in (found[:-1] + found[1:]) / 2)
    assert within(split.threshold) == pytest.approx(least, abs=1e-6)
    assert split.separation == pytest.approx(1 - least / ((found - found.mean()) ** 2).sum(), abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_side_in_the_middle_is_the_part(sign: int) -> None:
    maps = np.random.default_rng(0).normal(0, 0.1, (3, 10, 10))
    maps[:, 2:8, 3:7] += sign
    got, split = orient(maps)
    assert got == sign
    assert (split.low < 0.2, split.high > 0.8) == (True, True) if sign == 1 else (split.low < -0.8, split.high > -0.2)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("noise", np.random.default_rng(0).normal(size=(3, 10, 10))),
        ("even", np.random.default_rng(0).uniform(size=(3, 10, 10))),
        ("nothing", np.zeros((3, 10, 10))),
        ("corner", np.pad(np.ones((3, 2, 2)), ((0, 0), (0, 8), (0, 8)))),
    ],
)
def test_a_split_that_is_none_is_refused_with_its_figures(name: str, maps: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"foreground: expected patches in two groups, .* Set foreground=false\.$"):
        orient(maps)


def test_half_of_an_even_distribution_is_no_group() -> None:
    assert otsu(np.linspace(0, 1, 1001)).separation == pytest.approx(SEPARATION, abs=1e-3)


@pytest.mark.parametrize(("part", "background"), [(200, 40), (40, 200)])
def test_the_part_is_found_whether_bright_or_dark(tmp_path: Path, part: int, background: int) -> None:
    paths = write_parts(tmp_path, part, background)
    features = PatchFeatures(blocks(), pool=False, upsample="nearest")
    found = measure_foreground(features, (10, 10), paths, config(), no_progress)
    image = np.full((1, 40, 40, 3), background, np.uint8)
    image[0, 12:28, 8:24] = part
    shown = found.shown(features(torch.from_numpy(image))[0].numpy(), (10, 10)).reshape(10, 10)
    expected = np.zeros((10, 10), bool)
    expected[2:8, 1:7] = True  # the part and one patch around it
    np.testing.assert_array_equal(shown, expected)
    # Nothing of the part: everything counts.
    nothing = np.full((1, 40, 40, 3), background, np.uint8)
    assert found.shown(features(torch.from_numpy(nothing))[0].numpy(), (10, 10)).all()


def test_the_bank_holds_the_part_and_no_background(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, 200, 40)
    with_all = fit_patchcore(config(coreset=1.0, foreground=False), blocks(), paths, tmp_path, no_progress)
    fitted = fit_patchcore(config(coreset=1.0), blocks(), paths, tmp_path, no_progress)
    bank = fitted.tensors["bank"]
    assert {"bank", "foreground", "foreground_limits"} == set(fitted.tensors)
    assert fitted.facts["patches"] == len(bank)
    assert len(with_all.tensors["bank"]) == 400
    assert 4 * 6 * 6 < len(bank) <= 4 * 9 * 9  # averages of 3 x 3 patches and one around it reach beyond the part
    assert {row.tobytes() for row in bank} < {row.tobytes() for row in with_all.tensors["bank"]}
