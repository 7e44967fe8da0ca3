"""Records layout: `train.json` and `test.json` list images, labels and masks, one JSON object per line.

    {"filename": "bottle/train/good/000.png", "label": 0, "label_name": "good", "clsname": "bottle"}
    {"filename": "bottle/test/crack/000.png", "label": 1, "label_name": "defective", "clsname": "bottle",
     "maskname": "bottle/ground_truth/crack/000_mask.png"}

(each on one line; `.jsonl` does as well). Paths are relative to the root, or to the one folder directly below it that
holds them. The label decides what is normal. The defect type is the `label_name`; where that is missing or only
"defective", it is the folder of an image in .../test/TYPE/ or .../train/TYPE/, and "defective" elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, get_args

import msgspec

from flawscope.datasets.record_paths import backslash_remark, folder_of_paths, place_below, why_absent
from flawscope.datasets.samples import Dataset, Sample, Split, in_order
from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, open_regular, read_regular
from flawscope.part_words import GOOD, GOOD_NAMES
from flawscope.text import NOT_JSON

DEFECT = "defective"
"""The defect type of a record that names none."""

_SUFFIXES = (".json", ".jsonl")
_KEYS = frozenset({"filename", "label", "clsname"})
# Bytes of a first line that are read to recognise records: other JSON files may be one line of gigabytes.
_MOST_OF_A_LINE = 1 << 16
_BOM = b"\xef\xbb\xbf"  # byte order mark that some Windows editors write


class _Fields(msgspec.Struct, frozen=True):
    """One line of a file; other keys are ignored."""

    filename: str
    label: int
    clsname: str
    label_name: str | None = None
    maskname: str | None = None


class Record(NamedTuple):
    """One checked line.

    Attributes:
        where: File and line, for messages.
        split: Split, from the file it is in.
        category: Its category.
        defect: "good", or the defect type.
        image: Relative path of the image.
        mask: Relative path of the mask; None for normal images only.
        file: The file the line is in.
        backslashes: Number of its paths whose backslashes were taken as slashes.
    """

    where: str
    split: Split
    category: str
    defect: str
    image: PurePosixPath
    mask: PurePosixPath | None
    file: Path
    backslashes: int = 0


def find_records(root: Path) -> dict[Split, Path]:
    """Return the record files in a folder by split; none if no file there begins with a record.

    Raises:
        DataError: If a split has two of them.
    """
    files: dict[Split, Path] = {}
    is_any_recognised = False
    for split in get_args(Split):
        paths = [path for suffix in _SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
        recognised = [path for path in paths if _begins_with_a_record(path)]
        is_any_recognised |= bool(recognised)
        # Beside a recognised file the other split's is taken too: if it is broken, reading it says so.
        for path in recognised or paths:
            if split in files:
                names = ", ".join(path.name for path in recognised or paths)
                raise DataError(f"{root}: expected one file of {split} records, got {names}. Keep one of them there.")
            files[split] = path
    return files if is_any_recognised else {}


def _begins_with_a_record(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            value = msgspec.json.decode(file.readline(_MOST_OF_A_LINE).removeprefix(_BOM))
    except (OSError, *NOT_JSON):
        return False
    return isinstance(value, dict) and value.keys() >= _KEYS


def read_records(root: Path, files: Mapping[Split, Path]) -> list[Record]:
    """Read and check every line of the files that `find_records` returns; images need not exist yet.

    Raises:
        DataError: If a file cannot be read, a line is not a record, its label is unknown or contradicts its name, a
            path leads out of `root`, an anomalous image has no mask, or an image is listed twice.
    """
    records: list[Record] = []
    lines: dict[PurePosixPath, str] = {}
    for split, path in files.items():
        for where, line in _lines(path):
            record = _record(root, split, path, where, line)
            if record.image in lines:
                raise DataError(
                    f"{where}: expected another image on every line, got {str(record.image)!r} again after "
                    f"{lines[record.image]}. Take one of the lines out."
                )
            lines[record.image] = where
            records.append(record)
    return records


def categories_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the categories of records in alphabetical order."""
    return tuple(sorted({record.category for record in records}))


