"""Datasets of real and generated images for training detectors and segmenters.

Generated images may be of any source (diffusion, pasted defects, Perlin anomalies) and of several folders.

    mvtec    NAME/train/good/*                   the real normal training images
             NAME/train/DEFECT/synth_NNN.png     accepted images: for training only, never for testing
             NAME/test/{good,DEFECT}/*           the real test images that the generator has not seen
             NAME/ground_truth/DEFECT/*_mask.png masks of both
    anogen   NAME/images/GOOD-BOX-NNNN-DEFECT.png and NAME/masks/BOX-DEFECT.png (of a screw GOOD-BOX.png): generated
             images only
    both     provenance.jsonl, dataset.json, contact_sheet.png beside NAME

In the layout `mvtec` a mask is found by defect type and name, whatever the split, and the images of a test split are
called 000, 001, ... too: the prefix `synth_` keeps the mask of a generated image apart from that of a test image.

The layout `anogen` is that of AnoGen's `makeDataset`, which its DRAEM and DeSTSeg read by splitting names at hyphens.
GOOD is the name of the normal image, and BOX that of the mask in its mask set or, with precise masks, a number; hyphens
in them become underscores. AnoGen uses the first three characters of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from flawscope import __version__
from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents
from flawscope.datasets.defects.bare_support import check_found
from flawscope.datasets.defects.drawn_set import (
    MARKERS,
    SOURCES,
    DrawnImage,
    DrawnLine,
    DrawnSource,
    read_drawn_lines,
    read_learned,
    shown_by,
)
from flawscope.datasets.defects.file_names import category_of, check_name, defect_of, place_of
from flawscope.datasets.defects.set_files import (
    SHEET,
    decode_json,
    read_json,
    write_image,
    write_json,
    write_lines,
)
from flawscope.datasets.defects.set_sheets import COLUMNS, Row, Tile, draw_sheet, small_tile
from flawscope.datasets.defects.support_set import SupportRecord
from flawscope.datasets.mask_pairing import ends_like_a_mask
from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_folder, check_replaceable, free_name, sha256_file
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.progress import CountProgress
from flawscope.runtime.synthesis.dataset_copies import DrawnCopy, RealCopy
from flawscope.runtime.synthesis.generated_set import GenerateRecord

MARKER = "dataset.json"
PROVENANCE = "provenance.jsonl"

_BY_IMAGE = "screw"
"""The category whose masks AnoGen draws for each image."""

DatasetLayout = Literal["mvtec", "anogen"]
Labels = Literal["precise", "box"]


class ProvenanceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Origin of a drawn image of the dataset.

    Attributes:
        image: The image, below the dataset's folder.
        mask: Its mask, below the dataset's folder.
        labels: Kind of the mask.
        source: What drew it.
        folder: Number of its folder, from 0, in the order of `generated` in `dataset.json`.
        drawn: Its line of that folder's `generated.jsonl`, as it stands there: every source has fields of its own.
    """

    image: str
    mask: str
    labels: Labels
    source: DrawnSource
    folder: int
    drawn: dict[str, Any]


class GeneratedFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A folder of drawn images that a dataset was made of.

    Attributes:
        records: Records of its sources → SHA-256 of their bytes.
        taken: Source → images taken from it.
        rejected: Drawn images that were left out because the quality filter rejected them.
        spare: Accepted images that were left out because fewer of their source were wanted.
        bundle: Name of the generator bundle; empty where none drew.
        digest: Digest of its manifest.
        licence: Licence of its base model.
    """

    records: dict[str, str]
    taken: dict[DrawnSource, int]
    rejected: int
    spare: int
    bundle: str = ""
    digest: str = ""
    licence: str = ""


class SynthDatasetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sources of a dataset; the content of `dataset.json`.

    Attributes:
        flawscope: Version that wrote it.
        layout: How the files are laid out.
        labels: Kind of the masks of drawn images.
        generated: The folders of drawn images.
        take: Source → most images of it that were wanted; all of the others.
        pictures: CATEGORY/SPLIT/DEFECT → images written; drawn images are counted under CATEGORY/drawn/DEFECT.
        left_out: Image of the real dataset, below its root → the reason why it was left out.
        schema: Version of this record.
    """

    flawscope: str
    layout: DatasetLayout
    labels: Labels
    generated: tuple[GeneratedFolder, ...]
    take: dict[DrawnSource, int]
    pictures: dict[str, int]
    left_out: dict[str, str]
    schema: Literal[2] = 2

    @property
    def sources(self) -> dict[DrawnSource, int]:
        """Source → images taken, over all folders."""
        counts = Counter[DrawnSource]()
        for folder in self.generated:
            counts.update(folder.taken)
        return {source: counts[source] for source in SOURCES if counts[source]}


