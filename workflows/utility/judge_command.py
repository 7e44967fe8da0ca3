"""`flawscope synth judge`: downstream benchmark, whether a synthetic set improves a segmenter on real images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flawscope.calibration.evaluation.paired_differences import FIGURES, PIXEL_AP, Difference
from flawscope.config import parse_assignment
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import printable

if TYPE_CHECKING:
    from flawscope.workflows.utility.utility_report import UtilityReport
    from flawscope.workflows.utility.utility_variety import DefectVariety, Variety

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("generated", type=_PATH)
@click.option("--data", type=_PATH, required=True, metavar="ROOT", help="The real dataset.")
@click.option("--category", metavar="NAME", help="Category below ROOT, or all.")
@click.option("--support", type=_PATH, required=True, metavar="DIR", help="Support set the generator learned from.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N[,N...]", help="Seeds; two trainings for each.")
@click.option("--steps", type=int, help="Steps of each training.  [default: 400]")
@click.option("--image-size", type=int, help="Height and width in pixels after the resize.  [default: 128]")
@click.option("--backbone", help="scattering (built in, no download), or any timm model.")
@click.option("--weights", type=_PATH, help="Safetensors file of the backbone, for offline use.")
@click.option("--inception", type=_PATH, help="State dict of torchvision's inception_v3, for the Inception score.")
@click.option(
    "--lpips", type=_PATH, help="State dict of torchvision's alexnet or vgg16, with --lpips-heads, for IC-LPIPS."
)
@click.option("--lpips-heads", type=_PATH, help="Linear weights of LPIPS 0.1 for that network.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
@click.option("--synthetic-share", type=float, help="Share of anomalous images that is synthetic.  [default: 0.5]")
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
    generated: Path,
    data: Path,
    category: str | None,
    support: Path,
    seeds: str,
    steps: int | None,
    image_size: int | None,
    backbone: str | None,
    weights: Path | None,
    inception: Path | None,
    lpips: Path | None,
    lpips_heads: Path | None,
    assignments: tuple[str, ...],
    synthetic_share: float | None,
    weak_tau: float | None,
    figure: str,
    confidence: float,
    per_defect: bool,
    with_leak: bool,
    resume: str | None,
    out: Path,
) -> int:
    """Train a segmenter with and without the accepted images of GENERATED, and compare both on real test images.

    Both learn from the normal images and the support set, with the same initial weights and for as many steps. Test
    images that the generator has seen are left out. Writes judge.json and judge.svg to --out. The exit status is 1 if
    the set is not recommended: if the interval of its gain does not lie above zero.

    Inception score and IC-LPIPS of the accepted images are measured if the weights of their networks are given
    (safetensors or .pth, which is not unpickled). They measure how varied the images are, not whether they help.
    """
    # Here and not above: torch and SciPy come with it, and --help must work without them.
    try:
        from flawscope.training.segmentation.segmenter import build_segmenter_config
        from flawscope.workflows.utility.utility_benchmark import UtilityPlan, run_utility_benchmark
    except ModuleNotFoundError as err:
        raise MissingExtra("judging a synthetic set", str(err.name), "all") from err
    options = {
        "steps": steps,
        "resize": image_size,
        "backbone": backbone,
        "synthetic_share": synthetic_share,
        "weak_tau": weak_tau,
    }
    plan = UtilityPlan(
        config=build_segmenter_config(_settings(assignments), _without_none(options)),
        dataset=open_dataset(data, category),
        support=support,
        generated=generated,
        out=out,
        seeds=_numbers(seeds),
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


def _settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    settings = dict(parse_assignment(text) for text in assignments)
    if "seed" in settings:
        raise ArgumentError("--set seed: expected the seeds of the trainings in --seeds. Name them there.")
    return settings


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given: None would overwrite a --set of the same name, or a default."""
    return {name: value for name, value in options.items() if value is not None}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(f"--seeds: expected whole numbers with commas, such as 0,1,2, got {text!r}.") from None


def _print(report: UtilityReport) -> None:
    counts = report.counts
    echo(
        f"{report.category}: learned from {counts['good']} normal images, {counts['support']} real defects and "
        f"{counts['synthetic']} synthetic ones; tested on {counts['test']} images, {counts['test_defective']} "
        f"anomalous ({counts['left_out']} left out, which the generator has seen)"
    )
    _print_table("", {None: report.differences}, report.confidence)
    if report.with_leak is not None:
        title = "on all test images, also those the generator has seen:"
        _print_table(title, {None: report.with_leak}, report.confidence)
    if report.variety is not None:
        _print_variety(report.variety)
    if report.defects is not None:
        _print_table("by defect type, with all normal images:", report.defects, report.confidence)
    for note in report.notes:
        echo(f"note: {note}", err=True)


def _print_table(title: str, groups: Mapping[Any, Mapping[str, Difference]], confidence: float) -> None:
    """Print differences by group; the one group of a table without groups is None, which has no column."""
    from rich.table import Table

    from flawscope.rich_console import PlainConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in [*([] if None in groups else ["defect"]), "figure"]:
        table.add_column(name)
    for name in ("real", "both", "gain"):
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
                difference.wider,
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
