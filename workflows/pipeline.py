"""All stages from a dataset to an evaluated bundle: training, export, thresholds, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from flawscope.bundle import Manifest, Thresholds, making
from flawscope.calibration.evaluation.diagnosis import EDGE
from flawscope.calibration.evaluation.evaluate import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.figures import Figures
from flawscope.calibration.evaluation.intervals import check_fraction
from flawscope.calibration.evaluation.report import REPORT, check_report_packages, write_report
from flawscope.calibration.evaluation.rounding import figure, share
from flawscope.calibration.extras import require
from flawscope.calibration.thresholds.calibrate import CONFIDENCE, FALSE_REJECT_RATE, calibrate_bundle
from flawscope.config import (
    HeldOutSettings,
    MethodConfig,
    find_part,
)
from flawscope.datasets import Dataset
from flawscope.datasets.defects.file_names import check_name
from flawscope.drawn_check import describe_check
from flawscope.errors import ArgumentError
from flawscope.export.detectors.detector_export import export_run
from flawscope.files import check_new_file, check_replaceable, sha256_file, write_bytes
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, RunRecord
from flawscope.text import encode_json
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.detector_training import check_recorded, folds_of, train_detector
from flawscope.training.run_notes import describe_calibration, detector_notes
from flawscope.training.trainer import trainer_of
from flawscope.unfinished import check_not_finished

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """The request of one pipeline: which stages run, on what, with which settings.

    Attributes:
        config: Settings of the method.
        dataset: Dataset of all stages.
        out: Folder for all results.
        weights: Safetensors file of the backbone, or None to get them from the model hub.
        resume: Resume an interrupted training, from its newest checkpoint or from this one.
        earlier_run: Run of an earlier pipeline that is used as it is, or None to train one.
        trains_extractor: Train the extractor of ddad on the denoiser of `earlier_run`.
        sets_thresholds: Whether thresholds are set.
        evaluates: Whether the bundle is evaluated, provided there are test images.
        false_reject_rate: Share of normal images that may be rejected, a fraction.
        confidence: One-sided confidence of that claim, a fraction.
        command: Command line for the records.
        overwrite: Whether results of an earlier pipeline may be replaced.
        drawn_check: Whether drawn defects are scored after the fit.
        notes: What to say of the settings when the training is done.
    """

    config: MethodConfig
    dataset: Dataset
    out: Path
    weights: Path | None = None
    resume: bool | Path = False
    earlier_run: Run | None = None
    trains_extractor: bool = False
    sets_thresholds: bool = True
    evaluates: bool = True
    false_reject_rate: float = FALSE_REJECT_RATE
    confidence: float = CONFIDENCE
    command: str = ""
    overwrite: bool = False
    drawn_check: bool = True
    notes: tuple[str, ...] = ()

    @property
    def replaces(self) -> bool:
        """Whether results of an earlier pipeline may be replaced: it is continued, or that was asked for."""
        return self.overwrite or self.resume is not False or self.earlier_run is not None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return run_below(self.out)

    @property
    def bundle(self) -> Path:
        """Folder of the bundle."""
        return self.out / f"{self.dataset.category}.flaw"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.out / "report"

    @property
    def figures(self) -> Path:
        """JSON file of the evaluation."""
        return self.out / "evaluation.json"


@dataclass(frozen=True)
class Stage:
    """A stage that has run or was skipped, as it is reported to the user.

    Attributes:
        name: `train`, `extractor`, `export`, `threshold` or `evaluation`.
        seconds: Wall-clock time, or None if it was skipped.
        summary: Result in one line, or why the stage was skipped.
        notes: Limits of the result, a sentence each.
    """

    name: str
    seconds: float | None
    summary: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Results of all stages of a pipeline.

    Attributes:
        record: Record of the run.
        manifest: Manifest of the bundle as it was exported, so without thresholds and accuracy.
        thresholds: Thresholds of the bundle, or None if that stage was skipped.
        figures: Figures of the evaluation, or None if that stage was skipped.
    """

    record: RunRecord
    manifest: Manifest
    thresholds: Thresholds | None
    figures: Figures | None


def _no_bars() -> AbstractContextManager[Progress]:
    return nullcontext(no_progress)


def _announce_nothing(stage: Stage) -> None:
    """Ignore a stage; the default where nobody watches."""


def run_below(out: Path) -> Path:
    """Return the folder of the run below the output folder of a pipeline."""
    return out / "run"


