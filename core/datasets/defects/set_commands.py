"""`flawscope synth support|boxes|masks|describe`: sets that defect synthesis starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import click

from flawscope.datasets import Dataset, open_categories, open_dataset
from flawscope.datasets.data_options import CATEGORIES, CATEGORY, PATH, data_option, split_categories
from flawscope.datasets.defects.anogen_ranges import PUBLISHED
from flawscope.datasets.defects.anomalous_samples import AnomalousSample, Source, list_anomalous
from flawscope.datasets.defects.box_sets import BoxSettings, Ground, write_boxes
from flawscope.datasets.defects.captions import FRAMES, Captions, read_frames, read_phrases
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.drawing_options import DEFECTS, OUT, SEED, SOLID, WITHIN
from flawscope.datasets.defects.file_names import category_of, defect_of
from flawscope.datasets.defects.mask_ranges import Within, read_ranges
from flawscope.datasets.defects.mask_sets import MaskSettings, Rotation, write_masks
from flawscope.datasets.defects.random_boxes import PLACES, Places
from flawscope.datasets.defects.random_masks import Edges
from flawscope.datasets.defects.set_files import SHEET
from flawscope.datasets.defects.support_set import find_support, read_support, write_support
from flawscope.errors import DataError
from flawscope.former_names import ChoiceWithFormerNames, CommandWithFormerNames
from flawscope.given_options import given_option
from flawscope.output_options import OVERWRITE
from flawscope.progress import CountProgress
from flawscope.terminal import echo, progress_bars

_SPLITS = ("train", "test", "any")
_BOXES, _MASKS = BoxSettings(), MaskSettings()  # the defaults

# No default here: with --support it must not be given, and a default could not be told from it.
_SPLIT = click.option(
    "--split", type=click.Choice(_SPLITS), help="Where anomalous images may come from.  [default: train]"
)
_SUPPORT = click.option(
    "--support", type=PATH, metavar="DIR", help="Take the images of this support set, not those of a split."
)
_MARGIN = click.option(
    "--margin", default=_BOXES.margin, show_default=True, help="Margin around a defect, as a share of the box's side."
)
_PHRASES = click.option("--phrases", type=PATH, metavar="FILE", help='JSON: {"CATEGORY/DEFECT": "what it looks like"}.')
_FRAMES = click.option(
    "--frames",
    type=PATH,
    metavar="FILE",
    help="Text file: one sentence per line with {description} {location} {token}.",
)
_OVERLAP = click.option(
    "--overlap", default=_MASKS.overlap, show_default=True, help="A box has more than this share of its area inside."
)
_TRIES = click.option("--tries", default=_MASKS.tries, show_default=True, help="Most rectangles drawn for one box.")


@click.command()
@data_option()
@CATEGORY
@click.option("--shots", "--k", "--k_shot", "shots", default=3, show_default=True, help="Images per defect type.")
@click.option(
    # train: test images only on request, or the evaluation of what is trained on them would be contaminated.
    "--split",
    type=click.Choice(_SPLITS),
    default="train",
    show_default=True,
    help="Where they may come from.",
)
@DEFECTS
@click.option(
    "--allow-alike", is_flag=True, help="Take images, too, that probably show the same part as one that was taken."
)
@SEED
@OUT
@OVERWRITE
def support(
    data: Path,
    category: str | None,
    shots: int,
    split: Source,
    defects: tuple[str, ...],
    allow_alike: bool,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Choose a few anomalous images of each defect type for training a generator, and record them.

    None is taken from the test split unless --split says so. The record DIR/support.json has the name, split and
    content hash of every image, so that an evaluation can leave it out, and lists near duplicates: other images that
    probably show the same parts.
    """
    dataset = open_dataset(data, category)
    with progress_bars() as report:
        record = write_support(
            dataset,
            out,
            shots=shots,
            split=split,
            defects=defects,
            seed=seed,
            allow_alike=allow_alike,
            progress=partial(report, "choosing"),
            alike_progress=partial(report, "finding near duplicates"),
            overwrite=overwrite,
        )
    types = {(image.category, image.defect) for image in record.pictures}
    splits = Counter(image.split for image in record.pictures)
    echo(
        f"support set: {out}, {len(record.pictures)} images of {len(types)} defect type{'' if len(types) == 1 else 's'}"
    )
    if splits["test"]:
        echo(f"taken from the test split: {splits['test']}, to be left out of the evaluation (support.json)")
    if record.alike:
        echo(f"near duplicates: {len(record.alike)} other images, listed in support.json as alike")
    _echo_summary(out, record.passed_over)


