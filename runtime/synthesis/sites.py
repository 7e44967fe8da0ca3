"""Where defects are drawn: the sites of a box set, normal images with the masks of defects to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawscope.datasets import Dataset
from flawscope.datasets.defects.box_sets import find_box_lines, read_box_lines
from flawscope.datasets.defects.file_names import category_of
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import ArgumentError, DataError


@dataclass(frozen=True)
class Site:
    """A normal image and the mask of where a defect goes.

    Attributes:
        category: Name of the category.
        defect: Defect type.
        good: The normal image.
        place: Name of the image in the record: its path below the dataset's root.
        mask: The mask; white is where the defect goes.
        box: Name of the mask in the record: its path below the box set.
        text: The prompt, if the line has one.
    """

    category: str
    defect: str
    good: Path
    place: str
    mask: Path
    box: str
    text: str | None = None

    @property
    def key(self) -> str:
        """CATEGORY/DEFECT."""
        return f"{self.category}/{self.defect}"


def read_sites(boxes: Path, dataset: Dataset, defects: Sequence[str] = ()) -> tuple[list[Site], dict[str, str]]:
    """Return the sites that the lines of a box set describe, and the SHA-256 of the files with the lines.

    Args:
        boxes: Folder with NAME/NAME_test.jsonl (or NAME_test.jsonl) of each of the dataset's categories. The defect
            type of a line without one is the name of its mask's folder.
        dataset: The dataset whose root `good` is relative to.
        defects: Defect types to take; empty means all.

    Raises:
        ArgumentError: If a defect type is in no line.
        DataError: If there are no lines, or one is broken.
    """
    sites: list[Site] = []
    hashes: dict[str, str] = {}
    names = sorted({category_of(dataset, sample) for sample in dataset.samples})
    for name in names:
        file = find_box_lines(boxes, name)
        if file is None:
            # A box set may cover some categories of a joint dataset; of a single category it must have the file.
            if len(names) == 1:
                raise DataError(
                    f"{boxes}: expected {name}/{name}_test.jsonl, got no such file. Make it with flawscope synth boxes "
                    "--num."
                )
            continue
        hashes[file.relative_to(boxes).as_posix()] = content_hash(file)
        for line in read_box_lines(boxes, file, dataset):
            good, mask = dataset.root / line.good, boxes / line.mask
            sites.append(Site(name, line.defect, good, line.good, mask, line.mask, line.text))
    types = sorted({site.defect for site in sites})
    if unknown := [name for name in defects if name not in types]:
        listed = ", ".join(types) or "(there is none)"
        raise ArgumentError(f"defect: expected defect types of the lines ({listed}), got {unknown[0]!r}.")
    # Filtered after all lines were read: a broken line is an error whichever types are drawn.
    sites = [site for site in sites if not defects or site.defect in defects]
    if not sites:
        raise DataError(f"{boxes}: expected lines to draw on, got none. Make them with flawscope synth boxes --num.")
    return sites, hashes