def read_earlier_run(out: Path) -> Run:
    """Return the run that an earlier pipeline wrote below `out`.

    Raises:
        ArgumentError: If there is no run.
        RunError: If the run cannot be read.
    """
    path = run_below(out)
    if not (path / RECORD).is_file():
        raise ArgumentError(
            f"{path}: expected a run, because --skip train uses an earlier one, got none. Leave --skip train out, or "
            "name the --out of an earlier pipeline."
        )
    return read_run(path)


@making()
def run_pipeline(
    plan: Plan,
    *,
    bars: Callable[[], AbstractContextManager[Progress]] = _no_bars,
    announce: Callable[[Stage], None] = _announce_nothing,
) -> Outcome:
    """Train on a dataset, export, set thresholds, evaluate.

    Writes `run/`, `CATEGORY.flaw`, `report/` and `evaluation.json` to the plan's folder. Results of an earlier pipeline
    are replaced where the plan continues it (an earlier run, a training that is resumed) or says so (`overwrite`);
    other files never.

    Args:
        plan: Which stages run, on what, with which settings.
        bars: Opens a progress display, once for each stage.
        announce: Called with each stage after it has run or was skipped.

    Raises:
        ArgumentError: If settings do not fit the earlier run, or an output folder holds something else, or results
            that may not be replaced.
        DataError: If the category cannot be the name of a folder.
        FlawscopeError: If a stage fails.
    """

    # One function for all stages, so that each is timed and announced in the same way.
    def do(name: str, stage: Callable[[Plan, Progress], tuple[_Result, str, Sequence[str]]]) -> _Result:
        started = time.perf_counter()
        with bars() as progress:
            result, summary, notes = stage(plan, progress)
        # After the progress display is closed, which would redraw over the line that is printed here.
        announce(Stage(name, time.perf_counter() - started, summary, tuple(notes)))
        return result

    has_tests = bool(plan.dataset.test)
    # The training may take hours: whatever would stop a later stage is refused before it.
    _check(plan, is_evaluated=plan.evaluates and has_tests)
    if plan.earlier_run is None:
        record = do("train", _train)
    else:
        announce(Stage("train", None, f"{plan.run} is used as it is"))
        record = do("extractor", _train) if plan.trains_extractor else plan.earlier_run.record
    manifest = do("export", _export)
    thresholds, figures = None, None
    if plan.sets_thresholds:
        thresholds = do("threshold", _calibrate)
    else:
        announce(Stage("threshold", None, "nothing is decided, so false rejects and misses are not counted"))
    if plan.evaluates and has_tests:
        figures = do("evaluation", _evaluate)
    else:
        why = "nothing is measured" if has_tests else f"{plan.dataset.category} has no test images"
        # A report of an earlier bundle stays where it is, and must not be taken for one of the new bundle.
        older = [str(path) for path in (plan.figures, plan.report / REPORT) if path.exists()]
        notes = (f"Of an earlier bundle, not of this one: {', '.join(older)}.",) if older else ()
        announce(Stage("evaluation", None, why, notes))
    return Outcome(record, manifest, thresholds, figures)


# ---- Before the work -------------------------------------------------------------------------------------------------


def _check(plan: Plan, *, is_evaluated: bool) -> None:
    """Refuse before the training what would fail after it."""
    check_fraction(plan.false_reject_rate, "false-reject rate")
    check_fraction(plan.confidence, "confidence")
    # The bundle is named after the category: one with a slash or `..` would lie outside the output folder.
    check_name(plan.dataset.category, "category")
    # The single stages would find a file in place of a folder only when they write.
    for folder in (plan.out, plan.report):
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"{folder}: expected a folder, got a file. Choose another name.")
    if plan.earlier_run is None:
        check_not_finished(plan.run, plan.resume)
    check_replaceable(plan.run, RECORD, overwrite=plan.replaces)
    check_replaceable(plan.bundle, "manifest.json", overwrite=plan.replaces)
    for file in (plan.figures, plan.report / REPORT):
        check_new_file(file, overwrite=plan.replaces)
    if plan.sets_thresholds:
        require("scipy.stats", "scipy", "setting thresholds")
        # Not for an earlier run: its record says whether images were held out, and `calibrate_bundle` checks that.
        split = find_part(plan.config, HeldOutSettings)
        is_crossed = folds_of(plan.config) != 0
        if plan.earlier_run is None and split is not None and split.held_out == 0 and not is_crossed:
            raise ArgumentError(
                "held_out: expected above 0, because thresholds need normal images the detector has not seen, got 0. "
                "Set held_out=0.1, or --skip threshold."
            )
    if is_evaluated:
        require("sklearn.metrics", "scikit-learn", "measuring accuracy")
        require("scipy.stats", "scipy", "measuring accuracy")
        check_report_packages()
    if plan.earlier_run is not None:
        _check_earlier_run(plan, plan.earlier_run)


