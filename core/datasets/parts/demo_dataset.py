"""Writes a dataset of rendered parts in the layout of MVTec AD.

ROOT/KIND/train/good/000.png            ROOT/KIND/ground_truth/DEFECT/000_mask.png
ROOT/KIND/test/good/000.png             ROOT/contact_sheet.png
ROOT/KIND/test/DEFECT/000.png           ROOT/parts.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawscope.datasets.defects.set_files import write_image, write_json, write_mask
from flawscope.datasets.parts.contact_sheet import Tile, contact_sheet
from flawscope.datasets.parts.part_renderer import (
    DEFECTS,
    GENERATOR_VERSION,
    KINDS,
    check_number,
    check_request,
    render,
)
from flawscope.errors import ArgumentError
from flawscope.files import atomic_folder
from flawscope.progress import CountProgress

MARKER = "parts.json"
MAX_COUNT = 100_000
# Index of the first normal test image. A constant, so that test images do not depend on the number of training images;
# above MAX_COUNT, so that no image is in both splits.
_FIRST_TEST = 1_000_000


class PartsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a rendered dataset; the content of `parts.json`.

    Attributes:
        generator_version: Version of the renderer: the same version and numbers give the same pixels.
        seed: Seed of the dataset.
        size: Side of the images in pixels.
        train: Normal training images of each kind.
        test_good: Normal test images of each kind.
        test_defective: Test images of each defect.
        defects: Defects of each kind.
    """

    generator_version: int
    seed: int
    size: int
    train: int
    test_good: int
    test_defective: int
    defects: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Rendering:
    """One image: its folder and number on disk, and the index and defect that decide its pixels."""

    folder: str
    number: int
    index: int
    defect: str | None


def _images(kind: str, record: PartsRecord) -> Iterator[_Rendering]:
    for number in range(record.train):
        yield _Rendering("train/good", number, number, None)
    for number in range(record.test_good):
        yield _Rendering("test/good", number, _FIRST_TEST + number, None)
    for defect in record.defects[kind]:
        for number in range(record.test_defective):
            yield _Rendering(f"test/{defect}", number, number, defect)


def _record(
    kinds: Sequence[str], *, seed: int, size: int, train: int, test_good: int, test_defective: int
) -> PartsRecord:
    # A string is a sequence of strings too: "gear" would be read as the kinds g, e, a, r.
    if isinstance(kinds, str) or not kinds or len(set(kinds)) != len(kinds):
        raise ArgumentError(
            f"kinds: expected different kinds out of {', '.join(KINDS)}, got {kinds!r}. Name each once."
        )
    for kind in kinds:
        check_request(kind, seed, size)
    return PartsRecord(
        generator_version=GENERATOR_VERSION,
        seed=seed,
        size=size,
        train=check_number(train, "train", 1, MAX_COUNT),
        test_good=check_number(test_good, "test_good", 0, MAX_COUNT),
        test_defective=check_number(test_defective, "test_defective", 0, MAX_COUNT),
        defects={kind: DEFECTS[kind] for kind in kinds},
    )


def write_dataset(
    root: Path,
    kinds: Sequence[str] = KINDS,
    *,
    seed: int = 0,
    size: int = 256,
    train: int = 80,
    test_good: int = 30,
    test_defective: int = 12,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> None:
    """Write a dataset of rendered parts with exact masks, a contact sheet and a record of its settings.

    The folder appears whole under its name or not at all.

    Args:
        root: The folder to make; each kind becomes a category in it.
        kinds: Which of `KINDS`.
        seed: Seed of the dataset, at least 0.
        size: Side of the images in pixels.
        train: Normal training images of each kind.
        test_good: Normal test images of each kind.
        test_defective: Test images of each defect of each kind.
        progress: Called with the number of images written and their total after each image.
        overwrite: Whether an earlier dataset of this kind may be replaced.

    Raises:
        ArgumentError: If an argument is unknown or out of range, or `root` holds something else.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    record = _record(kinds, seed=seed, size=size, train=train, test_good=test_good, test_defective=test_defective)
    total = sum(sum(1 for _ in _images(kind, record)) for kind in kinds)
    written = 0
    with atomic_folder(root, replace_if=MARKER, overwrite=overwrite) as folder:
        for kind in kinds:
            for rendering in _images(kind, record):
                image, mask = render(kind, seed, rendering.index, size, rendering.defect)
                name = f"{rendering.number:03d}"
                write_image(folder / kind / rendering.folder / f"{name}.png", image)
                if rendering.defect is not None:
                    path = folder / kind / "ground_truth" / rendering.defect / f"{name}_mask.png"
                    write_mask(path, mask)
                written += 1
                if progress is not None:
                    progress(written, total)
        write_image(folder / "contact_sheet.png", contact_sheet([_tiles(kind, seed, size) for kind in kinds]))
        write_json(folder / MARKER, record)


def _tiles(kind: str, seed: int, size: int) -> list[Tile]:
    """Return one normal part and the first image of each defect."""
    choices: list[str | None] = [None, *DEFECTS[kind]]
    return [Tile(f"{kind}: {defect or 'good'}", *render(kind, seed, 0, size, defect)) for defect in choices]
