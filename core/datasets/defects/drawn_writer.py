"""Writing of folders of defects that were drawn without a network, in the layout of `synth generate`.

What every such source has is here: its settings, lines and record, the normal images that it draws on, and the writing.

DIR/CATEGORY/gen_img/DEFECT/NNN.png      the images
DIR/CATEGORY/prs_mask/DEFECT/NNN.png     their masks
DIR/CATEGORY/box_mask/DEFECT/NNN.png     boxes around them
DIR/generated.jsonl                      a line for each image; see `drawn_set`
DIR/contact_sheet.png
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, Sample, content_hash
from flawscope.datasets.defects.box_sets import Ground as Within
from flawscope.datasets.defects.drawn_set import LINES, MARKERS, DrawnSource, StoredFile
from flawscope.datasets.defects.file_names import category_of, place_of
from flawscope.datasets.defects.foreground import find_foreground
from flawscope.datasets.defects.seeded_choice import check_count, check_seed
from flawscope.datasets.defects.set_files import SHEET, write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Row, Tile, draw_sheet, small_tile
from flawscope.errors import DataError
from flawscope.files import atomic_folder, sha256_file
from flawscope.imaging.boxes import boxes_of, mask_of
from flawscope.imaging.images import read_image
from flawscope.progress import CountProgress
from flawscope.versions import package_versions

Record = TypeVar("Record", bound="DrawnRecord")


MOST_IMAGES = 1_000_000
"""Far beyond any real run: a mistyped number fails before anything is drawn."""


class GroundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where defects are drawn, and how long a place is looked for.

    Attributes:
        seed: Seed of every random choice.
        within: Defects lie in the "foreground" of the normal image, or anywhere in the "image".
        solid: The part has no holes; see `find_foreground`.
        tries: Most places drawn for one image.
    """

    seed: int = 0
    within: Within = "foreground"
    solid: bool = False
    tries: int = 1000

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_count(self.tries, "tries", 1, 10_000_000)


class DrawnFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the line of an image says, whatever drew it.

    Attributes:
        number: Number of the line, from 0.
        source: What drew it.
        category: Name of the category.
        defect: Defect type.
        accepted: Always true: what changes too little is not written.
        image: The image.
        mask: Mask of the pixels that were changed.
        box_mask: Boxes around it.
        good: The normal image, below the dataset's root.
        good_sha256: SHA-256 of its bytes.
    """

    number: int
    source: DrawnSource
    category: str
    defect: str
    accepted: bool = True
    image: StoredFile
    mask: StoredFile
    box_mask: StoredFile
    good: str
    good_sha256: str


class DrawnRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Cost and result of a folder.

    Attributes:
        flawscope: Version that wrote it.
        support: SHA-256 of every support image that could be taken.
        defects: CATEGORY/DEFECT → images.
        seconds: Time of reading, drawing and writing all images.
        seconds_per_picture: `seconds` per image.
        versions: Versions of the packages that influence the numbers.
        schema: Version of this record.
    """

    flawscope: str
    support: tuple[str, ...]
    defects: dict[str, int]
    seconds: float
    seconds_per_picture: float
    versions: dict[str, str]
    schema: Literal[1] = 1


class Drawing(NamedTuple):
    """A drawn image that is to be written.

    Attributes:
        category: Name of its category.
        defect: Its defect type.
        shown: What it was made of, for the contact sheet.
        image: Its pixels, uint8 [H, W, 3] RGB.
        mask: Its mask, bool [H, W].
        ground: The normal image.
        line: Makes its line of the fields of `DrawnFields` but `source` and `accepted`.
    """

    category: str
    defect: str
    shown: str
    image: UInt8Array
    mask: BoolArray
    ground: Ground
    line: Callable[..., DrawnFields]


