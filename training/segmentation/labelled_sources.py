"""Sources of labelled defects: real, drawn and procedural ones, read in one place for every detector that learns.

    support      real defects of a folder of `synth support`
    drawn        folders of drawn defects: `synth generate`, `synth paste`, `synth perlin`
    train        anomalous images of the dataset's own train split
    procedural   anomalies drawn anew for each batch on the normal images that are learned from

Each has a share of the anomalous images of a batch. Labels are precise masks; those of drawn images are their boxes
where `weak_tau` is set, and count in part (`flawscope.training.segmentation.weak_loss`).

What has been learned from must not be tested on. An image that was drawn on a normal image which is held out, for
thresholds or for validation, is left out here: it shows that image nearly whole. The contents of all other images that
were seen and may lie in a test split go into the record of the run, from which an evaluation leaves them out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.config import LabelledSettings
from flawscope.config.supervised_settings import DefectSourceName
from flawscope.datasets import Dataset, Sample, as_recorded, content_hash
from flawscope.datasets.defects.drawn_set import LINES, DrawnImage, read_drawn, read_learned
from flawscope.datasets.defects.file_names import category_of, defect_of
from flawscope.datasets.defects.support_set import SUPPORT_RECORD, SupportRecord, read_support
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.imaging.masks import read_mask
from flawscope.imaging.tiles import ImageSource, Tiling, tiles_of
from flawscope.learned_defects import DefectSource, LearnedDefects
from flawscope.path_kinds import kind_of_path
from flawscope.progress import Progress, no_progress
from flawscope.training.loop.image_batches import ImageReader

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
        held_back: Images that were drawn on normal images of the validation, with `share` 0; None where there are none.
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

    def draw(self, count: int, chance: np.random.Generator, good: ImageReader) -> LabelledBatch:
        """Return anomalous images for a batch, each of a source drawn by the shares.

        Args:
            count: Number of images.
            chance: All randomness.
            good: Normal images that are learned from, which procedural anomalies are drawn on.
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
        images = np.empty((count, *self.size, 3), np.uint8)
        labels = np.zeros((count, *self.size), np.bool_)
        is_coarse, has_original = np.zeros((2, count), np.bool_)
        originals = images.copy()
        for number, name in enumerate(names):
            rows = np.flatnonzero(chosen == number)
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
    known = _Known(settings, spec, tiling, dataset, learned, validation, hashes)
    found: dict[DefectSourceName, _Found] = {}
    if settings.support is not None:
        found["support"] = _support(known, Path(settings.support))
    if settings.drawn:
        found["drawn"] = _drawn(known, [Path(folder) for folder in settings.drawn])
    if settings.train_defects:
        found["train"] = _train(known)
    _check_types(settings, found)
    shares = settings.shares
    count = len(found) + 2
    stored = tuple(
        _open(name, shares[name], part.seen, known, with_originals, workers, budget_mb // count, progress)
        for name, part in found.items()
    )
    held_back = [entry for part in found.values() for entry in part.held_back]
    contents = {content: why for part in reversed(found.values()) for content, why in part.contents.items()}
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


def sources_identity(settings: LabelledSettings) -> str:
    """Return what a training depends on of the folders of its sources; empty without any.

    Raises:
        DataError: If a folder is missing, or not one of labelled defects.
    """
    parts = []
    if settings.support is not None:
        parts.append(f"support sha256:{_read_support(Path(settings.support)).digest}")
    for folder in settings.drawn:
        _check_drawn(Path(folder))
        parts.append(f"drawn sha256:{content_hash(Path(folder) / LINES)}")
    return "; ".join(parts)


# ---- Reading a source ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What all sources are read with."""

    settings: LabelledSettings
    spec: Preprocessing
    tiling: Tiling | None
    dataset: Dataset
    learned: Sequence[Sample]
    validation: Sequence[Sample]
    hashes: Mapping[Path, str]

    @property
    def categories(self) -> frozenset[str]:
        return frozenset(category_of(self.dataset, sample) for sample in self.dataset.samples)

    def takes(self, category: str, defect: str) -> bool:
        """Return whether a defect type is to be learned."""
        wanted = self.settings.defects
        return category in self.categories and (not wanted or bool({defect, f"{category}/{defect}"} & set(wanted)))


@dataclass(frozen=True)
class _Entry:
    """An image, or a tile of one, and its label at the prepared size."""

    source: ImageSource
    label: BoolArray
    type: str
    drawn_by: str = ""
    original: ImageSource | None = None


@dataclass
class _Found:
    """What a source has.

    Attributes:
        place: The source, for messages.
        seen: Entries that are learned from.
        held_back: Entries that were drawn on normal images of the validation.
        contents: Hash -> how an image was seen.
        notes: What was left out.
        digest: Over all that is learned from.
        images: CATEGORY/DEFECT -> images, with tiles of one image counted once.
        drawn_by: What drew them -> images.
    """

    place: str
    seen: list[_Entry] = field(default_factory=list)
    held_back: list[_Entry] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    images: Counter[str] = field(default_factory=Counter)
    drawn_by: Counter[str] = field(default_factory=Counter)

    def record(self, name: str, share: float) -> DefectSource:
        return DefectSource(
            name, share, dict(sorted(self.images.items())), dict(sorted(self.drawn_by.items())), self.digest
        )

    def finish(self, known: _Known, vanished: int, texts: Iterable[str]) -> _Found:
        """Check that there is something, and set digest and notes."""
        if not self.seen:
            height, width = known.spec.size
            types = f" of {', '.join(known.settings.defects)}" if known.settings.defects else ""
            raise DataError(
                f"{self.place}: expected labelled defects{types} of {', '.join(sorted(known.categories))} that are "
                f"seen at {width}x{height} pixels, got none. Take a larger resize, or another source."
            )
        self.digest = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
        if vanished:
            self.notes.append(
                f"images of {self.place} not learned from, whose defect vanishes at this size: {vanished}"
            )
        return self


def _support(known: _Known, folder: Path) -> _Found:
    record = _read_support(folder)
    found, vanished = _Found(str(folder)), 0
    for image in record.pictures:
        if known.takes(image.category, image.defect):
            entries = _entries(known, folder / image.picture, folder / image.mask, f"{image.category}/{image.defect}")
            found.seen += entries
            vanished += not entries
            found.images[f"{image.category}/{image.defect}"] += bool(entries)
    # All of the set, those that are not learned too: near duplicates are recorded of all of them together.
    found.contents = {duplicate.content: f"probably the same part as {duplicate.like}" for duplicate in record.alike}
    found.contents |= {image.content: "a support image" for image in record.pictures}
    return found.finish(known, vanished, [record.digest])


def _read_support(folder: Path) -> SupportRecord:
    if not (folder / SUPPORT_RECORD).is_file():
        got = kind_of_path(folder) or "none"
        raise DataError(f"support: expected a folder of synth support with {SUPPORT_RECORD}, got {got}: {folder}.")
    return read_support(folder)


def _drawn(known: _Known, folders: Sequence[Path]) -> _Found:
    found, vanished, texts = _Found(", ".join(map(str, folders))), 0, list[str]()
    goods = {line.good_sha256 for folder in folders for line in _read_drawn(folder)}
    recorded = as_recorded(known.hashes, goods)
    of_learned, of_validation = (
        {recorded[sample.path]: sample for sample in samples} for samples in (known.learned, known.validation)
    )
    # Held out for thresholds: neither learned from nor validated on.
    held_out = {recorded[sample.path] for sample in known.dataset.train_good} - of_learned.keys() - of_validation.keys()
    on_held_out = 0
    for folder in folders:
        found.contents |= dict.fromkeys(read_learned(folder), "a support image of drawn defects")
        for line in _read_drawn(folder):
            good = line.good_sha256
            if not line.accepted or not known.takes(line.category, line.defect) or good in held_out:
                on_held_out += line.accepted and good in held_out
                continue
            mask = line.mask_path if known.settings.weak_tau is None else line.box_mask_path
            normal = (of_learned | of_validation).get(good)
            name = f"{line.category}/{line.defect}"
            entries = _entries(known, line.path, mask, name, line.source, None if normal is None else normal.path)
            vanished += not entries
            if good in of_validation:
                found.held_back += entries
                continue
            found.seen += entries
            found.images[name] += bool(entries)
            found.drawn_by[line.source] += bool(entries)
            texts += [line.image.sha256, content_hash(mask)]
            if good not in of_learned:
                found.contents[good] = "defects were drawn on it"
    if on_held_out:
        found.notes.append(f"drawn images not learned from, drawn on held-out normal images: {on_held_out}")
    return found.finish(known, vanished, texts)


def _read_drawn(folder: Path) -> list[DrawnImage]:
    _check_drawn(folder)
    return read_drawn(folder, with_rejected=True)


def _check_drawn(folder: Path) -> None:
    if not (folder / LINES).is_file():
        got = kind_of_path(folder) or "none"
        raise DataError(
            f"drawn: expected a folder of synth generate, paste or perlin with {LINES}, got {got}: {folder}."
        )


def _train(known: _Known) -> _Found:
    found, vanished, texts, without = _Found(f"{known.dataset.root} (train)"), 0, list[str](), 0
    for sample in known.dataset.samples:
        if sample.split != "train" or not sample.is_anomalous:
            continue
        category, defect = category_of(known.dataset, sample), defect_of(sample)
        if not known.takes(category, defect):
            continue
        mask = sample.read_mask()
        if mask is None:
            without += 1
            continue
        entries = _cut(known, sample.path, mask, f"{category}/{defect}")
        found.seen += entries
        vanished += not entries
        found.images[f"{category}/{defect}"] += bool(entries)
        found.contents[known.hashes[sample.path]] = "an anomalous training image"
        texts += [known.hashes[sample.path], *(content_hash(path) for path in sample.masks)]
    if without:
        found.notes.append(f"anomalous training images not learned from, which have no mask: {without}")
    return found.finish(known, vanished, texts)


def _entries(
    known: _Known, image: Path, mask: Path, name: str, drawn_by: str = "", original: Path | None = None
) -> list[_Entry]:
    return _cut(known, image, read_mask(mask), name, drawn_by, original)


def _cut(
    known: _Known, image: Path, mask: BoolArray, name: str, drawn_by: str = "", original: Path | None = None
) -> list[_Entry]:
    """Return the entries of an image: itself, or its tiles; only those whose label shows a defect.

    Masks are resized by nearest neighbour and cropped, so a small defect may vanish. Such an image is left out, and not
    learned as one without a defect.
    """
    if known.tiling is None:
        label = prepare_mask(mask, known.spec)
        return [_Entry(image, label, name, drawn_by, original)] if label.any() else []
    entries = []
    tiling = Tiling(known.tiling.size, 0.0)
    tiles = list(tiles_of(image, tiling))
    of_original = [None] * len(tiles) if original is None else list(tiles_of(original, tiling))
    # As an image, so that what is padded at a border is padded alike.
    as_image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8)
    for tile, normal in zip(tiles, of_original, strict=True):
        label = prepare_mask(tiling.cut(as_image, tile.corner)[..., 0] > 0, known.spec)
        if label.any():
            entries.append(_Entry(tile, label, name, drawn_by, normal))
    return entries


def _open(
    name: DefectSourceName,
    share: float,
    entries: Sequence[_Entry],
    known: _Known,
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
        is_coarse=name == "drawn" and known.settings.weak_tau is not None,
        originals=images([entry.original or entry.source for entry in entries]) if keeps else None,
        has_original=has_original & keeps,
    )


def _check_types(settings: LabelledSettings, found: Mapping[DefectSourceName, _Found]) -> None:
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
