"""Dataset inspection: opens every file once and reports counts and problems before a long training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy.typing as npt

from flawscope.datasets.all_categories import ALL
from flawscope.datasets.fingerprints import map_in_threads, pixel_hash
from flawscope.datasets.image_remarks import image_remarks
from flawscope.datasets.learnable import MIN_TRAINING_IMAGES, is_constant, shortage_of
from flawscope.datasets.mask_checks import alpha_problem, mask_problems
from flawscope.datasets.problems import Problem
from flawscope.datasets.samples import Dataset, Layout, Sample, Split
from flawscope.errors import ImageError
from flawscope.imaging.image_facts import ImageFacts, facts_of
from flawscope.imaging.images import EXTENSIONS, decode_stored, read_encoded
from flawscope.part_words import GOOD
from flawscope.progress import CountProgress


class ImageCount(msgspec.Struct, frozen=True):
    """Number of images of one split and type ("good" or the defect type), and of their masks."""

    split: Split
    defect: str
    images: int
    masks: int


class SizeSummary(msgspec.Struct, frozen=True):
    """Sizes of the readable images, each as height and width in pixels; smallest and largest by area."""

    smallest: tuple[int, int]
    largest: tuple[int, int]
    most_common: tuple[int, int]
    most_common_images: int
    distinct: int


class Inspection(msgspec.Struct, frozen=True):
    """Result of `inspect_dataset`.

    Attributes:
        root: Root of the dataset.
        category: Name of the category, or "all".
        layout: Layout of the files.
        is_usable: False if a problem is fatal: fewer than `MIN_TRAINING_IMAGES` different normal training images
            can be read.
        counts: One entry per split and type, in the order of the dataset.
        sizes: Sizes of the images; None if none can be read.
        formats: Number of readable images by pixel format, such as "grey, 8 bit".
        problems: Fatal ones first, then errors, then notes.
    """

    root: Path
    category: str
    layout: Layout
    is_usable: bool
    counts: tuple[ImageCount, ...]
    sizes: SizeSummary | None
    formats: dict[str, int]
    problems: tuple[Problem, ...]


class _Facts(NamedTuple):
    """Facts found by decoding one sample's files."""

    sample: Sample
    content: str | None  # hash of the pixels; None where it cannot be decoded
    size: tuple[int, int] | None  # height, width; None where it cannot be decoded
    format: str
    problems: list[Problem]
    is_constant: bool = False
    is_two_valued: bool = False
    image: ImageFacts | None = None  # None where it cannot be decoded


def inspect_dataset(dataset: Dataset, progress: CountProgress | None = None) -> Inspection:
    """Decode every image and mask of a dataset and report counts, sizes, formats and problems.

    Args:
        dataset: The dataset; its files are opened once each.
        progress: Called after each sample with the number done and the number of all.
    """
    return inspect_and_hash(dataset, progress)[0]


def inspect_and_hash(dataset: Dataset, progress: CountProgress | None = None) -> tuple[Inspection, dict[Path, str]]:
    """Inspect a dataset, and return the hashes of `hash_contents` as well, of the images that can be decoded."""
    has_masks = bool(dataset.orphan_masks) or any(s.mask for s in dataset.samples)
    facts = list(map_in_threads(partial(_open, has_masks=has_masks), list(dataset.samples), progress))
    problems = [problem for fact in facts for problem in fact.problems]
    problems += _duplicates(dataset.root, facts)
    problems += dataset.remarks
    problems += _remarks(dataset)
    for category in sorted({sample.category for sample in dataset.samples}):
        read = [(f.sample.path, f.image) for f in facts if f.image and f.sample.category == category]
        problems += image_remarks(dataset.root, f" of {category}" if category else "", read)
    problems += _two_valued(dataset, facts)
    problems += _too_few(dataset, facts)
    rank = {"fatal": 0, "error": 1, "note": 2}
    # A stable sort: within a severity problems stay in the dataset's order.
    problems.sort(key=lambda p: rank[p.severity])
    inspection = Inspection(
        root=dataset.root,
        category=dataset.category,
        layout=dataset.layout,
        is_usable=not any(p.is_fatal for p in problems),
        counts=_counts(dataset),
        sizes=_sizes([fact.size for fact in facts if fact.size]),
        formats=dict(Counter(fact.format for fact in facts if fact.size).most_common()),
        problems=tuple(problems),
    )
    return inspection, {fact.sample.path: fact.content for fact in facts if fact.content}


def _open(sample: Sample, *, has_masks: bool) -> _Facts:
    """Read one image and its mask."""
    try:
        data = read_encoded(sample.path)
        image = decode_stored(data, str(sample.path))
    except ImageError as err:
        return _Facts(sample, None, None, "", [_unreadable("image", sample.path, str(err))])
    size = (image.shape[0], image.shape[1])
    stored = f"{'grey' if image.ndim == 2 else 'colour'}, {8 * image.itemsize} bit"
    problems, facts = [], facts_of(data, image)
    if constant := is_constant(image):
        problems.append(Problem("constant_image", sample.path, "is of one colour: lens cap, or full saturation?"))
    if sample.mask:
        problems += mask_problems(sample, size)
    elif sample.is_anomalous:
        if facts.has_alpha and (in_alpha := alpha_problem(sample, data)):
            problems.append(in_alpha)
        if has_masks:
            text = "has no mask, while others have one; pixel figures will leave it out or count it as good"
            problems.append(Problem("missing_mask", sample.path, text))
    two = not constant and _is_two_valued(image)
    return _Facts(sample, pixel_hash(image), size, stored, problems, constant, two, facts)


