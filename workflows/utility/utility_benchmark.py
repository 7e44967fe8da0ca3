"""Downstream benchmark of a synthetic set: the same segmenter trained with and without it, tested on real images.

Two arms for every seed, which differ in one thing only:

    real   normal training images, and the real defects of the support set
    both   the same, but a share of the anomalous images in each batch is synthetic instead of real

Initial weights, number of steps, batches, normal images and augmentation are the same. Test images that the generator
has seen are left out: support images, near duplicates of them, normal images that defects were drawn on. The difference
of every figure is reported with its interval (`flawscope.calibration.evaluation.paired_differences`), and a set is
recommended only if the whole interval of the chosen figure lies above zero.

IoU is measured at a probability of 0.5, and at the threshold of the best F1 on held-back normal images and the support
images. No threshold is set and no training is chosen on test images. Segmenters have learned from the support images,
because there are no other real defects outside the test split, so IoU at that threshold is for information only.

Inception score and IC-LPIPS of the synthetic images are measured if the networks' weights are given
(`flawscope.workflows.utility.utility_variety`). They measure diversity, not whether the images help, and do not change
the verdict.

    DIR/judge.json   all figures per seed and arm, differences, intervals, verdict
    DIR/judge.svg    the differences and their intervals
    DIR/arms/        a folder for each finished training: logits on the test images, metrics, a preview
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

import flawscope
from flawscope.arrays import BoolArray, Float32Array
from flawscope.calibration.evaluation.intervals import check_fraction
from flawscope.calibration.evaluation.metrics import f1_max
from flawscope.calibration.evaluation.paired_differences import (
    FIGURES,
    IOU,
    IOU_F1,
    PIXEL_AP,
    Difference,
    Tally,
    Truth,
    compare_tallies,
    tally,
)
from flawscope.calibration.extras import require
from flawscope.config import flatten
from flawscope.datasets import Dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.files import atomic_folder, storage_errors, write_bytes, write_text
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, regular_path
from flawscope.progress import Progress, no_progress
from flawscope.runs import BackboneSource
from flawscope.scratch import is_scratch, remove_leftovers
from flawscope.text import NOT_JSON, encode_json
from flawscope.training.features.backbone import Backbone, prepare_backbone, stages_of
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import CHECKPOINTS
from flawscope.training.loop.workspace import FREE
from flawscope.training.segmentation.segmenter import (
    Segmenter,
    SegmenterConfig,
    enlarge,
    image_scores,
    predict,
    train_segmenter,
)
from flawscope.versions import package_versions
from flawscope.workflows.utility.utility_data import UtilityData, read_utility_data
from flawscope.workflows.utility.utility_plot import draw_differences
from flawscope.workflows.utility.utility_report import ARMS, Arm, ArmFigures, ArmResult, UtilityReport
from flawscope.workflows.utility.utility_variety import Variety, load_networks, take_variety

RECORD, PLOT = "judge.json", "judge.svg"
_ARMS, _RESULT, _MAPS = "arms", "result.json", "maps.safetensors"
_FREE = ("seed", *FREE)
"""Settings in which a finished result may differ: the seed is in its name, the others do not change its numbers."""
_ENLARGED = 64  # maps enlarged at once, which bounds the memory
_THRESHOLD_IMAGES = 64  # normal, and as many anomalous ones: all their pixels are sorted


@dataclass(frozen=True)
class UtilityPlan:
    """Request of a downstream benchmark: which synthetic set, and how it is tested.

    Attributes:
        config: Settings of the segmenter; its seed is not used.
        dataset: The real dataset.
        support: Folder of the support set.
        generated: Folder of `synth generate`.
        out: Folder for results.
        seeds: Seeds of the trainings; two trainings for each.
        weights: Safetensors file of the backbone, or None.
        inception: State dict of torchvision's inception_v3, for the Inception score, or None.
        lpips: State dict of torchvision's alexnet or vgg16, for IC-LPIPS, or None.
        lpips_heads: Linear weights of LPIPS 0.1 for it; with `lpips` or not at all.
        figure: Which of `flawscope.calibration.evaluation.paired_differences.FIGURES` decides.
        confidence: Confidence of the intervals, a fraction.
        with_leak: Also measure the figures on all test images.
        per_defect: Also measure the figures of every defect type.
        resume: Use the finished trainings in `out`.
        command: Command line for the record.
    """

    config: SegmenterConfig
    dataset: Dataset
    support: Path
    generated: Path
    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    weights: Path | None = None
    inception: Path | None = None
    lpips: Path | None = None
    lpips_heads: Path | None = None
    figure: str = PIXEL_AP
    confidence: float = 0.95
    with_leak: bool = False
    per_defect: bool = False
    resume: bool = False
    command: str = ""


def run_utility_benchmark(plan: UtilityPlan, progress: Progress = no_progress) -> UtilityReport:
    """Train with and without a synthetic set, compare on real images, and write the report.

    Args:
        plan: Which synthetic set, and how it is tested.
        progress: Called with what is being done.

    Raises:
        ArgumentError: If the plan is wrong, or its folder holds something else.
        DataError: If images are missing or broken, or the support set is not that of the generator.
        RunError: If a training fails, or the result of a finished one cannot be read.
        StorageError: If the system refuses to write.
    """
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy"), ("matplotlib", "matplotlib")):
        require(module, package, "judging a synthetic set")
    _check(plan)
    # Weights first: a wrong file is an error before an image is read.
    networks = load_networks(plan.inception, plan.lpips, plan.lpips_heads, _device(plan.config))
    # Refuses a size it cannot take before the long parts.
    size = plan.config.preprocessing.size
    features, encoder, source = prepare_backbone(plan.config.features, plan.weights, size)
    stages_of(encoder, size)
    plan = dataclasses.replace(plan, config=msgspec.structs.replace(plan.config, features=features))
    data = read_utility_data(plan.config, plan.dataset, read_support(plan.support), plan.generated, progress)
    trainings = [(seed, arm) for seed in plan.seeds for arm in ARMS]
    for seed, arm in trainings:  # a result that does not fit is refused before the first training, not hours later
        _read_finished(plan, data, source, seed, arm)
    for place in (plan.out, plan.out / _ARMS):
        remove_leftovers(place)
    variety = None
    if networks is not None:
        variety = take_variety(networks, data.defects, plan.config, _device(plan.config), progress)
    del networks  # the trainings need the memory
    outcomes = []
    for index, (seed, arm) in enumerate(trainings):
        progress("trainings", index, len(trainings))
        # Read again, so that the logits of all trainings are not held while the first ones run.
        finished = _read_finished(plan, data, source, seed, arm)
        outcomes.append(finished or _run_arm(plan, data, encoder, source, seed, arm, progress))
    progress("trainings", len(trainings), len(trainings))
    report = _compare(plan, data, source, outcomes, variety)
    write_bytes(plan.out / RECORD, msgspec.json.format(encode_json(report), indent=1) + b"\n")
    write_text(plan.out / PLOT, draw_differences(report.differences))
    return report


def _check(plan: UtilityPlan) -> None:
    check_fraction(plan.confidence, "confidence")
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds) or min(plan.seeds) < 0:
        raise ArgumentError(f"seeds: expected different numbers of at least 0, got {list(plan.seeds)}.")
    if plan.figure not in FIGURES:
        raise ArgumentError(f"figure: expected one of {', '.join(FIGURES)}, got {plan.figure!r}.")
    if plan.config.synthetic_share == 0.0:
        raise ArgumentError("synthetic_share: expected above 0, got 0: both arms would be the same.")
    if plan.out.exists() and not plan.out.is_dir():
        raise ArgumentError(f"{plan.out}: expected a folder, got a file. Choose another name.")
    # A folder with other files is refused: results would be mixed with something that is not of this benchmark.
    if plan.out.is_dir():
        names = [path.name for path in list_folder(plan.out)]
        if foreign := [name for name in names if name not in (_ARMS, RECORD, PLOT) and not is_scratch(name)]:
            raise ArgumentError(f"{plan.out}: expected a new folder, got one with {foreign[0]}. Choose another name.")
        if not plan.resume and ((plan.out / RECORD).exists() or _has_results(plan.out / _ARMS)):
            raise ArgumentError(
                f"{plan.out}: expected a new folder, got one with results. Use the finished trainings with --resume "
                "latest, or choose another name."
            )


# ---- One training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    result: ArmResult
    logits: Float32Array = field(repr=False)


def _folder(plan: UtilityPlan, seed: int, arm: Arm) -> Path:
    return plan.out / _ARMS / f"seed_{seed}_{arm}"


def _config_of(plan: UtilityPlan, seed: int, arm: Arm) -> SegmenterConfig:
    # Arm `real` does not use these two: its results would not be used again after a change of them otherwise.
    without_synthetic: dict[str, Any] = {"synthetic_share": 0.0, "weak_tau": None} if arm == "real" else {}
    return msgspec.structs.replace(plan.config, seed=seed, **without_synthetic)


def _made_from(plan: UtilityPlan, data: UtilityData, source: BackboneSource, seed: int, arm: Arm) -> dict[str, Any]:
    """Return everything the numbers of a training depend on, as JSON reads it back."""
    settings = flatten(_config_of(plan, seed, arm))
    dependencies = {
        **{f"setting {name}": value for name, value in settings.items() if name not in _FREE},
        "weights": source.weights,
        "dataset": data.dataset,
        "support set": data.support,
        "synthetic set": data.synthetic if arm == "both" else None,
        "version of flawscope": flawscope.__version__,  # another version may train otherwise
    }
    # Through JSON, as a stored record has been: tuples become lists there, and would never be equal otherwise.
    plain: dict[str, Any] = msgspec.json.decode(encode_json(dependencies))
    return plain


def _has_results(arms: Path) -> bool:
    return arms.is_dir() and any((arm / _RESULT).is_file() for arm in list_folder(arms))


def _read_finished(
    plan: UtilityPlan, data: UtilityData, source: BackboneSource, seed: int, arm: Arm
) -> _Outcome | None:
    """Return the result of a training that an earlier benchmark finished, or None if there is none.

    Raises:
        ArgumentError: If it depends on anything else than this plan would.
        RunError: If it cannot be read.
    """
    folder = _folder(plan, seed, arm)
    if not (folder / _RESULT).is_file():
        return None
    try:
        result = msgspec.json.decode(read_regular(folder / _RESULT, RECORD_BYTES), type=ArmResult)
        logits = safetensors.numpy.load_file(regular_path(folder / _MAPS))["logits"]
    except (OSError, KeyError, SafetensorError, *NOT_JSON) as err:
        raise RunError(f"{folder}: expected the result of a training, got: {err}. Remove the folder.") from err
    expected = _made_from(plan, data, source, seed, arm)
    changed = [name for name in expected if result.made_from.get(name) != expected[name]]
    if changed or set(result.made_from) != set(expected) or (result.seed, result.arm) != (seed, arm):
        name = changed[0] if changed else "what it was made from"
        raise ArgumentError(
            f"{folder}: expected a result of the same request, got one of another: {name} was "
            f"{result.made_from.get(name)}, is {expected.get(name)}. Give the same, or another --out."
        )
    # The images are the same by now (fingerprint of the dataset), so other logits are a damaged file.
    if logits.dtype != np.float32 or logits.ndim != 3 or len(logits) != len(data.samples):
        raise RunError(f"{folder}: expected float32 logits of {len(data.samples)} images. Remove the folder.")
    return _Outcome(result, logits)


def _run_arm(
    plan: UtilityPlan,
    data: UtilityData,
    encoder: Backbone,
    source: BackboneSource,
    seed: int,
    arm: Arm,
    progress: Progress,
) -> _Outcome:
    """Train one arm, predict the test images, and write both to the arm's folder."""
    started = time.perf_counter()
    folder, config = _folder(plan, seed, arm), _config_of(plan, seed, arm)
    learned = data.learned
    if arm == "real":
        # Without the synthetic images; both arms share the readers of all others.
        learned = type(learned)(learned.good, learned.held_back, learned.real)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a folder with a result is never half a training.
    with atomic_folder(folder) as temporary:
        title = f"seed {seed}, {arm}"
        segmenter, trained = train_segmenter(
            config, encoder, learned, temporary, lambda _, step, total: progress(title, step, total)
        )
        shutil.rmtree(temporary / CHECKPOINTS, ignore_errors=True)  # a finished training is not resumed
        segmenter.to(_device(config))
        logits = predict(segmenter, data.test, batch_size=config.loop.batch_size)
        if not np.isfinite(logits).all():
            raise RunError(f"seed {seed}, arm {arm}: expected finite logits, got NaN or infinity. Lower learning_rate.")
        result = ArmResult(
            seed=seed,
            arm=arm,
            made_from=_made_from(plan, data, source, seed, arm),
            threshold=_best_threshold(segmenter, config, data),
            loss=trained.losses[-1],
            validation_error=trained.error,
            # Not in `made_from`, like the versions below: finished results may differ in both.
            seconds=round(time.perf_counter() - started, 3),
            versions=package_versions(),
        )
        safetensors.numpy.save_file({"logits": logits}, temporary / _MAPS)
        (temporary / _RESULT).write_bytes(msgspec.json.format(encode_json(result), indent=1) + b"\n")
    return _Outcome(result, logits)


