"""`flawscope calibrate`: set the thresholds of a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from flawscope.bundle import PRECISIONS, Threshold, Thresholds, making, open_bundle, read_image_hashes
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.calibration.evaluation.intervals import images_needed
from flawscope.calibration.thresholds.calibrate import (
    CONFIDENCE,
    FALSE_REJECT_RATE,
    Calibration,
    precisions_of,
    propose_thresholds,
    set_thresholds,
    write_thresholds,
)
from flawscope.calibration.thresholds.threshold_images import Objective
from flawscope.datasets import open_dataset
from flawscope.errors import FlawscopeError
from flawscope.rich_console import PlainConsole
from flawscope.terminal import command_line, echo, echo_json, progress_bars
from flawscope.text import printable


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Dataset whose normal images are used.")
@click.option("--category", metavar="NAME", help="Category below the dataset's folder.")
@click.option(
    "--false-reject-rate",
    type=float,
    default=FALSE_REJECT_RATE,
    show_default=True,
    help="Share of good parts that may be rejected.",
)
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, help="Confidence of that claim.")
@click.option(
    "--objective",
    type=click.Choice(["good", "f1"]),
    default="good",
    show_default=True,
    help="good: from normal images alone. f1: from labelled test images, which makes figures on them optimistic.",
)
@click.option(
    "--support",
    "support_folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="f1: support set; its images, and those that probably show the same parts, are left out.",
)
@click.option("--image-threshold", type=float, metavar="X", help="Set the image threshold by hand.")
@click.option("--pixel-threshold", type=float, metavar="Y", help="Set the pixel threshold by hand.")
@click.option(
    "--by-product",
    is_flag=True,
    help="With --category all: thresholds for each category from its own images, beside the common ones.",
)
@click.option("--zone", metavar="NAME", help="Zone whose thresholds are set by hand.")
@click.option("--min-area", type=int, metavar="PX", help="Smallest region that gets a box, in pixels of the map.")
@click.option(
    "--image-limits",
    type=(float, float),
    metavar="LOW HIGH",
    help="How far a threshold overlay may move the image threshold.  [default: see docs/signatures.md]",
)
@click.option("--pixel-limits", type=(float, float), metavar="LOW HIGH", help="The same for the pixel threshold.")
@click.option("--backend", default="auto", show_default=True, help="Backend that makes the scores.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only this one.  [default: each the bundle has]")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON, a line for each precision.")
@trusted_keys_option
@making()  # writing one precision drops the signature, and the next is still to be scored
def calibrate(
    bundle: Path,
    data: Path | None,
    category: str | None,
    false_reject_rate: float,
    confidence: float,
    objective: Objective,
    support_folder: Path | None,
    image_threshold: float | None,
    pixel_threshold: float | None,
    by_product: bool,
    zone: str | None,
    min_area: int | None,
    image_limits: tuple[float, float] | None,
    pixel_limits: tuple[float, float] | None,
    backend: str,
    precision: str | None,
    as_json: bool,
) -> None:
    """Set the thresholds of BUNDLE from normal images, and state the bound on false rejects.

    The normal images that the detector has not learned from are scored; the threshold is the lowest that keeps the
    false-reject rate with the requested confidence. A bundle whose training was cross-fitted brings scores of its own:
    they are taken unless there are as many images that it has not learned from, also without --data. Nothing is
    rebuilt: thresholds are numbers in the manifest, and every change is recorded there.
    """
    is_by_hand = image_threshold is not None or pixel_threshold is not None
    if is_by_hand and data is not None:
        raise click.UsageError("--data and thresholds given by hand exclude each other. Leave one out.")
    if zone is not None and not is_by_hand:
        raise click.UsageError("--zone goes with --image-threshold and --pixel-threshold. Leave it out.")
    if support_folder is not None and (data is None or objective != "f1"):
        raise click.UsageError("--support goes with --data and --objective f1. Leave it out.")
    if by_product and data is None:
        raise click.UsageError("--by-product goes with --data and --category all. Leave it out.")
    if data is None and category is not None:
        raise click.UsageError("--category goes with --data. Leave it out.")
    if data is None:
        if not is_by_hand and (min_area, image_limits, pixel_limits) == (None, None, None):
            if not _is_cross_fitted(bundle) or objective != "good":
                raise click.UsageError(
                    "Expected --data ROOT, or --image-threshold X and --pixel-threshold Y, got neither."
                )
        else:
            by_hand = set_thresholds(
                bundle,
                image_threshold,
                pixel_threshold,
                min_area,
                image_limits=image_limits,
                pixel_limits=pixel_limits,
                zone=zone,
                precision="fp32" if precision is None else precision,
                command=command_line(),
            )
            _show(by_hand, "fp32" if precision is None else precision, as_json)
            return
    support = None
    if support_folder is not None:
        # Lazy: only this option needs the package of defect sets.
        from flawscope.datasets.defects.support_set import read_support

        support = read_support(support_folder)
    dataset = None if data is None else open_dataset(data, category)
    for name in precisions_of(bundle) if precision is None else (precision,):
        with progress_bars() as progress:
            proposal = propose_thresholds(
                bundle,
                dataset,
                false_reject_rate=false_reject_rate,
                confidence=confidence,
                objective=objective,
                min_area_px=min_area,
                image_limits=image_limits,
                pixel_limits=pixel_limits,
                backend=backend,
                precision=name,
                support=support,
                by_product=by_product,
                progress=progress,
            )
        try:
            result = write_thresholds(proposal, command=command_line())
        except FlawscopeError:
            # Minutes of scoring are not thrown away: the thresholds can be set by hand.
            echo("computed, but not written:")
            _show(proposal.calibration, name, as_json)
            raise
        _show(result, name, as_json)


def _is_cross_fitted(path: Path) -> bool:
    with open_bundle(path) as bundle:
        return bundle.manifest.kind == "score" and read_image_hashes(bundle).cross is not None


def _show(result: Calibration, precision: str, as_json: bool) -> None:
    if as_json:
        # One object a precision, each in one line.
        echo_json({"precision": precision, **msgspec.to_builtins(result, enc_hook=str)})
        return
    if precision != "fp32":  # printed for a bundle with several; one in FP32 alone has a single table
        echo(f"precision {precision}:")
    _print(result)


def _print(result: Calibration) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("threshold")
    for title in ("old", "new", "images", "requested", "bound", "images needed"):
        table.add_column(title, justify="right")
    zones = max(1, len(result.new.of_zones))
    before = _by_name(result.old)
    for name, now in _by_name(result.new).items():
        old = before.get(name)
        table.add_row(printable(name), f"{old.value:.6g}" if old else "-", f"{now.value:.6g}", *_claim(now, zones))
    console = PlainConsole()  # names and reasons are text, also with brackets
    console.print(table)
    bound = result.new.image
    if result.backend is not None and (claim := bound.claim) is not None:
        console.print(
            f"{claim[0].upper()}{claim[1:]} (n = {bound.images}, backend {result.backend}).",
            soft_wrap=True,
        )
    if result.expectation:
        console.print(result.expectation, soft_wrap=True)
    if result.highest:
        console.print(
            "highest scores of normal images: " + ", ".join(f"{p} {v:.6g}" for p, v in result.highest), soft_wrap=True
        )
    for reason, count in result.left_out:
        console.print(f"left out: {count} {reason}", soft_wrap=True)
    console.print(f"smallest region that gets a box: {result.min_area_px} pixels of the map", soft_wrap=True)
    if (limits := result.new.limits) is not None:
        console.print(
            f"a threshold overlay may set image {limits.image.low:.6g} to {limits.image.high:.6g}, pixel "
            f"{limits.pixel.low:.6g} to {limits.pixel.high:.6g}",
            soft_wrap=True,
        )
    for note in result.notes:
        echo(f"note: {note}", err=True)


def _by_name(thresholds: Thresholds | None) -> dict[str, Threshold]:
    """Return the thresholds that decide, by what they are on."""
    if thresholds is None:
        return {}
    of = [(f"{zone.name}, ", zone.image, zone.pixel) for zone in thresholds.of_zones]
    if not of:
        of = [("", thresholds.image, thresholds.pixel)]
        of += [(f"{row.name}, ", row.image, row.pixel) for row in thresholds.by_product if row.image and row.pixel]
    return {f"{name}{kind}": own for name, image, pixel in of for kind, own in (("image", image), ("pixel", pixel))}


def _claim(threshold: Threshold, zones: int) -> tuple[str, str, str, str]:
    if threshold.false_reject_rate is None or threshold.upper_bound is None or threshold.confidence is None:
        return str(threshold.images) if threshold.images else "-", threshold.method, "-", "-"
    estimated = " (estimated)" if threshold.guarantee == "estimated" else ""
    return (
        str(threshold.images),
        f"{threshold.false_reject_rate:.2%}",
        f"{threshold.upper_bound:.2%} at {threshold.confidence:.0%}{estimated}",
        str(images_needed(threshold.false_reject_rate, threshold.confidence, zones)),
    )
