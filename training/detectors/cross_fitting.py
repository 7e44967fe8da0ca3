"""Cross-fitting: every normal image is scored by a fit that has not seen it, and the detector learns from all of them.

What thresholds on such scores allow to claim is in `flawscope.cross_scores`. Every fold is fitted as the detector
itself is, transform of the channels included, and scored by the formulas that the exported graphs are compared with.
The backbone computes every image once. Of several processes, each does its share of the folds, alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.config import MethodConfig
from flawscope.cross_scores import CrossScores
from flawscope.datasets import Sample, split_folds
from flawscope.errors import DataError
from flawscope.files import storage_errors, temporary_folder
from flawscope.imaging.images import prepare, read_image
from flawscope.imaging.tiles import MapBlender
from flawscope.progress import no_progress
from flawscope.runs import RunRecord
from flawscope.training.features.cached_backbone import CachedBackbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import image_sources
from flawscope.training.loop.shared_results import share_arrays
from flawscope.training.trainer import FitRequest, Trainer


def fit_and_cross(
    trainer: Trainer, request: FitRequest, folds: int, record_of: Callable[[FitResult], RunRecord]
) -> tuple[FitResult, CrossScores]:
    """Fit on all images, and on all but those of every fold, which are then scored.

    Args:
        trainer: Fits and scores the method.
        request: The fit on all images.
        folds: Number of folds; -1 for each image its own.
        record_of: Returns the record that a run of a fit would have.

    Raises:
        ArgumentError: If there are more folds than different images.
        DataError: If there are too few images, or one cannot be used.
        StorageError: If the features cannot be kept beside the run.
    """
    # Before the work, which a wrong number of folds would waste.
    groups = split_folds(request.samples, folds, request.config.seed, request.hashes)
    # Beside the run, not in /tmp, which is often a small memory file system.
    with (
        temporary_folder(request.out.parent) as scratch,
        storage_errors(request.out),
        tempfile.TemporaryFile(dir=scratch) as file,
    ):
        backbone = CachedBackbone(request.backbone, file)
        # First on all images: its batches are those of a fit without cross-fitting, and so are its bits.
        fit_result = trainer.fit(replace(request, backbone=backbone))
        return fit_result, _cross_scores(trainer, replace(request, backbone=backbone), groups, record_of)


def _cross_scores(
    trainer: Trainer,
    request: FitRequest,
    groups: Sequence[Sequence[Sample]],
    record_of: Callable[[FitResult], RunRecord],
) -> CrossScores:
    here = request.here
    scores, largest = dict[str, float](), dict[str, float]()
    own = here.share(len(groups))
    progress = request.progress if here.is_writer else no_progress
    for number in own:
        group = groups[number]
        progress("cross-fitting", int(number), len(groups))
        held = set(group)
        rest = [sample for sample in request.samples if sample not in held]
        images = image_sources(rest, request.config.tiling)
        fitted = trainer.fit(replace(request, samples=rest, images=images, progress=no_progress, is_alone=True))
        module = trainer.restore(request.out, record_of(fitted), request.backbone, fitted)
        for sample in group:
            content = request.hashes[sample.path]
            if content not in scores:  # a copy has the same pixels, and the same score
                anomaly_map, scores[content] = score_image(trainer, request.config, module, fitted, sample)
                largest[content] = float(anomaly_map.max())
    scores, largest = _of_all(scores, largest, request)
    progress("cross-fitting", len(groups), len(groups))
    images_in_order = tuple(sorted(scores))
    values = (*scores.values(), *largest.values())
    if not np.isfinite(values).all():
        raise DataError("cross_fit: expected finite scores of the normal images, got NaN or infinity. Set cross_fit=0.")
    return CrossScores(
        folds=len(groups),
        images=images_in_order,
        scores=tuple(scores[name] for name in images_in_order),
        map_max=tuple(largest[name] for name in images_in_order),
    )


def _of_all(
    scores: dict[str, float], largest: dict[str, float], request: FitRequest
) -> tuple[dict[str, float], dict[str, float]]:
    """Return scores and largest values of all processes, by content. Every rank enters."""
    if request.here.world == 1:
        return scores, largest
    order = sorted({request.hashes[sample.path] for sample in request.samples})
    places = np.array([place for place, content in enumerate(order) if content in scores], np.int64)
    own = np.array([(scores[order[place]], largest[order[place]]) for place in places], np.float64).reshape(-1, 2)
    gathered = request.here.gather_rows(own, places)
    rows = share_arrays({} if gathered is None else {"scores": gathered}, request.here)["scores"].astype(np.float64)
    of_all = [dict(zip(order, map(float, column), strict=True)) for column in rows.T]
    return of_all[0], of_all[1]


def score_image(
    trainer: Trainer, config: MethodConfig, module: Any, fitted: FitResult, sample: Sample
) -> tuple[Float32Array, float]:
    """Return anomaly map float32 [H, W] and score of an image, as the exported detector gives them.

    Images that are cut into tiles in inspection are cut and blended here in the same way, and the margin of `letterbox`
    is left out of the map.

    Args:
        trainer: Scores the method.
        config: Its settings.
        module: What the trainer restored from the fit.
        fitted: The fit.
        sample: The image.

    Raises:
        ImageError: If it cannot be read.
    """
    spec, tiling = config.preprocessing, config.tiling
    image = read_image(sample.path, spec.bits)
    size = image.shape[0], image.shape[1]
    if tiling is None:
        maps, scores = trainer.scores(config, module, fitted, [prepare(image, spec)])
        return maps[0][spec.place_of(size)] if spec.mode == "letterbox" else maps[0], float(scores[0])
    blender, highest = MapBlender(size, tiling), -np.inf
    for corner in tiling.corners(*size):
        maps, scores = trainer.scores(config, module, fitted, [prepare(tiling.cut(image, corner), spec)])
        blender.add(corner, maps[0])
        highest = float(np.maximum(highest, scores[0]))  # NumPy's: Python's max() drops NaN
    return blender.finish(), highest
