"""Description sets: for each anomalous image a line with its bounding box and several captions.

    DIR/CATEGORY/CATEGORY_train.jsonl        a line with the keys image, fault, mask, text, bbox, defect, split
    DIR/CATEGORY/bbox/DEFECT/STEM_mask.png   the boxes
    DIR/describe.json                        settings, phrases and frames in force
    DIR/contact_sheet.png

In the lines `image` (a normal image) and `fault` (the anomalous one) are relative to the dataset's root, `mask` to
DIR. White is the box.

Source: MvP-Diff, stage 1a.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flawscope import __version__
from flawscope.datasets import Dataset
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.box_sets import write_real_boxes
from flawscope.datasets.defects.captions import Captions
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.seeded_choice import check_seed, generator
from flawscope.datasets.defects.set_files import SHEET, Text, read_lines, write_image, write_json, write_lines
from flawscope.datasets.defects.set_sheets import draw_sheet
from flawscope.datasets.record_paths import place_below
from flawscope.diffusion.location_words import location_of
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable
from flawscope.progress import CountProgress

DESCRIPTIONS_RECORD = "describe.json"


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of CATEGORY_train.jsonl.

    Attributes:
        image: Path of a random normal training image, below the dataset's root.
        fault: Path of the anomalous image, below the dataset's root.
        mask: Path of the box's mask, below the set's folder; white is the box.
        text: Captions of it, all of the same meaning.
        bbox: Left, top, width and height in pixels of the anomalous image.
        defect: Defect type.
        split: The split the anomalous image is from.
    """

    image: Text
    fault: Text
    mask: Text
    text: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    bbox: tuple[int, int, int, int]
    defect: Text
    split: Text


class DescriptionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Record of a description set: the content of `describe.json`.

    Attributes:
        flawscope: Version that wrote it.
        seed: Seed of the pairing with normal images.
        margin: Margin of the boxes; see `boxes_of`.
        lines: Category -> lines written.
        phrases: "CATEGORY/DEFECT" -> the phrase in force.
        frames: The frames in force.
        passed_over: Images without a line, with the reason.
        schema: Version of this record.
    """

    flawscope: str
    seed: int
    margin: float
    lines: dict[str, int]
    phrases: dict[str, str]
    frames: tuple[str, ...]
    passed_over: dict[str, str]
    schema: Literal[1] = 1


def write_descriptions(
    dataset: Dataset,
    entries: Sequence[AnomalousSample],
    folder: Path,
    captions: Captions | None = None,
    *,
    margin: float = 0.1,
    seed: int = 0,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> DescriptionRecord:
    """Write a line for each anomalous image, the boxes, a record and a contact sheet.

    The folder appears whole under its name or not at all.

    Args:
        dataset: Its normal training images are paired with the anomalous ones.
        entries: The anomalous images; see `list_anomalous` and `find_support`.
        folder: The folder to write.
        captions: Phrases and frames of the captions.
        margin: Margin around a defect; see `boxes_of`.
        seed: Seed of the pairing with normal images.
        progress: Called with the number of anomalous images read and their total after each.
        overwrite: Whether earlier descriptions there may be replaced.

    Raises:
        ArgumentError: If an argument is out of range, or `folder` holds something else.
        DataError: If a defect type has no mask that shows one, or a file cannot be read.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    captions = captions or Captions()
    check_seed(seed)
    check_replaceable(folder, DESCRIPTIONS_RECORD, overwrite=overwrite)
    lines: dict[str, list[Description]] = {}
    phrases: dict[str, str] = {}
    with atomic_folder(folder, replace_if=DESCRIPTIONS_RECORD, overwrite=overwrite) as temporary:
        real_boxes, passed_over, rows = write_real_boxes(
            temporary, entries, margin, per_component=False, progress=progress
        )
        for entry in real_boxes:
            # One box, because per_component is off: a line has one bbox.
            (box,) = entry.boxes
            goods = [s for s in dataset.train_good if category_of(dataset, s) == entry.category]
            if not goods:
                raise DataError(
                    f"{dataset.root}: {entry.category}: expected normal training images, got none. Add some."
                )
            # By the image's path, so that an image that is added changes no other pair.
            rng = generator(seed, "pair", entry.source)
            phrases[f"{entry.category}/{entry.defect}"] = captions.phrase(entry.category, entry.defect)
            line = Description(
                image=place_of(dataset, goods[int(rng.integers(len(goods)))].path),
                fault=entry.source,
                mask=entry.mask,
                # All frames: training picks one at every access.
                text=captions.all(entry.category, entry.defect, location_of(box, entry.size)),
                bbox=box,
                defect=entry.defect,
                split=entry.split,
            )
            lines.setdefault(entry.category, []).append(line)
        for category, described in lines.items():
            write_lines(_lines_file(temporary, category), described)
        counts = {category: len(described) for category, described in lines.items()}
        record = DescriptionRecord(__version__, seed, margin, counts, phrases, captions.frames, passed_over)
        write_image(temporary / SHEET, draw_sheet(rows))
        # The record marks the folder as a description set that a later call may replace.
        write_json(temporary / DESCRIPTIONS_RECORD, record)
    return record


def read_descriptions(folder: Path, category: str) -> tuple[Description, ...]:
    """Read the lines of one category; the masks are not opened.

    Raises:
        DataError: If there are none, one is broken, or one names a mask outside the folder.
    """
    descriptions = []
    lines = read_lines(
        _lines_file(folder, category),
        Description,
        "image, fault, mask, text, bbox, defect and split of a description",
        "descriptions, which flawscope synth describe makes",
    )
    for where, line in lines:
        # Training reads this mask: a line must not lead out of the folder.
        place_below(folder, line.mask, where)
        descriptions.append(line)
    return tuple(descriptions)


def _lines_file(folder: Path, category: str) -> Path:
    return folder / category / f"{category}_train.jsonl"