def _device(config: SegmenterConfig) -> str:
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _best_threshold(segmenter: Segmenter, config: SegmenterConfig, data: UtilityData) -> float:
    """Return the logit of the best F1 of pixels on held-back normal images and on the support images."""
    real = data.learned.real
    parts: list[tuple[ImageReader, BoolArray | None]] = [(data.learned.held_back, None), (real.images, real.labels)]
    scores, labels = [], []
    for images, masks in parts:
        count = min(_THRESHOLD_IMAGES, len(images))
        maps = _maps(predict(segmenter, images, count, config.loop.batch_size), config)
        scores.append(maps.astype(np.float64).ravel())  # what f1_max takes
        labels.append(np.zeros(maps.size, np.bool_) if masks is None else masks[:count].ravel())
    # On images that were learned from or held back, never on test images: a threshold chosen there would be too good.
    best = f1_max(np.concatenate(scores), np.concatenate(labels))
    assert best is not None  # held-back images have no defect, support images have one
    return best.threshold


def _maps(logits: Float32Array, config: SegmenterConfig) -> Float32Array:
    """Return logits at the size of the images, float32 [N, H, W]."""
    maps = np.empty((len(logits), *config.preprocessing.size), np.float32)
    for start in range(0, len(logits), _ENLARGED):
        part = torch.from_numpy(logits[start : start + _ENLARGED])[:, None]
        maps[start : start + _ENLARGED] = enlarge(part, config.preprocessing.size)[:, 0].numpy()
    return maps


