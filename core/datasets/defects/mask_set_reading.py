"""Mask sets as they are read: those of `synth masks`, and folders of masks as AnoGen lays them out.

    DIR/masks.json                     the record of `synth masks`, which says what each mask is for
    DIR/CATEGORY/DEFECT/NNN.png        without a record: masks of a defect type, for any image
    DIR/CATEGORY/IMAGE/NNN.png         where the folder is called as a normal image: masks for that one, of any type

DIR may be the folder of the category itself, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from flawscope.datasets.defects.file_names import check_defect_name, check_name
from flawscope.datasets.defects.mask_sets import MASKS_RECORD, MaskRecord
from flawscope.datasets.defects.set_files import read_json
from flawscope.datasets.fingerprints import content_hash
from flawscope.datasets.record_paths import place_below
from flawscope.errors import DataError
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import list_folder


class SetMask(NamedTuple):
    """One mask of a set.

    Attributes:
        category: Name of the category.
        defect: Defect type; None where it is for any.
        stem: Stem of the normal image it is for; None where it is for any.
        place: Path of the file below the set's folder.
    """

    category: str
    defect: str | None
    stem: str | None
    place: str


class MaskSet(NamedTuple):
    """The masks of some categories, and the SHA-256 of the record, by its name, where there is one."""

    masks: tuple[SetMask, ...]
    hashes: dict[str, str]


def read_mask_set(folder: Path, goods: Mapping[str, Collection[str]]) -> MaskSet:
    """Read which masks a set has for some categories; no mask is opened.

    Args:
        folder: The set's folder.
        goods: Category -> stems of its normal images.

    Raises:
        DataError: If it is none, has no masks of these categories, or a path leads out of it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of masks, got no folder. Make one with flawscope synth masks.")
    record = folder / MASKS_RECORD
    if record.exists():
        masks, there = _of_record(folder, record, goods)
        hashes = {MASKS_RECORD: content_hash(record)}
    else:
        masks, there = _of_folders(folder, goods)
        hashes = {}
    if not masks:
        wanted, got = ", ".join(sorted(goods)), ", ".join(sorted(there)[:20]) or "none"
        raise DataError(
            f"{folder}: expected masks of {wanted}, got those of {got}. Name the mask set of this product, as "
            "flawscope synth masks writes it (NAME/DEFECT/*.png)."
        )
    return MaskSet(masks, hashes)


def _of_record(
    folder: Path, path: Path, goods: Mapping[str, Collection[str]]
) -> tuple[tuple[SetMask, ...], frozenset[str]]:
    record = read_json(path, MaskRecord, "the record of a mask set, which flawscope synth masks makes")
    masks = []
    for entry in record.masks:
        check_name(entry.category, f"{path}: category")
        check_defect_name(entry.defect, f"{path}: defect type")
        place = place_below(folder, entry.mask, str(path)).as_posix()
        if entry.category in goods:
            stem = None if entry.good is None else Path(entry.good).stem
            masks.append(SetMask(entry.category, entry.defect, stem, place))
    return tuple(masks), frozenset(entry.category for entry in record.masks)


def _of_folders(folder: Path, goods: Mapping[str, Collection[str]]) -> tuple[tuple[SetMask, ...], frozenset[str]]:
    below = {path.name: path for path in list_folder(folder) if path.is_dir() and not path.name.startswith(".")}
    masks: list[SetMask] = []
    for category, stems in goods.items():
        place = below.get(category)
        if place is None and folder.resolve().name == category:
            place = folder
        for part in [] if place is None else [path for path in list_folder(place) if path.is_dir()]:
            is_of_image = part.name in stems
            defect = None if is_of_image else check_defect_name(part.name, f"{folder}: defect type")
            masks += [
                SetMask(category, defect, part.name if is_of_image else None, path.relative_to(folder).as_posix())
                for path in list_folder(part)
                if path.suffix.lower() in EXTENSIONS and path.is_file()
            ]
    return tuple(masks), frozenset(below)
