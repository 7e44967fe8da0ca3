"""Folders of drawn defects, whatever drew them: one lean reader for all that learn from them or measure by them.

    DIR/generated.jsonl     a line for each image; its `source` tells what drew it: diffusion where it is absent
    DIR/generate.json       record of `synth generate`; those of other sources are paste.json and perlin.json

Every source writes more into its lines than is read here, and has a reader of its own for that. Lines of several
sources may lie in one folder, beside the records of all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from flawscope.datasets.defects.file_names import check_defect_name, check_name
from flawscope.datasets.defects.set_files import Sha256, Text, decode_json, read_json, read_lines
from flawscope.datasets.fingerprints import content_hash
from flawscope.datasets.record_paths import place_below
from flawscope.errors import DataError

LINES = "generated.jsonl"
"""Name of the file of lines in a folder of drawn images."""

DrawnSource = Literal["diffusion", "paste", "perlin"]
SOURCES: tuple[DrawnSource, ...] = get_args(DrawnSource)

MARKERS: dict[DrawnSource, str] = {"diffusion": "generate.json", "paste": "paste.json", "perlin": "perlin.json"}
"""Source → name of the record that a run of it leaves in its folder."""


class StoredFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the folder: its path below it, and the SHA-256 of its bytes."""

    place: str
    sha256: str


@dataclass(frozen=True)
class DrawnImage:
    """An image with a drawn defect, and its masks.

    Attributes:
        folder: The folder that it lies in; `path`, `mask_path` and `box_mask_path` are the files below it.
        source: What drew it.
        category: Name of the category.
        defect: Defect type.
        accepted: Whether it may be learned from.
        image: The image.
        mask: The precise mask; only a rejected image may have none.
        box_mask: Where the defect was asked for; only a rejected image may have none.
        good: The normal image that was drawn on, below its dataset's root.
        good_sha256: SHA-256 of that image's bytes.
        box: Name of the mask that it was asked for by, below its box set; empty where a source takes none.
        texture_sha256: SHA-256 of the bytes of the image whose texture it shows; empty where a source takes none.
    """

    folder: Path
    source: DrawnSource
    category: str
    defect: str
    accepted: bool
    image: StoredFile
    mask: StoredFile | None
    box_mask: StoredFile | None
    good: str
    good_sha256: str
    box: str = ""
    texture_sha256: str = ""

    @property
    def path(self) -> Path:
        """The image file."""
        return self.folder / self.image.place

    @property
    def mask_path(self) -> Path:
        """The file of the precise mask.

        Raises:
            DataError: If it has none, as a rejected image may.
        """
        return self.folder / self._named(self.mask).place

    @property
    def box_mask_path(self) -> Path:
        """The file of the mask that was asked for.

        Raises:
            DataError: If it has none, as a rejected image may.
        """
        return self.folder / self._named(self.box_mask).place

    def _named(self, mask: StoredFile | None) -> StoredFile:
        if mask is None:
            raise DataError(f"{self.path}: expected the masks of an accepted image, got none. Draw it again.")
        return mask


class DrawnLine(NamedTuple):
    """A line of a folder of drawn images.

    Attributes:
        drawn: What every source writes.
        text: The whole line, JSON, for the source's own reader.
        where: File and line, for messages.
    """

    drawn: DrawnImage
    text: msgspec.Raw
    where: str


class _Fields(msgspec.Struct, frozen=True):
    # Fields of the sources' own are passed over.
    category: Text
    defect: Text
    accepted: bool
    image: StoredFile
    mask: StoredFile | None
    box_mask: StoredFile | None
    good: Text
    good_sha256: Sha256
    box: str = ""
    texture_sha256: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")] = ""
    source: DrawnSource = "diffusion"


class _Source(msgspec.Struct, frozen=True):
    source: DrawnSource = "diffusion"


class _Record(msgspec.Struct, frozen=True):
    support: tuple[Sha256, ...]


def read_drawn(folder: Path, *, with_rejected: bool = False) -> list[DrawnImage]:
    """Read a folder of drawn images; its images and masks must be unchanged.

    Args:
        folder: The folder.
        with_rejected: Return images too that a filter has rejected. Nothing may learn from them, but the normal images
            that they were drawn on have been used.

    Returns:
        The images in the order of the lines.

    Raises:
        DataError: If a line or a file is missing, broken or was changed.
    """
    return [line.drawn for line in read_drawn_lines(folder) if line.drawn.accepted or with_rejected]


def read_drawn_lines(folder: Path, *, are_files_checked: bool = True) -> list[DrawnLine]:
    """Read all lines of a folder of drawn images as `read_drawn`, accepted or not, with their texts.

    Args:
        folder: The folder.
        are_files_checked: Whether images and masks are read, and compared with their lines; otherwise whoever reads
            them later has to.
    """
    lines = []
    for where, text in read_lines(folder / LINES, msgspec.Raw, "the record of a drawn image", "drawn images"):
        fields = decode_json(text, _Fields, where, "the record of a drawn image")
        # They become folders of datasets, and the file may come from anywhere.
        check_name(fields.category, f"{where}: category")
        check_defect_name(fields.defect, f"{where}: defect type")
        files = (fields.image, fields.mask, fields.box_mask)
        if fields.accepted and None in files:
            raise DataError(f"{where}: expected both masks of an accepted image, got none. Draw it again.")
        for file in files:
            if file is None:
                continue
            # `place_below` first: a path such as ../../x in a line must not be opened.
            place = folder / place_below(folder, file.place, where)
            if are_files_checked and content_hash(place) != file.sha256:
                raise DataError(f"{place}: expected the file that was drawn, got other content. Generate it again.")
        lines.append(DrawnLine(DrawnImage(folder=folder, **msgspec.structs.asdict(fields)), text, where))
    return lines


def read_learned(folder: Path) -> frozenset[str]:
    """Return the content hashes of the support images that the drawings of a folder were made from.

    An evaluation of what learns from the drawings has to leave them out.

    Raises:
        DataError: If the record of a source that drew images of the folder is missing or broken.
    """
    sources = {
        decode_json(text, _Source, where, "the record of a drawn image").source
        for where, text in read_lines(folder / LINES, msgspec.Raw, "the record of a drawn image", "drawn images")
    }
    # The record of each source that has drawn: without it, the images that it learned from would count as unseen.
    # With no line at all, of any source: it may be a folder of another kind.
    markers = [folder / name for source, name in MARKERS.items() if source in sources or (folder / name).exists()]
    markers = markers or [folder / MARKERS["diffusion"]]
    records = [read_json(marker, _Record, "the record of drawn images") for marker in markers]
    return frozenset(content for record in records for content in record.support)


def shown_by(lines: Collection[DrawnImage]) -> dict[str, str]:
    """Return the content hash of every real image that drawn images show -> how they show it.

    Support images are not among them: those are in the records of the folders (`read_learned`).
    """
    shown = {line.texture_sha256: "it is a texture of drawn defects" for line in lines if line.texture_sha256}
    return shown | {line.good_sha256: "defects were drawn on it" for line in lines}


def first_of_each(lines: Sequence[DrawnImage], number: int | None) -> list[DrawnImage]:
    """Return up to `number` drawn images: the first of every folder and defect type, the second of each, and so on."""
    counts: Counter[tuple[Path, str, str]] = Counter()
    turns = []
    for line in lines:
        key = (line.folder, line.category, line.defect)
        turns.append(counts[key])
        counts[key] += 1
    # Sorting is stable: within a turn the order is that of the folders and their lines.
    order = sorted(range(len(lines)), key=turns.__getitem__)[:number]
    return [lines[index] for index in sorted(order)]
