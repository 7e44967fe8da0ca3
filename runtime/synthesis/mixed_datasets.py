"""Datasets of real and generated images for training detectors and segmenters.

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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from flawscope import __version__
from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents
from flawscope.datasets.defects.file_names import category_of, check_name, defect_of, place_of
from flawscope.datasets.defects.set_files import SHEET, read_json, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, Row, Tile, draw_sheet, small_tile
from flawscope.datasets.defects.support_set import SupportRecord
from flawscope.datasets.mask_pairing import ends_like_a_mask
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable, free_name, sha256_file
from flawscope.imaging.images import read_encoded, read_image
from flawscope.imaging.masks import read_mask
from flawscope.progress import CountProgress
from flawscope.runtime.synthesis.generated_set import MARKER as GENERATED
from flawscope.runtime.synthesis.generated_set import GeneratedImage, GenerateRecord, read_generated

MARKER = "dataset.json"
PROVENANCE = "provenance.jsonl"
_PNG = b"\x89PNG\r\n\x1a\n"

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
        drawn: Its line of `generated.jsonl`.
    """

    image: str
    mask: str
    labels: Labels
    drawn: GeneratedImage


class SynthDatasetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sources of a dataset; the content of `dataset.json`.

    Attributes:
        flawscope: Version that wrote it.
        layout: How the files are laid out.
        labels: Kind of the masks of drawn images.
        bundle: Name of the generator bundle.
        digest: Digest of its manifest.
        licence: Licence of its base model.
        generated: SHA-256 of `generate.json`.
        pictures: CATEGORY/SPLIT/DEFECT → images written; drawn images are counted under CATEGORY/drawn/DEFECT.
        left_out: Image of the real dataset, below its root → the reason why it was left out.
        rejected: Drawn images that were left out because the quality filter rejected them.
        schema: Version of this record.
    """

    flawscope: str
    layout: DatasetLayout
    labels: Labels
    bundle: str
    digest: str
    licence: str
    generated: str
    pictures: dict[str, int]
    left_out: dict[str, str]
    rejected: int
    schema: Literal[1] = 1


class _Drawing(NamedTuple):
    """An accepted image, and the paths that it and its mask get in the dataset."""

    line: GeneratedImage
    image: str
    mask: str


def write_synth_dataset(
    generated: Path,
    dataset: Dataset,
    folder: Path,
    *,
    layout: DatasetLayout = "mvtec",
    labels: Labels = "precise",
    support: SupportRecord | None = None,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> SynthDatasetRecord:
    """Write a dataset of the accepted images of a folder of drawn ones, and of real images.

    The folder appears whole under its name or not at all.

    Args:
        generated: The folder of `generate_images`.
        dataset: The real dataset.
        folder: The folder to make.
        layout: How its files are laid out.
        labels: `precise` for the precise masks, `box` for the regions that were asked for.
        support: The support set; with it, near duplicates of its images are left out of the test split, too. Without
            it, support images are identified by the hashes in `generate.json`.
        progress: Called with the number of images written and their total after each.
        overwrite: Whether an earlier dataset of this kind may be replaced.

    Raises:
        ArgumentError: If `folder` is taken.
        DataError: If nothing was accepted, the support set is another one, or a file is broken or was changed.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    check_replaceable(folder, MARKER, overwrite=overwrite)
    record = read_json(generated / GENERATED, GenerateRecord, "the record of drawn images")
    names = {category_of(dataset, sample) for sample in dataset.samples}
    # One category of a joint generation can be taken alone; what was drawn for others is no error.
    lines = [line for line in read_generated(generated) if line.category in names]
    accepted = [line for line in lines if line.accepted]
    if not accepted:
        raise DataError(
            f"{generated}: expected accepted images of {', '.join(sorted(names))}, got none. Generate more, or name "
            "their category."
        )
    left_out = _left_out(dataset, record, lines, support)
    # Before the names are chosen: an image that is left out must not number another one.
    real = [sample for sample in dataset.samples if place_of(dataset, sample.path) not in left_out]
    names_of_real = _names_of_real(dataset, real)
    drawings = list(_drawings(accepted, layout, names_of_real, labels))
    total = len(drawings) + (len(real) if layout == "mvtec" else 0)
    counts: Counter[str] = Counter()
    with atomic_folder(folder, replace_if=MARKER, overwrite=overwrite) as unfinished:
        tiles = _write_drawings(generated, unfinished, drawings, labels)
        counts.update(f"{line.category}/drawn/{line.defect}" for line in accepted)
        for written, sample in enumerate(real if layout == "mvtec" else (), len(drawings) + 1):
            category, defect = category_of(dataset, sample), defect_of(sample)
            # The split stays a placeholder: image and mask go to different folders.
            _copy_real(unfinished, sample, f"{category}/{{}}/{defect}/{names_of_real[sample.path]}")
            counts[f"{category}/{sample.split}/{defect}"] += 1
            if progress:
                progress(written, total)
        write_image(unfinished / SHEET, draw_sheet([Row(f"{key}, {labels} masks", row) for key, row in tiles.items()]))
        write_lines(unfinished / PROVENANCE, (ProvenanceLine(d.image, d.mask, labels, d.line) for d in drawings))
        result = SynthDatasetRecord(
            flawscope=__version__,
            layout=layout,
            labels=labels,
            bundle=record.bundle,
            digest=record.digest,
            licence=record.licence,
            generated=sha256_file(generated / GENERATED),
            pictures=dict(sorted(counts.items())),
            left_out=left_out,
            rejected=len(lines) - len(accepted),
        )
        write_json(unfinished / MARKER, result)
    return result


