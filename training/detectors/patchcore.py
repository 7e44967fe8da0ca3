"""PatchCore: streams patches, selects the coreset, and tabulates the neighbours within the memory bank."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import PatchcoreHead
from flawscope.config import PatchcoreConfig
from flawscope.cpp_ext import kcenter_greedy, nearest
from flawscope.errors import DataError
from flawscope.files import storage_errors, temporary_folder
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.detectors.reference_scores import patchcore_distances, torch_scores
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.patch_extraction import iterate_patches, measure_transform, standardization, to_numpy
from flawscope.training.features.patch_features import PatchFeatures, build_features
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.trainer import FitRequest, Trainer


def fit_patchcore(
    config: PatchcoreConfig, backbone: Backbone, paths: Sequence[ImageSource], scratch: Path, progress: Progress
) -> FitResult:
    """Fit PatchCore (arXiv:2106.08265, sections 3.1 and 3.2) on normal images.

    The coreset is the exact greedy k-centre selection over all patches. Where their matrix exceeds
    `config.memory_budget_mb` it is exact in a sparse random projection (as in the paper's code), while the patches
    themselves lie on disk. Where even the projections exceed the budget, a random subset of the patches of every image
    is used.

    Args:
        config: Settings.
        backbone: Frozen backbone on its device.
        paths: Normal images.
        scratch: Folder for a temporary file.
        progress: Receives progress.
    """
    if not paths:
        raise DataError("patchcore: expected at least one normal training image, got none.")
    features = PatchFeatures(backbone, pool=True, upsample=config.patches.upsample)
    grid, channels = features.layout(config.preprocessing.size)
    transform = measure_transform(features, paths, config, progress)
    features = PatchFeatures(backbone, pool=True, upsample=config.patches.upsample, transform=transform)

    per_image = grid[0] * grid[1]
    plan = _Plan.for_budget(config, len(paths), per_image, channels)
    # Beside the run, not in /tmp, which is often a small memory file system.
    with tempfile.TemporaryFile(dir=scratch) as file:
        matrix = np.empty((len(paths) * plan.kept_per_image, plan.dimensions), np.float32)
        # [seed, 1] and [seed, 2] are independent streams: the choice of patches does not depend on the projection.
        generator = np.random.default_rng([config.seed, 1])
        row = 0
        for batch in iterate_patches(features, paths, config, "reading patches", progress):
            for patches in to_numpy(batch):
                if plan.kept_per_image < per_image:
                    # Sorted, so that the rows stay in the order of the image.
                    patches = patches[np.sort(generator.permutation(per_image)[: plan.kept_per_image])]
                if plan.projection is not None:
                    file.write(np.ascontiguousarray(patches).tobytes())
                    patches = patches @ plan.projection
                matrix[row : row + len(patches)] = patches
                row += len(patches)
        rows = bank_rows(config, len(matrix))
        coreset = kcenter_greedy(
            matrix, rows, config.seed, lambda count, total: progress("selecting the coreset", count, total)
        )
        if plan.projection is None:
            bank = matrix[coreset]
        else:
            # Only the coreset's rows are read back, so the patches never lie in memory as a whole.
            file.flush()
            stored = np.memmap(file, np.float32, "r", shape=(len(matrix), channels))
            bank = np.asarray(stored[coreset])
            del stored  # closes the mapping before the file
    tensors: dict[str, npt.NDArray[np.generic]] = {"bank": bank}
    if config.reweight == "paper" and config.neighbors > 1:
        tensors["neighbours"] = neighbour_table(bank, min(config.neighbors, len(bank)))
    facts: dict[str, int | float | str] = {
        "patches": len(matrix),
        "bank_rows": len(bank),
        "channels": channels,
        "selected_in": plan.description,
    }
    return FitResult(
        grid=grid, tensors=tensors, transform=None if transform is None else to_numpy(transform), facts=facts
    )


def patchcore_head(config: PatchcoreConfig, grid: tuple[int, int]) -> PatchcoreHead:
    """Return what a manifest says of a fitted detector; `grid` is that of its patches."""
    return PatchcoreHead(grid, config.neighbors, config.reweight, config.maps.sigma)


def bank_rows(config: PatchcoreConfig, patches: int) -> int:
    """Return how many of `patches` the bank keeps: a share (`coreset` up to 1) or a count, from 1 to the cap."""
    rows = round(config.coreset * patches) if config.coreset <= 1 else round(config.coreset)
    return max(1, min(rows, config.max_bank, patches))


def neighbour_table(bank: Float32Array, count: int) -> npt.NDArray[np.int64]:
    """Return the `count` nearest bank rows of every bank row, itself first: int64 [M, count].

    Equation 7 of the paper needs the neighbours of the matched row, which do not depend on the inspected image.
    """
    _, table = nearest(bank, bank, count)
    # Of identical rows each is at distance 0 of the other, and either may come first: the row itself is put there.
    for row in np.flatnonzero(table[:, 0] != np.arange(len(bank))):
        neighbours = table[row][table[row] != row][: count - 1]
        table[row] = np.concatenate(([row], neighbours))
    return table


class _Plan:
    """How the patch matrix is kept within the memory budget."""

    def __init__(self, kept_per_image: int, projection: Float32Array | None, channels: int, description: str) -> None:
        self.kept_per_image = kept_per_image
        self.projection = projection
        self.dimensions = channels if projection is None else projection.shape[1]
        self.description = description

    @classmethod
    def for_budget(cls, config: PatchcoreConfig, images: int, per_image: int, channels: int) -> _Plan:
        budget = config.memory_budget_mb << 20
        fits = 4 * images * per_image * channels <= budget  # 4 bytes a float32
        if config.projection == "none" or (config.projection == "auto" and fits):
            width = channels
        else:
            # 0.9 as in anomalib's selection: a coreset needs the order of distances only roughly.
            width = min(channels, johnson_lindenstrauss_size(images * per_image, 0.9))
        # A projection that does not reduce dimensions would only distort.
        projection = sparse_projection(channels, width, config.seed) if width < channels else None
        subset = max(1, min(per_image, budget // (4 * images * width)))
        space = "the full space" if projection is None else f"a projection to {width} dimensions"
        share = "" if subset == per_image else f", of {subset} random patches of the {per_image} in each image"
        return cls(subset, projection, channels, space + share)


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


class PatchcoreTrainer(Trainer):
    """Fits and restores PatchCore."""

    def fit(self, request: FitRequest) -> FitResult:
        """Select the memory bank; see `fit_patchcore`."""
        # The fit itself writes when the patches exceed the memory budget.
        with temporary_folder(request.out.parent) as scratch, storage_errors(request.out):
            return fit_patchcore(request.config, request.backbone, request.images, scratch, request.progress)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> PatchFeatures:
        """Return the feature module."""
        return build_features(cast("PatchcoreConfig", record.config), backbone, fit_result)

    def score(
        self, config: PatchcoreConfig, backbone: Backbone, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores by plain torch."""
        features, head = build_features(config, backbone, fit_result), patchcore_head(config, fit_result.grid)
        size = config.preprocessing.size
        return torch_scores(features, head, fit_result.tensors, size, images, patchcore_distances)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the memory bank, and the table of neighbours if the paper's re-weighting needs it."""
        config = cast("PatchcoreConfig", record.config)
        has_table = config.reweight == "paper" and config.neighbors > 1
        return frozenset({"bank", "neighbours"} if has_table else {"bank"})

    def needs_transform(self, config: PatchcoreConfig) -> bool:
        """Return whether channels are standardized."""
        return standardization(config) != "none"


TRAINER = PatchcoreTrainer()