# ---- The comparison --------------------------------------------------------------------------------------------------


def _compare(
    plan: UtilityPlan,
    data: UtilityData,
    source: BackboneSource,
    outcomes: Sequence[_Outcome],
    variety: Variety | None,
) -> UtilityReport:
    """Return the report; `outcomes` are of both arms in turn, as the trainings were run."""
    defects = np.array([sample.defect for sample in data.samples])
    groups: dict[str, BoolArray] = {"clean": data.is_clean}
    if plan.with_leak:
        groups["leak"] = np.ones(len(defects), np.bool_)
    types = sorted(set(defects[data.truth.labels & data.is_clean])) if plan.per_defect else []
    for name in types:
        # With all normal images: a ranking figure of one defect type alone is undefined.
        groups[f"defect {name}"] = data.is_clean & (~data.truth.labels | (defects == name))
    truths = {name: data.truth.select(rows) for name, rows in groups.items()}
    tallies: dict[str, list[Tally]] = {name: [] for name in groups}
    for outcome in outcomes:  # maps of one training at a time, which bounds the memory
        maps = _maps(outcome.logits, plan.config)
        for name, rows in groups.items():
            tallies[name].append(_tally(plan, maps[rows], truths[name], outcome.result))
    differences = {
        # Arms take turns: real, both, real, both, ...
        name: compare_tallies(of_group[0::2], of_group[1::2], truths[name], confidence=plan.confidence)
        for name, of_group in tallies.items()
    }
    clean = differences["clean"]
    if plan.figure not in clean:
        raise DataError(f"{plan.figure}: expected a figure that is defined on these test images. Choose another.")
    deciding = clean[plan.figure]  # chosen before the trainings: the best of five figures would gain too often
    notes = list(data.notes)
    if len(plan.seeds) == 1:
        notes.append("one seed: the interval does not cover chance in training; give three or more with --seeds")
    return UtilityReport(
        is_recommended=deciding.is_gain,
        verdict=_verdict(FIGURES[plan.figure], deciding),
        figure=plan.figure,
        differences=clean,
        with_leak=differences.get("leak"),
        defects={name: differences[f"defect {name}"] for name in types} if plan.per_defect else None,
        arms=tuple(
            ArmFigures(figures=figures.figures, result=outcome.result)
            for figures, outcome in zip(tallies["clean"], outcomes, strict=True)
        ),
        counts=data.counts,
        left_out=data.left_out,
        notes=tuple(notes),
        config=flatten(plan.config),
        backbone=source,
        category=plan.dataset.category,
        dataset=data.dataset,
        support=data.support,
        synthetic=data.synthetic,
        confidence=plan.confidence,
        versions=package_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=plan.command,
        flawscope=flawscope.__version__,
        variety=variety,
    )


def _tally(plan: UtilityPlan, maps: Float32Array, truth: Truth, result: ArmResult) -> Tally:
    # Logits, as the maps are: no sigmoid over all pixels, and no rounding to 1 that would merge the highest ones.
    thresholds = {IOU: 0.0, IOU_F1: result.threshold}  # as logits: 0 is a probability of 0.5
    return tally(maps, image_scores(maps, plan.config.top), truth, thresholds)


def _verdict(name: str, difference: Difference) -> str:
    interval = difference.interval
    gain = f"{name} {difference.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
    if difference.is_gain:
        return f"recommended: gain of {gain} is above zero"
    return f"not recommended: gain of {gain} is not above zero"
