"""Support sets: the few anomalous images of each defect type that a generator is trained on, chosen by seed.

    DIR/CATEGORY/DEFECT/STEM.png             the images, PNG
    DIR/CATEGORY/DEFECT_mask/STEM_mask.png   their masks, 0 and 255
    DIR/support.json                         names, content hash and split of each; the settings
    DIR/contact_sheet.png

A folder of that layout without support.json, as AnoGen ships one, is read too: its images are found in a dataset by
their content.

Source: AnoGen (ECCV 2024), whose folder layout this is. Departures: the choice depends on seed and names, not on the
order of the file system; file names need not be numbers; images are recorded with their content hash, so that an
evaluation can leave them out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flawscope import __version__
from flawscope.datasets import Dataset, Split, as_recorded, content_hash, hash_contents
from flawscope.datasets.all_categories import ALL
from flawscope.datasets.defects.anomalous_samples import AnomalousSample, Source, list_anomalous
from flawscope.datasets.defects.bare_support import BareImage, check_found, find_bare_support, find_by_content
from flawscope.datasets.defects.file_names import category_of, check_defect_name, check_name, defect_of, place_of
from flawscope.datasets.defects.near_duplicates import Appearance, appearance_of, is_near_duplicate
from flawscope.datasets.defects.seeded_choice import check_count, check_seed, seeded_order
from flawscope.datasets.defects.set_files import SHEET, Sha256, Text, read_json, write_image, write_json, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, Outline, Row, Tile, draw_sheet
from flawscope.datasets.record_paths import place_below
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable, free_name
from flawscope.imaging.masks import read_mask
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.progress import CountProgress
from flawscope.text import encode_json

SUPPORT_RECORD = "support.json"
"""Name of the record in the folder of a support set, and in a run that was trained on one."""
MAX_SHOTS = 1000
_SAME_PART = "probably the same part as"
_NAMED = 5  # images in an error


class SupportImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image of a support set.

    Attributes:
        category: Name of the category.
        defect: Defect type, without the category.
        split: The split it was taken from.
        source: Path of the original image below the dataset's root.
        content: SHA-256 of the original image's bytes, by which an evaluation leaves it out.
        mask_source: Path of the original mask below the dataset's root.
        mask_content: SHA-256 of the original mask's bytes; of several masks, over the hashes of all of them.
        picture: Path of the copy below the support set's folder.
        mask: Path of the mask's copy below the support set's folder.
        defect_px: Pixels of the defect in the mask.
    """

    category: Text
    defect: Text
    split: Split
    source: Text
    content: Sha256
    mask_source: Text
    mask_content: Sha256
    picture: Text
    mask: Text
    defect_px: int