_OF_RANDOM_BOXES = ("places", "solid", "overlap", "tries", "phrases", "frames")


@click.command()
@data_option()
@CATEGORY
@_SUPPORT
@_SPLIT
@DEFECTS
@_MARGIN
@click.option(
    "--per-component/--together",
    "--per_component/ ",
    "per_component",
    default=_BOXES.per_component,
    show_default=True,
    help="One box for each part of a defect (parts whose boxes overlap share one), or one for all of them together.",
)
@click.option(
    "--num",
    "number",
    default=_BOXES.number,
    show_default=True,
    help="Random boxes per category, divided among its defect types; 0 draws none.",
)
@WITHIN
@click.option(
    "--places",
    type=click.Choice(PLACES),
    default=_BOXES.places,
    show_default=True,
    help="Draw them near a seen defect, as far from the sides; where the image matches the surroundings of one; in the "
    "rectangle of all observed centres; or anywhere.",
)
@SOLID
@_OVERLAP
@_TRIES
@_PHRASES
@_FRAMES
@SEED
@OUT
@OVERWRITE
def boxes(
    data: Path,
    category: str | None,
    support: Path | None,
    split: Source | None,
    defects: tuple[str, ...],
    margin: float,
    per_component: bool,
    number: int,
    within: Ground,
    solid: bool,
    places: Places,
    overlap: float,
    tries: int,
    phrases: Path | None,
    frames: Path | None,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Box real defects, and draw random boxes of similar sizes and positions on normal images.

    DIR/ranges.json has the observed sizes, as `synth masks` reads them; DIR/NAME/NAME_test.jsonl one line per random
    box: normal image, mask, caption.
    """
    # Before the dataset is opened, so that a wrong number is reported at once.
    settings = BoxSettings(margin, per_component, number, within, solid, places, overlap, tries, seed)
    if number == 0 and (option := given_option(_OF_RANDOM_BOXES)) is not None:
        raise click.UsageError(
            f"{option} is for random boxes, of which --num 0 draws none. Ask for some with --num, or leave it out."
        )
    dataset = open_dataset(data, category)
    with progress_bars() as report:
        entries = _entries(dataset, support, split, defects, partial(report, "finding the support set"))
        record = write_boxes(
            dataset,
            entries,
            out,
            settings,
            captions=_captions(dataset, phrases, frames),
            progress=partial(report, "boxing defects"),
            random_progress=partial(report, "drawing boxes"),
            overwrite=overwrite,
        )
    echo(f"boxes: {out}, around {len(record.real)} defects, and {record.random} random ones")
    if number == 0:
        echo("none to draw on: synth generate needs random boxes, which --num asks for")
    _echo_summary(out, record.passed_over)


@click.command(cls=CommandWithFormerNames, former={"--per-picture": "--per-image"})
@click.option(
    "--ranges",
    type=PATH,
    required=True,
    metavar="FILE",
    help=f"JSON range file, or a published one: {', '.join(PUBLISHED)}.",
)
@data_option(required=False)
@CATEGORIES
@click.option(
    "--templates", type=PATH, metavar="DIR", help="Folder with NAME/DEFECT/mask.png, NAME/DEFECT.png or NAME.png."
)
@click.option(
    "--within",
    type=ChoiceWithFormerNames(["template", "foreground", "image"], {"picture": "image"}),
    help="Where masks lie, in place of what the range file says.",
)
@click.option(
    "--rotate",
    type=click.Choice(["flagged", "all", "none"]),
    default=_MASKS.rotate,
    show_default=True,
    help="Rotate masks: as the range file flags them, all, or none.",
)
@click.option(
    "--edges",
    type=click.Choice(["published", "exact"]),
    default=_MASKS.edges,
    show_default=True,
    help="Pixels of a mask: AnoGen's (one more row and column, all that a rotated one touches), or its sides alone.",
)
@click.option("--num", "number", default=_MASKS.number, show_default=True, help="Masks per defect type.")
@click.option("--size", default=_MASKS.size, show_default=True, help="Height and width of the masks in pixels.")
@click.option(
    "--per-image",
    envvar=("FLAWSCOPE_SYNTH_MASKS_PER_IMAGE", "FLAWSCOPE_SYNTH_MASKS_PER_PICTURE"),
    default=_MASKS.per_picture,
    show_default=True,
    help="Masks per normal image, if in its foreground.",
)
@SOLID
@_OVERLAP
@_TRIES
@SEED
@OUT
@OVERWRITE
def masks(
    ranges: Path,
    data: Path | None,
    categories: tuple[str, ...],
    templates: Path | None,
    within: Within | None,
    rotate: Rotation,
    edges: Edges,
    number: int,
    size: int,
    per_image: int,
    solid: bool,
    overlap: float,
    tries: int,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Draw box masks from a range file: in templates, in the foreground of normal images, or anywhere.

    The range file says for each category where masks lie, and for each defect type their width and height and whether
    they are rotated; AnoGen's own files are read, too. Of several categories those whose template or images are not
    named are passed over, with a line, unless --category names them. A mask that fits nowhere is an error, not an
    endless search.
    """
    settings = MaskSettings(number, size, per_image, solid, rotate, overlap, tries, seed, edges)
    # A published name wins over a file of that name: write ./NAME for the file.
    read = PUBLISHED[str(ranges)] if str(ranges) in PUBLISHED else read_ranges(ranges)
    chosen = split_categories(categories)
    dataset = None if data is None else open_categories(data, chosen)
    with progress_bars() as report:
        record = write_masks(
            read,
            out,
            settings,
            dataset=dataset,
            categories=chosen,
            templates=templates,
            within=within,
            progress=partial(report, "drawing masks"),
            overwrite=overwrite,
        )
    types = {(mask.category, mask.defect) for mask in record.masks}
    echo(f"masks: {out}, {len(record.masks)} of {len(types)} defect type{'' if len(types) == 1 else 's'}")
    for name, reason in record.passed_over.items():
        echo(f"passed over: {name}, whose masks lie {reason}", err=True)
    _echo_summary(out, {})


@click.command()
@data_option()
@CATEGORY
@_SUPPORT
@_SPLIT
@DEFECTS
@_MARGIN
@_PHRASES
@_FRAMES
@SEED
@OUT
@OVERWRITE
def describe(
    data: Path,
    category: str | None,
    support: Path | None,
    split: Source | None,
    defects: tuple[str, ...],
    margin: float,
    phrases: Path | None,
    frames: Path | None,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Write captions of anomalous images, which say what the defect is and where, as JSON lines.

    DIR/NAME/NAME_train.jsonl has one line per image: a normal image, the anomalous one, the box's mask, the captions.
    """
    dataset = open_dataset(data, category)
    with progress_bars() as report:
        entries = _entries(dataset, support, split, defects, partial(report, "finding the support set"))
        record = write_descriptions(
            dataset,
            entries,
            out,
            _captions(dataset, phrases, frames),
            margin=margin,
            seed=seed,
            progress=partial(report, "describing"),
            overwrite=overwrite,
        )
    echo(f"descriptions: {out}, {sum(record.lines.values())} lines of {len(record.frames)} sentences")
    _echo_summary(out, record.passed_over)


def _entries(
    dataset: Dataset, support: Path | None, split: Source | None, defects: tuple[str, ...], progress: CountProgress
) -> list[AnomalousSample]:
    """Return the anomalous images of a support set, or of a split."""
    if support is None:
        return list_anomalous(dataset, split or "train", defects)
    # Refused, not ignored: the images of a support set are fixed.
    if split is not None or defects:
        raise click.UsageError("Expected --support, or --split and --defect, got both. Leave one out.")
    return find_support(dataset, read_support(support), progress)


def _captions(dataset: Dataset, phrases: Path | None, frames: Path | None) -> Captions:
    types = {f"{category_of(dataset, s)}/{defect_of(s)}" for s in dataset.samples if s.is_anomalous}
    if phrases is not None and not types:
        raise DataError(f"{dataset.root}: expected anomalous images for the phrases of {phrases}, got none.")
    return Captions(
        {} if phrases is None else read_phrases(phrases, types), FRAMES if frames is None else read_frames(frames)
    )


def _echo_summary(out: Path, passed_over: Mapping[str, str]) -> None:
    for reason, number in Counter(passed_over.values()).items():
        echo(f"passed over: {number}, {reason}")
    echo(f"overview: {out / SHEET}")
