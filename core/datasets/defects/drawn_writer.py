"""Writing of folders of defects that were drawn without a network, in the layout of `synth generate`.

DIR/CATEGORY/gen_img/DEFECT/NNN.png      the images
DIR/CATEGORY/prs_mask/DEFECT/NNN.png     their masks
DIR/CATEGORY/box_mask/DEFECT/NNN.png     boxes around them
DIR/generated.jsonl                      a line for each image; see `drawn_set`
DIR/contact_sheet.png
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, Sample, content_hash
from flawscope.datasets.defects.drawn_set import LINES, StoredFile
from flawscope.datasets.defects.file_names import category_of
from flawscope.datasets.defects.foreground import find_foreground
from flawscope.datasets.defects.set_files import SHEET, write_image, write_lines, write_mask
from flawscope.datasets.defects.set_sheets import COLUMNS, CYAN, MAGENTA, Row, Tile, draw_sheet, small_tile
from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.imaging.boxes import boxes_of, mask_of
from flawscope.imaging.images import read_image


class Stored(NamedTuple):
    """The files of one image."""

    image: StoredFile
    mask: StoredFile
    box_mask: StoredFile


class DrawnWriter:
    """Writes images and masks below a folder that is being written, and collects the contact sheet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: Counter[tuple[str, str]] = Counter()
        self._rows: dict[tuple[str, str], dict[str, list[Tile]]] = {}

    def add(self, category: str, defect: str, source: str, image: UInt8Array, mask: BoolArray) -> Stored:
        """Write one image, its mask and the boxes around it; `source` is its label on the sheet."""
        self._counts[category, defect] += 1
        name = f"{defect}/{self._counts[category, defect]:03d}.png"
        boxes = mask_of(boxes_of(mask, per_component=True), (mask.shape[0], mask.shape[1]))
        rows = self._rows.setdefault((category, defect), {"drawn": [], "masks and boxes": []})
        if len(rows["drawn"]) < COLUMNS:
            rows["drawn"].append(small_tile(name.rpartition("/")[2], image))
            shown, boxed = small_tile(source, image, mask, MAGENTA), small_tile(source, image, boxes, CYAN)
            rows["masks and boxes"].append(Tile(source, shown.image, (*boxed.outlines, *shown.outlines)))
        return Stored(
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

    def __init__(
        self, dataset: Dataset, category: str, learned: frozenset[str], *, on_part: bool, is_solid: bool
    ) -> None:
        goods = [sample for sample in dataset.train_good if category_of(dataset, sample) == category]
        # By content: the same image under another name would be a defect drawn on a defect.
        self._hashes = {sample.path: content_hash(sample.path) for sample in goods}
        self.samples: Sequence[Sample] = [sample for sample in goods if self._hashes[sample.path] not in learned]
        self._on_part, self._is_solid = on_part, is_solid
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
        part = find_foreground(image, is_solid=self._is_solid) if self._on_part else None
        return Ground(sample, image, self._hashes[sample.path], part)
