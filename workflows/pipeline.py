"""From a dataset to an evaluated bundle, top to bottom: training → export → thresholds → evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from flawscope.bundle import Manifest, Thresholds
from flawscope.calibration.evaluation.evaluate import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.figures import Figures
from flawscope.calibration.evaluation.intervals import check_fraction
from flawscope.calibration.evaluation.report import REPORT, check_report_packages, write_report
from flawscope.calibration.extras import require
from flawscope.calibration.thresholds.calibrate import CONFIDENCE, FALSE_REJECT_RATE, calibrate_bundle
from flawscope.config import HeldOutSettings, MethodConfig, find_part
from flawscope.datasets import Dataset
from flawscope.errors import ArgumentError
from flawscope.export.detectors.detector_export import export_run
from flawscope.files import check_replaceable, sha256_file, write_bytes
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, RunRecord
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.detector_training import check_recorded, train_detector
from flawscope.training.trainer import trainer_of

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """What a pipeline shall do.

    Attributes:
        config: Settings of the method.
        dataset: Where all images are from.
        out: Folder for all results.
        weights: Safetensors file of the backbone, or None for the hub.
        resume: Go on with a training that was interrupted.
        ready: The run that is there already, or None to train one.
        trains_extractor: Train the extractor of ddad on the denoiser of `ready`.
        sets_thresholds: Whether the bundle gets thresholds.
        evaluates: Whether the bundle is evaluated, if there are anomalous test images.
        false_reject_rate: Share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        command: Command line for the records.
    """

    config: MethodConfig
    dataset: Dataset
    out: Path
    weights: Path | None = None
    resume: bool = False
    ready: Run | None = None
    trains_extractor: bool = False
    sets_thresholds: bool = True
    evaluates: bool = True
    false_reject_rate: float = FALSE_REJECT_RATE
    confidence: float = CONFIDENCE
    command: str = ""

    @property
    def run(self) -> Path:
        """The run's folder."""
        return run_below(self.out)

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.out / f"{self.dataset.category}.flaw"

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.out / "report"

    @property
    def figures(self) -> Path:
        """The file with the figures of the evaluation."""
        return self.out / "evaluation.json"


