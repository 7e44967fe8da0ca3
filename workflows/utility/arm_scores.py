"""Scores of one arm's bundle by the runtime: of the test images, and of those that thresholds come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flawscope.arrays import Float32Array, Float64Array
from flawscope.bundle import read_image_hashes
from flawscope.calibration.evaluation.metrics import f1_max
from flawscope.config import LabelledConfig
from flawscope.datasets import as_recorded
from flawscope.errors import DataError, RunError
from flawscope.imaging.images import prepare_mask
from flawscope.progress import Progress
from flawscope.runtime import Inspector
from flawscope.training.loop.image_batches import load_batches
from flawscope.training.segmentation.evidence import evidence
from flawscope.workflows.utility.utility_data import UtilityData
from flawscope.workflows.utility.utility_report import Misses

_THRESHOLD_IMAGES = 64  # normal, and as many anomalous ones: all their pixels are sorted


@dataclass(frozen=True)
class ArmScores:
    """What a bundle says of the images of a benchmark.

    Attributes:
        maps: float32 [N, H, W], of the test images.
        scores: float64 [N], of the test images.
        best_threshold: Map value of the best F1 of pixels on held-out normal images and on the support images.
        misses: Misses at the threshold from normal images.
    """

    maps: Float32Array
    scores: Float64Array
    best_threshold: float
    misses: Misses


def zero_logit_value() -> float:
    """Return the map value of a probability of 0.5, where the logit is 0."""
    return float(evidence(torch.zeros(())))


def score_arm(bundle: Path, config: LabelledConfig, data: UtilityData, progress: Progress, title: str) -> ArmScores:
    """Score the images of a benchmark with a bundle.

    Args:
        bundle: The bundle.
        config: Settings of the detector: preprocessing and threads.
        data: The images.
        progress: Told how many test images are scored.
        title: What the arm is called.

    Raises:
        BundleError: If the bundle is broken.
        DataError: If no normal image was held out.
        RunError: If a score is not finite.
    """
    backend = "cpu" if config.device == "cpu" else "auto"
    with Inspector.load(bundle, backend) as inspector:

        def scored(paths: Sequence[Path], told: Progress | None = None) -> tuple[Float32Array, Float64Array]:
            maps = np.zeros((len(paths), *config.preprocessing.size), np.float32)
            scores, done = np.zeros(len(paths)), 0
            size = min(inspector.manifest.max_batch, config.loop.batch_size)
            for images in load_batches(paths, config.preprocessing, size, config.data.num_workers):
                rows = slice(done, done + len(images))
                maps[rows], scores[rows] = inspector.infer(images)
                done += len(images)
                if told is not None:
                    told(f"scoring, {title}", done, len(paths))
            if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
                raise RunError(f"{title}: expected finite scores, got NaN or infinity. Lower learning_rate.")
            return maps, scores

        maps, scores = scored([sample.path for sample in data.samples], progress)
        hashes = read_image_hashes(inspector.bundle)
        contents = as_recorded(data.hashes, hashes.held_out)
        kept = frozenset(hashes.held_out)
        normal = [path for path in data.hashes if contents[path] in kept]
        if not normal:
            raise DataError(f"{title}: expected normal images that were held out for thresholds, got none.")
        normal_maps, normal_scores = scored(normal)
        # Drawings on held-out images: no arm has learned from them.
        goods = {line.good_sha256 for line in data.drawn}
        of_goods = as_recorded(data.hashes, goods)
        held_goods = {of_goods[path] for path in normal} & goods
        drawn_scores = scored([line.path for line in data.drawn if line.good_sha256 in held_goods])[1]
        support_maps = scored([entry.sample.path for entry in data.entries[:_THRESHOLD_IMAGES]])[0]
    # Of the images alone that were held out: nothing that is tested on, and no defect, chooses it.
    threshold = float(normal_scores.max())
    real = data.is_clean & data.is_taught
    tested = data.is_clean & ~data.truth.labels
    misses = Misses(
        threshold=threshold,
        normal=len(normal),
        false_rejects=int((scores[tested] > threshold).sum()),
        normal_tested=int(tested.sum()),
        missed=int((scores[real] <= threshold).sum()),
        real=int(real.sum()),
        missed_drawn=int((drawn_scores <= threshold).sum()),
        drawn=len(drawn_scores),
    )
    return ArmScores(maps, scores, _best_threshold(normal_maps, support_maps, config, data), misses)


def _best_threshold(
    normal_maps: Float32Array, support_maps: Float32Array, config: LabelledConfig, data: UtilityData
) -> float:
    """Return the map value of the best F1 of pixels; a threshold chosen on test images would be too good."""
    masks = np.stack(
        [prepare_mask(entry.read()[1], config.preprocessing) for entry in data.entries[: len(support_maps)]]
    )
    normal_maps = normal_maps[:_THRESHOLD_IMAGES]
    values = np.concatenate([normal_maps.ravel(), support_maps.ravel()]).astype(np.float64)  # what f1_max takes
    labels = np.concatenate([np.zeros(normal_maps.size, np.bool_), masks.ravel()])
    best = f1_max(values, labels)
    if best is None:
        raise DataError("support set: expected a defect that is seen at this size, got none. Take a larger size.")
    return best.threshold
