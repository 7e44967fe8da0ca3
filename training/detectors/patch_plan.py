"""How many patches a memory bank keeps, and how the patches that it is chosen from fit into memory."""

from __future__ import annotations

import math

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.config import PatchcoreConfig
from flawscope.cpp_ext.streaming_coreset import Levels, least_budget, plan_levels
from flawscope.cpp_ext.window_coreset import PLACE_COLUMNS
from flawscope.errors import ArgumentError


def bank_rows(config: PatchcoreConfig, patches: int) -> int:
    """Return how many of `patches` the bank keeps: a share (`coreset` up to 1, at least `min_bank`) or a count."""
    share = max(round(config.coreset * patches), config.min_bank)
    rows = share if config.coreset <= 1 else round(config.coreset)
    return max(1, min(rows, config.max_bank, patches))


def budget_bytes(config: PatchcoreConfig) -> int:
    """Return the memory for the patches of one bank: banks of layers are filled side by side, and share it."""
    return (config.memory_budget_mb << 20) // config.banks


class Plan:
    """How the patch matrix is kept within the memory budget.

    Attributes:
        kept_per_image: Patches of an image that are kept.
        projection: The space in which the coreset is chosen, float32 [channels, dimensions], or None for the full one.
        dimensions: Columns of the matrix.
        description: The same in words, for the record.
    """

    def __init__(self, kept_per_image: int, projection: Float32Array | None, channels: int, description: str) -> None:
        self.kept_per_image = kept_per_image
        self.projection = projection
        self.dimensions = channels if projection is None else projection.shape[1]
        self.description = description

    @classmethod
    def for_budget(cls, config: PatchcoreConfig, images: int, per_image: int, channels: int) -> Plan:
        """Return the plan for so many images with `per_image` patches each, of so many channels."""
        budget = budget_bytes(config)
        fits = 4 * images * per_image * channels <= budget  # 4 bytes a float32
        is_full = config.projection == "none" or (config.projection == "auto" and fits)
        projection = None if is_full else _projection(config, images * per_image, channels)
        width = channels if projection is None else projection.shape[1]
        subset = max(1, min(per_image, budget // (4 * images * width)))
        share = "" if subset == per_image else f", of {subset} random patches of the {per_image} in each image"
        return cls(subset, projection, channels, _space(projection) + share)


class StreamingPlan:
    """How the patches of a stream are reduced within the memory budget.

    Args:
        config: Settings.
        images: Number of images, views included.
        per_image: Patches of an image.
        channels: Channels of a patch.

    Attributes:
        projection: The space in which the coreset is chosen, float32 [channels, dimensions], or None for the full one.
        levels: How many patches are held.
        description: The same in words, for the record.

    Raises:
        ArgumentError: If the bank is too large for the budget.
    """

    def __init__(self, config: PatchcoreConfig, images: int, per_image: int, channels: int) -> None:
        patches, budget = images * per_image, budget_bytes(config)
        rows = bank_rows(config, patches)
        self.projection = _projection(config, patches, channels) if config.projection == "jl" else None
        # A block is projected as a whole, while its patches stay. 8 bytes: its place.
        extra = 0 if config.window is None else PLACE_COLUMNS
        size = 4 * (channels + extra + (0 if self.projection is None else self.projection.shape[1] + extra)) + 8
        levels = plan_levels(patches, rows, budget // size)
        if levels is None:
            least = -(-least_budget(patches, rows) * size * config.banks // (1 << 20))
            raise ArgumentError(
                f"memory_budget_mb: expected at least {least} for {rows} of {patches} patches in one pass, got "
                f"{config.memory_budget_mb}. Raise it, or lower coreset or max_bank."
            )
        self.levels: Levels = levels
        reductions = (
            ""
            if levels.depth == 0
            else f", in one pass, reduced {levels.depth} times to {levels.kept} of {levels.block}"
        )
        self.description = _space(self.projection) + reductions


def _space(projection: Float32Array | None) -> str:
    return "the full space" if projection is None else f"a projection to {projection.shape[1]} dimensions"


def _projection(config: PatchcoreConfig, patches: int, channels: int) -> Float32Array | None:
    # 0.9 as in anomalib's selection: a coreset needs the order of distances only roughly.
    width = min(channels, johnson_lindenstrauss_size(patches, 0.9))
    # A projection that does not reduce dimensions would only distort.
    return sparse_projection(channels, width, config.seed) if width < channels else None


def johnson_lindenstrauss_size(points: int, distortion: float) -> int:
    """Return the dimensions that keep all pairwise distances of `points` within `distortion`.

    Source: Dasgupta and Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003, theorem 2.1.
    """
    return max(1, int(4 * math.log(max(points, 2)) / (distortion**2 / 2 - distortion**3 / 3)))


def sparse_projection(channels: int, width: int, seed: int) -> Float32Array:
    """Return a sparse random projection [channels, width] of density 1/√channels (Li, Hastie and Church, 2006)."""
    generator = np.random.default_rng([seed, 2])
    density = 1 / math.sqrt(channels)
    # Scaled to keep squared lengths in expectation: each entry has variance density / (density · width) = 1 / width.
    signs = generator.choice([-1.0, 0.0, 1.0], (channels, width), p=[density / 2, 1 - density, density / 2])
    return (signs / math.sqrt(density * width)).astype(np.float32)
