"""Where the feature stages of a backbone lie in the image: measured by impulses, and undone when stages are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import Float64Array, Int64Array, UInt8Array
from flawscope.errors import ArgumentError, RunError
from flawscope.imaging.grid_places import GridPlaces, centred_places
from flawscope.imaging.map_upsampling import interpolation_matrix
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.features.scaled_backbone import ScaledBackbone
from flawscope.training.features.scattering import Scattering

_IMPULSES = 32
_PER_BATCH = 8
"""Impulses in one batch, which share a background; a batch has one image more."""
_SIDE = 3
"""Side of the changed square in pixels."""
_LEAST_CELLS = 12
"""Positions that the coarsest stage should have along each axis: borders move the response of fewer."""
_MORE = 256
"""Pixels that are added to find the strides; a multiple of all powers of two that strides are."""
_FLOOR = 0.05
"""Share of the largest change that counts as none: networks with global parts change a little everywhere."""
_MOST_SPREAD = 0.75
"""Largest deviation of single impulses from the fit, in positions of the stage; rounding to positions gives 0.29."""


@dataclass(frozen=True)
class Measured:
    """What measuring the places of the stages gave.

    Attributes:
        places: Where the grid of each stage lies in the input, finest first, scale after scale; None where no straight
            line fits.
        note: The shifts in words, or why there are none.
    """

    places: tuple[GridPlaces, ...] | None
    note: str


def measure_places(backbone: Backbone, size: tuple[int, int], seed: int = 0) -> Measured:
    """Measure where the feature stages of a backbone lie in an image, with the weights that it has.

    Small squares of noise images are changed; the place of a stage's positions follows from the centres of gravity of
    its squared changes. Convolutions move features by their padding, trained filters by their form, so both are in it.
    Where an image is seen at several scales, each is measured at its own size, and its places are then those in the
    image: resizing moves nothing, and paddings may depend on the size.

    Args:
        backbone: The backbone, on its device.
        size: Height and width of its input.
        seed: Seed of places and colours of the squares.

    Raises:
        ArgumentError: If the backbone cannot take images of this size.
    """
    if isinstance(backbone, ScaledBackbone):
        return _measure_scales(backbone, size, seed)
    grids = _grids(backbone, size)
    if isinstance(backbone.network, Scattering):
        # All its filters are symmetric and borders are reflected, so position i lies at i * stride exactly.
        strides = [float(2 ** (stage + 1)) for stage in backbone.network.stages]
        places = tuple(GridPlaces((0.0, 0.0), (stride, stride)) for stride in strides)
        return Measured(places, _in_words(places, grids, size))
    steps = _steps(backbone, size, grids)
    canvas = _canvas(backbone, size, grids[-1], steps[-1])
    centres, found = _respond(backbone, canvas, steps[-1], np.random.default_rng([seed, 3]))
    places_found: list[GridPlaces] = []
    for number, (stage, step) in enumerate(zip(found, steps, strict=True)):
        starts = [_fit(centres[:, axis], stage[:, axis], step[axis]) for axis in (0, 1)]
        if problems := [start for start in starts if isinstance(start, str)]:
            return Measured(None, f"not aligned: stage {number + 1} of {len(found)} {problems[0]}")
        places_found.append(GridPlaces((float(starts[0]), float(starts[1])), step))
    places = tuple(places_found)
    return Measured(places, _in_words(places, grids, size))


def _measure_scales(backbone: ScaledBackbone, size: tuple[int, int], seed: int) -> Measured:
    """Return the places of the stages of all scales in the image, in the order of the stages."""
    places: list[GridPlaces] = []
    notes = []
    for scale, seen in zip(backbone.scales, backbone.sizes, strict=True):
        measured = measure_places(backbone.inner, seen, seed)
        if measured.places is None:
            return Measured(None, f"{measured.note} (at scale {scale:g})")
        in_image = tuple(_in_image(each, seen, size) for each in measured.places)
        notes.append(f"scale {scale:g}: {_in_words(in_image, _grids(backbone.inner, seen), size)}")
        places += in_image
    return Measured(tuple(places), "; ".join(notes))


def _in_image(places: GridPlaces, seen: tuple[int, int], size: tuple[int, int]) -> GridPlaces:
    """Return places in pixels of an image of size `size` that was resized to `seen`, where they were measured."""
    ratios = [side / resized for side, resized in zip(size, seen, strict=True)]
    # Edges of images lie on each other, at -0.5, where the first pixel begins.
    starts = [round((start + 0.5) * ratio - 0.5, 3) for start, ratio in zip(places.start, ratios, strict=True)]
    steps = [step * ratio for step, ratio in zip(places.step, ratios, strict=True)]
    return GridPlaces((starts[0], starts[1]), (steps[0], steps[1]))


def _grids(backbone: Backbone, size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(int(stage.shape[-2]), int(stage.shape[-1])) for stage in stages_of(backbone, size)]


def _steps(backbone: Backbone, size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Return the pixels from one position to the next, for each stage along rows and along columns.

    Networks round the number of positions, so the ratio of the sides need not be the stride (90 pixels give 6 positions
    of stride 16): where it is no power of two, the positions that more pixels add are counted.
    """
    ratios = [(size[0] / grid[0], size[1] / grid[1]) for grid in grids]
    if all(math.frexp(ratio)[0] == 0.5 for pair in ratios for ratio in pair):
        return ratios
    try:
        larger = _grids(backbone, (size[0] + _MORE, size[1] + _MORE))
    except ArgumentError:  # a network of one size, such as a transformer with a position table
        return ratios
    added = [(after[0] - before[0], after[1] - before[1]) for before, after in zip(grids, larger, strict=True)]
    return [(_step(ratio[0], count[0]), _step(ratio[1], count[1])) for ratio, count in zip(ratios, added, strict=True)]


