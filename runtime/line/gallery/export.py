"""Reviewed images as data sets: a folder for each view, laid out as `calibrate` and `train` read it.

STATION/VIEW/good/part-17.png
STATION/VIEW/scratch/part-21.png
reviews.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from flawscope.errors import DataError
from flawscope.imaging.images import EXTENSIONS
from flawscope.runtime.line.gallery.defect_types import GOOD, UNNAMED
from flawscope.runtime.line.gallery.stored import read_image
from flawscope.runtime.line.journal.reviews import Review
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.text import encode_json

LIST = "reviews.jsonl"
"""File that says of each review what became of it, one JSON object a line; no data set reads it, as it is beside."""

_PAGE = 1000
_SEALED = "the row of the part is sealed, and its image deleted with it"


class ReadsReviews(Protocol):
    """What is asked of the journal."""

    def reviews(self, seq: int | None = None, after: int = 0, limit: int = 1000) -> list[Review]:
        """Return reviews in the order in which they were made."""

    def part_of(self, seq: int) -> PartRecord | None:
        """Return a part by its last revision; None where it has no record."""


class Wanted(NamedTuple):
    """Which reviews are exported.

    Attributes:
        station: Name of the station; empty for all.
        view: Name of the view; empty for all.
    """

    station: str = ""
    view: str = ""


class Exported(NamedTuple):
    """One file of an export.

    Attributes:
        path: Its path in the folder, with slashes.
        data: Its bytes.
    """

    path: str
    data: bytes


class Tally:
    """How much was exported, while it is.

    Attributes:
        folders: Data set -> its number of images.
        left_out: Why images were left out -> their number.
    """

    def __init__(self) -> None:
        self.folders: dict[str, int] = {}
        self.left_out: dict[str, int] = {}


def last_reviews(journal: ReadsReviews) -> dict[tuple[int, str], Review]:
    """Return number of the part and view -> the last review; the view is empty where it is of all of them.

    Raises:
        StorageError: If the journal cannot be read.
    """
    found: dict[tuple[int, str], Review] = {}
    after = 0
    while page := journal.reviews(None, after, _PAGE):
        for review in page:
            found[review.seq, review.view] = review
        after = page[-1].link
    return found


def exported(journal: ReadsReviews, state: Path, wanted: Wanted, tally: Tally | None = None) -> Iterator[Exported]:
    """Yield the files of an export, the list last; images in the order of their parts.

    Args:
        journal: Where the reviews are.
        state: State folder of the line.
        wanted: Which reviews.
        tally: Counts what was exported.

    Raises:
        StorageError: If the journal cannot be read.
    """
    tally = tally or Tally()
    reviews = last_reviews(journal)
    lines = []
    for seq in sorted({seq for seq, _ in reviews}):
        part = journal.part_of(seq)
        if part is None:
            # Reviewed when the part was old already: its row, and its image with it, are gone.
            tally.left_out[_SEALED] = tally.left_out.get(_SEALED, 0) + 1
        for view in part.views if part is not None else ():
            review = _of_view(reviews, seq, view.view)
            if part is None or review is None or not _is_wanted(wanted, part, view):
                continue
            image, why = _image_of(state, part, view, review)
            if image is None:
                tally.left_out[why] = tally.left_out.get(why, 0) + 1
            else:
                folder = f"{part.station}/{view.view}"
                tally.folders[folder] = tally.folders.get(folder, 0) + 1
                yield image
            lines.append(encode_json(_line(part, view, review, "" if image is None else image.path, why)))
    yield Exported(LIST, b"".join(line + b"\n" for line in lines))


def _of_view(reviews: dict[tuple[int, str], Review], seq: int, view: str) -> Review | None:
    """Return the last review that holds for a view: its own, or one of all of the part that came later."""
    found = [review for name in (view, "") if (review := reviews.get((seq, name))) is not None]
    return max(found, key=lambda review: review.link, default=None)


def _is_wanted(wanted: Wanted, part: PartRecord, view: ViewRecord) -> bool:
    return wanted.station in ("", part.station) and wanted.view in ("", view.view)


def _image_of(state: Path, part: PartRecord, view: ViewRecord, review: Review) -> tuple[Exported | None, str]:
    """Return an image, or why there is none."""
    if review.label == "unsure":
        return None, "the reviewer was not sure"
    if not view.image:
        return None, "the image was not stored"
    ending = PurePosixPath(view.image).suffix
    if ending not in EXTENSIONS:
        return None, "its bytes are no image"
    try:
        data = read_image(state, view)
    except DataError as err:
        return None, str(err)
    if data is None:
        return None, "the image was deleted, or lost"
    kind = GOOD if review.label == "normal" else review.type or UNNAMED
    return Exported(f"{part.station}/{view.view}/{kind}/part-{part.seq}{ending}", data), ""


def _line(part: PartRecord, view: ViewRecord, review: Review, path: str, why: str) -> dict[str, object]:
    return {
        "image": path,
        "left_out": why,
        "part": part.seq,
        "part_id": part.part_id,
        "station": part.station,
        "view": view.view,
        "utc": part.utc,
        "verdict": part.verdict,
        "view_verdict": view.verdict,
        "score": view.score,
        "threshold": view.threshold,
        "bundle": view.bundle,
        "label": review.label,
        "type": review.type,
        "note": review.note,
        "reviewer": review.actor,
        "reviewed": review.utc,
    }
