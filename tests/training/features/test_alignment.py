"""Where feature stages lie: measured on networks whose geometry is known, and undone when stages are joined."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flawscope.config import build_config
from flawscope.imaging.grid_places import GridPlaces, centred_places
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.training.features.alignment import StageAlignment, measure_places
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_features import PatchFeatures


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of one axis: the padding before it decides where its values lie."""

    kernel: int
    stride: int
    before: int

    def place(self, start: float, step: float) -> tuple[float, float]:
        """Return start and step of its output, for those of its input: the middle of the pixels that it looks at."""
        return start + step * ((self.kernel - 1) / 2 - self.before), step * self.stride


class Pyramid(nn.Module):
    """Stages by convolutions with filters that are alike at each tap, so that their geometry alone moves features."""

    def __init__(self, stages: list[list[tuple[Layer, Layer]]], seed: int = 0) -> None:
        super().__init__()
        self.stages = stages
        self.generator = torch.Generator().manual_seed(seed)
        self.mixes = [
            [self._mix(3 if (number, at) == (0, 0) else 4) for at in range(len(stage))]
            for number, stage in enumerate(stages)
        ]

    def _mix(self, channels: int) -> Tensor:
        # Small whole numbers, so that equal windows give equal sums to the last bit.
        return torch.randint(1, 4, (4, channels, 1, 1), generator=self.generator).float()

    def forward(self, image: Tensor) -> list[Tensor]:
        results, values = [], image
        for stage, mixes in zip(self.stages, self.mixes, strict=True):
            for (rows, columns), mix in zip(stage, mixes, strict=True):
                after = rows.kernel - 1 - rows.before, columns.kernel - 1 - columns.before
                padded = nn.functional.pad(values, (columns.before, after[1], rows.before, after[0]))
                values = nn.functional.conv2d(
                    padded, mix.expand(-1, -1, rows.kernel, columns.kernel), stride=(rows.stride, columns.stride)
                )
            results.append(values)
        return results

    def places(self) -> list[GridPlaces]:
        """Return where the stages lie, from the geometry of the layers."""
        found, at = [], [(0.0, 1.0), (0.0, 1.0)]
        for stage in self.stages:
            for layer in stage:
                at = [axis.place(*before) for axis, before in zip(layer, at, strict=True)]
            found.append(GridPlaces((at[0][0], at[1][0]), (at[0][1], at[1][1])))
        return found


def backbone_of(network: nn.Module) -> Backbone:
    # Pixels from 0 to 255 as they are: whole numbers stay whole.
    return Backbone(network, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


@st.composite
def layers(draw: st.DrawFn, stride: int) -> tuple[Layer, Layer]:
    """Draw a convolution whose padding may differ between axes and sides."""
    axes = []
    for _ in range(2):
        kernel = draw(st.integers(stride, 4))
        axes.append(Layer(kernel, stride, draw(st.integers(0, kernel - 1))))
    return axes[0], axes[1]


@st.composite
def pyramids(draw: st.DrawFn) -> Pyramid:
    """Draw two or three stages; the first has stride 2 or 4, each further one twice that of the one before it."""
    first = [draw(layers(2)), *([draw(layers(2))] if draw(st.booleans()) else []), draw(layers(1))]
    coarser = [[draw(layers(2))] for _ in range(draw(st.integers(1, 2)))]
    return Pyramid([first, *coarser], draw(st.integers(0, 100)))


@settings(deadline=None, max_examples=15)
@given(pyramids(), st.sampled_from([(96, 96), (64, 128), (90, 101)]))
def test_the_measured_places_are_those_of_the_geometry(network: Pyramid, size: tuple[int, int]) -> None:
    measured = measure_places(backbone_of(network), size)
    assert measured.places is not None, measured.note
    for found, expected in zip(measured.places, network.places(), strict=True):
        assert found.step == expected.step
        for axis in (0, 1):
            # Rounding to positions is spread evenly over 32 impulses, and cancels to far below a position.
            assert abs(found.start[axis] - expected.start[axis]) <= 0.1 * expected.step[axis]


@settings(deadline=None, max_examples=15)
@given(pyramids(), st.sampled_from(["nearest", "bilinear"]), st.integers(0, 1), st.data())
def test_a_shifted_image_gives_a_shifted_map_and_an_impulse_is_drawn_where_it_is(
    network: Pyramid, upsample: str, axis: int, data: st.DataObject
) -> None:
    size, places = (128, 128), network.places()
    grids = [(int(each.shape[-2]), int(each.shape[-1])) for each in backbone_of(network)(torch.zeros((1, *size, 3)))]
    alignment = StageAlignment(places, grids, upsample)
    features = PatchFeatures(backbone_of(network), pool=False, upsample=upsample, alignment=alignment)
    strides = [int(each.step[axis]) for each in places]
    place = [data.draw(st.integers(56, 70)), data.draw(st.integers(56, 70))]
    image = np.zeros((2, *size, 3), np.uint8)
    image[0, place[0], place[1]] = 200
    moved = list(place)
    moved[axis] += strides[-1]  # the coarsest stride: every stage then moves by whole positions
    image[1, moved[0], moved[1]] = 200
    patches = features(torch.from_numpy(image)).reshape(2, *grids[0], -1).double()
    by = strides[-1] // strides[0]
    inner = patches[0].roll(by, dims=axis)[4:-4, 4:-4]
    torch.testing.assert_close(inner, patches[1][4:-4, 4:-4], rtol=1e-5, atol=1e-3)

    distances = patches[0].sum(dim=-1).numpy()
    rows, columns = map_matrices(grids[0], size, 0.0, places[0])
    drawn = rows @ distances @ columns
    total = drawn.sum()
    centre = np.array([drawn.sum(axis=1) @ np.arange(128), drawn.sum(axis=0) @ np.arange(128)]) / total
    # What is left is the rounding to positions: half a stride of the coarsest stage, and nearest neighbours another
    # half of the finest one.
    assert np.abs(centre - place).max() <= 0.5 * max(max(each.step) for each in places) + 0.5 * max(places[0].step)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    st.sampled_from([1.5, 2.0, 4.0]),
)
def test_a_ramp_over_the_image_is_the_same_ramp_on_the_finest_grid(
    fine_start: tuple[float, float], coarse_start: tuple[float, float], ratio: float
) -> None:
    fine, coarse = GridPlaces(fine_start, (4.0, 4.0)), GridPlaces(coarse_start, (4.0 * ratio, 4.0 * ratio))
    grids = [(24, 32), (int(24 / ratio), int(32 / ratio))]

    def ramp(places: GridPlaces, grid: tuple[int, int]) -> Tensor:
        down, right = (places.start[axis] + places.step[axis] * torch.arange(grid[axis]) for axis in (0, 1))
        return (3 * down[:, None] - 2 * right[None, :])[None, None].float()

    patches = StageAlignment([fine, coarse], grids, "bilinear")(ramp(coarse, grids[1]), 1)
    got = patches.transpose(1, 2).unflatten(2, grids[0])
    # Beyond the outermost positions of the coarse stage its edge is repeated.
    margin = int(4 * ratio)
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    torch.testing.assert_close(got[inside], ramp(fine, grids[0])[inside], rtol=1e-4, atol=1e-3)


