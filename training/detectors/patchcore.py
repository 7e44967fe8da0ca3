"""PatchCore: streams patches, selects the coreset, and tabulates the neighbours within the memory bank."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Int64Array, UInt8Array
from flawscope.bank_names import bank_names, place_names
from flawscope.bundle import PatchcoreHead
from flawscope.config import PatchcoreConfig, standardization
from flawscope.cpp_ext import kcenter_greedy, neighbour_table
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.cpp_ext.window_coreset import PLACE_COLUMNS, places_of, select_for_window
from flawscope.errors import ArgumentError, DataError
from flawscope.files import storage_errors, temporary_folder
from flawscope.imaging.fitting_views import View, fitting_views
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.ranges import MOST_TOP
from flawscope.runs import RunRecord
from flawscope.training.detectors.torch_scores import patchcore_distances, torch_scores
from flawscope.training.features.alignment import measure_places
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.foreground import measure_foreground
from flawscope.training.features.patch_extraction import iterate_patches, measure_transform, to_numpy
from flawscope.training.features.patch_features import PatchFeatures, build_alignment, build_features, layer_widths
from flawscope.training.features.scaled_backbone import scaled_backbone
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
        backbone: Frozen backbone on its device, of one scale.
        paths: Normal images.
        scratch: Folder for a temporary file.
        progress: Receives progress.
    """
    if not paths:
        raise DataError("patchcore: expected at least one normal training image, got none.")
    backbone = scaled_backbone(backbone, config)
    measured = measure_places(backbone, config.preprocessing.size) if config.patches.align else None
    places = None if measured is None else measured.places
    alignment = build_alignment(config, backbone, places)
    pool, upsample, widths = config.pools, config.patches.upsample, layer_widths(config, backbone)
    features = PatchFeatures(backbone, pool=pool, upsample=upsample, layer_widths=widths, alignment=alignment)
    grid, _ = features.layout(config.preprocessing.size)
    # Before any work: what no graph can have.
    if problem := patchcore_head(config, grid, None).problem(config.preprocessing.size):
        raise ArgumentError(f"patchcore: {problem}.")
    transform = measure_transform(features, paths, config, progress)
    features = PatchFeatures(
        backbone,
        pool=pool,
        upsample=upsample,
        transform=transform,
        unit=config.unit,
        layer_widths=widths,
        alignment=alignment,
    )

    foreground = measure_foreground(features, grid, paths, config, progress) if config.bank.foreground else None
    views = fitting_views(config.bank.views)
    with contextlib.ExitStack() as stack:
        selections = [
            stack.enter_context(_Selection(config, len(views) * len(paths), grid, channels, scratch))
            for channels in features.widths(config.preprocessing.size)
        ]
        for patches in _patches_of_views(features, paths, views, config, progress):
            positions = np.arange(len(patches))
            if foreground is not None:
                positions = positions[foreground.shown(patches, grid)]
                patches = patches[positions]
            start = 0
            for selection in selections:
                selection.add(patches[:, start : start + selection.channels], positions)
                start += selection.channels
        selected = [
            selection.bank(progress, "" if len(selections) == 1 else f", bank {number} of {len(selections)}")
            for number, selection in enumerate(selections, 1)
        ]
    names = bank_names(len(selected))
    banks = [bank for bank, _ in selected]
    tensors: dict[str, npt.NDArray[np.generic]] = dict(zip(names, banks, strict=True))
    if config.reweight == "paper" and config.reweights:
        tensors["neighbours"] = neighbour_table(banks[0], min(config.neighbors, len(banks[0])))
    if foreground is not None:
        tensors |= {"foreground": foreground.direction, "foreground_limits": foreground.limits}
    facts: dict[str, int | float | str] = {
        "patches": sum(selection.rows for selection in selections),
        "bank_rows": sum(len(bank) for bank in banks),
        "channels": sum(selection.channels for selection in selections),
        "selected_in": "; ".join(dict.fromkeys(selection.plan.description for selection in selections)),
    }
    if len(views) > 1:
        facts["views"] = len(views)
    if config.window is not None:
        row_places = [rows_at for _, rows_at in selected]
        tensors |= zip(place_names(len(row_places)), row_places, strict=True)
        reaches = [window_reach(place_starts(rows_at, grid), grid, config.window) for rows_at in row_places]
        # Where no row was near enough, the nearest places that have rows count.
        facts["window_widened"] = sum(int((reach > config.window).sum()) for reach in reaches)
        facts["window_reach"] = max(int(reach.max()) for reach in reaches)
    if measured is not None:
        facts["alignment"] = measured.note
    return FitResult(
        grid=grid,
        tensors=tensors,
        transform=None if transform is None else to_numpy(transform),
        facts=facts,
        places=places,
    )


