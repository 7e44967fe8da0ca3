"""Mask sets: many random box masks for each defect type, in templates, foregrounds or whole images.

    DIR/CATEGORY/DEFECT/NUMBER.png         in a template or anywhere in the image
    DIR/CATEGORY/DEFECT/STEM-NUMBER.png    in the foreground of the normal image STEM
    DIR/masks.json                         settings; box, angle, overlap and normal image of each mask
    DIR/contact_sheet.png

Source: AnoGen (ECCV 2024), both kinds of its mask sets. Departures: each category names its kind; foreground masks are
drawn for each defect type with its own range; file names keep the whole stem of the normal image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from flawscope import __version__
from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, Sample
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.foreground import Coverage, find_foreground
from flawscope.datasets.defects.mask_ranges import CategoryRanges, Within, choose_ranges
from flawscope.datasets.defects.random_masks import MAX_TRIES, MIN_OVERLAP, BoxMask, Edges, Sides, draw_mask
from flawscope.datasets.defects.seeded_choice import (
    check_count,
    check_fraction,
    check_seed,
    generator,
    seeded_order,
)
from flawscope.datasets.defects.set_files import SHEET, write_image, write_json, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, Outline, Row, Tile, draw_sheet
from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_folder, check_replaceable
from flawscope.imaging.images import read_image, resize
from flawscope.imaging.masks import read_mask
from flawscope.progress import CountProgress

MASKS_RECORD = "masks.json"
Rotation = Literal["flagged", "all", "none"]
_GREY = 128  # of previews without a normal image


class MaskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a mask set is drawn.

    Attributes:
        number: Masks per defect type.
        size: Height and width of the masks in pixels.
        per_picture: Successive masks on one normal image, where masks lie in its foreground.
        solid: Parts have no holes; see `find_foreground`.
        rotate: Which masks are rotated: "flagged", as the range file says for each defect type, and as in the published
            sets; "all", as the published scripts do now; "none".
        overlap: A mask has more than this share of its area in the template or foreground.
        tries: Most rectangles drawn for one mask.
        seed: Seed of the masks.
        edges: Which pixels a rectangle covers: the "published" ones, or "exact"ly those between its sides.
    """

    number: int = 100
    size: int = 256
    per_picture: int = 2
    solid: bool = False
    rotate: Rotation = "flagged"
    overlap: float = MIN_OVERLAP
    tries: int = MAX_TRIES
    seed: int = 0
    edges: Edges = "published"

    def __post_init__(self) -> None:
        check_count(self.number, "number", 1, 100_000)
        check_count(self.size, "size", 16, 4096)
        check_count(self.per_picture, "per_picture", 1, 100_000)
        check_count(self.tries, "tries", 1, 10_000_000)
        check_fraction(self.overlap, "overlap", 0.0, 0.99)
        check_seed(self.seed)


class MaskEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mask of a set.

    Attributes:
        category: Name of the category.
        defect: Defect type.
        mask: Path of the file below the set's folder.
        good: Path of the normal image it is meant for, below the dataset's root; None if it fits any.
        box: Left, top, width and height in pixels of the rectangle before its rotation.
        angle: Rotation about its centre, in degrees.
        overlap: Share of it inside the template or foreground.
        tries: Rectangles drawn until one was accepted.
    """

    category: str
    defect: str
    mask: str
    good: str | None
    box: tuple[int, int, int, int]
    angle: int
    overlap: float
    tries: int


class MaskRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Record of a mask set: the content of `masks.json`.

    Attributes:
        flawscope: Version that wrote it.
        settings: How it was drawn.
        ranges: Category -> the ranges in force.
        masks: The masks.
        passed_over: Category of the ranges without masks -> why.
        schema: Version of this record.
    """

    flawscope: str
    settings: MaskSettings
    ranges: dict[str, CategoryRanges]
    masks: tuple[MaskEntry, ...]
    passed_over: dict[str, str] = {}
    schema: Literal[1] = 1


class _Ground(NamedTuple):
    """Where one mask may lie, the normal image it is for, the stem of its file name, and a preview image."""

    coverage: Coverage
    good: str | None
    stem: str
    preview: UInt8Array


