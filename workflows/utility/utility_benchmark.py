"""Downstream benchmark of drawn defects: the detector that ships, trained with and without them, tested on real images.

An arm is what a detector learns from beside the normal images:

    real     the real defects of the support set
    DIR      the same, but a share of the anomalous images in each batch is drawn instead of real
    A+B      the same with a mixture of two folders
    DIR@50   with at most 50 drawn images

For every seed each arm is trained, exported and run by the methods' own trainer, exporter and runtime, behind the same
gates. Initial weights, normal images, number of steps and augmentation of a seed are the same in all arms. Test images
that have been seen are left out: support images, near duplicates of them, normal images that defects were drawn on.
The difference of every figure to the arm `real` is reported with its interval
(`flawscope.calibration.evaluation.paired_differences`), for all defect types and for the taught ones, and an arm is
recommended only if the whole interval of the chosen figure lies above zero.

A second verdict is by decisions: how many real defects a detector misses at the threshold that normal images alone
give, and beside it how many drawn ones, an estimate that needs no real defect. No threshold is set and no training is
chosen on test images. The detectors have learned from the support images, because there are no other real defects
outside the test split, so IoU at the best F1 is for information only.

    DIR/judge.json   all figures per seed and arm, differences, intervals, verdicts
    DIR/judge.svg    the differences and their intervals
    DIR/arms/        a folder for each finished training: its bundle, metrics, previews
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import flawscope
from flawscope.arrays import BoolArray
from flawscope.calibration.evaluation.intervals import check_fraction
from flawscope.calibration.evaluation.paired_differences import (
    FIGURES,
    IOU,
    IOU_F1,
    PIXEL_AP,
    Difference,
    Tally,
    compare_tallies,
    tally,
)
from flawscope.calibration.extras import require
from flawscope.config import FeatureSettings, LabelledConfig, find_part, flatten
from flawscope.config.setting_parts import change_settings, tag_of
from flawscope.datasets import Dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.export.detectors.detector_export import export_run
from flawscope.files import atomic_folder, storage_errors, write_bytes, write_text
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular
from flawscope.progress import Progress, no_progress
from flawscope.runs import BackboneSource
from flawscope.scratch import is_scratch, remove_leftovers
from flawscope.text import NOT_JSON, encode_json
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.features.backbone import prepare_backbone, stages_of
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.loop.workspace import FREE
from flawscope.versions import package_versions
from flawscope.workflows.utility.arm_scores import ArmScores, score_arm, zero_logit_value
from flawscope.workflows.utility.arms import REAL, Arm, settings_of
from flawscope.workflows.utility.utility_data import UtilityData, read_utility_data
from flawscope.workflows.utility.utility_plot import draw_differences
from flawscope.workflows.utility.utility_report import ArmFigures, ArmReport, ArmResult, UtilityReport
from flawscope.workflows.utility.utility_variety import Variety, load_networks, take_variety

RECORD, PLOT = "judge.json", "judge.svg"
_ARMS, _RESULT, BUNDLE = "arms", "result.json", "detector.flaw"
_FREE = ("seed", "support", "drawn", *FREE)
"""Settings in which a finished result may differ: the seed is in its name, folders are known by their content, and the
others do not change its numbers."""


@dataclass(frozen=True)
class UtilityPlan:
    """Request of a downstream benchmark: which drawn sets, and how they are tested.

    Attributes:
        config: Settings of the detector; its seed and its sources of labelled defects are not used, but for procedural
            anomalies, which all arms then have.
        dataset: The real dataset.
        support: Folder of the support set.
        arms: Of `read_arms`, `real` first.
        out: Folder for results.
        share: Share of drawn images among the anomalous ones, those of the support set being the rest.
        seeds: Seeds of the trainings; one training of each arm for each.
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

    config: LabelledConfig
    dataset: Dataset
    support: Path
    arms: tuple[Arm, ...]
    out: Path
    share: float = 0.5
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

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders of drawn images, each once."""
        return tuple(dict.fromkeys(folder for arm in self.arms for folder in arm.folders))


def run_utility_benchmark(plan: UtilityPlan, progress: Progress = no_progress) -> UtilityReport:
    """Train every arm, compare them on real images, and write the report.

    Args:
        plan: Which drawn sets, and how they are tested.
        progress: Called with what is being done.

    Raises:
        ArgumentError: If the plan is wrong, or its folder holds something else.
        DataError: If images are missing or broken, or a folder was drawn from another support set.
        GateError: If a detector and its exported graph disagree.
        RunError: If a training fails, or the result of a finished one cannot be read.
        StorageError: If the system refuses to write.
    """
    for module, package in (("sklearn", "scikit-learn"), ("scipy", "scipy"), ("matplotlib", "matplotlib")):
        require(module, package, "judging a synthetic set")
    _check(plan)
    # Weights first: a wrong file is an error before an image is read.
    device = choose_device(plan.config.device).type
    networks = load_networks(plan.inception, plan.lpips, plan.lpips_heads, device)
    plan, source = _with_backbone(plan)
    data = read_utility_data(plan.config, plan.dataset, read_support(plan.support), plan.folders, progress)
    trainings = [(seed, arm) for seed in plan.seeds for arm in plan.arms]
    for seed, arm in trainings:  # a result that does not fit is refused before the first training, not hours later
        _read_finished(plan, data, source, seed, arm)
    for place in (plan.out, plan.out / _ARMS):
        remove_leftovers(place)
    variety = None
    if networks is not None:
        variety = take_variety(networks, data.defects, plan.config, device, progress)
    del networks  # the trainings need the memory
    groups = _groups(plan, data)
    results: list[ArmResult] = []
    tallies: dict[str, list[Tally]] = {name: [] for name in groups}
    for index, (seed, arm) in enumerate(trainings):
        progress("trainings", index, len(trainings))
        result = _read_finished(plan, data, source, seed, arm)
        if result is None:
            result, scores = _train_arm(plan, data, source, seed, arm, progress)
        else:
            scores = score_arm(_folder(plan, seed, arm) / BUNDLE, plan.config, data, progress, _title(seed, arm))
        # Only what figures need is kept: the maps of all trainings might not fit into memory.
        thresholds = {IOU: zero_logit_value(), IOU_F1: scores.best_threshold}
        for name, rows in groups.items():
            truth = data.truth.select(rows)
            tallies[name].append(tally(scores.maps[rows], scores.scores[rows], truth, thresholds))
        results.append(result)
    progress("trainings", len(trainings), len(trainings))
    report = _compare(plan, data, source, results, tallies, variety)
    write_bytes(plan.out / RECORD, msgspec.json.format(encode_json(report), indent=1) + b"\n")
    write_text(plan.out / PLOT, draw_differences({one.name: one.differences for one in report.compared}))
    return report


def _check(plan: UtilityPlan) -> None:
    check_fraction(plan.confidence, "confidence")
    if not plan.seeds or len(set(plan.seeds)) != len(plan.seeds) or min(plan.seeds) < 0:
        raise ArgumentError(f"seeds: expected different numbers of at least 0, got {list(plan.seeds)}.")
    if plan.figure not in FIGURES:
        raise ArgumentError(f"figure: expected one of {', '.join(FIGURES)}, got {plan.figure!r}.")
    if not 0.0 < plan.share <= 1.0:
        raise ArgumentError(f"synthetic_share: expected a share above 0 up to 1, got {plan.share}.")
    if plan.config.tiling is not None:
        raise ArgumentError(f"tile: expected none, as images are judged whole, got {plan.config.input.tile}.")
    if plan.config.split.held_out == 0.0:
        raise ArgumentError("held_out: expected above 0, since thresholds come from held-out images, got 0.")
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


def _with_backbone(plan: UtilityPlan) -> tuple[UtilityPlan, BackboneSource]:
    """Return the plan with what its settings left open about the backbone, and where the backbone comes from."""
    features = find_part(plan.config, FeatureSettings)
    if features is None:
        if plan.weights is not None:
            raise ArgumentError(f"--weights: expected none with a method that has no backbone, got {plan.weights}.")
        return plan, BackboneSource("none", "none", "none")
    # Refuses weights and a size that it cannot take before the long parts.
    size = plan.config.preprocessing.size
    resolved, encoder, source = prepare_backbone(features, plan.weights, size)
    stages_of(encoder, size)
    names = ("stages", "backbone_options", "mean", "std", "final_norm")
    changed = {name: getattr(resolved, name) for name in names}
    return dataclasses.replace(plan, config=change_settings(plan.config, changed)), source


# ---- One training ----------------------------------------------------------------------------------------------------


def _folder(plan: UtilityPlan, seed: int, arm: Arm) -> Path:
    return plan.out / _ARMS / f"seed_{seed}_{arm.name}"


def _made_from(plan: UtilityPlan, data: UtilityData, source: BackboneSource, seed: int, arm: Arm) -> dict[str, Any]:
    """Return everything the numbers of a training depend on, as JSON reads it back."""
    settings = flatten(settings_of(plan.config, arm, plan.support, plan.share, seed))
    dependencies = {
        **{f"setting {name}": value for name, value in settings.items() if name not in _FREE},
        "weights": source.weights,
        "dataset": data.dataset,
        "support set": data.support,
        "synthetic set": [data.folders[folder] for folder in arm.folders],
        "version of flawscope": flawscope.__version__,  # another version may train otherwise
    }
    # Through JSON, as a stored record has been: tuples become lists there, and would never be equal otherwise.
    plain: dict[str, Any] = msgspec.json.decode(encode_json(dependencies))
    return plain


def _has_results(arms: Path) -> bool:
    return arms.is_dir() and any((arm / _RESULT).is_file() for arm in list_folder(arms))


def _read_finished(
    plan: UtilityPlan, data: UtilityData, source: BackboneSource, seed: int, arm: Arm
) -> ArmResult | None:
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
    except (OSError, *NOT_JSON) as err:
        raise RunError(f"{folder}: expected the result of a training, got: {err}. Remove the folder.") from err
    expected = _made_from(plan, data, source, seed, arm)
    changed = [name for name in expected if result.made_from.get(name) != expected[name]]
    if changed or set(result.made_from) != set(expected) or (result.seed, result.arm) != (seed, arm.name):
        name = changed[0] if changed else "what it was made from"
        raise ArgumentError(
            f"{folder}: expected a result of the same request, got one of another: {name} was "
            f"{result.made_from.get(name)}, is {expected.get(name)}. Give the same, or another --out."
        )
    return result


def _train_arm(
    plan: UtilityPlan, data: UtilityData, source: BackboneSource, seed: int, arm: Arm, progress: Progress
) -> tuple[ArmResult, ArmScores]:
    """Train, export and score one arm, and write its bundle and result to the arm's folder."""
    started = time.perf_counter()
    folder, config = _folder(plan, seed, arm), settings_of(plan.config, arm, plan.support, plan.share, seed)
    title = _title(seed, arm)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)

    def told(what: str, done: int, total: int) -> None:
        progress(title if what == "training" else what, done, total)

    # Whole or not at all: a folder with a result is never half a training.
    with atomic_folder(folder) as temporary:
        run = temporary / "run"
        record = train_detector(
            config, plan.dataset, run, weights=plan.weights, command=plan.command, progress=told, drawn_check=False
        )
        export_run(run, temporary / BUNDLE, command=plan.command, progress=told)
        for name in (METRICS, PREVIEWS):
            shutil.move(run / name, temporary / name)
        shutil.rmtree(run)  # the bundle is what was tested; the run has the same weights once more
        scores = score_arm(temporary / BUNDLE, config, data, progress, title)
        assert record.defects is not None, "it has learned from labelled defects"
        result = ArmResult(
            seed=seed,
            arm=arm.name,
            made_from=_made_from(plan, data, source, seed, arm),
            threshold=scores.best_threshold,
            learned={one.name: one.images for one in record.defects.sources},
            loss=float(record.facts["final_loss"]),
            validation_error=float(record.facts["validation_error"]),
            misses=scores.misses,
            # Not in `made_from`, like the versions below: finished results may differ in both.
            seconds=round(time.perf_counter() - started, 3),
            versions=package_versions(),
        )
        (temporary / _RESULT).write_bytes(msgspec.json.format(encode_json(result), indent=1) + b"\n")
    return result, scores


