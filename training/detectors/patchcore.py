"""PatchCore: streams patches, selects the coreset, and tabulates the neighbours within the memory bank."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bank_names import bank_names, place_names
from flawscope.bundle import PatchcoreHead
from flawscope.config import PatchcoreConfig, standardization
from flawscope.cpp_ext import neighbour_table
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.errors import ArgumentError, DataError
from flawscope.files import storage_errors, temporary_folder
from flawscope.imaging.fitting_views import View, fitting_views
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress, no_progress
from flawscope.ranges import MOST_TOP
from flawscope.runs import RunRecord
from flawscope.training.detectors.patch_selection import PatchSelection, open_selection
from flawscope.training.detectors.torch_scores import patchcore_distances, torch_scores
from flawscope.training.features.alignment import measure_places
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.foreground import measure_foreground
from flawscope.training.features.gathered_patches import gathered_patches, shared_transform
from flawscope.training.features.patch_extraction import measure_transform, to_numpy
from flawscope.training.features.patch_features import PatchFeatures, build_alignment, build_features, layer_widths
from flawscope.training.features.scaled_backbone import scaled_backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.ranks import Ranks
from flawscope.training.loop.shared_results import share_arrays, while_writer
from flawscope.training.trainer import FitRequest, Trainer


def fit_patchcore(
    config: PatchcoreConfig,
    backbone: Backbone,
    paths: Sequence[ImageSource],
    scratch: Path,
    progress: Progress,
    here: Ranks | None = None,
) -> FitResult:
    """Fit PatchCore (arXiv:2106.08265, sections 3.1 and 3.2) on normal images.

    The coreset is the exact greedy k-centre selection over all patches. Where their matrix exceeds
    `config.memory_budget_mb` it is exact in a sparse random projection (as in the paper's code), while the patches
    themselves lie on disk. Where even the projections exceed the budget, a random subset of the patches of every image
    is used; with `selection=streaming`, all patches in one pass. In several processes each computes the patches of its
    batches, and rank 0 selects from them in the order of the images.

    Args:
        config: Settings.
        backbone: Frozen backbone on its device, of one scale.
        paths: Normal images.
        scratch: Folder for a temporary file.
        progress: Receives progress.
        here: This process among those that fit together; None: alone. All of them get the fit.

    Raises:
        ArgumentError: If settings do not suit the backbone, or the memory budget the bank.
        DataError: If there is no image, or one cannot be used.
    """
    if not paths:
        raise DataError("patchcore: expected at least one normal training image, got none.")
    here = here or Ranks()
    progress = progress if here.is_writer else no_progress
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
    transform = shared_transform(measure_transform(features, paths, config, progress), here)
    features = PatchFeatures(
        backbone,
        pool=pool,
        upsample=upsample,
        transform=transform,
        unit=config.unit,
        layer_widths=widths,
        alignment=alignment,
    )
    tensors, facts = _fill_banks(config, features, grid, paths, scratch, progress, here)
    if measured is not None:
        facts["alignment"] = measured.note
    return FitResult(
        grid=grid,
        tensors=tensors,
        transform=None if transform is None else to_numpy(transform),
        facts=facts | here.facts(),
        places=places,
    )


def _fill_banks(
    config: PatchcoreConfig,
    features: PatchFeatures,
    grid: tuple[int, int],
    paths: Sequence[ImageSource],
    scratch: Path,
    progress: Progress,
    here: Ranks,
) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, int | float | str]]:
    """Return the banks, with what belongs to them, and facts of the fit. Every rank enters."""
    views = fitting_views(config.bank.views)
    channels = features.widths(config.preprocessing.size)
    foreground = None
    if config.bank.foreground and here.is_writer:
        foreground = measure_foreground(features, grid, paths, config, progress)
    with contextlib.ExitStack() as stack:
        selections = [
            # On all ranks, which refuse the same settings; only rank 0 fills them, and memory is taken by filling.
            stack.enter_context(open_selection(config, len(views) * len(paths), grid, width, scratch))
            for width in channels
        ]
        for patches in _patches_of_views(
            features, paths, views, (grid[0] * grid[1], sum(channels)), config, progress, here
        ):
            positions = np.arange(len(patches))
            if foreground is not None:
                positions = positions[foreground.shown(patches, grid)]
                patches = patches[positions]
            start = 0
            for selection in selections:
                selection.add(patches[:, start : start + selection.channels], positions)
                start += selection.channels
        fill = functools.partial(_filled, config, selections, grid)
        filled = while_writer(here, fill, progress)
    tensors, facts = ({}, {}) if filled is None else filled
    if foreground is not None:
        tensors |= {"foreground": foreground.direction, "foreground_limits": foreground.limits}
    if len(views) > 1:
        facts["views"] = len(views)
    return share_arrays(tensors, here), here.broadcast(facts)


def _filled(
    config: PatchcoreConfig, selections: Sequence[PatchSelection], grid: tuple[int, int], progress: Progress
) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, int | float | str]]:
    """Return the banks of filled selections and facts of them."""
    selected = [
        selection.bank(progress, "" if len(selections) == 1 else f", bank {number} of {len(selections)}")
        for number, selection in enumerate(selections, 1)
    ]
    banks = [bank for bank, _ in selected]
    tensors: dict[str, npt.NDArray[np.generic]] = dict(zip(bank_names(len(banks)), banks, strict=True))
    if config.reweight == "paper" and config.reweights:
        tensors["neighbours"] = neighbour_table(banks[0], min(config.neighbors, len(banks[0])))
    facts: dict[str, int | float | str] = {
        "patches": sum(selection.rows for selection in selections),
        "bank_rows": sum(len(bank) for bank in banks),
        "channels": sum(selection.channels for selection in selections),
        "selected_in": "; ".join(dict.fromkeys(selection.description for selection in selections)),
    }
    factors = [selection.factor for selection in selections if selection.factor is not None]
    if factors:
        facts["radius_factor"] = max(factors)
    if config.window is not None:
        row_places = [rows_at for _, rows_at in selected]
        tensors |= zip(place_names(len(row_places)), row_places, strict=True)
        reaches = [window_reach(place_starts(rows_at, grid), grid, config.window) for rows_at in row_places]
        # Where no row was near enough, the nearest places that have rows count.
        facts["window_widened"] = sum(int((reach > config.window).sum()) for reach in reaches)
        facts["window_reach"] = max(int(reach.max()) for reach in reaches)
    return tensors, facts


def _patches_of_views(
    features: PatchFeatures,
    paths: Sequence[ImageSource],
    views: Sequence[View],
    shape: tuple[int, int],
    config: PatchcoreConfig,
    progress: Progress,
    here: Ranks,
) -> Iterator[Float32Array]:
    """Yield the patches of every image, float32 [P, D]: of all images as they are, then of the next view of all.

    On rank 0; the others yield none.
    """
    # Decoded anew for every view. Views of one batch at a time would be in an order that depends on the batch size, and
    # so would the coreset.
    for number, view in enumerate(views, 1):
        stage = "reading patches"
        if len(views) > 1:
            stage += f", view {number} of {len(views)} ({view.name})"
        for batch in gathered_patches(features, paths, shape, config, stage, progress, here, view):
            yield from batch


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

    takes_processes = True

    def fit(self, request: FitRequest) -> FitResult:
        """Select the memory bank; see `fit_patchcore`."""
        # The fit itself writes when the patches exceed the memory budget.
        with temporary_folder(request.out.parent) as scratch, storage_errors(request.out):
            return fit_patchcore(
                request.config, request.backbone, request.images, scratch, request.progress, request.here
            )

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
