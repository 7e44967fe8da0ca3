"""`flawscope evaluate`: measure a bundle on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from flawscope.bundle import PRECISIONS
from flawscope.bundle.threshold_overlay_options import threshold_overlay_options
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.calibration.evaluation.evaluate import Evaluation, Measure, evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.evaluation_outputs import check_report, why_not_recorded
from flawscope.calibration.evaluation.evaluation_text import all_faults, print_figures
from flawscope.calibration.evaluation.measurements import Measured, ShardsMissing
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.files import check_new_file, write_bytes
from flawscope.output_options import OVERWRITE
from flawscope.runtime.scale.shard_options import is_sharded, read_part, saying_how_to_go_on, shard_options
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import encode_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Dataset whose test images are used.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
@click.option("--product", metavar="NAME", help="Product whose own thresholds hold.  [default: the common ones]")
@click.option("--by-product", is_flag=True, help="With --category all: judge each category by its own thresholds.")
@click.option(
    "--support",
    "support_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Support set: its images, and those that probably show the same parts, are left out.",
)
@click.option("--backend", default="auto", show_default=True, help="Backend to measure.")
@click.option(
    "--path",
    "graph_path",
    type=click.Choice(["auto", "graph", "kernel"]),
    default="auto",
    show_default=True,
    help="The whole graph, or features and native kernel.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures as JSON.")
@click.option("--report", type=click.Path(path_type=Path), metavar="DIR", help="Write DIR/report.html.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with what --json wrote elsewhere: on another machine, or with another backend or precision.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap intervals.")
@click.option("--no-record", is_flag=True, help="Leave the bundle as it is: add no evidence.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for shards and maps, where images are scored in shards: docs/scale.md.",
)
@shard_options
@OVERWRITE
@threshold_overlay_options
@trusted_keys_option
def evaluate(
    bundle: Path,
    other: Path | None,
    data: Path,
    category: str | None,
    product: str | None,
    by_product: bool,
    support_folder: Path | None,
    backend: str,
    graph_path: str,
    precision: str,
    json_file: Path | None,
    report: Path | None,
    against: Path | None,
    seed: int,
    no_record: bool,
    overwrite: bool,
    threshold_overlay: Path | None,
    no_overlay: bool,
    out: Path | None,
    **sharding: Any,
) -> int:
    """Measure BUNDLE on the labelled test images of a dataset, through the runtime.

    The figures go into the bundle's evidence, in place of older ones of the same dataset and backend. The exit status
    is 1 when an image could not be scored; it counts as not accepted. Where a threshold overlay changes the thresholds,
    figures are at those, and are not put into the bundle.

    A bundle that has learned from defects drawn after a support set needs --support: its images and their near
    duplicates are then left out, and the figures on all test images are reported beside, as "with leak".

    With OTHER, a second bundle, both are measured on the same images, and the differences of the second from the first
    are printed, written and reported, with paired intervals.

    Drift: the differences from figures in the evidence with another backend or precision are printed, and with
    --against those from another machine, image by image, with intervals.

    With --out images are scored in shards, by several processes or machines, which can be resumed; the figures are the
    same: docs/scale.md.
    """
    in_shards = is_sharded(out, sharding["on"], sharding["workers"]) or out is not None
    check_new_file(json_file, overwrite=overwrite, kind="json")
    support = None
    if support_folder is not None:
        from flawscope.datasets.defects.support_set import read_support

        support = read_support(support_folder)
    if report is not None:
        report_file = check_report(report, overwrite=overwrite)
        places = (report_file, *report_file.parents)
        if json_file is not None and json_file.absolute() in [place.absolute() for place in places]:
            raise ArgumentError(
                f"--json {json_file}: expected another file than the report, and no folder of it. Choose another name."
            )
    bundles = [bundle] if other is None else [bundle, other]
    _check_comparable(bundles, against, threshold_overlay, out if in_shards else None)
    recorded = [] if no_record else [path for path in bundles if _is_recorded(path, threshold_overlay)]
    dataset = open_dataset(data, category)
    measure = None
    if in_shards and out is not None:
        from flawscope.calibration.evaluation.sharded_measuring import asked_of

        asked = asked_of(precision, product, threshold_overlay, by_product=by_product, use_overlay=not no_overlay)
        measure = _measure_in_shards(out, sharding, asked, overwrite=overwrite and _is_alone(sharding))
    evaluated = partial(
        evaluate_bundle,
        dataset=dataset,
        backend=backend,
        graph_path=graph_path,
        precision=precision,
        support=support,
        threshold_overlay=threshold_overlay,
        use_overlay=not no_overlay,
        product=product,
        by_product=by_product,
        against=against,
        command=command_line(),
        seed=seed,
        measure=measure,
    )
    results = []
    for path in bundles:
        try:
            with progress_bars() as progress:
                results.append(evaluated(path, progress=progress))
        except ShardsMissing as err:
            echo(f"note: {err}", err=True)
            return 0
    # The bundles last: an output folder that cannot be written leaves them unchanged.
    if other is None:
        _put_out(results[0], json_file, report)
    else:
        _put_out_comparison(results[0], results[1], json_file, report)
    for path, result in zip(bundles, results, strict=True):
        if path in recorded:
            record_accuracy(path, result)
    return 1 if any(all_faults(result.figures) for result in results) else 0


def _is_alone(sharding: dict[str, Any]) -> bool:
    """Return whether a run in shards neither goes on nor is shared; then --overwrite is of the figures alone."""
    return not sharding["resume"] and sharding["shard"] is None


def _measure_in_shards(out: Path, sharding: dict[str, Any], asked: dict[str, Any], *, overwrite: bool) -> Measure:
    """Return what scores images in shards."""
    # Here and not at the top: one process needs none of it.
    from flawscope.calibration.evaluation.sharded_measuring import Sharding, check_out, measure_in_shards
    from flawscope.runtime.scale.placement import make_placement
    from flawscope.runtime.scale.plan import PLAN

    if sharding["plan_only"]:
        raise ArgumentError(
            "--plan-only: expected none for an evaluation, whose first job makes the plan. Leave it out."
        )
    part = read_part(sharding["shard"])
    if (size := sharding["shard_size"]) is not None and size < 1:
        raise ArgumentError(f"--shard-size: expected at least 1, got {size}.")
    how = Sharding(
        out=out,
        placement=make_placement(sharding["on"], sharding["workers"], sharding["gpus_per_worker"]),
        shard_size=size,
        part=part.pair,
        is_resumed=sharding["resume"],
        is_shared=part.is_given,
        asked=asked,
        overwrite=overwrite,
        command=command_line(),
    )
    check_out(how)
    measure = partial(measure_in_shards, how)

    def measured(*args: Any, **kwargs: Any) -> Measured:
        with saying_how_to_go_on(out / PLAN, lambda: f"what is whole stays in {out}", keeps_overwrite=True):
            return measure(*args, **kwargs)

    return measured


def _check_comparable(
    bundles: Sequence[Path], against: Path | None, threshold_overlay: Path | None, out: Path | None
) -> None:
    """Raise ArgumentError for options that are of one bundle alone, with two."""
    if len(bundles) == 1:
        return
    if bundles[0].absolute() == bundles[1].absolute():
        raise ArgumentError(f"OTHER {bundles[1]}: expected a second bundle, got the first again. Name another one.")
    for option, value in (("--against", against), ("--threshold-overlay", threshold_overlay), ("--out", out)):
        if value is not None:
            raise ArgumentError(f"{option} {value}: expected one bundle with it, got two. Evaluate each by itself.")


def _is_recorded(bundle: Path, threshold_overlay: Path | None) -> bool:
    if (why := why_not_recorded(bundle, threshold_overlay)) is None:
        return True
    echo(f"note: {why}", err=True)
    return False


def _put_out(result: Evaluation, json_file: Path | None, report: Path | None) -> None:
    """Print the figures of a bundle, and write those files that were asked for."""
    # Printed first: a file that cannot be written must not throw away what took minutes to measure.
    print_figures(result.figures)
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(encode_json(result.figures), indent=2) + b"\n")
    if report is not None:
        from flawscope.calibration.evaluation.report import write_report

        with progress_bars() as progress:
            written = write_report(result, report, progress)
        echo(f"report: {written}")


def _put_out_comparison(first: Evaluation, second: Evaluation, json_file: Path | None, report: Path | None) -> None:
    """Print how two bundles compare, and write those files that were asked for."""
    from flawscope.calibration.evaluation.comparison import compare_evaluations
    from flawscope.calibration.evaluation.comparison_text import print_comparison

    pair = compare_evaluations(first, second)
    print_comparison(pair.comparison)
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(encode_json(pair.comparison), indent=2) + b"\n")
    if report is not None:
        from flawscope.calibration.evaluation.comparison_report import write_comparison

        with progress_bars() as progress:
            written = write_comparison(pair, report, progress)
        echo(f"report: {written}")