class _Selection:
    """The patches of one bank, within the memory budget, and the coreset chosen from them; a context manager.

    Args:
        config: Settings.
        images: Number of images, views included.
        grid: Rows and columns of the patches of an image.
        channels: Channels of a patch.
        scratch: Folder for a temporary file.

    Attributes:
        plan: How the patches are kept.
        channels: Channels of a patch.
        rows: Patches added so far.
    """

    def __init__(
        self, config: PatchcoreConfig, images: int, grid: tuple[int, int], channels: int, scratch: Path
    ) -> None:
        self._config, self._scratch, self._grid = config, scratch, grid
        self.plan = _Plan.for_budget(config, images, grid[0] * grid[1], channels)
        self.channels = channels
        self.rows = 0
        self._width = self.plan.dimensions
        extra = 0 if config.window is None else PLACE_COLUMNS
        self._matrix = np.zeros((images * self.plan.kept_per_image, self._width + extra), np.float32)
        self._positions = np.empty(len(self._matrix), np.int64)  # of each patch, on the grid
        # [seed, 1] and [seed, 2] are independent streams: the choice of patches does not depend on the projection.
        self._generator = np.random.default_rng([config.seed, 1])

    def __enter__(self) -> _Selection:
        # Beside the run, not in /tmp, which is often a small memory file system.
        self._file = tempfile.TemporaryFile(dir=self._scratch)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, patches: Float32Array, positions: Int64Array) -> None:
        """Add patches of an image, float32 [P, D], and where they stand among all of the image, int64 [P]."""
        plan = self.plan
        if plan.kept_per_image < len(patches):
            # Sorted, so that the rows stay in the order of the image.
            kept = np.sort(self._generator.permutation(len(patches))[: plan.kept_per_image])
            patches, positions = patches[kept], positions[kept]
        if plan.projection is not None:
            self._file.write(np.ascontiguousarray(patches).tobytes())
            patches = patches @ plan.projection
        self._matrix[self.rows : self.rows + len(patches), : self._width] = patches
        self._positions[self.rows : self.rows + len(patches)] = positions
        self.rows += len(patches)

    def bank(self, progress: Progress, which: str) -> tuple[Float32Array, Int64Array]:
        """Return the coreset of all patches that were added, float32 [M, D], and its places on the grid, int64 [M, 2].

        Args:
            progress: Receives progress.
            which: Names the bank, for progress.
        """
        matrix, positions = self._matrix[: self.rows], self._positions[: self.rows]
        count, window, seed = bank_rows(self._config, len(matrix)), self._config.window, self._config.seed

        def selecting(done: int, total: int) -> None:
            progress(f"selecting the coreset{which}", done, total)

        if window is None:
            coreset = kcenter_greedy(matrix, count, seed, selecting)
        else:
            coreset = select_for_window(matrix, positions, self._grid, window, count, seed, selecting)
        return self._stored(matrix, coreset), places_of(positions[coreset], self._grid)

    def _stored(self, matrix: Float32Array, coreset: Int64Array) -> Float32Array:
        if self.plan.projection is None:
            return np.ascontiguousarray(matrix[coreset, : self._width])
        # Only the coreset's rows are read back, so the patches never lie in memory as a whole.
        self._file.flush()
        stored = np.memmap(self._file, np.float32, "r", shape=(len(matrix), self.channels))
        rows = np.asarray(stored[coreset])
        del stored  # closes the mapping before the file
        return rows