class _Drawing(NamedTuple):
    """An accepted image, and the paths that it and its mask get in the dataset."""

    drawn: DrawnImage
    image: str
    mask: str

    def copy(self, labels: Labels) -> DrawnCopy:
        """Return what is copied, with masks of a kind."""
        is_precise = labels == "precise"
        mask, path = (
            (self.drawn.mask, self.drawn.mask_path) if is_precise else (self.drawn.box_mask, self.drawn.box_mask_path)
        )
        assert mask is not None  # its path would have raised
        return DrawnCopy(
            image=str(self.drawn.path),
            image_sha256=self.drawn.image.sha256,
            mask=str(path),
            mask_sha256=mask.sha256,
            image_place=self.image,
            mask_place=self.mask,
        )


@dataclass(frozen=True)
class DatasetPlan:
    """What a dataset is made of; all that is decided before the first file is copied.

    Attributes:
        record: The content of `dataset.json`.
    """

    record: SynthDatasetRecord
    _drawings: list[_Drawing]
    _taken: list[DrawnLine]
    _real: list[RealCopy]
    _folders: list[Path]

    @property
    def total(self) -> int:
        """How many images there are."""
        return len(self._drawings) + len(self._real)

    def copies(self) -> Iterator[DrawnCopy | RealCopy]:
        """Yield the images with their masks, drawn ones first."""
        yield from (drawing.copy(self.record.labels) for drawing in self._drawings)
        yield from self._real

    def finish(self, folder: Path) -> None:
        """Write the sheet, the origins and the record into a folder that has all images."""
        labels = self.record.labels
        tiles = _tiles(folder, self._drawings)
        write_image(folder / SHEET, draw_sheet([Row(f"{key}, {labels} masks", row) for key, row in tiles.items()]))
        write_lines(folder / PROVENANCE, _provenance(self._drawings, self._taken, self._folders, labels))
        write_json(folder / MARKER, self.record)


