"""Box sets: bounding boxes of real defects, and random boxes like them on normal images.

    DIR/CATEGORY/bbox/DEFECT/STEM_mask.png   around real defects, of the image's size
    DIR/CATEGORY/mask/DEFECT/NUMBER.png      random, of the normal image's size
    DIR/CATEGORY/CATEGORY_test.jsonl         one line per random box: good, mask, text, defect, bbox
    DIR/ranges.json                          the observed sizes, as a range file of `synth masks`
    DIR/boxes.json                           settings, real boxes, and the ranges of sizes and positions
    DIR/contact_sheet.png

In the lines `good` is relative to the dataset's root and `mask` to DIR, so that folders can be moved. White is where
the defect goes.

Source: MvP-Diff, stages 1b and 3a, whose scripts were never published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from flawscope import __version__
from flawscope.arrays import UInt8Array
from flawscope.datasets import Dataset, Sample
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.captions import Captions
from flawscope.datasets.defects.file_names import category_of, check_defect_name, place_of
from flawscope.datasets.defects.foreground import Coverage, find_foreground
from flawscope.datasets.defects.mask_ranges import CategoryRanges
from flawscope.datasets.defects.random_boxes import BoxRange, Match, Places, draw_box, range_of
from flawscope.datasets.defects.random_masks import MAX_TRIES, MIN_OVERLAP, Sides
from flawscope.datasets.defects.seeded_choice import check_count, check_fraction, check_seed, generator
from flawscope.datasets.defects.set_files import SHEET, read_lines, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Outline, Row, Tile, draw_sheet
from flawscope.datasets.drawing.correspondence import Correspondence, Surroundings, surroundings_of
from flawscope.datasets.record_paths import place_below
from flawscope.diffusion.location_words import location_of
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable, free_name
from flawscope.imaging.boxes import Rect, boxes_of, mask_of
from flawscope.imaging.images import read_image
from flawscope.progress import CountProgress

BOXES_RECORD = "boxes.json"
# Then another normal image is taken: in the foreground of some no box fits.
_TRIES_PER_IMAGE = 1000

Ground = Literal["foreground", "image", "picture"]
"""Where boxes and defects lie. `picture` is the former name of `image`; files of earlier versions have it."""


class BoxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How boxes are made.

    Attributes:
        margin: Margin around a defect as a share of the box's side; never less than 8 pixels at 512.
        per_component: One rectangle for each part of a defect, not one for all; see `boxes_of`. Two distant cracks in
            one rectangle would be a defect of a size that there is not.
        number: Random boxes per category, divided evenly among its defect types, the first ones taking the remainder; 0
            draws none.
        within: Random boxes lie in the "foreground" of the normal image, or anywhere in the "image".
        solid: The part has no holes; see `find_foreground`.
        places: Positions of random boxes: "near" a seen one at its distances to the sides, where the image is the best
            "match" of its surroundings, in the rectangle that spans all "observed" centres, or "anywhere".
        overlap: A random box has more than this share of its area in the foreground.
        tries: Most boxes drawn for one random box.
        seed: Seed of the random boxes.
    """

    margin: float = 0.1
    per_component: bool = True
    number: int = 0
    within: Ground = "foreground"
    solid: bool = False
    places: Places = "near"
    overlap: float = MIN_OVERLAP
    tries: int = MAX_TRIES
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction(self.margin, "margin", 0.0, 1.0)
        check_count(self.number, "number", 0, 100_000)
        check_count(self.tries, "tries", 1, 10_000_000)
        check_fraction(self.overlap, "overlap", 0.0, 0.99)
        check_seed(self.seed)


