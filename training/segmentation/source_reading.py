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
from flawscope.datasets import Dataset, Sample, content_hash, pixels_of_recorded
from flawscope.datasets.defects.bare_support import find_bare_support
from flawscope.datasets.defects.drawn_set import LINES, DrawnImage, first_of_each, read_drawn, read_learned, shown_by
from flawscope.datasets.defects.file_names import category_of, defect_of
from flawscope.datasets.defects.support_set import SUPPORT_RECORD, SupportImage, SupportRecord, read_support
from flawscope.errors import DataError
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import Preprocessing, prepare_mask, read_encoded, read_image
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
        support = Path(settings.support)
        copies = [text for image in _read_support(support).pictures for text in _copies(support, image)]
        parts.append(f"support sha256:{_digest(copies)}")
    for folder in settings.drawn:
        _check_drawn(Path(folder))
        parts.append(f"drawn sha256:{content_hash(Path(folder) / LINES)}")
    return "; ".join(parts)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()


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

    def types_of(self, names: Iterable[tuple[str, str]]) -> set[str]:
        """Return CATEGORY/DEFECT of those that are of the dataset's categories."""
        return {f"{category}/{defect}" for category, defect in names if category in self.categories}

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
        types: CATEGORY/DEFECT of all that it has of the dataset's categories, whether it is to be learned or not.
        images: CATEGORY/DEFECT -> images, with tiles of one image counted once.
        drawn_by: What drew them -> images.
    """

    place: str
    seen: list[LabelledEntry] = field(default_factory=list)
    held_back: list[LabelledEntry] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    types: set[str] = field(default_factory=set)
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
            wanted, has = known.settings.defects, sorted(self.types)
            if wanted and has and not any(known.takes(*name.split("/", 1)) for name in has):
                raise DataError(
                    f"defects: expected types that {self.place} has ({', '.join(has)}), got {', '.join(wanted)}. Name "
                    "one of these, or another source."
                )
            height, width = known.spec.size
            types = f" of {', '.join(known.settings.defects)}" if known.settings.defects else ""
            raise DataError(
                f"{self.place}: expected labelled defects{types} of {', '.join(sorted(known.categories))} that are "
                f"seen at {width}x{height} pixels, got none. Take a larger resize, or another source."
            )
        self.digest = _digest(texts)
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
    found, vanished, texts = FoundSource(str(folder)), 0, list[str]()
    found.types = known.types_of((image.category, image.defect) for image in record.pictures)
    for image in record.pictures:
        if known.takes(image.category, image.defect):
            texts += _copies(folder, image)
            entries = _entries(known, folder / image.picture, folder / image.mask, f"{image.category}/{image.defect}")
            found.seen += entries
            vanished += not entries
            found.images[f"{image.category}/{image.defect}"] += bool(entries)
    # All of the set, those that are not learned too: near duplicates are recorded of all of them together.
    found.contents = {duplicate.content: f"probably the same part as {duplicate.like}" for duplicate in record.alike}
    found.contents |= {image.content: "a support image" for image in record.pictures}
    return found.finish(known, vanished, texts)


def _copies(folder: Path, image: SupportImage) -> tuple[str, str]:
    """Return the hashes of the files that are learned from: the record has those of the originals."""
    return content_hash(folder / image.picture), content_hash(folder / image.mask)


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
    # By pixels, each line by itself: a normal image may lie in the dataset twice, as files of other bytes.
    every = [line for lines in read.values() for line in lines]
    pixels = pixels_of_recorded(known.hashes, shown_by(every))
    of_learned, of_validation = (
        {known.hashes[sample.path]: sample for sample in samples} for samples in (known.learned, known.validation)
    )
    normals = {known.hashes[sample.path] for sample in known.dataset.train_good}
    # Held out for thresholds: neither learned from nor validated on.
    held_out = normals - of_learned.keys() - of_validation.keys()

    def good_of(line: DrawnImage) -> str:
        return pixels.get(line.good_sha256, line.good_sha256)

    usable, on_held_out = list[DrawnImage](), 0
    found.types = known.types_of((line.category, line.defect) for line in every)
    for folder, lines in read.items():
        found.contents |= dict.fromkeys(read_learned(folder), "a support image of drawn defects")
        accepted = [line for line in lines if line.accepted and known.takes(line.category, line.defect)]
        usable += [line for line in accepted if good_of(line) not in held_out]
        on_held_out += sum(good_of(line) in held_out for line in accepted)
    # As many at most of either kind: a number of images says how many are learned from.
    parts = ([line for line in usable if (good_of(line) in of_validation) == held] for held in (False, True))
    for line in (line for part in parts for line in first_of_each(part, known.settings.drawn_number)):
        good = good_of(line)
        # Of the validation always precise: counted whole, boxes would choose the network that fills them.
        is_coarse = known.settings.weak_tau is not None and good not in of_validation
        mask = line.box_mask_path if is_coarse else line.mask_path
        normal = (of_learned | of_validation).get(good)
        name = f"{line.category}/{line.defect}"
        entries = _entries(known, line.path, mask, name, line.source, None if normal is None else normal.path)
        vanished += not entries
        # A texture of a held-out normal image is in pieces and changed: thresholds may still be set on that image.
        for content, why in shown_by([line]).items():
            if pixels.get(content, content) not in normals:
                found.contents.setdefault(content, why)
        if good in of_validation:
            found.held_back += entries
            continue
        found.seen += entries
        found.images[name] += bool(entries)
        found.drawn_by[line.source] += bool(entries)
        texts += [line.image.sha256, content_hash(mask)]
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
        found.types |= known.types_of([(category, defect)])
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

    Raises:
        DataError: If the mask or the normal image that was drawn on is not of the image's size.
    """
    size = _size_of(image)
    # Never resized to fit: it may be of another image, and tiles would be cut beyond its borders.
    others = {"mask": mask.shape} if original is None else {"mask": mask.shape, "normal image": _size_of(original)}
    for kind, shape in others.items():
        if shape != size:
            got, want = (f"{width}x{height}" for height, width in (shape, size))
            raise DataError(f"{image}: expected a {kind} of {want} pixels as it has, got {got}. Export it again.")
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


def _size_of(path: Path) -> tuple[int, int]:
    # By the header, as `tiles_of` does; an image without one is decoded, and refused by that.
    header = read_header(read_encoded(path))
    return (header.height, header.width) if header is not None else read_image(path).shape[:2]