def write_synth_dataset(
    generated: Path | Sequence[Path],
    dataset: Dataset,
    folder: Path,
    *,
    layout: DatasetLayout = "mvtec",
    labels: Labels = "precise",
    take: Mapping[DrawnSource, int] | None = None,
    support: SupportRecord | None = None,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> SynthDatasetRecord:
    """Write a dataset of the accepted images of folders of drawn ones, and of real images.

    The folder appears whole under its name or not at all.

    Args:
        generated: Folders of `generate_images`, `write_pasted` and `write_perlin`, one or several.
        dataset: The real dataset.
        folder: The folder to make.
        layout: How its files are laid out.
        labels: `precise` for the precise masks, `box` for the regions that were asked for.
        take: Source → most images of it, over all folders; as many of each defect type as there are, in turn. Of
            sources that are not named all images are taken.
        support: The support set; with it, near duplicates of its images are left out of the test split, too. Without
            it, support images are identified by the hashes in the records of the folders.
        progress: Called with the number of images written and their total after each.
        overwrite: Whether an earlier dataset of this kind may be replaced.

    Raises:
        ArgumentError: If `folder` is taken, or `generated` or `take` names nothing, or something twice.
        DataError: If nothing was accepted, no image is of a source in `take`, the support set is another one, or a
            file is broken or was changed.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    check_replaceable(folder, MARKER, overwrite=overwrite)
    plan = plan_dataset(generated, dataset, layout=layout, labels=labels, take=take, support=support)
    with atomic_folder(folder, replace_if=MARKER, overwrite=overwrite) as unfinished:
        for written, copy in enumerate(plan.copies(), 1):
            for place, data in copy.read().items():
                path = unfinished / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if progress:
                progress(written, plan.total)
        plan.finish(unfinished)
    return plan.record


def plan_dataset(
    generated: Path | Sequence[Path],
    dataset: Dataset,
    *,
    layout: DatasetLayout = "mvtec",
    labels: Labels = "precise",
    take: Mapping[DrawnSource, int] | None = None,
    support: SupportRecord | None = None,
    are_files_checked: bool = True,
) -> DatasetPlan:
    """Return what a dataset is made of; arguments and errors as `write_synth_dataset`.

    Args:
        generated: Folders of drawn images.
        dataset: The real dataset.
        layout: How its files are laid out.
        labels: Kind of the masks.
        take: Source -> most images of it.
        support: The support set.
        are_files_checked: Whether all drawn files are read now; each is in any case when it is copied.
    """
    folders, take = _folders(generated), dict(take or {})
    names = {category_of(dataset, sample) for sample in dataset.samples}
    learned = [read_learned(one) for one in folders]
    # One category of a joint generation can be taken alone; what was drawn for others is no error.
    lines = [
        [line for line in read_drawn_lines(one, are_files_checked=are_files_checked) if line.drawn.category in names]
        for one in folders
    ]
    accepted = [line for of_folder in lines for line in of_folder if line.drawn.accepted]
    if not accepted:
        where, wanted = ", ".join(map(str, folders)), ", ".join(sorted(names))
        raise DataError(
            f"{where}: expected accepted images of {wanted}, got none. Generate more, or name their category."
        )
    taken = _take(accepted, take)
    left_out = _left_out(dataset, frozenset().union(*learned), [line.drawn for one in lines for line in one], support)
    # Before the names are chosen: an image that is left out must not number another one.
    real = [sample for sample in dataset.samples if place_of(dataset, sample.path) not in left_out]
    names_of_real = _names_of_real(dataset, real)
    drawings = list(_drawings([line.drawn for line in taken], layout, names_of_real, labels))
    copied = real if layout == "mvtec" else []
    counts = Counter(f"{line.drawn.category}/drawn/{line.drawn.defect}" for line in taken)
    counts.update(f"{category_of(dataset, one)}/{one.split}/{defect_of(one)}" for one in copied)
    record = SynthDatasetRecord(
        flawscope=__version__,
        layout=layout,
        labels=labels,
        generated=tuple(
            _describe(one, [line.drawn for line in of_folder], taken)
            for one, of_folder in zip(folders, lines, strict=True)
        ),
        take=take,
        pictures=dict(sorted(counts.items())),
        left_out=left_out,
    )
    copies = [_copy_of(dataset, sample, names_of_real[sample.path]) for sample in copied]
    return DatasetPlan(record, drawings, taken, copies, folders)


def _copy_of(dataset: Dataset, sample: Sample, name: str) -> RealCopy:
    # The split is of the image alone: image and mask go to different folders.
    place = f"{category_of(dataset, sample)}/{{}}/{defect_of(sample)}/{name}"
    return RealCopy.of(sample, f"{place.format(sample.split)}.png", f"{place.format('ground_truth')}_mask.png")


def _folders(generated: Path | Sequence[Path]) -> list[Path]:
    folders = [generated] if isinstance(generated, Path) else list(generated)
    if not folders:
        raise ArgumentError("generated: expected folders of drawn images, got none. Name one.")
    # A folder that is named twice would count every image twice.
    for index, folder in enumerate(folders):
        if any(folder.resolve() == other.resolve() for other in folders[:index]):
            raise ArgumentError(f"generated: expected every folder once, got {folder} twice. Leave one out.")
    return folders


def _take(accepted: Sequence[DrawnLine], take: Mapping[DrawnSource, int]) -> list[DrawnLine]:
    """Return the lines that are wanted, in their order."""
    present = [source for source in SOURCES if any(line.drawn.source == source for line in accepted)]
    for source, most in take.items():
        if source not in present:
            raise DataError(
                f"take: expected a source of the drawn images ({', '.join(present)}), got {source}. Name its folder "
                "as well, or leave it out."
            )
        if most < 1:
            raise ArgumentError(f"take: expected at least 1 image of {source}, got {most}. Leave its folder out.")
    wanted: set[int] = set()
    for source in present:
        types: dict[tuple[str, str], dict[Path, list[int]]] = {}
        for index, line in enumerate(accepted):
            if line.drawn.source == source:
                folders = types.setdefault((line.drawn.category, line.drawn.defect), {})
                folders.setdefault(line.drawn.folder, []).append(index)
        # One of each type in turn, and of each folder in a type: what has few images leaves its share to the others.
        turns = _in_turn([_in_turn(list(folders.values())) for folders in types.values()])
        wanted.update(turns[: take.get(source)])
    return [line for index, line in enumerate(accepted) if index in wanted]


def _in_turn(groups: Sequence[Sequence[int]]) -> list[int]:
    return [index for row in zip_longest(*groups) for index in row if index is not None]


def _provenance(
    drawings: Sequence[_Drawing], taken: Sequence[DrawnLine], folders: Sequence[Path], labels: Labels
) -> Iterator[ProvenanceLine]:
    for (drawn, image, mask), line in zip(drawings, taken, strict=True):
        fields = decode_json(line.text, dict[str, Any], line.where, "the record of a drawn image")
        yield ProvenanceLine(image, mask, labels, drawn.source, folders.index(drawn.folder), fields)


def _describe(folder: Path, drawn: Sequence[DrawnImage], taken: Sequence[DrawnLine]) -> GeneratedFolder:
    counts = Counter(line.drawn.source for line in taken if line.drawn.folder == folder)
    accepted = sum(one.accepted for one in drawn)
    records = {name: sha256_file(folder / name) for name in MARKERS.values() if (folder / name).exists()}
    described = GeneratedFolder(
        records=records,
        taken={source: counts[source] for source in SOURCES if counts[source]},
        rejected=len(drawn) - accepted,
        spare=accepted - counts.total(),
    )
    if MARKERS["diffusion"] not in records:
        return described
    record = read_json(folder / MARKERS["diffusion"], GenerateRecord, "the record of drawn images")
    return msgspec.structs.replace(described, bundle=record.bundle, digest=record.digest, licence=record.licence)


def _left_out(
    dataset: Dataset, learned: frozenset[str], drawn: Sequence[DrawnImage], support: SupportRecord | None
) -> dict[str, str]:
    """Return the real images that are left out, below the dataset's root, with the reason.

    Images are compared by content: a copy under another name is left out as well.
    """
    if support is not None and (missing := learned - support.contents):
        raise DataError(
            f"support set: expected the one that the images were drawn from, got one without {len(missing)} of its "
            f"{len(learned)} images. Name the right one with --support."
        )
    # Later reasons replace earlier ones: an image that is both is reported as a support image.
    reasons = shown_by(drawn)
    if support is not None:
        reasons |= {image.content: f"probably the same part as {image.like}" for image in support.alike}
    reasons |= dict.fromkeys(learned, "a support image")
    if support is not None:
        reasons |= dict.fromkeys(support.contents, "a support image")
    is_bare = support is not None and support.is_bare
    samples = dataset.samples if is_bare else dataset.test
    hashes = as_recorded(hash_contents(sample.path for sample in samples), reasons)
    if support is not None and is_bare:
        # Without a record it is not known what the originals were: a copy that was saved anew would stay in the test.
        check_found(dataset, support.pictures, frozenset(hashes.values()))
    left_out = {}
    for sample in dataset.samples:
        if sample.split == "test" and hashes[sample.path] in reasons:
            left_out[place_of(dataset, sample.path)] = reasons[hashes[sample.path]]
        elif sample.split == "train" and sample.is_anomalous:
            left_out[place_of(dataset, sample.path)] = "a real defect of the training split"
    return left_out


def _names_of_real(dataset: Dataset, samples: Iterable[Sample]) -> dict[Path, str]:
    """Return the name of every real image: its own stem, numbered if another image of its folder has the same."""
    names: dict[tuple[str, str, str], set[str]] = {}
    chosen = {}
    for sample in samples:
        key = category_of(dataset, sample), sample.split, defect_of(sample)
        stem = check_name(sample.path.stem, "image")
        if ends_like_a_mask(stem):  # indexing the dataset would take it for the mask of another image
            stem += "_image"
        # Numbers are needed although file names differ: a.png and a.jpg both become a.png.
        chosen[sample.path] = free_name(stem, names.setdefault(key, set()))
    return chosen


def _drawings(
    accepted: Sequence[DrawnImage], layout: DatasetLayout, names_of_real: dict[Path, str], labels: Labels
) -> Iterator[_Drawing]:
    """Yield the accepted images with their paths in the dataset."""
    names = set(names_of_real.values())
    if layout == "anogen":
        yield from _drawings_of_anogen(accepted, labels)
        return
    numbered: dict[tuple[str, str], set[str]] = {}
    for line in accepted:
        # Images of several folders have the same numbers.
        used = numbered.setdefault((line.category, line.defect), set())
        stem = free_name(f"synth_{Path(line.image.place).stem}", used)
        # A real image may be called synth_000, for example in a dataset that was itself generated.
        while stem in names:
            stem = f"synth_{stem}"
        place = f"{line.category}/{{}}/{line.defect}/{stem}"
        yield _Drawing(line, place.format("train") + ".png", place.format("ground_truth") + "_mask.png")


def _drawings_of_anogen(accepted: Sequence[DrawnImage], labels: Labels) -> Iterator[_Drawing]:
    contents: dict[str, str] = {}  # path of a mask -> its hash
    numbers: Counter[str] = Counter()
    for line in accepted:
        is_precise = labels == "precise"
        file = line.mask if is_precise else line.box_mask
        good, defect = _part_of_name(Path(line.good).stem), _part_of_name(line.defect)
        # A precise mask is of one drawing alone, so each has the number of its drawing; not every source has box sets.
        stem = _part_of_name(Path(line.image.place if is_precise or not line.box else line.box).stem)
        box, place, turn = stem, _mask_of_anogen(line, good, stem), 1
        # Boxes of one name may be different ones, of another folder or brought to another size.
        while file is not None and contents.setdefault(place, file.sha256) != file.sha256:
            turn += 1
            box = f"{stem}_{turn}"
            place = _mask_of_anogen(line, good, box)
        folder = f"{line.category}/images"
        number = numbers[f"{folder}/{good}-{box}-{defect}"]
        numbers[f"{folder}/{good}-{box}-{defect}"] += 1
        yield _Drawing(line, f"{folder}/{good}-{box}-{number:04d}-{defect}.png", place)


def _mask_of_anogen(line: DrawnImage, good: str, box: str) -> str:
    # Its loaders know masks that are of one image by the name of the category.
    name = f"{good}-{box}" if line.category == _BY_IMAGE else f"{box}-{_part_of_name(line.defect)}"
    return f"{line.category}/masks/{name}.png"


def _part_of_name(text: str) -> str:
    return check_name(text, "normal image, box or defect").replace("-", "_")


def _tiles(folder: Path, drawings: Sequence[_Drawing]) -> dict[str, list[Tile]]:
    """Return the rows of a contact sheet of images that are there."""
    tiles: dict[str, list[Tile]] = {}
    for drawn, image, mask in drawings:
        row = tiles.setdefault(f"{drawn.category}: {drawn.defect}, {drawn.source}", [])
        if len(row) < COLUMNS:
            row.append(small_tile(Path(image).name, read_image(folder / image), read_mask(folder / mask)))
    return tiles
