"""`flawscope synth judge`: downstream benchmark, whether drawn defects improve a detector on real images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from flawscope.calibration.evaluation.paired_differences import FIGURES, PIXEL_AP, Difference
from flawscope.config import CONFIGS, LabelledConfig, build_config, change_settings, parse_assignment
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import printable

if TYPE_CHECKING:
    from flawscope.workflows.utility.utility_report import UtilityReport
    from flawscope.workflows.utility.utility_variety import DefectVariety, Variety

_PATH = click.Path(path_type=Path)
LEARNERS = [name for name, kind in CONFIGS.items() if issubclass(kind, LabelledConfig)]
"""Methods that learn from labelled defects."""


@click.command()
@click.argument("generated", nargs=-1, required=True, metavar="GENERATED...")
@click.option("--data", type=_PATH, required=True, metavar="ROOT", help="The real dataset.")
@click.option("--category", metavar="NAME", help="Category below ROOT, or all.")
@click.option("--support", type=_PATH, required=True, metavar="DIR", help="Support set the defects were drawn from.")
@click.option(
    "--method",
    type=click.Choice(LEARNERS),
    default="segmenter",
    show_default=True,
    help="Detector that learns.",
)
@click.option(
    "--numbers", default="", metavar="N[,N...]", help="Also judge each set with these numbers of its images alone."
)
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N[,N...]", help="Seeds; each trains every arm.")
@click.option("--steps", type=int, help="Steps of each training.  [default: 400 for segmenter]")
@click.option("--image-size", type=int, help="Height and width in pixels after the resize.  [default: 128]")
@click.option("--backbone", help="scattering (built in, no download), or any timm model.")
@click.option("--weights", type=_PATH, help="Safetensors file of the backbone, for offline use.")
@click.option("--inception", type=_PATH, help="State dict of torchvision's inception_v3, for the Inception score.")
@click.option(
    "--lpips", type=_PATH, help="State dict of torchvision's alexnet or vgg16, with --lpips-heads, for IC-LPIPS."
)
@click.option("--lpips-heads", type=_PATH, help="Linear weights of LPIPS 0.1 for that network.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
@click.option(
    "--synthetic-share", type=float, default=0.5, show_default=True, help="Share of anomalous images that is synthetic."
)
@click.option(
    "--weak-tau",
    type=float,
    help="Use the boxes of synthetic images as labels, where only pixels above this probability count (AnoGen: 0.1). "
    "Without it, their precise masks are the labels.",
)
@click.option(
    "--figure", type=click.Choice(list(FIGURES)), default=PIXEL_AP, show_default=True, help="Figure that decides."
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
@click.option("--per-defect", is_flag=True, help="Show the figures of every defect type.")
@click.option("--with-leak", is_flag=True, help="Show the figures on all test images, those seen before included.")
@click.option("--resume", type=click.Choice(["latest"]), help="Use the finished trainings in --out.")
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="Folder for results.")
def judge(
    generated: tuple[str, ...],
    data: Path,
    category: str | None,
    support: Path,
    method: str,
    numbers: str,
    seeds: str,
    steps: int | None,
    image_size: int | None,
    backbone: str | None,
    weights: Path | None,
    inception: Path | None,
    lpips: Path | None,
    lpips_heads: Path | None,
    assignments: tuple[str, ...],
    synthetic_share: float,
    weak_tau: float | None,
    figure: str,
    confidence: float,
    per_defect: bool,
    with_leak: bool,
    resume: str | None,
    out: Path,
) -> int:
    """Train a detector with and without the accepted images of GENERATED, and compare it on real test images.

    Each GENERATED is a folder of synth generate, paste or perlin, or a mixture A+B of several, and an arm beside the
    one with real defects alone. All learn from the normal images and the support set, with the same initial weights
    and for as many steps; each is exported and run as the detector that ships. Test images that have been seen are
    left out. Writes judge.json, judge.svg and the bundles to --out. The exit status is 1 if no arm is recommended: if
    the interval of no arm's gain lies above zero.

    Beside it stands how many real defects are missed at the threshold that normal images alone give, and how many
    drawn ones: an estimate of that before there is a real defect.

    Inception score and IC-LPIPS of the accepted images are measured if the weights of their networks are given
    (safetensors or .pth, which is not unpickled). They measure how varied the images are, not whether they help.
    """
    # Here and not above: torch and SciPy come with it, and --help must work without them.
    try:
        from flawscope.workflows.utility.arms import TAKEN, read_arms
        from flawscope.workflows.utility.utility_benchmark import UtilityPlan, run_utility_benchmark
    except ModuleNotFoundError as err:
        raise MissingExtra("judging a synthetic set", str(err.name), "all") from err
    plan = UtilityPlan(
        config=_config(method, assignments, TAKEN, steps, image_size, backbone, weak_tau),
        dataset=open_dataset(data, category),
        support=support,
        arms=read_arms(generated, _numbers("--numbers", numbers) if numbers else ()),
        out=out,
        share=synthetic_share,
        seeds=_numbers("--seeds", seeds),
        weights=weights,
        inception=inception,
        lpips=lpips,
        lpips_heads=lpips_heads,
        figure=figure,
        confidence=confidence,
        with_leak=with_leak,
        per_defect=per_defect,
        resume=resume is not None,
        command=command_line(),
    )
    with progress_bars() as progress:
        report = run_utility_benchmark(plan, progress)
    _print(report)
    echo(f"results: {out}")
    echo(report.verdict)
    return 0 if report.is_recommended else 1


def _config(
    method: str,
    assignments: tuple[str, ...],
    taken: Collection[str],
    steps: int | None,
    image_size: int | None,
    backbone: str | None,
    weak_tau: float | None,
) -> LabelledConfig:
    """Return the settings of the detector.

    Raises:
        ArgumentError: If a key or a value is unknown or out of range, or one that the benchmark sets by itself.
    """
    settings = dict(parse_assignment(text) for text in assignments)
    if "seed" in settings:
        raise ArgumentError("--set seed: expected the seeds of the trainings in --seeds. Name them there.")
    if chosen := [name for name in settings if name in taken]:
        raise ArgumentError(
            f"--set {chosen[0]}: expected the sources in GENERATED, --support, --synthetic-share and --weak-tau, got a "
            "setting of them. Name them there."
        )
    # A training of the benchmark is short; a detector that ships takes its own time.
    defaults = {"resize": 128, **({"epochs": 16} if method == "segmenter" else {})}
    options = {"resize": image_size, "backbone": backbone}
    given = {name: value for name, value in options.items() if value is not None}
    config, _ = build_config(method, defaults, settings, given)
    labelled = cast("LabelledConfig", config)
    if steps is not None:
        if steps < 1:
            raise ArgumentError(f"--steps: expected at least 1, got {steps}.")
        # `max_steps` ends the last epoch, and with it the schedule, where the steps do.
        changes = {"epochs": -(-steps // labelled.epoch_batches), "max_steps": steps, "accumulate": 1}
        labelled = change_settings(labelled, changes)
    if weak_tau is not None:
        # Needs a drawn source to be a setting; every arm names its own.
        labelled = change_settings(labelled, {"weak_tau": weak_tau, "drawn": ("",)})
    return labelled


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"{option}: expected whole numbers with commas, such as 0,1,2, got {text!r}.") from None


def _print(report: UtilityReport) -> None:
    counts = report.counts
    echo(
        f"{report.category}: {report.method} learned from normal images, {counts['support']} real defects and up to "
        f"{counts['synthetic']} synthetic ones; tested on {counts['test']} images, {counts['test_defective']} "
        f"anomalous, {counts['test_taught']} of taught types ({', '.join(report.types)}); {counts['left_out']} left "
        "out, which have been seen"
    )
    for arm in report.compared:
        if len(report.compared) > 1:
            echo(f"{arm.name}: {arm.verdict}")
        _print_table("", {None: arm.differences}, report.confidence)
        _print_table("on the taught types:", {None: arm.taught}, report.confidence)
        if arm.with_leak is not None:
            title = "on all test images, also those that have been seen:"
            _print_table(title, {None: arm.with_leak}, report.confidence)
        if arm.defects is not None:
            _print_table("by defect type, with all normal images:", arm.defects, report.confidence)
    _print_misses(report)
    if report.variety is not None:
        _print_variety(report.variety)
    for note in report.notes:
        echo(f"note: {note}", err=True)


def _print_misses(report: UtilityReport) -> None:
    """Print misses of every arm at the threshold from normal images, all seeds together."""
    from rich.table import Table

    from flawscope.rich_console import PlainConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm")
    for name in ("real missed", "drawn missed (estimate)", "false rejects"):
        table.add_column(name, justify="right")
    for arm in dict.fromkeys(figures.result.arm for figures in report.arms):
        rows = [figures.result.misses for figures in report.arms if figures.result.arm == arm]
        shares = (
            (sum(row.missed for row in rows), sum(row.real for row in rows)),
            (sum(row.missed_drawn for row in rows), sum(row.drawn for row in rows)),
            (sum(row.false_rejects for row in rows), sum(row.normal_tested for row in rows)),
        )
        table.add_row(
            printable(arm), *(f"{part} of {whole} ({part / whole:.0%})" if whole else "-" for part, whole in shares)
        )
    echo("at the highest score of held-out normal images, taught types, over all seeds:")
    PlainConsole().print(table)


def _print_table(title: str, groups: Mapping[Any, Mapping[str, Difference]], confidence: float) -> None:
    """Print differences by group; the one group of a table without groups is None, which has no column."""
    from rich.table import Table

    from flawscope.rich_console import PlainConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in [*([] if None in groups else ["defect"]), "figure"]:
        table.add_column(name)
    for name in ("real", "with", "gain"):
        table.add_column(name, justify="right")
    table.add_column(f"{confidence:.0%} interval")
    table.add_column("over")
    for group, differences in groups.items():
        for name, difference in differences.items():
            means = [sum(values) / len(values) for values in (difference.first, difference.second)]
            table.add_row(
                *([] if group is None else [printable(group)]),
                FIGURES.get(name, name),
                *(f"{value:.4f}" for value in means),
                f"{difference.mean:+.4f}",
                f"{difference.interval.low:+.4f} to {difference.interval.high:+.4f}",
                "images" if difference.wider == "pictures" else difference.wider,
            )
    if title:
        echo(title)
    PlainConsole().print(table)


def _print_variety(variety: Variety) -> None:
    from rich.table import Table

    from flawscope.rich_console import PlainConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("defect")
    for name in ("images", "Inception score", "IC-LPIPS"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, DefectVariety | Variety]] = [*variety.defects.items(), ("all", variety)]
    for name, row in rows:
        score = "-"
        if row.inception_score is not None:
            deviation = row.inception_score.deviation
            score = f"{row.inception_score.mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
        table.add_row(printable(name), str(row.pictures), score, "-" if row.ic_lpips is None else f"{row.ic_lpips:.4f}")
    echo("diversity of the synthetic images, which decides nothing:")
    PlainConsole().print(table)