def _title(seed: int, arm: Arm) -> str:
    return f"seed {seed}, {arm.name}"


# ---- The comparison --------------------------------------------------------------------------------------------------


def _groups(plan: UtilityPlan, data: UtilityData) -> dict[str, BoolArray]:
    """Return name -> rows of the test images that figures are measured on."""
    defects = np.array([sample.defect for sample in data.samples])
    normal = ~data.truth.labels
    groups: dict[str, BoolArray] = {"clean": data.is_clean, "taught": data.is_clean & (normal | data.is_taught)}
    if plan.with_leak:
        groups["leak"] = np.ones(len(defects), np.bool_)
    if plan.per_defect:
        for name in sorted(set(defects[data.truth.labels & data.is_clean])):
            # With all normal images: a ranking figure of one defect type alone is undefined.
            groups[f"defect {name}"] = data.is_clean & (normal | (defects == name))
    return groups


def _compare(
    plan: UtilityPlan,
    data: UtilityData,
    source: BackboneSource,
    results: Sequence[ArmResult],
    tallies: dict[str, list[Tally]],
    variety: Variety | None,
) -> UtilityReport:
    """Return the report; results and tallies are of all arms in turn, seed after seed."""
    count, groups = len(plan.arms), _groups(plan, data)
    compared = []
    for place, arm in enumerate(plan.arms):
        if arm.name == REAL:
            continue
        differences = {
            name: compare_tallies(
                of_group[0::count], of_group[place::count], data.truth.select(groups[name]), confidence=plan.confidence
            )
            for name, of_group in tallies.items()
        }
        compared.append(_arm_report(plan, data, arm, differences))
    best = max(compared, key=lambda one: (one.is_recommended, one.differences[plan.figure].mean))
    notes = list(data.notes)
    if len(plan.seeds) == 1:
        notes.append("one seed: the interval does not cover chance in training; give three or more with --seeds")
    if len(compared) > 1:
        notes.append(f"each interval is of one arm alone: the best of {len(compared)} gains by chance more often")
    return UtilityReport(
        is_recommended=best.is_recommended,
        verdict=best.verdict if len(compared) == 1 else f"{best.name}: {best.verdict}",
        figure=plan.figure,
        method=tag_of(type(plan.config)),
        compared=tuple(compared),
        arms=tuple(
            ArmFigures(figures=figures.figures, result=result)
            for figures, result in zip(tallies["clean"], results, strict=True)
        ),
        counts=data.counts,
        types=data.types,
        left_out=data.left_out,
        notes=tuple(notes),
        config={name: value for name, value in flatten(plan.config).items() if name not in ("support", "drawn")},
        backbone=source,
        category=plan.dataset.category,
        dataset=data.dataset,
        support=data.support,
        confidence=plan.confidence,
        versions=package_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=plan.command,
        flawscope=flawscope.__version__,
        variety=variety,
    )


def _arm_report(
    plan: UtilityPlan, data: UtilityData, arm: Arm, differences: dict[str, dict[str, Difference]]
) -> ArmReport:
    clean = differences["clean"]
    if plan.figure not in clean:
        raise DataError(f"{plan.figure}: expected a figure that is defined on these test images. Choose another.")
    deciding = clean[plan.figure]  # chosen before the trainings: the best of five figures would gain too often
    by_defect = {
        name.removeprefix("defect "): figures for name, figures in differences.items() if name.startswith("defect ")
    }
    return ArmReport(
        name=arm.name,
        folders=tuple(map(str, arm.folders)),
        number=arm.number,
        synthetic=" ".join(data.folders[folder] for folder in arm.folders),
        is_recommended=deciding.is_gain,
        verdict=_verdict(FIGURES[plan.figure], deciding),
        differences=clean,
        taught=differences["taught"],
        with_leak=differences.get("leak"),
        defects=by_defect if plan.per_defect else None,
    )


def _verdict(name: str, difference: Difference) -> str:
    interval = difference.interval
    gain = f"{name} {difference.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"
    if difference.is_gain:
        return f"recommended: gain of {gain} is above zero"
    return f"not recommended: gain of {gain} is not above zero"
