"""Scales of the members of an ensemble: how each one's maps and scores are normalised, measured on normal images.

Members measure in different units, so each map and each score becomes (value - center) / spread before it is weighted.
Both numbers come from normal images that no member has learned from, because scores of learned images are too low.
They are fixed from then on: an image is never scaled by its own values.

The center of maps is the median of their pixels, the spread the distance from there to the 99.9 % quantile. Anomaly
maps of normal images have a long upper tail: a few pixels would determine a standard deviation, and thresholds lie at
the end of the tail, so that is where members have to agree. Few pixels, such as dust on one image, hardly move either
number. Scores, one an image, are tens and not millions: their spread is the distance from the median to the 90 %
quantile, so that one odd image in ten does not determine it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, Manifest
from flawscope.datasets import Sample
from flawscope.errors import DataError
from flawscope.imaging.images import prepare, read_image
from flawscope.imaging.tiles import read_source, tiles_of
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.runtime import Inspector

MAP_QUANTILE = 0.999
SCORE_QUANTILE = 0.9
"""Quantiles that lie at a normalised value of 1, of map pixels and of scores."""

_MOST_VALUES = 1 << 24
"""Most pixels of a member's maps that are held (64 MiB in float32); of more, every second, fourth, … row and column."""

_LEAST_SPREAD = 1e-6
"""Share of the center below which a spread is taken for rounding."""


@dataclass(frozen=True)
class Scale:
    """Centre and spread by which a detector's maps or scores are normalised."""

    center: float
    spread: float


def measure_scale(values: Float32Array, quantile: float) -> Scale:
    """Return the median of the values as center, and the distance from there to a quantile as spread.

    Args:
        values: float32 [N], finite.
        quantile: A share above 0.5.
    """
    # float64: NumPy interpolates between two values in their own type, and float32 would round the spread.
    center, upper = np.quantile(values.astype(np.float64), (0.5, quantile))
    return Scale(float(center), float(upper - center))


@dataclass
class _Values:
    """Maps (thinned) and scores of one member on all images."""

    maps: list[Float32Array] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def measure_member_scales(
    inspectors: Sequence[Inspector], samples: Sequence[Sample], progress: Progress
) -> list[tuple[Scale, Scale]]:
    """Return the scales of maps and of scores of every member.

    Args:
        inspectors: The members, with the same preprocessing.
        samples: Normal images that no member has learned from.
        progress: Called after each image.

    Raises:
        DataError: If an image cannot be scored, or a member's maps or scores do not vary.
    """
    values = [_Values() for _ in inspectors]
    manifest = inspectors[0].manifest
    height, width = manifest.input.size
    step = 1  # every step-th row and column of a map is held
    for done, sample in enumerate(samples, 1):
        for image in _prepared(sample.path, manifest):
            for inspector, of_member in zip(inspectors, values, strict=True):
                maps, scores = inspector.infer(image[None])
                if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
                    raise DataError(
                        f"{sample.path}: expected finite maps and scores, got NaN or infinity from "
                        f"{inspector.bundle.path}. Check both."
                    )
                # A copy, because a view would keep the whole map in memory.
                of_member.maps.append(maps[0, ::step, ::step].copy())
                of_member.scores.append(float(scores[0]))
        # Thinned on the way, because the number of tiles is not known before. Doubling keeps a subset of the rows and
        # columns, so in the end all maps are thinned alike and weigh the same in the quantiles.
        while len(values[0].scores) * -(-height // step) * -(-width // step) > _MOST_VALUES:
            step *= 2
            for of_member in values:
                of_member.maps = [thinned[::2, ::2].copy() for thinned in of_member.maps]
        progress("Measuring", done, len(samples))
    return [
        _scales(inspector.bundle, of_member, len(samples))
        for inspector, of_member in zip(inspectors, values, strict=True)
    ]


def _scales(bundle: Bundle, values: _Values, images: int) -> tuple[Scale, Scale]:
    pixels = np.concatenate([thinned.ravel() for thinned in values.maps])
    scales = measure_scale(pixels, MAP_QUANTILE), measure_scale(np.array(values.scores, np.float32), SCORE_QUANTILE)
    for output, scale in zip(("maps", "scores"), scales, strict=True):
        # Division by such a spread would blow rounding up to the size of the other members' values.
        if not scale.spread > _LEAST_SPREAD * abs(scale.center):
            raise DataError(
                f"{bundle.path}: expected {output} that vary over {images} normal images, got {scale.center:g} with a "
                f"spread of {scale.spread:g}. Such a detector cannot be weighted: leave it out, or name another set."
            )
    return scales


def _prepared(path: Path, manifest: Manifest) -> Iterator[UInt8Array]:
    """Yield the prepared image, or its tiles, one after the other."""
    if manifest.tiling is None:
        yield prepare(read_image(path, manifest.input.bits), manifest.input)
        return
    for tile in tiles_of(path, manifest.tiling):
        yield prepare(read_source(tile, manifest.input.bits), manifest.input)