def _patches_of_views(
    features: PatchFeatures,
    paths: Sequence[ImageSource],
    views: Sequence[View],
    config: PatchcoreConfig,
    progress: Progress,
) -> Iterator[Float32Array]:
    """Yield the patches of every image, float32 [P, D]: of all images as they are, then of the next view of all."""
    # Decoded anew for every view. Views of one batch at a time would be in an order that depends on the batch size, and
    # so would the coreset.
    for number, view in enumerate(views, 1):
        stage = "reading patches"
        if len(views) > 1:
            stage += f", view {number} of {len(views)} ({view.name})"
        for batch in iterate_patches(features, paths, config, stage, progress, view):
            yield from to_numpy(batch)


def bank_rows(config: PatchcoreConfig, patches: int) -> int:
    """Return how many of `patches` the bank keeps: a share (`coreset` up to 1, at least `min_bank`) or a count."""
    share = max(round(config.coreset * patches), config.min_bank)
    rows = share if config.coreset <= 1 else round(config.coreset)
    return max(1, min(rows, config.max_bank, patches))


def top_count(share: float, positions: int) -> int:
    """Return of how many patches a score is the mean: a share of all `positions` of an image, at least 1.

    AnomalyDINO rounds down too: of 1024 patches 1 % are 10.

    Raises:
        ArgumentError: If they are more than a graph can choose.
    """
    # The small number: 0.29 * 100 is 28.999999999999996.
    count = max(1, math.floor(share * positions + 1e-9))
    if count > MOST_TOP:
        raise ArgumentError(
            f"top_share: expected at most {MOST_TOP} patches in a score, got {count} of {positions}. Lower it."
        )
    return count


class _Plan:
    """How the patch matrix is kept within the memory budget."""

    def __init__(self, kept_per_image: int, projection: Float32Array | None, channels: int, description: str) -> None:
        self.kept_per_image = kept_per_image
        self.projection = projection
        self.dimensions = channels if projection is None else projection.shape[1]
        self.description = description

    @classmethod
    def for_budget(cls, config: PatchcoreConfig, images: int, per_image: int, channels: int) -> _Plan:
        # Banks of layers are filled side by side, and share the memory.
        budget = (config.memory_budget_mb << 20) // config.banks
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


def patchcore_head(config: PatchcoreConfig, grid: tuple[int, int], places: GridPlaces | None) -> PatchcoreHead:
    """Return the head of a bundle; `grid` has the rows and columns of patches, `places` says where they lie."""
    return PatchcoreHead(
        grid,
        config.neighbors,
        config.reweight,
        config.maps.sigma,
        metric=config.bank.metric,
        top=top_count(config.bank.top_share, grid[0] * grid[1]),
        banks=config.banks,
        foreground=config.bank.foreground,
        places=places,
        window=config.window,
    )


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

    def scores(
        self, config: PatchcoreConfig, module: PatchFeatures, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores in float32; see `Trainer.scores`."""
        head, size = patchcore_head(config, fit_result.grid, fit_result.finest_places), config.preprocessing.size
        return torch_scores(module, head, fit_result.tensors, size, images, patchcore_distances, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the memory banks, places for a window, and the table if the paper's re-weighting needs it."""
        config = cast("PatchcoreConfig", record.config)
        has_table = config.reweight == "paper" and config.reweights
        banks = bank_names(config.banks)
        more = {"foreground", "foreground_limits"} if config.bank.foreground else set()
        more |= set(place_names(config.banks)) if config.window is not None else set()
        return frozenset({*banks, *more, "neighbours"} if has_table else {*banks, *more})

    def needs_transform(self, config: PatchcoreConfig) -> bool:
        """Return whether channels are standardized."""
        return standardization(config) != "none"


TRAINER = PatchcoreTrainer()
