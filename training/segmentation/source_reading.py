"""Reading of the sources of labelled defects: support sets, folders of drawn defects, anomalous training images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flawscope.arrays import BoolArray
from flawscope.config import LabelledSettings
from flawscope.datasets import Dataset, Sample, as_recorded, content_hash
from flawscope.datasets.defects.bare_support import find_bare_support
from flawscope.datasets.defects.drawn_set import LINES, DrawnImage, first_of_each, read_drawn, read_learned
from flawscope.datasets.defects.file_names import category_of, defect_of
from flawscope.datasets.defects.support_set import SUPPORT_RECORD, SupportRecord, read_support
from flawscope.errors import DataError
from flawscope.imaging.images import Preprocessing, prepare_mask
from flawscope.imaging.masks import read_mask
from flawscope.imaging.tiles import ImageSource, Tiling, tiles_of
from flawscope.learned_defects import DefectSource
from flawscope.path_kinds import kind_of_path


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


@dataclass(frozen=True)
class SourceContext:
    """What all sources are read with.

    Attributes:
        settings: Which sources, and their labels.
        spec: How images are prepared.
        tiling: How images are cut into tiles, or None for whole images.
        dataset: The dataset whose normal images are learned from.
        learned: Normal images that are learned from.
        validation: Normal images that choose the best state.
        hashes: Content hash of every image of the dataset.
    """

    settings: LabelledSettings
    spec: Preprocessing
    tiling: Tiling | None
    dataset: Dataset
    learned: Sequence[Sample]
    validation: Sequence[Sample]
    hashes: Mapping[Path, str]

    @property
    def categories(self) -> frozenset[str]:
        """Names of the dataset's categories."""
        return frozenset(category_of(self.dataset, sample) for sample in self.dataset.samples)

    def takes(self, category: str, defect: str) -> bool:
        """Return whether a defect type is to be learned."""
        wanted = self.settings.defects
        return category in self.categories and (not wanted or bool({defect, f"{category}/{defect}"} & set(wanted)))


@dataclass(frozen=True)
class LabelledEntry:
    """An image, or a tile of one, and its label at the prepared size."""

    source: ImageSource
    label: BoolArray
    type: str
    drawn_by: str = ""
    original: ImageSource | None = None


@dataclass
class FoundSource:
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
    seen: list[LabelledEntry] = field(default_factory=list)
    held_back: list[LabelledEntry] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    images: Counter[str] = field(default_factory=Counter)
    drawn_by: Counter[str] = field(default_factory=Counter)

    def record(self, name: str, share: float) -> DefectSource:
        """Return the entry for the record of a run."""
        return DefectSource(
            name, share, dict(sorted(self.images.items())), dict(sorted(self.drawn_by.items())), self.digest
        )

    def finish(self, known: SourceContext, vanished: int, texts: Iterable[str]) -> FoundSource:
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


def read_support_source(known: SourceContext, folder: Path) -> FoundSource:
    """Return what a support set has to learn from; its images are read from the folder itself.

    Raises:
        DataError: If it is no support set, or has no defect of the wanted types that can be seen.
    """
    record = _read_support(folder)
    found, vanished = FoundSource(str(folder)), 0
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
    # One without a record, as AnoGen ships it, is a support set too.
    if not (folder / SUPPORT_RECORD).is_file() and not find_bare_support(folder):
        got = kind_of_path(folder) or "none"
        raise DataError(f"support: expected a folder of synth support with {SUPPORT_RECORD}, got {got}: {folder}.")
    return read_support(folder)


def read_drawn_source(known: SourceContext, folders: Sequence[Path]) -> FoundSource:
    """Return what folders of drawn defects have to learn from, without images on held-out normal ones.

    Raises:
        DataError: If one is no such folder, a file was changed, or there is no defect that can be seen.
    """
    found, vanished, texts = FoundSource(", ".join(map(str, folders))), 0, list[str]()
    read = {folder: _read_drawn(folder) for folder in folders}
    goods = {line.good_sha256 for lines in read.values() for line in lines}
    recorded = as_recorded(known.hashes, goods)
    of_learned, of_validation = (
        {recorded[sample.path]: sample for sample in samples} for samples in (known.learned, known.validation)
    )
    # Held out for thresholds: neither learned from nor validated on.
    held_out = {recorded[sample.path] for sample in known.dataset.train_good} - of_learned.keys() - of_validation.keys()
    usable, on_held_out = list[DrawnImage](), 0
    for folder, lines in read.items():
        found.contents |= dict.fromkeys(read_learned(folder), "a support image of drawn defects")
        accepted = [line for line in lines if line.accepted and known.takes(line.category, line.defect)]
        usable += [line for line in accepted if line.good_sha256 not in held_out]
        on_held_out += sum(line.good_sha256 in held_out for line in accepted)
    # As many at most of either kind: a number of images says how many are learned from.
    parts = ([line for line in usable if (line.good_sha256 in of_validation) == held] for held in (False, True))
    for line in (line for part in parts for line in first_of_each(part, known.settings.drawn_number)):
        good = line.good_sha256
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


def read_train_source(known: SourceContext) -> FoundSource:
    """Return the anomalous images with masks of the dataset's train split.

    Raises:
        DataError: If there is no defect that can be seen.
    """
    found, vanished, texts, without = FoundSource(f"{known.dataset.root} (train)"), 0, list[str](), 0
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
    known: SourceContext, image: Path, mask: Path, name: str, drawn_by: str = "", original: Path | None = None
) -> list[LabelledEntry]:
    return _cut(known, image, read_mask(mask), name, drawn_by, original)


def _cut(
    known: SourceContext, image: Path, mask: BoolArray, name: str, drawn_by: str = "", original: Path | None = None
) -> list[LabelledEntry]:
    """Return the entries of an image: itself, or its tiles; only those whose label shows a defect.

    Masks are resized by nearest neighbour and cropped, so a small defect may vanish. Such an image is left out, and not
    learned as one without a defect.
    """
    if known.tiling is None:
        label = prepare_mask(mask, known.spec)
        return [LabelledEntry(image, label, name, drawn_by, original)] if label.any() else []
    entries = []
    tiling = Tiling(known.tiling.size, 0.0)
    tiles = list(tiles_of(image, tiling))
    of_original = [None] * len(tiles) if original is None else list(tiles_of(original, tiling))
    # As an image, so that what is padded at a border is padded alike.
    as_image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8)
    for tile, normal in zip(tiles, of_original, strict=True):
        label = prepare_mask(tiling.cut(as_image, tile.corner)[..., 0] > 0, known.spec)
        if label.any():
            entries.append(LabelledEntry(tile, label, name, drawn_by, normal))
    return entries
