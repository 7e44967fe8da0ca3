"""Datasets: folders and tables of images, indexed as normal / defect type / mask, and inspected before use."""

from flawscope.datasets.fingerprints import (
    as_recorded,
    content_hash,
    fingerprint,
    hash_contents,
    image_hash,
    pixels_of_recorded,
)
from flawscope.datasets.inspection import ImageCount, Inspection, SizeSummary, inspect_dataset
from flawscope.datasets.layouts import list_categories, open_categories, open_dataset
from flawscope.datasets.problems import Problem
from flawscope.datasets.samples import Dataset, Layout, Sample, Split
from flawscope.datasets.seeded_split import split_folds, split_held_out
from flawscope.part_words import GOOD

__all__ = [
    "GOOD",
    "Dataset",
    "ImageCount",
    "Inspection",
    "Layout",
    "Problem",
    "Sample",
    "SizeSummary",
    "Split",
    "as_recorded",
    "content_hash",
    "fingerprint",
    "hash_contents",
    "image_hash",
    "inspect_dataset",
    "list_categories",
    "open_categories",
    "open_dataset",
    "pixels_of_recorded",
    "split_folds",
    "split_held_out",
]