def _is_two_valued(image: npt.NDArray[Any]) -> bool:
    low, high = image.min(), image.max()
    # A few pixels first: of most images they are enough.
    return all(bool(((part == low) | (part == high)).all()) for part in (image[::16, ::16], image))


def _unreadable(role: str, path: Path, reason: str) -> Problem:
    return Problem(f"unreadable_{role}", path, reason.removeprefix(f"{path}: "))


def _two_valued(dataset: Dataset, facts: Sequence[_Facts]) -> Iterator[Problem]:
    """Yield a problem for images that look like masks; where all do, the product is like that."""
    found = [fact.sample for fact in facts if fact.is_two_valued]
    if found and len(found) == sum(fact.size is not None for fact in facts):
        text = "has images of two values only, as masks have: are they images?"
        yield Problem("looks_like_mask", dataset.root, text, "note")
        return
    for sample in found:
        text = "has two values only, like a mask, and is used as an image: name it as a mask, or take it out"
        yield Problem("looks_like_mask", sample.path, text)


def _duplicates(root: Path, facts: list[_Facts]) -> Iterator[Problem]:
    """Yield a problem for every image with the content of an earlier one in the dataset's order."""
    groups: dict[str, list[Sample]] = {}
    for fact in facts:
        # By pixels: the same image saved again with loss is not found; see `defects.near_duplicates`.
        if fact.content:
            groups.setdefault(fact.content, []).append(fact.sample)
    for first, *copies in groups.values():
        for sample in copies:
            same = f"the same image as {_below(first.path, root)}"
            if sample.is_anomalous != first.is_anomalous:
                yield Problem("label_conflict", sample.path, f"is {same}, which has the label {first.defect}")
            elif sample.split != first.split:
                yield Problem(
                    "train_test_duplicate", sample.path, f"is {same}: figures on the test split would be too good"
                )
            else:
                yield Problem("duplicate_image", sample.path, f"is {same}", "note")


def _remarks(dataset: Dataset) -> Iterator[Problem]:
    """Return the problems that are visible without opening a file."""
    for path in dataset.orphan_masks:
        yield Problem("orphan_mask", path, "belongs to no image (or to one that has another mask)")
    # A table names its masks; in folders they were found by their names.
    for sample in () if dataset.layout in ("visa", "real_iad", "records") else dataset.samples:
        for mask in sample.masks:
            if mask.parent == sample.path.parent:
                yield Problem("mask_beside_image", mask, f"was taken as the mask of {sample.path.name}", "note")
    if dataset.layout == "flat":
        text = f"is a flat folder: all its {len(dataset.samples)} images are taken as normal training images"
        yield Problem("flat_folder", dataset.root, text, "note")
    if dataset.layout == "folders" and any(s.split == "test" and not s.is_anomalous for s in dataset.samples):
        text = "has no split: a fixed fifth of the normal images was set apart for the test"
        yield Problem("chosen_split", dataset.root, text, "note")
    for sample in dataset.samples:
        if sample.split == "train" and sample.is_anomalous:
            text = "is an anomalous training image, which detectors do not use"
            yield Problem("unused_training_image", sample.path, text, "note")
    for path in dataset.ignored:
        if path.suffix.lower() in EXTENSIONS and not path.is_dir():
            description = "mask of a normal image by its name"
        elif not path.is_dir():
            description = "file without the extension of an image"
        elif path.parent == dataset.root and dataset.category == ALL:
            description = "flat folder of images, which is a category only when it is named,"
        else:
            description = "folder inside a folder of images"
        yield Problem("ignored", path, f"is a {description} and was left out", "note")


def _too_few(dataset: Dataset, facts: Iterable[_Facts]) -> Iterator[Problem]:
    # Contents, not files: copies of one image are one.
    readable = {
        (f.sample.category, f.content)
        for f in facts
        if f.content and not f.is_constant and f.sample.split == "train" and f.sample.defect == GOOD
    }
    if text := shortage_of({content for _, content in readable}):
        yield Problem("too_few_training_images", dataset.root, text, "fatal")
    needed = f"at least {MIN_TRAINING_IMAGES} are needed"
    by_category = Counter(category for category, _ in readable)
    for category in sorted({s.category for s in dataset.samples} - {""}):
        if by_category[category] < MIN_TRAINING_IMAGES:
            text = f"has {by_category[category]} readable normal training images of {category}; {needed} to learn it"
            yield Problem("too_few_of_category", dataset.root, text)


def _counts(dataset: Dataset) -> tuple[ImageCount, ...]:
    images = Counter((s.split, s.defect) for s in dataset.samples)  # keeps the dataset's order
    masks = Counter((s.split, s.defect) for s in dataset.samples if s.mask)
    return tuple(ImageCount(split, defect, n, masks[split, defect]) for (split, defect), n in images.items())


def _sizes(sizes: list[tuple[int, int]]) -> SizeSummary | None:
    if not sizes:
        return None
    by_area = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    [(most_common, number)] = Counter(sizes).most_common(1)
    return SizeSummary(by_area[0], by_area[-1], most_common, number, len(by_area))


def _below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
