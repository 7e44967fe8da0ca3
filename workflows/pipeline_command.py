"""`flawscope pipeline`: from a folder of images to an evaluated bundle in one command."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flawscope.calibration.thresholds.calibrate import CONFIDENCE, FALSE_REJECT_RATE
from flawscope.config import flatten
from flawscope.datasets.data_options import SMALLEST_DEFECT
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.methods import method as method_of
from flawscope.output_options import OVERWRITE
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.training.tracking import track_figures
from flawscope.training.train_command import (
    AUTO,
    TrainingCommand,
    TrainingRequest,
    told_if_interrupted,
    training_options,
)
from flawscope.workflows.training_choice import choose_method, cross_fit_if_few

if TYPE_CHECKING:
    from flawscope.calibration.evaluation.figures import Figures
    from flawscope.workflows.pipeline import Plan, Stage

_OF_DETECTORS = {
    "false_reject_rate": "--false-reject-rate",
    "confidence": "--confidence",
    "defect_px": "--smallest-defect",
    "budget_ms": "--budget-ms",
}
"""Parameter -> its option, which a generator has no use for."""
_STAGES = ("train", "extractor", "threshold", "evaluation")


@click.command(cls=TrainingCommand)
@training_options("detector", "generator", takes_auto=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for run, bundle and report.")
@click.option(
    "--false-reject-rate",
    type=float,
    default=FALSE_REJECT_RATE,
    show_default=True,
    help="Share of good parts that may be rejected.",
)
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, help="Confidence of that claim.")
@click.option(
    "--skip",
    "skipped",
    type=click.Choice(_STAGES),
    multiple=True,
    help="Skip a stage; may be repeated. train: use the run in --out. extractor: ddad uses its backbone as it is. "
    "threshold: the bundle decides nothing. evaluation: no report.",
)
@SMALLEST_DEFECT
@click.option(
    "--budget-ms", type=float, metavar="MS", help="Time for one image; the evaluation says whether it was kept."
)
@click.option(
    "--draw",
    "drawn",
    type=int,
    metavar="N",
    help="base, embedding, inpainting: images drawn of each defect type when it is exported.  [default: 4]",
)
@OVERWRITE
def pipeline(
    request: TrainingRequest,
    out: Path,
    false_reject_rate: float,
    confidence: float,
    skipped: tuple[str, ...],
    defect_px: float | None,
    budget_ms: float | None,
    drawn: int | None,
    overwrite: bool,
) -> int:
    """Train METHOD, export, set thresholds and evaluate: from a folder of images to a bundle with its report.

    METHOD auto takes the method, the input size and the tiles that suit the images, and says why; settings that are
    given win. It looks at poses and at the thickness of masks, never at a score.

    Writes run/, CATEGORY.flaw, report/ and evaluation.json to --out. With --skip train, settings are those of the run
    in --out, and others are refused; with one exception: an extractor of ddad is trained on the denoiser of that run,
    and the run is rewritten. The exit status is 1 when a test image could not be scored.

    base, embedding and inpainting draw defects: they are trained, exported, and a few images are drawn, with a contact
    sheet in drawn/. Nothing is scored, so there are no thresholds and no report; the exit status is 1 when no image of
    a defect type was accepted.
    """
    if request.method != AUTO and method_of(request.method).kind == "generator":
        return _draw_defects(request, out, frozenset(skipped), drawn, overwrite)
    if drawn is not None:
        raise ArgumentError(
            f"--draw: expected it with base, embedding or inpainting, got it with {request.method}. Leave it out."
        )
    # Here and not above: torch, SciPy and Matplotlib come with it, and --help must work without them.
    try:
        from flawscope.calibration.evaluation.evaluation_text import verdict_lines
        from flawscope.workflows.pipeline import run_pipeline
    except ModuleNotFoundError as err:
        raise MissingExtra("the pipeline", str(err.name), "all") from err
    started = time.perf_counter()
    if budget_ms is not None and not 0.0 < budget_ms < math.inf:
        raise ArgumentError(f"--budget-ms: expected a positive number of milliseconds, got {budget_ms}.")
    request = _advised(request, out, "train" in skipped, defect_px)
    plan = _plan(request, out, frozenset(skipped), false_reject_rate, confidence, overwrite)
    with told_if_interrupted(plan.run), request.tracking(plan.config, plan.dataset, out):
        outcome = run_pipeline(plan, bars=progress_bars, announce=_show)
        track_figures({**outcome.record.facts, **_tracked(outcome.figures)})
    figures = outcome.figures
    echo(f"pipeline    {time.perf_counter() - started:8.1f} s  {out}")
    if figures is not None:
        for line in verdict_lines(figures):
            echo(line)
    if budget_ms is not None:
        echo(f"note: {_budget_note(figures, budget_ms)}", err=True)
    faults = figures.faults if figures else ()
    for fault in faults:
        echo(f"fault: {fault.image}: {fault.reason}", err=True)
    return 1 if faults else 0


def _draw_defects(
    request: TrainingRequest, out: Path, skipped: frozenset[str], drawn: int | None, overwrite: bool
) -> int:
    """Run the pipeline of a generator; options of detectors are refused."""
    context = click.get_current_context()
    given = [
        option
        for name, option in _OF_DETECTORS.items()
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    given += [f"--skip {name}" for name in sorted(skipped - {"train"})]
    given += [] if request.drawn_check else ["--no-drawn-check"]
    given += [] if request.weights is None else ["--weights"]
    if given:
        raise ArgumentError(f"{given[0]}: expected none with {request.method}, which scores no images. Leave it out.")
    try:
        from flawscope.training.synthesis.generator_run import read_synthesis_run
        from flawscope.workflows.pipeline import run_below
        from flawscope.workflows.synth_pipeline import DRAWN, SynthPlan, run_synth_pipeline
    except ModuleNotFoundError as err:
        raise MissingExtra("the pipeline", str(err.name), "all") from err
    started = time.perf_counter()
    recorded: dict[str, Any] = {}
    if "train" in skipped:
        recorded = flatten(read_synthesis_run(run_below(out)).record.config)
        if recorded["method"] != request.method:
            raise ArgumentError(
                f"METHOD: expected {recorded['method']}, the method of {run_below(out)}, got {request.method}. Name "
                "that method, or leave --skip train out."
            )
    plan = SynthPlan(
        config=request.read_config(recorded, {}),
        dataset=request.open_dataset(),
        out=out,
        resume=request.resume,
        trains="train" not in skipped,
        drawn=DRAWN if drawn is None else drawn,
        command=command_line(),
        overwrite=overwrite,
    )
    with told_if_interrupted(plan.run), request.tracking(plan.config, plan.dataset, out):
        record = run_synth_pipeline(plan, bars=progress_bars, announce=_show)
        track_figures({f"accepted_{key}": defect.accepted for key, defect in record.defects.items()})
    echo(f"pipeline    {time.perf_counter() - started:8.1f} s  {out}")
    empty = [key for key, defect in record.defects.items() if defect.accepted == 0]
    if empty:
        echo(f"note: no image of {', '.join(empty)} was accepted: the contact sheet says why.", err=True)
    return 1 if empty else 0


def _advised(request: TrainingRequest, out: Path, uses_earlier_run: bool, defect_px: float | None) -> TrainingRequest:
    """Return the request with `auto` resolved: to the method of the earlier run, or to what suits the images."""
    from flawscope.workflows.pipeline import read_earlier_run

    if request.method != AUTO:
        if defect_px is not None:
            raise ArgumentError(
                f"--smallest-defect: expected it with METHOD {AUTO}, which chooses the input size by it, got it with "
                f"{request.method}. Leave it out, or set the size with --image-size."
            )
        return request
    if uses_earlier_run:
        return replace(request, method=str(flatten(read_earlier_run(out).record.config)["method"]))
    advice = choose_method(request.open_dataset(), request.layers, defect_px)
    echo(f"{'advice':<12}{'':<10}  {advice.line}")
    for reason in advice.all_reasons:
        echo(f"note: {reason}", err=True)
    # First, so that whatever the user set wins.
    return replace(request, method=advice.method, layers=(advice.settings, *request.layers))


def _tracked(figures: Figures | None) -> dict[str, Any]:
    """Return the figures of an evaluation that an experiment tracker is told of."""
    from flawscope.calibration.evaluation.figures import OverallFigures

    if figures is None:
        return {}
    named = {name: getattr(figures, name) for name in OverallFigures.__struct_fields__}
    confusion = figures.confusion
    rates = {} if confusion is None else {"false_reject": confusion.false_reject.value, "miss": confusion.miss.value}
    return {**named, **rates}


def _budget_note(figures: Figures | None, budget_ms: float) -> str:
    """Return whether the time for one image was kept."""
    if figures is None or figures.latency_ms is None:
        return f"whether {budget_ms:g} ms an image are kept was not measured, as no image was evaluated."
    measured = figures.latency_ms.p90
    took = f"here nine of ten images took at most {measured:.1f} ms"
    if measured <= budget_ms:
        return f"{budget_ms:g} ms an image are kept: {took}."
    todo = "Choose a smaller --image-size, larger tiles or a smaller --backbone."
    return f"{budget_ms:g} ms an image are not kept: {took}. {todo}"


def _plan(
    request: TrainingRequest,
    out: Path,
    skipped: frozenset[str],
    false_reject_rate: float,
    confidence: float,
    overwrite: bool,
) -> Plan:
    from flawscope.workflows.pipeline import Plan, read_earlier_run

    if "extractor" in skipped and request.method != "ddad":
        raise ArgumentError(f"--skip extractor: expected it with ddad, got it with {request.method}. Leave it out.")
    earlier_run = read_earlier_run(out) if "train" in skipped else None
    recorded: dict[str, Any] = {}
    if earlier_run is not None:
        recorded = flatten(earlier_run.record.config)
        if recorded["method"] != request.method:
            raise ArgumentError(
                f"METHOD: expected {recorded['method']}, the method of {earlier_run.path}, got {request.method}. Name "
                "that method, or leave --skip train out."
            )
    without_extractor: dict[str, Any] = {}
    if "extractor" in skipped:
        # The extractor of an earlier run stays as it is: other settings of it would be refused as a change.
        of_extractor = {name: value for name, value in recorded.items() if name.startswith("extractor")}
        without_extractor = of_extractor or {"extractor": "none"}
    config = request.read_config(recorded, without_extractor)
    # Only where the user's own layers name an extractor: the recorded one has been trained already.
    is_asked_for = any("extractor" in layer for layer in request.layers) and "extractor" not in skipped
    dataset = request.open_dataset()
    notes: tuple[str, ...] = ()
    if earlier_run is None and "threshold" not in skipped:
        config, notes = cross_fit_if_few(config, dataset, {name for layer in request.layers for name in layer})
    return Plan(
        config=config,
        dataset=dataset,
        out=out,
        weights=request.weights,
        resume=request.resume,
        drawn_check=request.drawn_check,
        earlier_run=earlier_run,
        trains_extractor=earlier_run is not None and is_asked_for and getattr(config, "extractor", "none") != "none",
        sets_thresholds="threshold" not in skipped,
        evaluates="evaluation" not in skipped,
        false_reject_rate=false_reject_rate,
        confidence=confidence,
        command=command_line(),
        overwrite=overwrite,
        notes=notes,
    )


def _show(stage: Stage) -> None:
    spent = "  skipped" if stage.seconds is None else f"{stage.seconds:8.1f} s"
    echo(f"{stage.name:<12}{spent:<10}  {stage.summary}")
    for note in stage.notes:
        echo(f"note: {note}", err=True)