def _left_out(
    dataset: Dataset, record: GenerateRecord, lines: Sequence[GeneratedImage], support: SupportRecord | None
) -> dict[str, str]:
    """Return the real images that are left out, below the dataset's root, with the reason.

    Images are compared by content: a copy under another name is left out as well.
    """
    if support is not None and (missing := set(record.support) - support.contents):
        raise DataError(
            f"support set: expected the one that the bundle learned from, got one without {len(missing)} of its "
            f"{len(record.support)} images. Name the right one with --support."
        )
    # Later reasons replace earlier ones: an image that is both is reported as a support image.
    reasons = {line.good_sha256: "defects were drawn on it" for line in lines}
    if support is not None:
        reasons |= {image.content: f"probably the same part as {image.like}" for image in support.alike}
    reasons |= dict.fromkeys(record.support, "a support image")
    if support is not None:
        reasons |= dict.fromkeys(support.contents, "a support image")
    hashes = as_recorded(hash_contents(sample.path for sample in dataset.test), reasons)
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
            stem += "_picture"
        # Numbers are needed although file names differ: a.png and a.jpg both become a.png.
        chosen[sample.path] = free_name(stem, names.setdefault(key, set()))
    return chosen


def _drawings(
    accepted: Sequence[GeneratedImage], layout: DatasetLayout, names_of_real: dict[Path, str], labels: Labels
) -> Iterator[_Drawing]:
    """Yield the accepted images with their paths in the dataset."""
    names = set(names_of_real.values())
    if layout == "anogen":
        yield from _drawings_of_anogen(accepted, labels)
        return
    for line in accepted:
        stem = f"synth_{Path(line.image.place).stem}"
        # A real image may be called synth_000, for example in a dataset that was itself generated.
        while stem in names:
            stem = f"synth_{stem}"
        place = f"{line.category}/{{}}/{line.defect}/{stem}"
        yield _Drawing(line, place.format("train") + ".png", place.format("ground_truth") + "_mask.png")


def _drawings_of_anogen(accepted: Sequence[GeneratedImage], labels: Labels) -> Iterator[_Drawing]:
    contents: dict[str, str] = {}  # path of a mask -> its hash
    numbers: Counter[str] = Counter()
    for line in accepted:
        is_precise = labels == "precise"
        file = line.mask if is_precise else line.box_mask
        good, defect = _part_of_name(Path(line.good).stem), _part_of_name(line.defect)
        # A precise mask is of one drawing alone, so each has the number of its drawing.
        stem = _part_of_name(Path(line.image.place if is_precise else line.box).stem)
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


def _mask_of_anogen(line: GeneratedImage, good: str, box: str) -> str:
    # Its loaders know masks that are of one image by the name of the category.
    name = f"{good}-{box}" if line.category == _BY_IMAGE else f"{box}-{_part_of_name(line.defect)}"
    return f"{line.category}/masks/{name}.png"


def _part_of_name(text: str) -> str:
    return check_name(text, "normal image, box or defect").replace("-", "_")


def _write_drawings(
    generated: Path, folder: Path, drawings: Sequence[_Drawing], labels: Labels
) -> dict[str, list[Tile]]:
    """Copy drawn images and masks, and return the rows of a contact sheet."""
    tiles: dict[str, list[Tile]] = {}
    for line, image, mask in drawings:
        file = line.mask if labels == "precise" else line.box_mask
        if file is None:
            raise DataError(f"{line.image.place}: expected the masks of an accepted image, got none. Generate again.")
        # Bytes and not decoded pixels: `read_generated` has compared them with their hashes.
        for place, source in ((image, line.image.place), (mask, file.place)):
            _write(folder / place, read_encoded(generated / source))
        row = tiles.setdefault(f"{line.category}: {line.defect}", [])
        if len(row) < COLUMNS:
            row.append(small_tile(Path(image).name, read_image(folder / image), read_mask(folder / mask)))
    return tiles


def _copy_real(folder: Path, sample: Sample, place: str) -> None:
    """Write a real image as PNG, byte for byte if it is one already, and its mask with the values 0 and 255."""
    image = read_image(sample.path)  # a PNG file is decoded too: a broken one fails here and not in a later training
    target = folder / f"{place.format(sample.split)}.png"
    data = read_encoded(sample.path)
    if data.startswith(_PNG):  # by content: a suffix may lie
        _write(target, data)
    else:
        write_image(target, image)
    if (mask := sample.read_mask()) is not None:
        write_mask(folder / f"{place.format('ground_truth')}_mask.png", mask)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
