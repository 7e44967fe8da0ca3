"""Sources of labelled defects: real, drawn and procedural ones, read in one place for every detector that learns.

    support      real defects of a folder of `synth support`
    drawn        folders of drawn defects: `synth generate`, `synth paste`, `synth perlin`
    train        anomalous images of the dataset's own train split
    procedural   anomalies drawn anew for each batch on the normal images that are learned from

Each has a share of the anomalous images of a batch. Labels are precise masks; those of drawn images are their boxes
where `weak_tau` is set, and count in part (`flawscope.training.segmentation.weak_loss`); but not in the validation.

What has been learned from must not be tested on. An image that was drawn on a normal image which is held out, for
thresholds or for validation, is left out here: it shows that image nearly whole. The contents of all other images that
were seen and may lie in a test split go into the record of the run, from which an evaluation leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.config import LabelledSettings
from flawscope.config.supervised_settings import DefectSourceName
from flawscope.datasets import Dataset, Sample, as_recorded, pixels_of_recorded
from flawscope.errors import ArgumentError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import ImageSource, Tiling
from flawscope.learned_defects import DefectSource, LearnedDefects
from flawscope.progress import Progress, no_progress
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.source_reading import (
    FoundSource,
    LabelledEntry,
    SourceContext,
    read_drawn_source,
    read_support_source,
    read_train_source,
)

SOURCES: tuple[DefectSourceName, ...] = ("support", "train", "drawn", "procedural")
"""All sources, real ones first."""

Procedural = Callable[[UInt8Array, np.random.Generator], tuple[UInt8Array, BoolArray]]
"""Draws an anomaly on a prepared normal image, uint8 [H, W, 3]: returns the image and its mask, bool [H, W], which may
be empty. All chance comes from the generator that it is given."""


@dataclass(frozen=True)
class SourceImages:
    """The images of one source.

    Attributes:
        name: Its name.
        share: Its share of the anomalous images of a batch.
        images: The prepared images.
        labels: Bool [N, H, W], true at the defect, of the size of the prepared images; none is empty.
        types: CATEGORY/DEFECT of each image.
        is_coarse: Whether labels are boxes.
        originals: The normal images that the images were drawn on, or None where they are not asked for or not known.
        has_original: Bool [N], whether an image has one; the others have an image of the source in its place.
    """

    name: DefectSourceName
    share: float
    images: ImageReader
    labels: BoolArray
    types: tuple[str, ...]
    is_coarse: bool = False
    originals: ImageReader | None = None
    has_original: BoolArray = field(default_factory=lambda: np.zeros(0, np.bool_))


@dataclass(frozen=True)
class LabelledBatch:
    """Anomalous images of a batch.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: Bool [N, H, W]; those of procedural anomalies may be empty.
        is_coarse: Bool [N], whether a label is a box.
        sources: Name of the source of each.
        originals: uint8 [N, H, W, 3], the normal image that an anomaly was drawn on, the image itself where
            `has_original` is false.
        has_original: Bool [N].
    """

    images: UInt8Array
    labels: BoolArray
    is_coarse: BoolArray
    sources: tuple[DefectSourceName, ...]
    originals: UInt8Array
    has_original: BoolArray


@dataclass(frozen=True)
class LabelledSources:
    """All sources of a training.

    Attributes:
        stored: Sources with images of their own.
        held_back: Images that were drawn on normal images of the validation, with `share` 0 and precise masks as labels
            in any case; None where there are none.
        procedural: Draws anomalies, or None.
        procedural_share: Their share of the anomalous images of a batch.
        size: Height and width of the prepared images.
        record: What is learned from, for the record of the run.
        contents: Hash of an image that has been seen and may lie in a test split -> how it was seen.
        notes: What was left out, a sentence each.
    """

    stored: tuple[SourceImages, ...]
    held_back: SourceImages | None
    procedural: Procedural | None
    procedural_share: float
    size: tuple[int, int]
    record: LearnedDefects
    contents: dict[str, str]
    notes: tuple[str, ...]

    def draw(
        self, count: int, chance: np.random.Generator, good: ImageReader, wanted: npt.NDArray[np.int64] | None = None
    ) -> LabelledBatch:
        """Return anomalous images for a batch, each of a source drawn by the shares.

        Args:
            count: Number of images.
            chance: All randomness.
            good: Normal images that are learned from, which procedural anomalies are drawn on.
            wanted: Which of them are asked for, int64, where other processes draw the rest; None for all of them. The
                rows of the others are there, and hold anything.
        """
        # A stream of numbers for each source, and for the choice among them: with another mixture the images that are
        # still of a source are the same ones, so that trainings on two mixtures can be compared in pairs.
        streams = dict(zip(("chosen", *SOURCES), chance.spawn(1 + len(SOURCES)), strict=True))
        parts = {source.name: source for source in self.stored}
        shares = {name: parts[name].share for name in SOURCES if name in parts}
        if self.procedural is not None:
            shares["procedural"] = self.procedural_share
        names = tuple(shares)
        ends = np.cumsum(list(shares.values()))
        chosen = np.searchsorted(ends / ends[-1], streams["chosen"].random(count), side="right")
        is_wanted = np.ones(count, np.bool_) if wanted is None else np.isin(np.arange(count), wanted)
        images = np.empty((count, *self.size, 3), np.uint8)
        labels = np.zeros((count, *self.size), np.bool_)
        is_coarse, has_original = np.zeros((2, count), np.bool_)
        originals = images.copy()
        for number, name in enumerate(names):
            rows = np.flatnonzero((chosen == number) & is_wanted)
            pool = good if name == "procedural" else parts[name].images
            # For all rows, whichever are of this source: the numbers of one row depend on no other.
            picked = streams[name].integers(len(pool), size=count)[rows]
            if not rows.size:
                continue
            originals[rows] = _read(pool, picked)
            if name == "procedural":
                assert self.procedural is not None
                seeds = streams[name].integers(1 << 63, size=count)
                for row in rows:
                    drawn = self.procedural(originals[row].copy(), np.random.default_rng(seeds[row]))
                    images[row], labels[row] = drawn
                has_original[rows] = True
                continue
            source = parts[name]
            images[rows], labels[rows], is_coarse[rows] = originals[rows], source.labels[picked], source.is_coarse
            if source.originals is not None:
                originals[rows], has_original[rows] = _read(source.originals, picked), source.has_original[picked]
        return LabelledBatch(
            images, labels, is_coarse, tuple(names[number] for number in chosen), originals, has_original
        )


def open_sources(
    settings: LabelledSettings,
    spec: Preprocessing,
    dataset: Dataset,
    learned: Sequence[Sample],
    validation: Sequence[Sample],
    hashes: Mapping[Path, str],
    *,
    tiling: Tiling | None = None,
    procedural: Procedural | None = None,
    with_originals: bool = False,
    workers: int = 2,
    budget_mb: int = 512,
    progress: Progress = no_progress,
) -> LabelledSources:
    """Read all sources that settings name.

    Args:
        settings: Which sources, and their shares.
        spec: How images are prepared.
        dataset: The dataset whose normal images are learned from.
        learned: Normal images that are learned from.
        validation: Normal images that choose the best state.
        hashes: Content hash of every image of the dataset.
        tiling: How images are cut into tiles, of which those with a defect are learned from; None for whole images.
        procedural: Draws procedural anomalies; needed where the settings ask for them.
        with_originals: Read the normal images that defects were drawn on too.
        workers: Threads that decode images.
        budget_mb: Most memory for prepared images, in MiB.
        progress: Receives how many images have been read.

    Raises:
        ArgumentError: If no source is named, or a defect type that no source has.
        DataError: If a source is missing or broken, or has no defect that can be seen at this size.
    """
    settings.check_named()
    known = SourceContext(settings, spec, tiling, dataset, learned, validation, hashes)
    found: dict[DefectSourceName, FoundSource] = {}
    if settings.support is not None:
        found["support"] = read_support_source(known, Path(settings.support))
    if settings.drawn:
        found["drawn"] = read_drawn_source(known, [Path(folder) for folder in settings.drawn])
    if settings.train_defects:
        found["train"] = read_train_source(known)
    _check_types(settings, found)
    shares = settings.shares
    count = len(found) + 2
    stored = tuple(
        _open(name, shares[name], part.seen, known, with_originals, workers, budget_mb // count, progress)
        for name, part in found.items()
    )
    held_back = [entry for part in found.values() for entry in part.held_back]
    contents = _contents(found.values(), hashes)
    sources = [part.record(name, shares[name]) for name, part in found.items()]
    if settings.procedural:
        if procedural is None:
            raise ArgumentError("procedural: expected a source that this method can draw, got none. Leave it out.")
        sources.append(DefectSource("procedural", shares["procedural"], {}))
    return LabelledSources(
        stored=stored,
        held_back=_open("drawn", 0.0, held_back, known, False, workers, budget_mb // count, progress)
        if held_back
        else None,
        procedural=procedural if settings.procedural else None,
        procedural_share=shares.get("procedural", 0.0),
        size=spec.size,
        record=LearnedDefects(tuple(sources), _count_test(dataset, hashes, contents)),
        contents=contents,
        notes=tuple(note for part in found.values() for note in part.notes),
    )


def _open(
    name: DefectSourceName,
    share: float,
    entries: Sequence[LabelledEntry],
    known: SourceContext,
    with_originals: bool,
    workers: int,
    budget_mb: int,
    progress: Progress,
) -> SourceImages:
    def images(sources: Sequence[ImageSource]) -> ImageReader:
        return ImageReader(sources, known.spec, workers, budget_mb, progress)

    has_original = np.array([entry.original is not None for entry in entries], np.bool_)
    keeps = with_originals and bool(has_original.any())
    return SourceImages(
        name=name,
        share=share,
        images=images([entry.source for entry in entries]),
        labels=np.stack([entry.label for entry in entries]),
        types=tuple(entry.type for entry in entries),
        is_coarse=name == "drawn" and known.settings.weak_tau is not None and share > 0.0,
        originals=images([entry.original or entry.source for entry in entries]) if keeps else None,
        has_original=has_original & keeps,
    )


def _contents(found: Collection[FoundSource], hashes: Mapping[Path, str]) -> dict[str, str]:
    """Return hash -> how an image was seen, of all sources; of two the first counts."""
    contents = {content: why for part in reversed(list(found)) for content, why in part.contents.items()}
    # By pixels too: an evaluation may be of the same images in other files.
    of_pixels = pixels_of_recorded(hashes, contents)
    return contents | {of_pixels[content]: why for content, why in contents.items() if content in of_pixels}


def _check_types(settings: LabelledSettings, found: Mapping[DefectSourceName, FoundSource]) -> None:
    """Raise ArgumentError if a defect type is asked for that no source has."""
    names = sorted({name for part in found.values() for name, count in part.images.items() if count})
    for wanted in settings.defects:
        if not any(wanted in (name, name.partition("/")[2]) for name in names):
            raise ArgumentError(
                f"defects: expected types that a source has ({', '.join(names) or 'there is none'}), got {wanted!r}."
            )


def _count_test(dataset: Dataset, hashes: Mapping[Path, str], contents: Collection[str]) -> int:
    recorded = as_recorded({sample.path: hashes[sample.path] for sample in dataset.test}, contents)
    return sum(recorded[sample.path] in contents for sample in dataset.test)


def _read(images: ImageReader, numbers: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> UInt8Array:
    batch: UInt8Array = next(iter(images.batches(numbers, len(numbers))))
    return batch
