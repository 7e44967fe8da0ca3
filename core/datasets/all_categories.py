"""All categories of a dataset merged into one, to train a single model on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from flawscope.datasets.samples import Dataset, Sample, in_order
from flawscope.errors import DataError

ALL = "all"
"""Name of the category that stands for all of them."""


def merge_categories(root: Path, parts: Sequence[Dataset], ignored: Iterable[Path] = ()) -> Dataset:
    """Return one dataset of all categories, whose defect types are called CATEGORY/DEFECT.

    Its order depends on names alone, like that of each category, and every sample names its category.

    Args:
        root: The folder that holds all of them.
        parts: The categories, at least one.
        ignored: Further files and folders that were not used.

    Raises:
        DataError: If the categories have different layouts, whose splits would mean different things.
    """
    layouts = sorted({part.layout for part in parts})
    if len(layouts) > 1:
        examples = ", ".join(
            next(f"{part.category} ({name})" for part in parts if part.layout == name) for name in layouts
        )
        raise DataError(
            f"{root}: expected all categories in one layout, got {examples}. Take one of them, or lay them out alike."
        )
    return Dataset(
        root=root,
        category=ALL,
        layout=parts[0].layout,
        samples=in_order(_renamed(sample, part.category) for part in parts for sample in part.samples),
        orphan_masks=tuple(path for part in parts for path in part.orphan_masks),
        ignored=(*(path for part in parts for path in part.ignored), *ignored),
        # A table of all categories says the same of each.
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
    )


def _renamed(sample: Sample, category: str) -> Sample:
    # Types of one name are different defects in different categories: figures per type must not mix them.
    defect = f"{category}/{sample.defect}" if sample.is_anomalous else sample.defect
    return msgspec.structs.replace(sample, category=category, defect=defect)