def _check_earlier_run(plan: Plan, run: Run) -> None:
    """Refuse options that do not fit the earlier run, or would have no effect on it."""
    category = plan.dataset.category
    if run.record.category != category:
        raise ArgumentError(
            f"{run.path}: expected a run of {category}, got one of {run.record.category}. Name the category it was "
            "trained on, or another --out."
        )
    if plan.trains_extractor:
        return  # train_detector checks settings, images and weights against the run itself
    # Settings that were given in vain would look as if they had been used.
    check_recorded(plan.config, run)
    if plan.resume is not False:
        raise ArgumentError("resume: expected a training to resume, got --skip train. Leave one of them out.")
    source, weights = run.record.backbone.weights, plan.weights
    # `source` is a sentence about where the weights are from; for a file it holds the SHA-256 of the content.
    if weights is not None and not (weights.is_file() and sha256_file(weights) in source):
        raise ArgumentError(
            f"{weights}: expected the weights that {run.path} was trained with ({source}), got others. Leave "
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
        ready=plan.earlier_run,
        command=plan.command,
        progress=progress,
        overwrite=plan.replaces,
        drawn_check=plan.drawn_check,
    )
    summary = f"{plan.run}: {len(record.training)} normal images learned, {describe_calibration(record)}"
    notes = [*plan.notes, *detector_notes(record)]
    if description := trainer_of(record.config).describe(record.config):
        summary += f", {description}"
    if record.drawn is not None:
        summary += f"; drawn defects {describe_check(record.drawn)}"
    if plan.earlier_run is not None and plan.earlier_run.record.backbone != record.backbone:
        before, after = plan.earlier_run.record.backbone, record.backbone
        notes.append(
            f"The extractor was trained from {after.name} ({after.weights}); the run had {before.name} "
            f"({before.weights})."
        )
    return record, summary, notes


def _export(plan: Plan, progress: Progress) -> tuple[Manifest, str, Sequence[str]]:
    # From the folder and not from memory: what is shipped is what was written.
    manifest = export_run(plan.run, plan.bundle, command=plan.command, progress=progress, overwrite=plan.replaces)
    size = sum(entry.size for entry in manifest.files.values())
    return manifest, f"{plan.bundle} ({size / 2**20:.1f} MiB)", ()


def _calibrate(plan: Plan, progress: Progress) -> tuple[Thresholds, str, Sequence[str]]:
    calibrated = calibrate_bundle(
        plan.bundle,
        plan.dataset,
        false_reject_rate=plan.false_reject_rate,
        confidence=plan.confidence,
        command=plan.command,
        progress=progress,
    )
    image = calibrated.new.image
    summary = (
        f"{image.value:.6g}: {image.claim} (n = {image.images}, backend {calibrated.backend}). {calibrated.expectation}"
    )
    return calibrated.new, summary, calibrated.notes


def _evaluate(plan: Plan, progress: Progress) -> tuple[Figures, str, Sequence[str]]:
    evaluation = evaluate_bundle(plan.bundle, plan.dataset, command=plan.command, progress=progress)
    figures = evaluation.figures
    # Before the report: the figures are there even if writing it fails.
    write_bytes(plan.figures, msgspec.json.format(encode_json(figures), indent=2) + b"\n")
    report = write_report(evaluation, plan.report, progress)
    # Last: it rewrites the manifest, so a bundle names figures only if the files that show them were written.
    record_accuracy(plan.bundle, evaluation)
    ranking = (("image AUROC", figures.image_auroc), ("pixel AUROC", figures.pixel_auroc), ("AU-PRO", figures.aupro))
    summary = ", ".join(f"{name} {figure(value)}" for name, value in ranking if value is not None)
    if not summary and figures.confusion is not None:  # all images are of one kind
        rates = (("false rejects", figures.confusion.false_reject), ("missed defects", figures.confusion.miss))
        summary = ", ".join(f"{name} {share(rate)}" for name, rate in rates if rate.n)
    summary += f"{' ' if summary else ''}on {figures.images} images, {figures.anomalous} anomalous: {report}"
    # Of thresholds that were set a moment ago their own stage has said it.
    said = [text for text in figures.diagnosis if not (plan.sets_thresholds and text.startswith(EDGE))]
    return figures, summary, (*said, *figures.notes)