def write_drawings(
    dataset: Dataset,
    folder: Path,
    drawings: Iterable[Drawing],
    total: int,
    make_record: Callable[..., Record],
    *,
    source: DrawnSource,
    progress: CountProgress | None,
    overwrite: bool,
) -> Record:
    """Write a folder of drawn images, which appears whole under its name or not at all.

    Args:
        dataset: The dataset with the normal images.
        folder: The folder to write.
        drawings: The images, each drawn when its turn comes.
        total: Their number.
        make_record: Makes the record of the fields of `DrawnRecord` but `support` and `schema`.
        source: What draws.
        progress: Called with the number of images written and their total after each.
        overwrite: Whether an earlier folder of this source may be replaced.

    Raises:
        ArgumentError: If `folder` is taken.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    started = time.perf_counter()
    lines: list[DrawnFields] = []
    with atomic_folder(folder, replace_if=MARKERS[source], overwrite=overwrite) as unfinished:
        writer = _Writer(unfinished)
        for one in drawings:
            image, mask, box_mask = writer.add(one)
            lines.append(
                one.line(
                    number=len(lines),
                    category=one.category,
                    defect=one.defect,
                    image=image,
                    mask=mask,
                    box_mask=box_mask,
                    good=place_of(dataset, one.ground.sample.path),
                    good_sha256=one.ground.sha256,
                )
            )
            if progress:
                progress(len(lines), total)
        found = writer.finish(lines)
        seconds, versions = time.perf_counter() - started, package_versions()
        record = make_record(
            flawscope=versions["flawscope"],
            defects=found,
            seconds=seconds,
            seconds_per_picture=seconds / total,
            versions=versions,
        )
        write_json(unfinished / MARKERS[source], record)
    return record


class _Writer:
    """Writes images and masks below a folder that is being written, and collects the contact sheet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: Counter[tuple[str, str]] = Counter()
        self._rows: dict[tuple[str, str], dict[str, list[Tile]]] = {}

    def add(self, drawing: Drawing) -> tuple[StoredFile, StoredFile, StoredFile]:
        """Write an image, its mask and the boxes around it."""
        category, defect, shown, image, mask = drawing[:5]
        self._counts[category, defect] += 1
        name = f"{defect}/{self._counts[category, defect]:03d}.png"
        boxes = mask_of(boxes_of(mask, per_component=True), (mask.shape[0], mask.shape[1]))
        rows = self._rows.setdefault((category, defect), {"drawn": [], "masks and boxes": []})
        if len(rows["drawn"]) < COLUMNS:
            rows["drawn"].append(small_tile(name.rpartition("/")[2], image))
            masked, boxed = small_tile(shown, image, mask, MAGENTA), small_tile(shown, image, boxes, CYAN)
            rows["masks and boxes"].append(Tile(shown, masked.image, (*boxed.outlines, *masked.outlines)))
        return (
            self._stored(f"{category}/gen_img/{name}", image),
            self._stored(f"{category}/prs_mask/{name}", mask),
            self._stored(f"{category}/box_mask/{name}", boxes),
        )

    def finish(self, lines: Iterable[Any]) -> dict[str, int]:
        """Write the lines and the sheet, and return CATEGORY/DEFECT → images."""
        titled = [
            Row(f"{category}: {defect}, {title}", tiles)
            for (category, defect), rows in self._rows.items()
            for title, tiles in rows.items()
        ]
        write_lines(self._folder / LINES, lines)
        write_image(self._folder / SHEET, draw_sheet(titled))
        return {f"{category}/{defect}": count for (category, defect), count in self._counts.items()}

    def _stored(self, place: str, pixels: UInt8Array | BoolArray) -> StoredFile:
        path = self._folder / place
        if pixels.dtype == np.bool_:
            write_mask(path, pixels.astype(np.bool_, copy=False))  # astype narrows the type for mypy, without a copy
        else:
            write_image(path, pixels.astype(np.uint8, copy=False))
        return StoredFile(place, sha256_file(path))


class Ground(NamedTuple):
    """A normal image to draw on: its sample, pixels, the hash of its file, and where the part is, if that counts."""

    sample: Sample
    image: UInt8Array
    sha256: str
    part: BoolArray | None


class Grounds:
    """The normal training images of a category, without any that a defect was learned from."""

    def __init__(self, dataset: Dataset, category: str, learned: frozenset[str], settings: GroundSettings) -> None:
        goods = [sample for sample in dataset.train_good if category_of(dataset, sample) == category]
        # By content: the same image under another name would be a defect drawn on a defect.
        self._hashes = {sample.path: content_hash(sample.path) for sample in goods}
        self.samples: Sequence[Sample] = [sample for sample in goods if self._hashes[sample.path] not in learned]
        self._settings = settings
        if not self.samples:
            raise DataError(
                f"{dataset.root}: {category}: expected normal training images that no defect was learned from, got "
                "none. Add some."
            )

    def draw(self, rng: np.random.Generator) -> Ground:
        """Return a random one."""
        return self.open(self.samples[int(rng.integers(len(self.samples)))])

    def open(self, sample: Sample) -> Ground:
        """Return one of them."""
        image = read_image(sample.path)
        is_within = self._settings.within == "foreground"
        part = find_foreground(image, is_solid=self._settings.solid) if is_within else None
        return Ground(sample, image, self._hashes[sample.path], part)