def test_nearest_takes_the_value_of_the_nearest_true_place() -> None:
    # Fine positions at 0, 4, 8, 12, coarse ones at -1 and 7: halfway is 3.
    alignment = StageAlignment([GridPlaces((0, 0), (4, 4)), GridPlaces((-1, -1), (8, 8))], [(4, 4), (2, 2)], "nearest")
    stage = torch.tensor([[10.0, 20.0], [30.0, 40.0]])[None, None]
    assert alignment(stage, 1).reshape(4, 4).tolist() == [
        [10, 20, 20, 20],
        [30, 40, 40, 40],
        [30, 40, 40, 40],
        [30, 40, 40, 40],
    ]


def test_a_stage_on_the_grid_of_the_finest_is_left_as_it_is() -> None:
    alignment = StageAlignment([GridPlaces((0, 0), (4, 4)), GridPlaces((1, 2), (4, 4))], [(5, 5), (5, 5)], "bilinear")
    stage = torch.rand((1, 2, 5, 5))
    assert torch.equal(alignment(stage, 1), stage.flatten(2).transpose(1, 2))


def test_centred_stages_are_joined_as_without_alignment() -> None:
    network = Pyramid([[(Layer(3, 2, 1), Layer(3, 2, 1))], [(Layer(3, 2, 1), Layer(3, 2, 1))]])
    backbone, size = backbone_of(network), (32, 48)
    grids = [(16, 24), (8, 12)]
    places = [centred_places(grid, size) for grid in grids]
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8))
    for upsample in ("nearest", "bilinear"):
        alignment = StageAlignment(places, grids, upsample)
        aligned = PatchFeatures(backbone, pool=True, upsample=upsample, alignment=alignment)(image)
        plain = PatchFeatures(backbone, pool=True, upsample=upsample)(image)
        torch.testing.assert_close(aligned, plain, rtol=1e-5, atol=1e-2)


class Turned(nn.Module):
    """Features of the upside-down image: no straight line of the right slope leads to them."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(image.flip(2), 4)]


class Global(nn.Module):
    """Every value depends on the whole image alone."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 16, 16)]


class Blind(nn.Module):
    """Nothing depends on the image."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [0 * nn.functional.avg_pool2d(image, 4)]


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Turned(), "stage 1 of 1 answers a change elsewhere"),
        (Global(), "stage 1 of 1 answers a change elsewhere"),
        (Blind(), "stage 1 of 1 does not see most small changes"),
    ],
)
def test_what_answers_elsewhere_or_not_at_all_is_not_aligned_and_said(network: nn.Module, reason: str) -> None:
    measured = measure_places(backbone_of(network), (64, 64))
    assert measured.places is None
    assert measured.note.startswith(f"not aligned: {reason}")


def test_patches_of_a_transformer_are_centred() -> None:
    class Embedding(nn.Module):
        """Every patch of 8 x 8 pixels on its own, and a little of the whole image everywhere, as attention has it."""

        def forward(self, image: Tensor) -> list[Tensor]:
            if image.shape[-2:] != (64, 96):
                raise AssertionError("a position table for 8 x 12 patches")
            return [nn.functional.avg_pool2d(image, 8) + 0.05 * image.mean(dim=(2, 3), keepdim=True)]

    measured = measure_places(backbone_of(Embedding()), (64, 96))
    assert measured.places is not None, measured.note
    assert measured.places[0].step == (8.0, 8.0)
    np.testing.assert_allclose(measured.places[0].start, 3.5, atol=0.5)


@pytest.mark.long
def test_the_fixed_places_of_scattering_are_what_impulses_show() -> None:
    config, _ = build_config("padim", {"resize": 192, "stages": [1, 2, 3]})
    backbone, _ = build_backbone(config.features, None)
    stated = measure_places(backbone, (192, 192)).places

    class Unknown(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            stages: list[Tensor] = backbone.network(image)
            return stages

    measured = measure_places(Backbone(Unknown(), backbone.mean, backbone.std), (192, 192)).places
    assert stated is not None
    assert measured is not None
    for fixed, found in zip(stated, measured, strict=True):
        assert fixed.start == (0.0, 0.0)
        assert fixed.step == found.step
        np.testing.assert_allclose(found.start, 0.0, atol=0.1 * fixed.step[0])