def dataset_of(root: Path, records: Sequence[Record], category: str) -> Dataset:
    """Index one category of records, at least one of which is of it.

    Raises:
        DataError: If an image or mask is missing.
    """
    chosen = [record for record in records if record.category == category]
    # Decided by the first image; `_sample` reports any other that is not there.
    base = folder_of_paths(root, chosen[0].image, f"{chosen[0].where}: filename")
    counts = Counter[Path]()
    for record in chosen:
        counts[record.file] += record.backslashes
    remarks = tuple(backslash_remark(file, count) for file, count in counts.items() if count)
    return Dataset(root, category, "records", in_order(_sample(base, record) for record in chosen), remarks=remarks)


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield file and number of every line that is not blank, and the line."""
    try:
        data = read_regular(path, RECORD_BYTES)
    except OSError as err:
        raise DataError(f"{path}: expected a file that can be read, got: {err.strerror or err}.") from err
    # split(b"\n"), not splitlines: on bytes that also cuts at a lone carriage return.
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def _record(root: Path, split: Split, file: Path, where: str, line: bytes) -> Record:
    try:
        fields = msgspec.json.decode(line, type=_Fields)
    except NOT_JSON as err:
        keys = ", ".join(sorted(_KEYS))
        raise DataError(f"{where}: expected a JSON object with {keys}, got: {err}. Mend that line.") from err
    for key, name in (("clsname", fields.clsname), ("label_name", fields.label_name or "-")):
        if not name.strip() or not name.isprintable():
            raise DataError(f"{where}: {key}: expected a name that can be printed, got {name!r}. Mend that line.")
    image = place_below(root, fields.filename, where)
    defect = _defect(fields, image, where)
    mask = None
    if defect != GOOD:
        if not fields.maskname:
            raise DataError(f"{where}: maskname: expected the mask of an anomalous image, got none. Mend that line.")
        mask = place_below(root, fields.maskname, where)
    written = [(fields.filename, image), (fields.maskname, mask)]
    backslashes = sum(
        text is not None and place is not None and "\\" in text and "\\" not in place.as_posix()
        for text, place in written
    )
    return Record(where, split, fields.clsname, defect, image, mask, file, backslashes)


def _defect(fields: _Fields, image: PurePosixPath, where: str) -> str:
    if fields.label not in (0, 1):
        raise DataError(f"{where}: label: expected 0 (normal) or 1 (anomalous), got {fields.label}. Mend that line.")
    name = fields.label_name or (GOOD if fields.label == 0 else DEFECT)
    if (name.lower() in GOOD_NAMES) != (fields.label == 0):
        expected = f"one of {', '.join(sorted(GOOD_NAMES))}" if fields.label == 0 else "the name of a defect"
        raise DataError(
            f"{where}: label_name: expected {expected} for label {fields.label}, got {name!r}. Mend that line."
        )
    if fields.label == 0:
        return GOOD
    if name.lower() != DEFECT:
        return name
    # Two empty names in front, for images with fewer than two folders.
    *_, above, folder = ("", "", *image.parts[:-1])
    return folder if above in get_args(Split) and folder.lower() not in GOOD_NAMES else DEFECT


def _sample(base: Path, record: Record) -> Sample:
    for key, place in (("filename", record.image), ("maskname", record.mask)):
        if place is not None and (reason := why_absent(base / place)):
            raise DataError(
                f"{record.where}: {key}: expected a file below {base}, got {str(place)!r}: {reason}. "
                "Add the file, or take the line out."
            )
    return Sample(
        path=base / record.image,
        split=record.split,
        defect=record.defect,
        mask=base / record.mask if record.mask else None,
    )