class NearDuplicate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image outside the support set that probably shows the same part as one in it.

    Attributes:
        source: Path of the image below the dataset's root.
        content: SHA-256 of its bytes.
        like: Path of the support image below the dataset's root.
    """

    source: str
    content: str
    like: str


class SupportRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Record of a support set: the content of `support.json`.

    Attributes:
        flawscope: Version that wrote it; empty for a folder without a record, whose images come from anywhere.
        category: Category of the dataset, or "all".
        shots: Images per defect type.
        seed: Seed of the choice.
        split: Split that images could be taken from.
        pictures: The support images, by category, defect type and order of the choice.
        alike: Near duplicates of them outside the set, of any split; see `is_near_duplicate`.
        passed_over: Images that came earlier in the seeded order and were not taken, with the reason.
        allow_alike: Whether near duplicates of each other could be taken, as they could before this was recorded.
        schema: Version of this record.
    """

    flawscope: str
    category: str
    shots: int
    seed: int
    split: Source
    pictures: Annotated[tuple[SupportImage, ...], msgspec.Meta(min_length=1)]
    alike: tuple[NearDuplicate, ...] = ()
    passed_over: dict[str, str] = {}
    allow_alike: bool = True
    schema: Literal[1] = 1

    @property
    def is_bare(self) -> bool:
        """Whether the folder had no record: `source` is then the copy, and near duplicates are not known."""
        return not self.flawscope

    @property
    def contents(self) -> frozenset[str]:
        """The content hashes of the original images."""
        return frozenset(image.content for image in self.pictures)

    @property
    def learned(self) -> frozenset[str]:
        """The content hashes of the original images and of their near duplicates."""
        return self.contents | frozenset(duplicate.content for duplicate in self.alike)

    @property
    def digest(self) -> str:
        """SHA-256 over the content hashes of the original images and masks, one per line."""
        lines = (f"{content}\n" for image in self.pictures for content in (image.content, image.mask_content))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_support(
    dataset: Dataset,
    folder: Path,
    *,
    shots: int = 3,
    split: Source = "train",
    defects: Sequence[str] = (),
    seed: int = 0,
    allow_alike: bool = False,
    progress: CountProgress | None = None,
    alike_progress: CountProgress | None = None,
    overwrite: bool = False,
) -> SupportRecord:
    """Choose `shots` images of each defect type and write them, their masks, a record and a contact sheet.

    The folder appears whole under its name or not at all. An image whose mask is empty, whose content was taken
    already, or that probably shows the same part as one that was taken, is passed over, and the record says so.

    Args:
        dataset: A dataset with masks.
        folder: The folder to write.
        shots: Images per defect type, at least 1.
        split: Where they may come from: "train", "test" or "any".
        defects: Defect types by the dataset's names; empty for all.
        seed: Seed of the choice.
        allow_alike: Take near duplicates of each other, too; see `is_near_duplicate`.
        progress: Called with the number of images taken and their total after each image.
        alike_progress: Called with the number of other images compared and their total after each.
        overwrite: Whether an earlier support set there may be replaced.

    Raises:
        ArgumentError: If an argument is out of range or unknown, or `folder` holds something else.
        DataError: If a defect type has too few images, or a file cannot be read.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    check_count(shots, "shots", 1, MAX_SHOTS)
    check_seed(seed)
    check_replaceable(folder, SUPPORT_RECORD, overwrite=overwrite)
    groups: dict[tuple[str, str], list[AnomalousSample]] = {}
    for entry in list_anomalous(dataset, split, defects):
        groups.setdefault((entry.category, entry.defect), []).append(entry)
    _check_folders(groups)
    sheet_rows: list[Row] = []
    images: list[SupportImage] = []
    passed_over: dict[str, str] = {}

    def taken(of_type: int) -> None:
        if progress:
            progress(len(images) + of_type, shots * len(groups))

    with atomic_folder(folder, replace_if=SUPPORT_RECORD, overwrite=overwrite) as temporary:
        for (category, defect), entries in groups.items():
            shuffled = seeded_order(((e.place, e) for e in entries), seed, "support", category, defect)
            chosen, tiles, reasons = _choose(dataset, shuffled, shots, temporary, taken, allow_alike=allow_alike)
            passed_over |= reasons
            if len(chosen) < shots:
                left = [entry.place for entry in entries if reasons.get(entry.place, "").startswith(_SAME_PART)]
                raise DataError(_too_few(dataset.root, defect, shots, split, len(chosen), left))
            images += chosen
            sheet_rows.append(Row(f"{category}: {defect}", tiles))
        alike, alike_rows = _find_near_duplicates(dataset, images, defects, alike_progress)
        record = SupportRecord(
            __version__, dataset.category, shots, seed, split, tuple(images), alike, passed_over, allow_alike
        )
        write_image(temporary / SHEET, draw_sheet([*sheet_rows, *alike_rows]))
        # The record marks the folder as a support set that a later call may replace.
        write_json(temporary / SUPPORT_RECORD, record)
    return record


def _choose(
    dataset: Dataset,
    entries: Iterable[AnomalousSample],
    shots: int,
    folder: Path,
    taken: Callable[[int], None],
    *,
    allow_alike: bool,
) -> tuple[list[SupportImage], list[Tile], dict[str, str]]:
    """Write the first `shots` images of one defect type that can be taken, and their masks.

    Args:
        dataset: The dataset.
        entries: The images, in the order of the choice.
        shots: Images to take; there may be fewer.
        folder: The folder that is being written.
        taken: Called with the number of images that were taken, after each.
        allow_alike: As in `write_support`.

    Returns:
        What was taken, its tiles of the sheet, and the place of every image that was passed over -> why.
    """
    chosen: dict[str, SupportImage] = {}
    passed_over: dict[str, str] = {}
    tiles: list[Tile] = []
    stems: set[str] = set()
    looks: list[tuple[str, Appearance]] = []
    for entry in entries:
        if len(chosen) == shots:
            break
        # In seeded order and only until there are enough: adding an image to the dataset changes few choices.
        image, mask = entry.read()
        content = content_hash(entry.sample.path)
        if not mask.any():
            passed_over[entry.place] = "its mask shows no defect"
        # Copies under other names would make fewer shots than the record claims.
        elif content in chosen:
            passed_over[entry.place] = f"the same image as {chosen[content].source}"
        # Fewer shots than the record claims as well: a part that was photographed twice is one defect.
        elif not allow_alike and (like := _like(looks, look := appearance_of(image, mask))) is not None:
            passed_over[entry.place] = f"{_SAME_PART} {like}"
        else:
            if not allow_alike:
                looks.append((entry.place, look))
            described = _describe(dataset, entry, content, free_name(entry.sample.path.stem, stems), mask.sum())
            write_image(folder / described.picture, image)
            write_mask(folder / described.mask, mask)
            chosen[content] = described
            tiles.append(Tile(f"{entry.sample.split}: {entry.sample.path.name}", image, (Outline(mask),)))
            taken(len(chosen))
    return list(chosen.values()), tiles, passed_over


def _like(looks: Sequence[tuple[str, Appearance]], look: Appearance) -> str | None:
    return next((place for place, taken in looks if is_near_duplicate(taken, look)), None)


def _too_few(root: Path, defect: str, shots: int, split: Source, got: int, alike: Sequence[str]) -> str:
    wanted = f"{shots} different images with a mask that shows a defect (split {split})"
    text = f"{root}: {defect}: expected {wanted}, got {got}"
    if not alike:
        return f"{text}. Ask for fewer with --shots, or leave {defect} out."
    named = ", ".join(alike[:_NAMED]) + (f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else "")
    return (
        f"{text}, and {len(alike)} that probably show the same parts ({named}). Ask for fewer with --shots, or take "
        "those too with --allow-alike."
    )


def _describe(dataset: Dataset, entry: AnomalousSample, content: str, name: str, defect_px: int) -> SupportImage:
    mask = entry.sample.mask
    assert mask is not None
    return SupportImage(
        category=entry.category,
        defect=entry.defect,
        split=entry.sample.split,
        source=entry.place,
        content=content,
        mask_source=place_of(dataset, mask),
        mask_content=mask_content(entry.sample.masks),
        picture=f"{entry.category}/{entry.defect}/{name}.png",
        mask=f"{entry.category}/{entry.defect}_mask/{name}_mask.png",
        defect_px=int(defect_px),
    )


def mask_content(masks: Sequence[Path]) -> str:
    """Return the hash of a mask file, or one over those of all mask files of an image."""
    hashes = [content_hash(path) for path in masks]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _find_near_duplicates(
    dataset: Dataset, images: Sequence[SupportImage], defects: Sequence[str], progress: CountProgress | None
) -> tuple[tuple[NearDuplicate, ...], list[Row]]:
    """Return near duplicates of the support images among all images of their defect types, of any split.

    The rows of the contact sheet show the first of them for each defect type.
    """
    support_sources = {support.source for support in images}
    types = {(support.category, support.defect): list[Tile]() for support in images}
    # Any split: near duplicates of training images in the test split are what matters to an evaluation.
    candidates = [e for e in list_anomalous(dataset, "any", defects) if (e.category, e.defect) in types]
    looks = {e.place: appearance_of(*e.read()) for e in candidates if e.place in support_sources}
    duplicates = []
    for count, entry in enumerate(candidates, 1):
        if entry.place not in support_sources:
            image, mask = entry.read()
            look = appearance_of(image, mask)
            same_type = [p for p in images if (p.category, p.defect) == (entry.category, entry.defect)]
            like = next((p.source for p in same_type if is_near_duplicate(looks[p.source], look)), None)
            if like is not None:
                duplicates.append(NearDuplicate(entry.place, content_hash(entry.sample.path), like))
                tiles = types[entry.category, entry.defect]
                if len(tiles) < COLUMNS:
                    tiles.append(Tile(f"like {Path(like).name}", image, (Outline(mask, CYAN),)))
        if progress:
            progress(count, len(candidates))
    return tuple(duplicates), [Row(f"{c}: {d}, probably the same parts", row) for (c, d), row in types.items() if row]


def _check_folders(groups: dict[tuple[str, str], list[AnomalousSample]]) -> None:
    """Raise DataError if the masks of one defect type would lie among the images of another."""
    for category, defect in groups:
        # The folder layout is AnoGen's, which puts masks into DEFECT_mask beside DEFECT.
        if (category, f"{defect}_mask") in groups:
            raise DataError(
                f"defect types: expected none called {defect}_mask beside {defect}, whose masks lie in a folder of "
                "that name. Rename one of them."
            )


def read_support(folder: Path) -> SupportRecord:
    """Read the record of a support set; its images are not decoded.

    A folder without a record, but with images and masks in the same layout, gets one from its files.

    Raises:
        DataError: If there is none, it is broken, it names a file outside the folder or an image twice, or the name of
            a category or defect type cannot be a folder's.
    """
    path = folder / SUPPORT_RECORD
    if not path.exists() and (bare := find_bare_support(folder)):
        return _bare_record(folder, bare)
    record = read_json(path, SupportRecord, "the record of a support set, which flawscope synth support makes")
    seen: set[tuple[str, str, str]] = set()
    for image in record.pictures:
        # They become folders of a run and names of tensors, and the file may come from anywhere.
        check_name(image.category, f"{path}: category")
        check_defect_name(image.defect, f"{path}: defect type")
        for place in (image.picture, image.mask):
            place_below(folder, place, str(path))
        key = (image.category, image.defect, Path(image.picture).stem)
        if key in seen:  # a run copies images under these names; the second would replace the first
            raise DataError(f"{path}: expected every image once, got {image.picture} twice. Mend the file.")
        seen.add(key)
    return record


def support_record(folder: Path) -> bytes:
    """Return support.json of a support set as a run keeps it, made from its files where it is missing.

    Raises:
        DataError: As `read_support`.
    """
    record = read_support(folder)
    return encode_json(record) if record.is_bare else read_regular(folder / SUPPORT_RECORD, RECORD_BYTES)


def _bare_record(folder: Path, images: Sequence[BareImage]) -> SupportRecord:
    pictures, names = [], set[tuple[str, str, str]]()
    for image in images:
        key = (image.category, image.defect, Path(image.picture).stem)
        if key in names:
            raise DataError(f"{folder / image.picture}: expected every stem once, got two files of it. Take one out.")
        names.add(key)
        pictures.append(
            SupportImage(
                category=image.category,
                defect=image.defect,
                split="test",  # as AnoGen takes them; where they are in a dataset, their content tells
                source=image.picture,
                content=content_hash(folder / image.picture),
                mask_source=image.mask,
                mask_content=content_hash(folder / image.mask),
                picture=image.picture,
                mask=image.mask,
                defect_px=int(read_mask(folder / image.mask).sum()),
            )
        )
    categories = {image.category for image in images}
    shots = max(Counter((image.category, image.defect) for image in images).values())
    category = categories.pop() if len(categories) == 1 else ALL
    return SupportRecord("", category, shots, 0, "any", tuple(pictures))


def find_support(
    dataset: Dataset, record: SupportRecord, progress: CountProgress | None = None
) -> list[AnomalousSample]:
    """Return the images of a dataset that a support set was taken from.

    Of a set without a record the images are found by their content, and those of categories that the dataset does not
    have are left out.

    Raises:
        DataError: If an image or its mask is missing, or has other content than was recorded.
    """
    if record.is_bare:
        return find_by_content(dataset, record.pictures, progress)
    by_place = {place_of(dataset, s.path): s for s in dataset.samples if s.is_anomalous and s.mask is not None}
    entries = []
    for count, image in enumerate(record.pictures, 1):
        sample = by_place.get(image.source)
        if sample is None or sample.mask is None:
            raise DataError(
                f"{dataset.root}: expected the support image {image.source} with its mask, got none there. "
                "Name the dataset the support set was taken from."
            )
        for path, got, content in (
            (sample.path, content_hash(sample.path), image.content),
            (sample.mask, mask_content(sample.masks), image.mask_content),
        ):
            # By content: another version of the dataset may have other images under the same names.
            if got != content:
                raise DataError(f"{path}: expected the file the support set was taken from, got other content.")
        entries.append(AnomalousSample(sample, category_of(dataset, sample), defect_of(sample), image.source))
        if progress:
            progress(count, len(record.pictures))
    return entries


def exclude_support(
    dataset: Dataset, record: SupportRecord, progress: CountProgress | None = None, *, with_alike: bool = True
) -> tuple[Dataset, tuple[str, ...]]:
    """Return the dataset without the images of a support set, and the paths of those left out.

    Images are compared by content, so a copy under another name is left out as well. A detector trained on synthetic
    defects may be evaluated on the remaining images only.

    Args:
        dataset: The dataset.
        record: Record of the support set.
        progress: Called with the number of files hashed and their total after each.
        with_alike: Leave out its near duplicates too; when in doubt, the test counts an image as one.

    Raises:
        DataError: If an image cannot be read.
    """
    contents = record.learned if with_alike else record.contents
    # All samples, normal ones too: a copy may have been filed under another label.
    hashes = as_recorded(hash_contents((s.path for s in dataset.samples), progress), contents)
    if record.is_bare:
        # Without a record it is not known what the originals were: a copy that was saved anew would stay in the test.
        check_found(dataset, record.pictures, frozenset(hashes.values()))
    remaining = tuple(s for s in dataset.samples if hashes[s.path] not in contents)
    left_out = tuple(place_of(dataset, s.path) for s in dataset.samples if hashes[s.path] in contents)
    return msgspec.structs.replace(dataset, samples=remaining), left_out