def write_masks(
    ranges: dict[str, CategoryRanges],
    folder: Path,
    settings: MaskSettings | None = None,
    *,
    dataset: Dataset | None = None,
    categories: tuple[str, ...] = (),
    templates: Path | None = None,
    within: Within | None = None,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> MaskRecord:
    """Draw and write a mask set, its record and a contact sheet.

    The folder appears whole under its name or not at all.

    Args:
        ranges: Category -> ranges; see `flawscope.datasets.defects.mask_ranges`.
        folder: The folder to write.
        settings: How to draw.
        dataset: Normal images, for foregrounds and previews. Masks are drawn for its categories.
        categories: Without a dataset, the categories to draw; empty for all of `ranges` that can be drawn.
        templates: Folder with CATEGORY/DEFECT/mask.png, CATEGORY/DEFECT.png or CATEGORY.png; white is where masks may
            lie. A pixel is white from 128 on, so soft edges do no harm.
        within: Where masks lie, for every category, in place of what the ranges say.
        progress: Called with the number of masks drawn and their total after each.
        overwrite: Whether an earlier mask set there may be replaced.

    Raises:
        ArgumentError: If an argument is out of range, a mask fits nowhere, or `folder` holds something else.
        DataError: If a category has no ranges, a template is missing, or a file cannot be read.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    settings = settings or MaskSettings()
    goods = _goods(dataset) if dataset is not None else {}
    chosen = choose_ranges(ranges, tuple(goods) or categories, within)
    check_replaceable(folder, MASKS_RECORD, overwrite=overwrite)
    passed_over: dict[str, str] = {}
    if dataset is None and not categories:
        reasons = {name: _why_not(name, entry, templates) for name, entry in chosen.items()}
        passed_over = {name: reason for name, reason in reasons.items() if reason}
        # Where none can be drawn, the first says what is missing.
        chosen = {name: entry for name, entry in chosen.items() if name not in passed_over} or chosen
    total = settings.number * sum(len(entry.defects) for entry in chosen.values())
    rows: list[Row] = []
    entries: list[MaskEntry] = []
    with atomic_folder(folder, replace_if=MASKS_RECORD, overwrite=overwrite) as temporary:
        for category, entry in chosen.items():
            for defect, flagged_sides in entry.defects.items():
                sides = _sides(flagged_sides, settings.rotate)
                grounds = _grounds(
                    dataset, goods.get(category, []), entry.within, templates, category, defect, settings
                )
                tiles: list[Tile] = []
                names: set[str] = set()
                for number in range(1, settings.number + 1):
                    ground = grounds.at(number - 1)
                    drawn = _draw(sides, ground, settings, category, defect, number)
                    name = f"{category}/{defect}/{_name(ground, number, names)}.png"
                    write_mask(temporary / name, drawn.mask)
                    entries.append(_entry(category, defect, name, ground, drawn))
                    if len(tiles) < COLUMNS:
                        tiles.append(_tile(name, ground, drawn))
                    if progress:
                        progress(len(entries), total)
                rows.append(Row(f"{category}: {defect} ({_manner(entry.within, sides)})", tiles))
        record = MaskRecord(__version__, settings, chosen, tuple(entries), passed_over)
        write_image(temporary / SHEET, draw_sheet(rows))
        write_json(temporary / MASKS_RECORD, record)
    return record


def _why_not(category: str, entry: CategoryRanges, templates: Path | None) -> str:
    """Return why a category cannot be drawn without a dataset; empty where it can."""
    if entry.within == "foreground":
        return "in the foreground of normal images: name them with --data"
    if entry.within == "template":
        if templates is None:
            return "in a template: name the folder of templates with --templates"
        lacking = [name for name in entry.defects if _find_template(templates, category, name) is None]
        return f"in a template, and {templates} has none for {lacking[0]}" if lacking else ""
    return ""


def _goods(dataset: Dataset) -> dict[str, list[Sample]]:
    """Return the normal training images of each category."""
    goods: dict[str, list[Sample]] = {}
    for sample in dataset.train_good:
        goods.setdefault(category_of(dataset, sample), []).append(sample)
    return goods


class _Grounds:
    """Where the masks of one defect type may lie, mask by mask; what does not change is computed once."""

    def __init__(
        self, within: Within, template: BoolArray | None, goods: list[tuple[str, Path]], settings: MaskSettings
    ) -> None:
        self._goods, self._settings = goods, settings
        self._is_by_image = within == "foreground"
        whole = np.ones((settings.size, settings.size), np.bool_)
        self._fixed = Coverage(whole if template is None else template)
        self._last: tuple[int, _Ground] | None = None

    def at(self, number: int) -> _Ground:
        """Return where mask `number`, counted from 0, may lie."""
        # A mask for any image needs an image for its preview alone: one for each column of the contact sheet.
        index = number // self._settings.per_picture if self._is_by_image else min(number, COLUMNS)
        # Successive masks share an image: it is decoded and segmented once.
        if self._last is None or self._last[0] != index:
            self._last = index, self._make(index)
        return self._last[1]

    def _make(self, index: int) -> _Ground:
        size = self._settings.size
        if not self._goods:
            return _Ground(self._fixed, None, "", np.full((size, size, 3), _GREY, np.uint8))
        # Starts again at the first image if there are more masks than images.
        place, path = self._goods[index % len(self._goods)]
        image = _squared(read_image(path), size)
        if not self._is_by_image:
            return _Ground(self._fixed, None, "", image)
        return _Ground(Coverage(find_foreground(image, is_solid=self._settings.solid)), place, path.stem, image)


def _grounds(
    dataset: Dataset | None,
    goods: list[Sample],
    within: Within,
    templates: Path | None,
    category: str,
    defect: str,
    settings: MaskSettings,
) -> _Grounds:
    if within == "foreground" and (dataset is None or not goods):
        raise ArgumentError(
            f"{category}: expected --data with normal images for masks in their foreground, got none. Add it."
        )
    named = [(place_of(dataset, sample.path), sample.path) for sample in goods] if dataset is not None else []
    # Shuffled per defect type, so that each type is spread over other images.
    ordered = seeded_order(((pair[0], pair) for pair in named), settings.seed, "masks", category, defect)
    template = _read_template(templates, category, defect, settings.size) if within == "template" else None
    return _Grounds(within, template, ordered, settings)


def _read_template(templates: Path | None, category: str, defect: str, size: int) -> BoolArray:
    if templates is None:
        raise ArgumentError(
            f"{category}: expected --templates, a folder with {category}/{defect}/mask.png, got none. Name it, or take "
            "another --within."
        )
    path = _find_template(templates, category, defect)
    if path is None:
        raise DataError(
            f"{templates}: expected a template {category}/{defect}/mask.png, {category}/{defect}.png or "
            f"{category}.png, got none. Draw one."
        )
    # Resized as grey levels, then thresholded: values stay averages of the area, not of a nearest pixel.
    return _squared(read_mask(path).astype(np.uint8) * np.uint8(255), size) > np.uint8(127)


def _find_template(templates: Path, category: str, defect: str) -> Path | None:
    # From the most special to the most general.
    names = (f"{category}/{defect}/mask.png", f"{category}/{defect}.png", f"{category}.png")
    return next((templates / name for name in names if (templates / name).is_file()), None)


def _squared(image: UInt8Array, size: int) -> UInt8Array:
    return np.asarray(resize(image, (size, size)), np.uint8)


def _sides(sides: Sides, rotate: Rotation) -> Sides:
    if rotate == "flagged":
        return sides
    return msgspec.structs.replace(sides, rotate=rotate == "all")


def _draw(sides: Sides, ground: _Ground, settings: MaskSettings, category: str, defect: str, number: int) -> BoxMask:
    # One generator per mask, by names: another number or defect type changes no other mask.
    rng = generator(settings.seed, "mask", category, defect, number)
    try:
        return draw_mask(
            sides, ground.coverage, rng, overlap=settings.overlap, tries=settings.tries, edges=settings.edges
        )
    except ArgumentError as err:
        where = f"{category}/{defect}" + (f" on {ground.good}" if ground.good else "")
        raise ArgumentError(f"{where}: {err}") from err


def _name(ground: _Ground, number: int, names: set[str]) -> str:
    """Return the name of a mask: its number, or the normal image's stem and the mask's number on that image."""
    if ground.good is None:
        return f"{number:03d}"
    on_image = 1
    # Counted, not computed: an image may come again after all others, and two images may share a stem.
    while f"{ground.stem}-{on_image:03d}" in names:
        on_image += 1
    names.add(name := f"{ground.stem}-{on_image:03d}")
    return name


def _entry(category: str, defect: str, name: str, ground: _Ground, drawn: BoxMask) -> MaskEntry:
    return MaskEntry(
        category=category,
        defect=defect,
        mask=name,
        good=ground.good,
        box=(drawn.left, drawn.top, drawn.width, drawn.height),
        angle=drawn.angle,
        overlap=round(drawn.overlap, 6),
        tries=drawn.tries,
    )


def _tile(name: str, ground: _Ground, drawn: BoxMask) -> Tile:
    """Return the mask outlined on its image, and where masks may lie in another colour, unless that is everywhere."""
    area = ground.coverage.mask
    edges = () if area.all() else (Outline(area, CYAN),)
    return Tile(Path(name).name, ground.preview, (*edges, Outline(drawn.mask)))


def _manner(within: Within, sides: Sides) -> str:
    place = "image" if within == "picture" else within
    return f"in the {place}{', turned' if sides.rotate else ''}"
