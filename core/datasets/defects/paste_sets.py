"""Folders of pasted defects: those of a support set, moved to normal images; see `flawscope.datasets.drawing.pasting`.

The folder is that of `synth generate` (see `drawn_writer`), with `paste.json` as its record. The same support set,
dataset and settings give the same bytes, and `redraw_pasted` draws any line again; time and versions are in paste.json
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, content_hash
from flawscope.datasets.defects.anomalous_samples import AnomalousSample
from flawscope.datasets.defects.box_sets import shares
from flawscope.datasets.defects.drawn_set import MARKERS
from flawscope.datasets.defects.drawn_writer import (
    MOST_IMAGES,
    Drawing,
    DrawnFields,
    DrawnRecord,
    Ground,
    Grounds,
    GroundSettings,
    write_drawings,
)
from flawscope.datasets.defects.file_names import category_of, defect_of, place_of
from flawscope.datasets.defects.random_masks import MIN_OVERLAP
from flawscope.datasets.defects.seeded_choice import check_count, check_fraction, generator
from flawscope.datasets.defects.support_set import SupportRecord, find_support, mask_content
from flawscope.datasets.drawing.pasting import (
    Cutout,
    Pasted,
    PasteOptions,
    Placement,
    apply_placement,
    cut_defects,
    try_paste,
)
from flawscope.datasets.record_paths import place_below
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable
from flawscope.imaging.images import read_image
from flawscope.progress import CountProgress

MARKER = MARKERS["paste"]
_TRIES_PER_IMAGE = 100
"""Then another defect and another normal image are taken: in the foreground of some nothing fits."""


class PasteSettings(GroundSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many defects are pasted, and where and how.

    Attributes:
        number: Images of each category, divided evenly among its defect types, the first ones taking the remainder.
        per_defect: Images of each defect type, instead.
        overlap: More than this share of a defect lies in the foreground.
        tries: Most placements drawn for one image.
        options: How each is pasted.
    """

    number: int | None = None
    per_defect: int | None = None
    overlap: float = MIN_OVERLAP
    tries: int = 2000
    options: PasteOptions = PasteOptions()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("number", "per_defect"):
            if (value := getattr(self, name)) is not None:
                check_count(value, name, 1, MOST_IMAGES)
        if (self.number is None) == (self.per_defect is None):
            got = "neither" if self.number is None else "both"
            raise ArgumentError(
                f"number: expected one in all or one for each defect type, got {got}. Give one of them."
            )
        check_fraction(self.overlap, "overlap", 0.0, 0.99)