class RealBox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rectangles around the defect of one image.

    Attributes:
        category: Name of the category.
        defect: Defect type, without the category.
        split: The split the image is from.
        source: Path of the image below the dataset's root.
        size: Height and width of the image in pixels.
        boxes: Left, top, width and height of each rectangle in pixels.
        mask: Path of the mask of the rectangles, below the set's folder.
    """

    category: str
    defect: str
    split: str
    source: str
    size: tuple[int, int]
    boxes: tuple[Rect, ...]
    mask: str


class BoxRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Record of a box set: the content of `boxes.json`.

    Attributes:
        flawscope: Version that wrote it.
        settings: How it was made.
        real: Boxes of real defects.
        ranges: Category -> defect type -> observed sizes and positions.
        random: Number of random boxes.
        passed_over: Images without a box, with the reason.
        schema: Version of this record.
    """

    flawscope: str
    settings: BoxSettings
    real: tuple[RealBox, ...]
    ranges: dict[str, dict[str, BoxRange]]
    random: int
    passed_over: dict[str, str]
    schema: Literal[1] = 1


class BoxLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of CATEGORY_test.jsonl: an image to draw a defect on.

    Attributes:
        good: Path of the normal image below the dataset's root.
        mask: Path of the mask below the set's folder; white is where the defect goes.
        text: Prompt of the drawing.
        defect: Defect type. The reader fills it in: lines of MvP-Diff have the first three keys only, and their defect
            type is the folder of the mask.
        bbox: Left, top, width and height in pixels of the normal image, or None if the line has none.
    """

    good: str
    mask: str
    text: str
    defect: str = ""
    bbox: tuple[int, int, int, int] | None = None


def write_real_boxes(
    folder: Path,
    entries: Sequence[AnomalousSample],
    margin: float,
    *,
    per_component: bool,
    progress: CountProgress | None,
) -> tuple[list[RealBox], dict[str, str], list[Row]]:
    """Write the bounding boxes of real defects below a folder that is being written.

    Returns:
        The boxes, the images passed over because their mask is empty, and the rows of a contact sheet.

    Raises:
        DataError: If a file cannot be read, or a defect type has no mask that shows a defect.
    """
    real_boxes: list[RealBox] = []
    passed_over: dict[str, str] = {}
    stems: dict[tuple[str, str], set[str]] = {(entry.category, entry.defect): set() for entry in entries}
    tiles: dict[tuple[str, str], list[Tile]] = {key: [] for key in stems}
    sheet_places = _spread(entries)
    for count, entry in enumerate(entries, 1):
        image, mask = entry.read()
        key, size = (entry.category, entry.defect), (image.shape[0], image.shape[1])
        if boxes := boxes_of(mask, margin, per_component=per_component):
            # Images of two splits or formats may share a stem.
            stem = free_name(entry.sample.path.stem, stems[key])
            name = f"{entry.category}/bbox/{entry.defect}/{stem}_mask.png"
            boxed = mask_of(boxes, size)
            write_mask(folder / name, boxed)
            real_boxes.append(RealBox(*key, entry.sample.split, entry.place, size, tuple(boxes), name))
            if entry.place in sheet_places:
                label = location_of(boxes[0], size) if len(boxes) == 1 else f"{len(boxes)} boxes"
                tiles[key].append(Tile(label, image, (Outline(mask, MAGENTA), Outline(boxed, CYAN))))
        else:
            passed_over[entry.place] = "its mask shows no defect"
        if progress:
            progress(count, len(entries))
    # After the loop: only then it is known that a type has no usable mask at all.
    for category, defect in (key for key, names in stems.items() if not names):
        raise DataError(f"{category}/{defect}: expected a mask that shows a defect, got empty ones. Leave it out.")
    return real_boxes, passed_over, [Row(f"{c}: {d}, real", row) for (c, d), row in tiles.items()]


def _spread(entries: Sequence[AnomalousSample]) -> set[str]:
    """Return the paths of the images that the contact sheet shows: evenly spread over each defect type."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry.category, entry.defect), []).append(entry.place)
    return {group[index * len(group) // COLUMNS] for group in groups.values() for index in range(COLUMNS)}


def write_boxes(
    dataset: Dataset,
    entries: Sequence[AnomalousSample],
    folder: Path,
    settings: BoxSettings | None = None,
    *,
    captions: Captions | None = None,
    progress: CountProgress | None = None,
    random_progress: CountProgress | None = None,
    overwrite: bool = False,
) -> BoxRecord:
    """Write the bounding boxes of real defects, and random boxes if `settings.number` asks for some.

    The folder appears whole under its name or not at all.

    Args:
        dataset: Random boxes are drawn on its normal training images.
        entries: The anomalous images; see `list_anomalous` and `find_support`.
        folder: The folder to write.
        settings: How boxes are made.
        captions: Phrases and frames of the captions of random boxes.
        progress: Called with the number of anomalous images read and their total after each.
        random_progress: Called with the number of random boxes drawn and their total after each.
        overwrite: Whether an earlier box set there may be replaced.

    Raises:
        ArgumentError: If an argument is out of range, or `folder` holds something else.
        DataError: If a random box fits nowhere, a defect type has no mask that shows one, or a file cannot be read.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    settings, captions = settings or BoxSettings(), captions or Captions()
    check_replaceable(folder, BOXES_RECORD, overwrite=overwrite)
    with atomic_folder(folder, replace_if=BOXES_RECORD, overwrite=overwrite) as temporary:
        real, passed_over, rows = write_real_boxes(
            temporary, entries, settings.margin, per_component=settings.per_component, progress=progress
        )
        ranges = _ranges(real)
        around = _surroundings(entries, settings) if settings.number and settings.places == "match" else {}
        count = _write_random(temporary, dataset, ranges, around, settings, captions, rows, random_progress)
        record = BoxRecord(__version__, settings, tuple(real), ranges, count, passed_over)
        write_json(temporary / "ranges.json", {name: _as_file(seen, settings.within) for name, seen in ranges.items()})
        write_image(temporary / SHEET, draw_sheet(rows))
        # The record marks the folder as a box set that a later call may replace.
        write_json(temporary / BOXES_RECORD, record)
    return record


def _ranges(real: Sequence[RealBox]) -> dict[str, dict[str, BoxRange]]:
    seen: dict[str, dict[str, list[tuple[Rect, tuple[int, int]]]]] = {}
    for entry in real:
        boxes = seen.setdefault(entry.category, {}).setdefault(entry.defect, [])
        boxes += [(box, entry.size) for box in entry.boxes]
    return {name: {defect: range_of(boxes) for defect, boxes in types.items()} for name, types in seen.items()}


_AroundTypes = dict[tuple[str, str], list[Surroundings]]


def _surroundings(entries: Sequence[AnomalousSample], settings: BoxSettings) -> _AroundTypes:
    """Return the surroundings of every real box, in the order of the ranges."""
    found: _AroundTypes = {}
    for entry in entries:
        image, mask = entry.read()
        for box in boxes_of(mask, settings.margin, per_component=settings.per_component):
            around = surroundings_of(image, mask, box)
            if around is None:
                raise DataError(
                    f"{entry.sample.path}: expected surroundings of the defect to find places by, got other "
                    "defects alone. Take it out of the support set, or take --places near."
                )
            found.setdefault((entry.category, entry.defect), []).append(around)
    return found


def _as_file(seen: dict[str, BoxRange], within: Ground) -> CategoryRanges:
    return CategoryRanges(
        # rotate=False: the observed boxes are axis-parallel.
        within,
        {name: Sides(observed.width, observed.height, rotate=False) for name, observed in seen.items()},
    )


def shares(number: int, types: int) -> list[int]:
    """Divide `number` among `types` defect types; the first ones take the remainder."""
    return [number // types + (index < number % types) for index in range(types)]


def _write_random(
    folder: Path,
    dataset: Dataset,
    ranges: dict[str, dict[str, BoxRange]],
    around: _AroundTypes,
    settings: BoxSettings,
    captions: Captions,
    rows: list[Row],
    progress: CountProgress | None,
) -> int:
    drawn = 0
    for category, types in ranges.items() if settings.number else ():
        goods = [sample for sample in dataset.train_good if category_of(dataset, sample) == category]
        lines: list[BoxLine] = []
        for (defect, seen), count in zip(types.items(), shares(settings.number, len(types)), strict=True):
            tiles: list[Tile] = []
            for number in range(1, count + 1):
                name = f"{category}/mask/{defect}/{number:03d}.png"
                sample, image, box, area = _place(
                    goods, seen, around.get((category, defect)), settings, (category, defect, number)
                )
                # The box mask has the size of its own normal image; images of a category may differ.
                size = (image.shape[0], image.shape[1])
                write_mask(folder / name, box.to_mask(size))
                # A generator of its own: the wording must not move when the drawing of boxes takes more tries.
                rng = generator(settings.seed, "caption", category, defect, number)
                text = captions.one(category, defect, location_of(box, size), rng)
                lines.append(BoxLine(place_of(dataset, sample.path), name, text, defect, box))
                if len(tiles) < COLUMNS:
                    edges = () if area is None else (Outline(area.mask, CYAN),)
                    tiles.append(Tile(location_of(box, size), image, (*edges, Outline(box.to_mask(size)))))
                drawn += 1
                if progress:
                    progress(drawn, settings.number * len(ranges))
            if tiles:
                rows.append(Row(f"{category}: {defect}, random", tiles))
        write_lines(folder / category / f"{category}_test.jsonl", lines)
    return drawn


def _place(
    goods: Sequence[Sample],
    seen: BoxRange,
    around: Sequence[Surroundings] | None,
    settings: BoxSettings,
    key: tuple[str, str, int],
) -> tuple[Sample, UInt8Array, Rect, Coverage | None]:
    """Return a normal image and a random box on it; if no box fits in its foreground, another image is drawn."""
    # One generator per box, by names: more boxes or another defect type do not change this one.
    rng, (category, defect, _) = generator(settings.seed, "box", *key), key
    tries_left = settings.tries
    while tries_left > 0:
        sample = goods[int(rng.integers(len(goods)))]
        image = read_image(sample.path)
        area = Coverage(find_foreground(image, is_solid=settings.solid)) if settings.within == "foreground" else None
        drawn = draw_box(
            seen,
            (image.shape[0], image.shape[1]),
            rng,
            within=area,
            overlap=settings.overlap,
            places=settings.places,
            match=None if around is None else Match(Correspondence(image), around),
            # The limit counts over all images, so that the search ends.
            tries=min(tries_left, _TRIES_PER_IMAGE),
        )
        if drawn is not None:
            return sample, image, drawn[0], area
        tries_left -= _TRIES_PER_IMAGE
    raise DataError(
        f"{category}/{defect}: expected a random box with more than {settings.overlap:.0%} in the foreground, got none "
        f"in {settings.tries} tries. Try --solid, a lower --overlap, or --within image, which allows every place."
    )


def find_box_lines(folder: Path, category: str) -> Path | None:
    """Return the file with the lines of a category, in its folder or directly in `folder`; None if there is none."""
    name = f"{category}_test.jsonl"
    return next((file for file in (folder / category / name, folder / name) if file.is_file()), None)


def read_box_lines(folder: Path, file: Path, dataset: Dataset) -> list[BoxLine]:
    """Read the lines of one category, each with its defect type; images and masks are not opened.

    Args:
        folder: The folder of the box set, with the masks.
        file: The file; see `find_box_lines`.
        dataset: The dataset with the normal images.

    Raises:
        DataError: If the file cannot be read, a line is broken, or one names a file outside the two folders.
    """
    box_lines = []
    line_fields = "good, mask, text, defect and bbox of an image to draw on"
    for where, line in read_lines(file, BoxLine, line_fields, "lines to draw on"):
        # Checked for its error alone: the path must not lead out of the dataset.
        place_below(dataset.root, line.good, where)
        mask = place_below(folder, line.mask, where)
        defect = check_defect_name(line.defect or mask.parent.name, f"{where}: defect type")
        box_lines.append(msgspec.structs.replace(line, defect=defect))
    return box_lines