@dataclass(frozen=True)
class Stage:
    """A stage that is done, or was left out.

    Attributes:
        name: `train`, `extractor`, `export`, `threshold` or `evaluation`.
        seconds: Wall-clock time, or None where it was left out.
        said: What came out, or why it was left out.
        notes: What limits the result, a sentence each.
    """

    name: str
    seconds: float | None
    said: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a pipeline has made.

    Attributes:
        record: Of the run.
        manifest: Of the bundle, as it was exported.
        thresholds: Of the bundle, or None where they were left out.
        figures: Of the evaluation, or None where it was left out.
    """

    record: RunRecord
    manifest: Manifest
    thresholds: Thresholds | None
    figures: Figures | None


def _no_bars() -> AbstractContextManager[Progress]:
    return nullcontext(no_progress)


def _tell_nobody(stage: Stage) -> None:
    """Report nothing."""


def run_below(out: Path) -> Path:
    """Return the folder of the run below that of a pipeline."""
    return out / "run"


def read_ready(out: Path) -> Run:
    """Return the run that an earlier pipeline has left in its folder.

    Raises:
        ArgumentError: If there is none.
        RunError: If it is broken.
    """
    path = run_below(out)
    if not (path / RECORD).is_file():
        raise ArgumentError(
            f"{path}: expected a run there, because its training is skipped, got none. Leave --skip train out, or name "
            "the --out of an earlier pipeline."
        )
    return read_run(path)


def run_pipeline(
    plan: Plan,
    *,
    bars: Callable[[], AbstractContextManager[Progress]] = _no_bars,
    announce: Callable[[Stage], None] = _tell_nobody,
) -> Outcome:
    """Train on a dataset, export, set thresholds, evaluate.

    Leaves `run/`, `CATEGORY.flaw`, `report/` and `evaluation.json` in the plan's folder. What lies there from earlier
    is replaced as the single functions replace it.

    Args:
        plan: What shall be done.
        bars: Opens a display of progress, once for each stage.
        announce: Told each stage when it is done.

    Raises:
        ArgumentError: If settings do not fit the run that is there, or something else is in the way.
        FlawscopeError: As the functions of the stages do.
    """

    def do(name: str, stage: Callable[[Plan, Progress], tuple[_Result, str, Sequence[str]]]) -> _Result:
        started = time.perf_counter()
        with bars() as progress:
            result, said, notes = stage(plan, progress)
        announce(Stage(name, time.perf_counter() - started, said, tuple(notes)))
        return result

    has_defects = any(sample.is_anomalous for sample in plan.dataset.test)
    _check(plan, is_evaluated=plan.evaluates and has_defects)
    if plan.ready is None:
        record = do("train", _train)
    else:
        announce(Stage("train", None, f"{plan.run} is used as it is"))
        record = do("extractor", _train) if plan.trains_extractor else plan.ready.record
    manifest = do("export", _export)
    thresholds, figures = None, None
    if plan.sets_thresholds:
        thresholds = do("threshold", _calibrate)
    else:
        announce(Stage("threshold", None, "nothing is decided, so false rejects and misses are not counted"))
    if plan.evaluates and has_defects:
        figures = do("evaluation", _evaluate)
    else:
        why = "nothing is measured" if has_defects else f"{plan.dataset.category} has no anomalous test images"
        older = [str(path) for path in (plan.figures, plan.report / REPORT) if path.exists()]
        notes = (f"Of an earlier bundle, not of this one: {', '.join(older)}.",) if older else ()
        announce(Stage("evaluation", None, why, notes))
    return Outcome(record, manifest, thresholds, figures)


# ---- Before the work -------------------------------------------------------------------------------------------------


def _check(plan: Plan, *, is_evaluated: bool) -> None:
    """Refuse at once what would fail late."""
    check_fraction(plan.false_reject_rate, "false-reject rate")
    check_fraction(plan.confidence, "confidence")
    category = plan.dataset.category
    if Path(category).name != category:
        raise ArgumentError(f"category: expected a name that a bundle can have, got {category!r}. Rename it.")
    for folder in (plan.out, plan.report):
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"{folder}: expected a folder, got a file. Choose another name.")
    check_replaceable(plan.run, RECORD)
    check_replaceable(plan.bundle, "manifest.json")
    if plan.sets_thresholds:
        require("scipy.stats", "scipy", "setting thresholds")
        split = find_part(plan.config, HeldOutSettings)
        if plan.ready is None and split is not None and split.held_out == 0:
            raise ArgumentError(
                "held_out: expected above 0, because thresholds need normal images that were not learned from, got 0. "
                "Set held_out=0.1, or --skip threshold."
            )
    if is_evaluated:
        require("sklearn.metrics", "scikit-learn", "measuring accuracy")
        require("scipy.stats", "scipy", "measuring accuracy")
        check_report_packages()
    if plan.ready is not None:
        _check_ready(plan, plan.ready)


def _check_ready(plan: Plan, ready: Run) -> None:
    """Refuse what does not fit the run that is there, or would do nothing."""
    category = plan.dataset.category
    if ready.record.category != category:
        raise ArgumentError(
            f"{ready.path}: expected a run of {category}, got one of {ready.record.category}. Name the category it was "
            "trained on, or another --out."
        )
    if plan.trains_extractor:
        return  # the training checks settings and images
    check_recorded(plan.config, ready)
    if plan.resume:
        raise ArgumentError("resume: expected a training to go on with, got one that is skipped. Leave it out.")
    source, weights = ready.record.backbone.weights, plan.weights
    if weights is not None and not (weights.is_file() and sha256_file(weights) in source):
        raise ArgumentError(
            f"{weights}: expected the weights that {ready.path} was trained with ({source}), got others. Leave "
            "--weights out, or train again."
        )


# ---- The stages ------------------------------------------------------------------------------------------------------


def _train(plan: Plan, progress: Progress) -> tuple[RunRecord, str, Sequence[str]]:
    record = train_detector(
        plan.config,
        plan.dataset,
        plan.run,
        weights=plan.weights,
        resume=plan.resume,
        ready=plan.ready,
        command=plan.command,
        progress=progress,
    )
    said, notes = f"{plan.run}: {len(record.training)} normal images learned, {len(record.held_out)} held out", []
    if more := trainer_of(record.config).describe(record.config):
        said += f", {more}"
    if plan.ready is not None and plan.ready.record.backbone != record.backbone:
        had, has = plan.ready.record.backbone, record.backbone
        notes.append(f"The extractor began with {has.name} ({has.weights}); the run had {had.name} ({had.weights}).")
    return record, said, notes


def _export(plan: Plan, progress: Progress) -> tuple[Manifest, str, Sequence[str]]:
    manifest = export_run(plan.run, plan.bundle, command=plan.command, progress=progress)
    size = sum(entry.size for entry in manifest.files.values())
    return manifest, f"{plan.bundle} ({size / 2**20:.1f} MiB)", ()


def _calibrate(plan: Plan, progress: Progress) -> tuple[Thresholds, str, Sequence[str]]:
    found = calibrate_bundle(
        plan.bundle,
        plan.dataset,
        false_reject_rate=plan.false_reject_rate,
        confidence=plan.confidence,
        command=plan.command,
        progress=progress,
    )
    image = found.new.image
    said = (
        f"{image.value:.6g}: with {image.confidence:.0%} confidence at most {image.upper_bound:.2%} of good parts are "
        f"rejected (n = {image.images}, backend {found.backend})"
    )
    return found.new, said, found.notes


def _evaluate(plan: Plan, progress: Progress) -> tuple[Figures, str, Sequence[str]]:
    found = evaluate_bundle(plan.bundle, plan.dataset, command=plan.command, progress=progress)
    figures = found.figures
    write_bytes(plan.figures, msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    report = write_report(found, plan.report)
    record_accuracy(plan.bundle, figures)
    ranking = (("image AUROC", figures.image_auroc), ("pixel AUROC", figures.pixel_auroc), ("AU-PRO", figures.aupro))
    said = ", ".join(f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in ranking)
    return figures, f"{said} on {figures.images} images, {figures.anomalous} anomalous: {report}", figures.notes