class PastedImage(DrawnFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of generated.jsonl: a pasted image and everything needed to draw it again.

    Attributes:
        source: What drew it.
        support: The image that the defect is from, below the dataset's root.
        support_sha256: SHA-256 of its bytes.
        support_mask_sha256: That of its mask, as the support set has it.
        part: Number of the part of its defect, from 0; see `cut_defects`.
        placement: Where and how it was pasted.
        options: Options of the pasting.
    """

    source: Literal["paste"] = "paste"
    support: str
    support_sha256: str
    support_mask_sha256: str
    part: int
    placement: Placement
    options: PasteOptions


class PasteRecord(DrawnRecord, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sources, settings and cost of a folder of pasted images; the content of `paste.json`.

    Attributes:
        settings: Settings of the run.
        support_in_test: How many support images are in the dataset's test split; an evaluation has to leave them out.
    """

    settings: PasteSettings
    support_in_test: int


class _Source(NamedTuple):
    entry: AnomalousSample
    sha256: str
    parts: list[Cutout]


def write_pasted(
    dataset: Dataset,
    support: SupportRecord,
    folder: Path,
    settings: PasteSettings,
    *,
    defects: Sequence[str] = (),
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> PasteRecord:
    """Paste the defects of a support set onto normal training images.

    The folder appears whole under its name or not at all.

    Args:
        dataset: The dataset that the support set was taken from.
        support: The support set.
        folder: The folder to write.
        settings: How many, where and how.
        defects: Defect types to take; empty for all of the support set.
        progress: Called with the number of images written and their total after each.
        overwrite: Whether an earlier folder of pasted images may be replaced.

    Raises:
        ArgumentError: If the support set has no such defect type, or `folder` is taken.
        DataError: If a defect fits nowhere, covers its whole image, or a file cannot be read or was changed.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    check_replaceable(folder, MARKER, overwrite=overwrite)
    sources = _read_sources(dataset, support, defects, settings.options)
    counts = _counts(sources, settings)
    used = [image for image in support.pictures if (image.category, image.defect) in sources]
    return write_drawings(
        dataset,
        folder,
        _paste_all(dataset, sources, counts, support.learned, settings),
        sum(counts.values()),
        partial(
            PasteRecord,
            settings=settings,
            support=tuple(dict.fromkeys(image.content for image in used)),
            support_in_test=sum(image.split == "test" for image in used),
        ),
        source="paste",
        progress=progress,
        overwrite=overwrite,
    )


def _read_sources(
    dataset: Dataset, support: SupportRecord, defects: Sequence[str], options: PasteOptions
) -> dict[tuple[str, str], list[_Source]]:
    types = sorted({image.defect for image in support.pictures})
    if unknown := [name for name in defects if name not in types]:
        raise ArgumentError(
            f"defect: expected defect types of the support set ({', '.join(types)}), got {unknown[0]!r}."
        )
    sources: dict[tuple[str, str], list[_Source]] = {}
    for entry in find_support(dataset, support):
        if not defects or entry.defect in defects:
            source = _Source(entry, content_hash(entry.sample.path), _cut(entry, options.feather_px))
            if options.places == "match" and any(part.around is None for part in source.parts):
                raise DataError(
                    f"{entry.sample.path}: expected surroundings of the defect to find places by, got other "
                    "defects alone. Take it out of the support set, or take --places near."
                )
            sources.setdefault((entry.category, entry.defect), []).append(source)
    return sources


def _cut(entry: AnomalousSample, feather_px: int) -> list[Cutout]:
    try:
        return cut_defects(*entry.read(), feather_px)
    except ArgumentError as err:
        raise DataError(f"{entry.sample.mask}: {err} Take it out of the support set.") from err


def _counts(
    sources: Mapping[tuple[str, str], Sequence[_Source]], settings: PasteSettings
) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for category in dict.fromkeys(category for category, _ in sources):
        types = [key for key in sources if key[0] == category]
        of_types = [settings.per_defect or 0] * len(types)
        if settings.number is not None:
            of_types = shares(settings.number, len(types))
        counts.update(zip(types, of_types, strict=True))
    return counts


def _paste_all(
    dataset: Dataset,
    sources: Mapping[tuple[str, str], Sequence[_Source]],
    counts: Mapping[tuple[str, str], int],
    learned: frozenset[str],
    settings: PasteSettings,
) -> Iterator[Drawing]:
    categories = dict.fromkeys(category for category, _ in sources)
    grounds = {category: Grounds(dataset, category, learned, settings) for category in categories}
    for (category, defect), group in sources.items():
        for number in range(counts[category, defect]):
            # A generator for each image, by names: more images or another defect type do not change this one.
            rng = generator(settings.seed, "paste", category, defect, number)
            pasted, ground, source, part = _paste_one(f"{category}/{defect}", group, grounds[category], settings, rng)
            line = partial(
                PastedImage,
                support=source.entry.place,
                support_sha256=source.sha256,
                support_mask_sha256=mask_content(source.entry.sample.masks),
                part=part,
                placement=pasted.placement,
                options=settings.options,
            )
            name = source.entry.sample.path.name
            yield Drawing(category, defect, name, pasted.image, pasted.mask, ground, line)


def _paste_one(
    key: str, sources: Sequence[_Source], grounds: Grounds, settings: PasteSettings, rng: np.random.Generator
) -> tuple[Pasted, Ground, _Source, int]:
    tries_left = settings.tries
    while tries_left > 0:
        ground = grounds.draw(rng)
        # The image first, then its part: one image with many parts is still one example.
        source = sources[int(rng.integers(len(sources)))]
        part = int(rng.integers(len(source.parts)))
        pasted = try_paste(
            ground.image,
            source.parts[part],
            rng,
            settings.options,
            within=ground.part,
            overlap=settings.overlap,
            tries=min(tries_left, _TRIES_PER_IMAGE),
        )
        if pasted is not None:
            return pasted, ground, source, part
        tries_left -= _TRIES_PER_IMAGE
    where = "" if settings.within != "foreground" else f" with more than {settings.overlap:.0%} in the foreground"
    raise DataError(
        f"{key}: expected a pasted defect{where} that changes at least {settings.options.level} grey levels, got none "
        f"in {settings.tries} tries. Try --within image, --solid, a lower --overlap or --level, or a larger --scale."
    )


def redraw_pasted(dataset: Dataset, line: PastedImage) -> tuple[UInt8Array, BoolArray]:
    """Draw a recorded image again, to the same bytes.

    Args:
        dataset: The dataset that the support set and the normal images are from.
        line: Its line of `generated.jsonl`.

    Returns:
        The image, uint8 [H, W, 3] RGB, and its mask, bool [H, W].

    Raises:
        DataError: If an image is missing or has other content, or the line is not one of them.
    """
    good = dataset.root / place_below(dataset.root, line.good, line.image.place)
    samples = [sample for sample in dataset.samples if place_of(dataset, sample.path) == line.support and sample.masks]
    if not samples:
        raise DataError(f"{dataset.root}: expected the support image {line.support} with its mask, got none there.")
    entry = AnomalousSample(samples[0], category_of(dataset, samples[0]), defect_of(samples[0]), line.support)
    for path, got, content in (
        (good, content_hash(good), line.good_sha256),
        (entry.sample.path, content_hash(entry.sample.path), line.support_sha256),
        (entry.sample.mask, mask_content(entry.sample.masks), line.support_mask_sha256),
    ):
        if got != content:
            raise DataError(f"{path}: expected the file that was pasted with, got other content.")
    parts = _cut(entry, line.options.feather_px)
    if not 0 <= line.part < len(parts):
        raise DataError(f"{line.image.place}: expected a part of {line.support} below {len(parts)}, got {line.part}.")
    return apply_placement(read_image(good), parts[line.part], line.placement, line.options)
