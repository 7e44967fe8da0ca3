"""Command `flawscope synth generate`: draw defects on normal images with a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from flawscope.bundle import PRECISIONS, Manifest, SynthDefect, SynthHead, trusted_bundle
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.datasets import Dataset, open_categories
from flawscope.datasets.data_options import CATEGORIES, PATH, data_option, split_categories
from flawscope.datasets.defects.drawing_options import warn_of_test_images
from flawscope.datasets.defects.set_files import SHEET
from flawscope.errors import GateError
from flawscope.files import check_replaceable
from flawscope.output_options import OVERWRITE
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.scale.shard_options import is_sharded, shard_options
from flawscope.runtime.synthesis.draw_options import BestBy, GenerateSettings
from flawscope.runtime.synthesis.generate_options import generate_options
from flawscope.runtime.synthesis.generated_set import MARKER, GenerateRecord
from flawscope.runtime.synthesis.generation import generate_images
from flawscope.runtime.synthesis.mask_sites import MASKS_PER_IMAGE, MaskSites
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.sites import Site, read_sites
from flawscope.runtime.synthesis.synthesizer import Synthesizer, defect_named, head_of
from flawscope.terminal import echo, progress_bars


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--boxes", type=PATH, metavar="DIR", help="Box set of synth boxes: draw at its boxes.")
@click.option(
    "--masks",
    type=PATH,
    metavar="DIR",
    help="Mask set of synth masks, or a folder NAME/DEFECT/*.png as AnoGen has it: draw on every normal image.",
)
@click.option(
    "--per-image",
    type=int,
    metavar="N",
    help=f"With --masks: masks of each image for each defect type.  [default: {MASKS_PER_IMAGE}]",
)
@data_option("The dataset with the normal images.", required=False)
@CATEGORIES
@click.option(
    "--image", "--image_prompt", "image", type=PATH, metavar="FILE", help="Draw on this normal image, not on a box set."
)
@click.option(
    "--mask", "--mask_prompt", "mask", type=PATH, metavar="FILE", help="With --image: white is where the defect goes."
)
@click.option(
    "--defect",
    "defects",
    multiple=True,
    metavar="NAME",
    help="Defect type; can be repeated. Default: all types of the box set.",
)
@click.option(
    "--text", "--prompt", "text", metavar="TEXT", help="With --image: the prompt.  [default: one of the bundle's texts]"
)
@generate_options
@click.option(
    "--lpips",
    type=PATH,
    metavar="FILE",
    help="With --best-by lpips: state dict of torchvision's alexnet or vgg16.",
)
@click.option("--lpips-heads", type=PATH, metavar="FILE", help="Linear weights of LPIPS 0.1 for that network.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
# Two of MvP-Diff: masks are always written here, and weights are in the bundle.
@click.option("--extract_mask", "is_extracting", is_flag=True, hidden=True)
@click.option("--checkpoint_dir", "--lora_dir", "weights", hidden=True)
@click.option("--out", "--outdir", "--output", "out", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@OVERWRITE
@shard_options
@trusted_keys_option
def generate(
    settings: GenerateSettings,
    bundle: Path,
    boxes: Path | None,
    masks: Path | None,
    per_image: int | None,
    data: Path | None,
    categories: tuple[str, ...],
    image: Path | None,
    mask: Path | None,
    defects: tuple[str, ...],
    text: str | None,
    lpips: Path | None,
    lpips_heads: Path | None,
    backend: str,
    precision: str,
    is_extracting: bool,
    weights: str | None,
    out: Path,
    overwrite: bool,
    **sharding: Any,
) -> None:
    """Draw defects on normal images with a bundle, find their precise masks, and reject images of poor quality.

    Draws at the boxes of a box set (--boxes, --data), on every normal image at some masks of a mask set (--masks,
    --data), or on one image (--image, --mask, --defect), whose mask is resized to it. The same seed gives the same
    images. The exit status is 1 if no image of a defect type was accepted; the folder is written
    in that case, too.

    With --on, --workers, --shard-size or --shard it works in shards, by several processes or machines, and can be
    resumed; the set is the same: docs/scale.md. What is not finished lies in DIR.parts.
    """
    _check_sources((boxes, masks), (data, *categories), (image, mask, text), defects)
    if per_image is not None and masks is None:
        raise click.UsageError("Expected --per-image with --masks, got it without. Leave it out.")
    if weights is not None:
        raise click.UsageError(
            f"Expected base and LoRA in BUNDLE, as flawscope export writes it, got {weights} to take them from. Leave "
            "--checkpoint_dir and --lora_dir out."
        )
    if is_extracting:
        echo("note: --extract_mask: precise masks are always written", err=True)
    if text is not None:
        settings = msgspec.structs.replace(settings, texts="lines")  # it is the text of the one line that --image makes
    compared_by = _weights(settings.best_by, lpips, lpips_heads)
    in_shards = is_sharded(out, sharding["on"], sharding["workers"])
    # Both before the bundle is loaded: a wrong folder or line is then an error at once.
    if not in_shards:
        check_replaceable(out, MARKER, overwrite=overwrite)
    dataset = None if data is None else open_categories(data, split_categories(categories))
    sites, lines = ([], {}) if boxes is None or dataset is None else read_sites(boxes, dataset, defects)
    of_masks = None if masks is None or dataset is None else MaskSites(masks, dataset)

    def choose_sites(manifest: Manifest, head: SynthHead) -> tuple[Sequence[Site], Mapping[str, str]]:
        if image is not None and mask is not None:
            return [_site_of_image(defect_named(manifest, head, defects[0]), image, mask, text)], {}
        if of_masks is not None:
            return _sites_of_masks(of_masks, head, defects, per_image, settings.seed), of_masks.hashes
        return sites, lines

    if in_shards:
        found = _generate_in_shards(
            bundle,
            choose_sites,
            settings,
            backend,
            precision,
            compared_by,
            dataset,
            None if data is None else (data, split_categories(categories)),
            out,
            sharding,
            overwrite=overwrite,
        )
        if found is not None:
            end_generate(found, out)
        return
    distance = None if compared_by is None else MaskedLpips.load(*compared_by)
    with Synthesizer.load(bundle, backend, precision) as synthesizer, progress_bars() as report:
        chosen, hashes = choose_sites(synthesizer.manifest, synthesizer.head)
        echo(f"backend {synthesizer.backend} ({synthesizer.backend_reason})", err=True)
        record = generate_images(
            synthesizer,
            chosen,
            out,
            settings,
            dataset=dataset,
            lines=hashes,
            distance=distance,
            report=report,
            overwrite=overwrite,
        )
    end_generate(record, out)


def end_generate(record: GenerateRecord, out: Path) -> None:
    """Say what a set came to.

    Raises:
        GateError: If a defect type has no accepted image.
    """
    _print_record(record, out)
    _check_accepted(record, out)


def _sites_of_masks(
    masks: MaskSites, head: SynthHead, defects: tuple[str, ...], per_image: int | None, seed: int
) -> list[Site]:
    learned = [f"{defect.category}/{defect.name}" for defect in head.defects]
    number = MASKS_PER_IMAGE if per_image is None else per_image
    # A bundle that has learned no defect draws any.
    sites, passed_over = masks.choose(learned, lambda key: not learned or key in learned, defects, number, seed)
    for key, reason in passed_over.items():
        echo(f"passed over: {key}: {reason}", err=True)
    return sites


def _generate_in_shards(
    bundle: Path,
    choose_sites: Callable[[Manifest, SynthHead], tuple[Sequence[Site], Mapping[str, str]]],
    settings: GenerateSettings,
    backend: str,
    precision: str,
    weights: tuple[Path, Path] | None,
    dataset: Dataset | None,
    data: tuple[Path, tuple[str, ...]] | None,
    out: Path,
    sharding: dict[str, Any],
    *,
    overwrite: bool,
) -> GenerateRecord | None:
    """Draw in shards; return the record of the set, or None where it is not finished."""
    # Here and not at the top: one process needs none of it.
    from flawscope.runtime.scale.generate_console import run_in_shards
    from flawscope.runtime.scale.generate_plan import Request

    with trusted_bundle(bundle) as opened:
        head = head_of(opened)
        sites, lines = choose_sites(opened.manifest, head)
        request = Request(
            bundle=bundle,
            manifest=opened.manifest,
            head=head,
            sites=sites,
            settings=settings,
            backend=backend,
            precision=precision,
            lpips=weights,
            dataset=dataset,
            data=data,
            lines=lines,
        )
    return run_in_shards(request, out, sharding, overwrite=overwrite)


def _weights(best_by: BestBy, lpips: Path | None, heads: Path | None) -> tuple[Path, Path] | None:
    """Return what compares candidates by LPIPS, or None where the filter does."""
    if best_by == "lpips":
        if lpips is None or heads is None:
            raise click.UsageError("Expected --lpips and --lpips-heads with --best-by lpips, got none. Give both.")
        return lpips, heads
    if lpips is not None or heads is not None:
        raise click.UsageError("Expected --best-by lpips with --lpips and --lpips-heads, got filter. Leave them out.")
    return None


def _site_of_image(defect: SynthDefect, image: Path, mask: Path, text: str | None) -> Site:
    # Only the bundle knows the category that a bare defect name belongs to.
    return Site(defect.category, defect.name, image, image.name, mask, mask.name, text, is_fitted=True)


def _check_accepted(record: GenerateRecord, out: Path) -> None:
    """Raise GateError if a defect type has no accepted image; its status 1 is what scripts look at."""
    if empty := [key for key, defect in record.defects.items() if defect.accepted == 0]:
        raise GateError(
            f"{out}: expected accepted images of every defect type, got none of {', '.join(empty)}. See "
            f"{out / SHEET} for the reasons, and draw again with other options or --keep-trying."
        )


def _check_sources(
    sets: tuple[Path | None, Path | None],
    data: tuple[Path | str | None, ...],
    of_image: tuple[Path | str | None, ...],
    defects: tuple[str, ...],
) -> None:
    """Raise UsageError unless the options name one of a box set, a mask set and an image, and what it needs.

    Args:
        sets: --boxes and --masks.
        data: --data and categories.
        of_image: --image, --mask and --text.
        defects: --defect.
    """
    boxes, masks = sets
    image, mask, _ = of_image
    has_set, has_image = any((boxes, masks)), any(option is not None for option in of_image)
    if boxes is not None and masks is not None:
        raise click.UsageError("Expected --boxes or --masks, got both. Leave one out.")
    if has_image and (has_set or any(option is not None for option in data)):
        named = "--masks" if masks is not None else "--boxes"
        raise click.UsageError(f"Expected {named} with --data, or --image with --mask, got both. Leave one out.")
    if not (has_set and data[0] is not None) and (image is None or mask is None or len(defects) != 1):
        raise click.UsageError(
            "Expected --boxes and --data, or --image, --mask and one --defect, or --masks and --data. Give those."
        )


def _print_record(record: GenerateRecord, out: Path) -> None:
    summary, types = record.summary, len(record.defects)
    echo(f"drawn: {out}, {summary.pictures} images of {types} defect type{'' if types == 1 else 's'}")
    _print_counts(record)
    if record.resized:
        echo(f"masks resized to their images: {record.resized} (nearest)")
    seconds = record.seconds_per_accepted
    echo(f"seconds per accepted image: {'none was accepted' if seconds is None else f'{seconds:.2f}'}")
    warn_of_test_images(record.support_in_test)
    echo(f"overview: {out / SHEET}")


def _print_counts(record: GenerateRecord) -> None:
    """Print how many images were kept, and what the filter said of all of them."""
    summary, settings = record.summary, record.settings
    for key, defect in record.defects.items():
        left = f", {defect.summary.rejected} rejected"
        if settings.keep_all or settings.best_of > 1:
            left = f", {defect.summary.pictures} drawn"
        echo(f"{key}: {defect.accepted} accepted of {defect.wanted} wanted{left}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary.counts.items() if count)
    because = f": {reasons}" if reasons else ""
    accepted = sum(defect.accepted for defect in record.defects.values())
    if settings.best_of > 1:
        echo(f"kept: the best of {settings.best_of} of each record and round")
    if settings.keep_all:
        echo("filter: nothing was filtered (--keep-all)")
    if settings.keep_all or settings.best_of > 1:
        echo(f"in all: {accepted} accepted; {summary.rejected} of {summary.pictures} do not pass the filter{because}")
    else:
        echo(f"in all: {accepted} accepted, {summary.rejected} rejected{because}")