def _step(ratio: float, added: int) -> float:
    return _MORE / added if added > 0 and _MORE % added == 0 else ratio


def _canvas(
    backbone: Backbone, size: tuple[int, int], grid: tuple[int, int], step: tuple[float, float]
) -> tuple[int, int]:
    """Return the size of the images to measure with: larger than the input where its coarsest grid is small.

    Whole strides are added, so that paddings that depend on the size stay the same.
    """
    missing = [max(0, _LEAST_CELLS - count) for count in grid]
    if not any(missing) or any(each % 1 for each in step):
        return size
    larger = size[0] + int(step[0]) * missing[0], size[1] + int(step[1]) * missing[1]
    try:
        stages_of(backbone, larger)
    except ArgumentError:  # as in `_steps`
        return size
    return larger


def _respond(
    backbone: Backbone, size: tuple[int, int], step: tuple[float, float], generator: np.random.Generator
) -> tuple[Float64Array, list[Float64Array]]:
    """Return the centres of the squares float64 [K, 2], and for each stage those of its changes float64 [K, 2]."""
    corners = _corners(size, step, generator)
    found: list[list[Float64Array]] = []
    for start in range(0, len(corners), _PER_BATCH):
        images = _impulses(size, corners[start : start + _PER_BATCH], generator)
        with torch.inference_mode():
            stages = backbone(torch.from_numpy(images).to(backbone.get_buffer("scale").device))
        found.append([_centres(stage) for stage in stages])
    return corners.astype(np.float64) + (_SIDE - 1) / 2, [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _corners(size: tuple[int, int], step: tuple[float, float], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return top and left of the squares, int64 [K, 2], in the middle half, at evenly spread phases of the strides."""
    axes = []
    for side, stride in zip(size, step, strict=True):
        # A response is seen at whole positions only: even phases cancel the rounding.
        phases = generator.permutation(_IMPULSES) * stride / _IMPULSES
        low = math.floor(side / (4 * stride))
        cells = generator.integers(low, max(low + 1, math.floor(3 * side / (4 * stride))), _IMPULSES)
        axes.append(np.clip(np.floor(cells * stride + phases), 0, side - _SIDE))
    return np.stack(axes, axis=1).astype(np.int64)


def _impulses(size: tuple[int, int], corners: npt.NDArray[np.int64], generator: np.random.Generator) -> UInt8Array:
    """Return uint8 [1 + K, H, W, 3]: an image of noise, and copies of it with one changed square each."""
    background = np.clip(generator.normal(128, 20, (*size, 3)), 0, 255).astype(np.uint8)
    images = np.repeat(background[None], 1 + len(corners), axis=0)
    for image, (top, left) in zip(images[1:], corners, strict=True):
        # Black or white in each colour: far from the background, so that the change is strong.
        image[top : top + _SIDE, left : left + _SIDE] = generator.choice(np.array([0, 255], np.uint8), 3)
    return images


def _centres(stage: Tensor) -> Float64Array:
    """Return the centres of gravity of the changes, float64 [K, 2], of a stage [1 + K, C, h, w]; NaN for no change."""
    changes = (stage[1:] - stage[:1]).double().square()
    # Every channel counts alike: otherwise the few strongest would decide.
    changes = changes / changes.mean(dim=(0, 2, 3), keepdim=True).clamp(min=1e-300)
    strength = changes.sum(dim=1)
    strength = (strength - _FLOOR * strength.amax(dim=(1, 2), keepdim=True)).clamp(min=0)
    mass = strength.sum(dim=(1, 2))
    rows = torch.arange(strength.shape[1], dtype=torch.float64, device=stage.device)
    columns = torch.arange(strength.shape[2], dtype=torch.float64, device=stage.device)
    centres = torch.stack([(strength.sum(dim=2) @ rows) / mass, (strength.sum(dim=1) @ columns) / mass], dim=1)
    return np.asarray(centres.cpu().numpy(), np.float64)


def _fit(centres: Float64Array, found: Float64Array, step: float) -> float | str:
    """Return the place of position 0 in pixels, or why the changes do not lie on a line with the known step.

    Args:
        centres: Places of the squares along one axis, float64 [K].
        found: Centres of the changes in positions of the stage, float64 [K].
        step: Pixels between two positions.
    """
    # A network that skips pixels (a stride of 2 without a filter) does not see each square.
    seen = np.isfinite(found)
    if 2 * seen.sum() < len(found):
        return "does not see most small changes"
    centres, found = centres[seen], found[seen]
    spread = float(np.std(centres / step - found))
    slope = float(np.polyfit(centres / step, found, 1)[0])
    if not 0.8 <= slope <= 1.25:
        return f"answers a change elsewhere (1 position of the image moves it by {slope:.2f})"
    if spread > _MOST_SPREAD:
        return f"answers too widely to say where (within {spread:.2f} positions)"
    # Thousandths of a pixel are far below what is measured, and keep rounding out of the record.
    return round(float(np.mean(centres - step * found)), 3)


def _in_words(places: Sequence[GridPlaces], grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> str:
    """Return how far the stages lie from where centred grids would, such as `-1.5,-1.5 -3.5,-3.5 px`."""
    shifts = [
        ",".join(
            f"{first - centred:+.1f}"
            for first, centred in zip(each.start, centred_places(grid, size).start, strict=True)
        )
        for each, grid in zip(places, grids, strict=True)
    ]
    return f"{' '.join(shifts)} px (down,right; finest stage first)"


def check_stages(places: Sequence[GridPlaces], stages: int) -> None:
    """Raise RunError unless there is one place for each stage."""
    if len(places) != stages:
        raise RunError(f"places: expected those of {stages} stages, got {len(places)}. Train again.")


class StageAlignment(nn.Module):
    """Resamples all other stages at the places of the first one's positions: the finest of scale 1.

    Args:
        places: Where the grid of each stage lies, that one first.
        grids: Rows and columns of each stage.
        upsample: `nearest` or `bilinear`.

    Raises:
        RunError: If there are places of more or fewer stages.
    """

    def __init__(self, places: Sequence[GridPlaces], grids: Sequence[tuple[int, int]], upsample: str) -> None:
        super().__init__()
        check_stages(places, len(grids))
        self.upsample, self.grids = upsample, list(grids)
        for number in range(1, len(grids)):
            down, along = (self._at(places, number, axis) for axis in (0, 1))
            height, width = grids[number]
            if upsample == "nearest":
                places_at = _nearest(down, height)[:, None] * width + _nearest(along, width)
                self.register_buffer(f"places{number}", torch.from_numpy(places_at.reshape(-1)), persistent=False)
                continue
            for name, matrix in (
                ("rows", interpolation_matrix(down, height)),
                ("columns", interpolation_matrix(along, width).T),
            ):
                operand = torch.from_numpy(np.ascontiguousarray(matrix.astype(np.float32)))
                self.register_buffer(f"{name}{number}", operand, persistent=False)

    def _at(self, places: Sequence[GridPlaces], number: int, axis: int) -> Float64Array:
        """Return the finest positions along an axis, as (fractional) indices of a stage."""
        start, step = places[number].axis(axis)
        first, apart = places[0].axis(axis)
        return np.asarray((first + apart * np.arange(self.grids[0][axis], dtype=np.float64) - start) / step)

    def forward(self, stage: Tensor, number: int) -> Tensor:
        """Return stage `number` (0: the finest), float32 [N, C, h, w], at the finest positions: [N, P, C]."""
        is_same = self.grids[number] == self.grids[0]  # resampling would only blur it
        if not is_same and self.upsample == "bilinear":
            # Two constant matrices: the same numbers in torch, ONNX Runtime and TensorRT.
            stage = self.get_buffer(f"rows{number}") @ (stage @ self.get_buffer(f"columns{number}"))
        patches = stage.flatten(2).transpose(1, 2)
        if is_same or self.upsample == "bilinear":
            return patches
        # By whole patches, whose channels lie side by side: along the columns of an image a runtime copies number by
        # number, which took ONNX Runtime 17 times as long.
        return patches.index_select(1, self.get_buffer(f"places{number}"))


def _nearest(at: Float64Array, count: int) -> Int64Array:
    """Return the nearest index to each position, int64; one halfway between two takes the lower."""
    return np.clip(np.ceil(at - 0.5), 0, count - 1).astype(np.int64)
