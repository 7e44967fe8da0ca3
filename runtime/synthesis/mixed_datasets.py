"""Datasets of real and drawn images that a detector or a segmenter learns from.

    mvtec    NAME/train/good/*                   the real normal training images
             NAME/train/DEFECT/synth_NNN.png     accepted drawings: training images, never test images
             NAME/test/{good,DEFECT}/*           the real test images without what the generator has seen
             NAME/ground_truth/DEFECT/*_mask.png masks of both
    anogen   NAME/DEFECT/GOOD-BOX/samples/NNNN.png and .../masks/NNNN.png: drawings alone
    both     provenance.jsonl, dataset.json, contact_sheet.png beside NAME

In the layout `mvtec` a mask is found by defect type and name, whatever the split, and the images of a test split are
called 000, 001, ... too: `synth_` keeps a drawing's mask from being taken for that of a test image.

In the layout `anogen` GOOD and BOX are the whole names of the normal image and of the box, so that two images never
share one; AnoGen takes their first three characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from flawscope import __version__
from flawscope.datasets import Dataset, Sample, hash_contents
from flawscope.datasets.defects.file_names import category_of, check_name, defect_of, place_of
from flawscope.datasets.defects.set_files import SHEET, read_json, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, Row, Tile, draw_sheet
from flawscope.datasets.defects.support_set import SupportRecord
from flawscope.errors import DataError
from flawscope.files import atomic_folder, check_replaceable, free_name, sha256_file
from flawscope.imaging.images import read_image, read_mask
from flawscope.progress import CountProgress
from flawscope.runtime.synthesis.generated_set import MARKER as GENERATED
from flawscope.runtime.synthesis.generated_set import GeneratedImage, GenerateRecord, read_generated
from flawscope.runtime.synthesis.generation import small_tile

MARKER = "dataset.json"
PROVENANCE = "provenance.jsonl"
_PNG = b"\x89PNG\r\n\x1a\n"

DatasetLayout = Literal["mvtec", "anogen"]
Labels = Literal["precise", "box"]


class ProvenanceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a drawn image of the dataset comes from.

    Attributes:
        image: The image, below the dataset's folder.
        mask: Its mask, below the dataset's folder.
        labels: What the mask shows.
        drawn: Its line of `generated.jsonl`.
    """

    image: str
    mask: str
    labels: Labels
    drawn: GeneratedImage


class SynthDatasetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dataset was made from; the content of `dataset.json`.

    Attributes:
        flawscope: Version that wrote it.
        layout: How the files are laid out.
        labels: What the masks of drawn images show.
        bundle: Name of the bundle that drew.
        digest: Digest of its manifest.
        licence: Licence of its base model.
        generated: SHA-256 of `generate.json`.
        pictures: CATEGORY/SPLIT/DEFECT → images written; what was drawn is counted under CATEGORY/drawn/DEFECT.
        left_out: Image of the real dataset, below its root → why an evaluation must not see it, or why it is not
            there.
        rejected: Drawn images that were left out because the filter rejected them.
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
    """An accepted image, and where it and its mask go."""

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
) -> SynthDatasetRecord:
    """Write a dataset of the accepted images of a folder of drawn ones, and of real images.

    The folder appears whole under its name or not at all. An earlier one is replaced.

    Args:
        generated: The folder of `generate_images`.
        dataset: The real dataset.
        folder: The folder to make.
        layout: How its files are laid out.
        labels: Whether masks show what was drawn (`precise`), or where it was asked for (`box`).
        support: The support set; with it images that look like the same parts are left out of the test split, too.
            Without, support images are known by the hashes in `generate.json`.
        progress: Called with the number of images written and their total after each.

    Raises:
        ArgumentError: If `folder` holds something else.
        DataError: If nothing was accepted, the support set is another one, or a file is broken or was changed.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    check_replaceable(folder, MARKER)
    record = read_json(generated / GENERATED, GenerateRecord, "the record of drawn images")
    names = {category_of(dataset, sample) for sample in dataset.samples}
    lines = [line for line in read_generated(generated) if line.category in names]
    accepted = [line for line in lines if line.accepted]
    if not accepted:
        raise DataError(
            f"{generated}: expected accepted images of {', '.join(sorted(names))}, got none. Generate more, or name "
            "their category."
        )
    left_out = _left_out(dataset, record, lines, support)
    real = [sample for sample in dataset.samples if place_of(dataset, sample.path) not in left_out]
    taken = _taken(dataset, real)
    drawings = list(_drawings(accepted, layout, taken))
    total = len(drawings) + (len(real) if layout == "mvtec" else 0)
    counts: Counter[str] = Counter()
    with atomic_folder(folder, replace_if=MARKER) as made:
        tiles = _write_drawings(generated, made, drawings, labels)
        counts.update(f"{line.category}/drawn/{line.defect}" for line in accepted)
        for done, sample in enumerate(real if layout == "mvtec" else (), len(drawings) + 1):
            category, defect = category_of(dataset, sample), defect_of(sample)
            _copy_real(made, sample, f"{category}/{{}}/{defect}/{taken[sample.path]}")
            counts[f"{category}/{sample.split}/{defect}"] += 1
            if progress:
                progress(done, total)
        write_image(made / SHEET, draw_sheet([Row(f"{key}, {labels} masks", row) for key, row in tiles.items()]))
        write_lines(made / PROVENANCE, (ProvenanceLine(d.image, d.mask, labels, d.line) for d in drawings))
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
        write_json(made / MARKER, result)
    return result


def _left_out(
    dataset: Dataset, record: GenerateRecord, lines: Sequence[GeneratedImage], support: SupportRecord | None
) -> dict[str, str]:
    """Return the real images that are not taken over, below the dataset's root, with the reason.

    Images are known by their content: a copy under another name is left out as well.
    """
    if support is not None and (missing := set(record.support) - support.contents):
        raise DataError(
            f"support set: expected the one that the bundle learned from, got one without {len(missing)} of its "
            f"{len(record.support)} images. Name the right one with --support."
        )
    reasons = {line.good_sha256: "defects were drawn on it" for line in lines}
    if support is not None:
        reasons |= {one.content: f"probably the same part as {one.like}" for one in support.alike}
    reasons |= dict.fromkeys(record.support, "a support image")
    if support is not None:
        reasons |= dict.fromkeys(support.contents, "a support image")
    hashes = hash_contents(sample.path for sample in dataset.test)
    found = {}
    for sample in dataset.samples:
        if sample.split == "test" and hashes[sample.path] in reasons:
            found[place_of(dataset, sample.path)] = reasons[hashes[sample.path]]
        elif sample.split == "train" and sample.is_anomalous:
            found[place_of(dataset, sample.path)] = "a real defect of the training split"
    return found


def _taken(dataset: Dataset, samples: Iterable[Sample]) -> dict[Path, str]:
    """Return what every real image is called: its own stem, numbered where another of its folder has it."""
    names: dict[tuple[str, str, str], set[str]] = {}
    found = {}
    for sample in samples:
        key = category_of(dataset, sample), sample.split, defect_of(sample)
        stem = check_name(sample.path.stem, "image")
        if stem.lower().endswith("_mask"):  # beside other images that is the name of a mask
            stem += "_picture"
        found[sample.path] = free_name(stem, names.setdefault(key, set()))
    return found


def _drawings(accepted: Sequence[GeneratedImage], layout: DatasetLayout, taken: dict[Path, str]) -> Iterator[_Drawing]:
    """Yield the accepted images with their places."""
    names = set(taken.values())
    numbers: Counter[str] = Counter()
    for line in accepted:
        if layout == "anogen":
            pair = f"{Path(line.good).stem}-{Path(line.box).stem}"
            folder = f"{line.category}/{line.defect}/{check_name(pair, 'normal image and box')}"
            number = f"{numbers[folder]:04d}.png"
            numbers[folder] += 1
            yield _Drawing(line, f"{folder}/samples/{number}", f"{folder}/masks/{number}")
            continue
        stem = f"synth_{Path(line.image.place).stem}"
        while stem in names:
            stem = f"synth_{stem}"
        place = f"{line.category}/{{}}/{line.defect}/{stem}"
        yield _Drawing(line, place.format("train") + ".png", place.format("ground_truth") + "_mask.png")


def _write_drawings(generated: Path, made: Path, drawings: Sequence[_Drawing], labels: Labels) -> dict[str, list[Tile]]:
    """Copy drawn images and masks, and return the rows of a contact sheet."""
    tiles: dict[str, list[Tile]] = {}
    for line, image, mask in drawings:
        file = line.mask if labels == "precise" else line.box_mask
        if file is None:
            raise DataError(f"{line.image.place}: expected the masks of an accepted image, got none. Generate again.")
        for place, source in ((image, line.image.place), (mask, file.place)):
            _write(made / place, (generated / source).read_bytes())
        row = tiles.setdefault(f"{line.category}: {line.defect}", [])
        if len(row) < COLUMNS:
            row.append(small_tile(Path(image).name, read_image(made / image), read_mask(made / mask)))
    return tiles


def _copy_real(made: Path, sample: Sample, place: str) -> None:
    """Write a real image as PNG, byte for byte where it is one, and its mask with the values 0 and 255."""
    image = read_image(sample.path)  # of a PNG file, too: a broken one is said here, not in a training hours later
    target = made / f"{place.format(sample.split)}.png"
    data = sample.path.read_bytes()
    if data.startswith(_PNG):
        _write(target, data)
    else:
        write_image(target, image)
    if (mask := sample.read_mask()) is not None:
        write_mask(made / f"{place.format('ground_truth')}_mask.png", mask)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
