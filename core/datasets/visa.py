"""VisA layout: one CSV table with split, label, image and mask for every category ("object").

The table has the columns object, split, label, image, mask. It lies in the dataset's root, or in `split_csv/` below it
as published; the paths in it are relative to the root.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple, cast

from flawscope.datasets.record_paths import place_below
from flawscope.datasets.samples import GOOD, Dataset, Sample, Split, in_order
from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, list_folder, open_regular, read_regular

DEFECT = "bad"
"""The one defect type of VisA, under the name that its conversions to the MVTec layout use."""

_COLUMNS = ["object", "split", "label", "image", "mask"]
_PUBLISHED = Path("split_csv", "1cls.csv")


class _Row(NamedTuple):
    where: str  # file and line, for messages
    category: str
    split: str
    label: str
    image: str
    mask: str


def find_table(root: Path) -> Path | None:
    """Return the VisA table of a folder, or None if it is not VisA.

    Raises:
        DataError: If several tables fit and none has the published name, or the folder cannot be listed.
    """
    tables = [path for path in list_folder(root) if path.name.endswith(".csv") and _is_table(path)]
    if len(tables) > 1:
        tables = [path for path in tables if path.name == _PUBLISHED.name] or tables
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(f"{root}: expected one VisA table, got {names}. Keep one of them there.")
    if tables:
        return tables[0]
    return root / _PUBLISHED if _is_table(root / _PUBLISHED) else None


def _is_table(path: Path) -> bool:
    try:
        # Any CSV file in the root is looked at, whatever its encoding and the length of its lines.
        with open_regular(path) as file:
            line = file.readline(200).decode("utf-8-sig", errors="replace")
        return [cell.strip().lower() for cell in line.split(",")] == _COLUMNS
    except OSError:
        return False


def categories(table: Path) -> tuple[str, ...]:
    """Return the categories a table names, in alphabetical order."""
    return tuple(sorted({row.category for row in _rows(table)}))


def read_visa(root: Path, table: Path, category: str) -> Dataset:
    """Index one category of VisA.

    Raises:
        DataError: If a line of the table is wrong.
    """
    samples = [_sample(root, row) for row in _rows(table) if row.category == category]
    return Dataset(root, category, "visa", in_order(samples))


def _rows(table: Path) -> list[_Row]:
    rows = []
    try:
        # utf-8-sig drops the byte order mark of spreadsheets; newline="" leaves line ends to csv.
        text = read_regular(table, RECORD_BYTES).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        next(reader, None)
        for cells in reader:
            where = f"{table}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(_COLUMNS):
                raise DataError(f"{where}: expected {len(_COLUMNS)} columns, got {len(cells)}. Mend the table.")
            rows.append(_Row(where, *(cell.strip() for cell in cells)))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{table}: expected a CSV table in UTF-8, got: {err}.") from err
    return rows


def _sample(root: Path, row: _Row) -> Sample:
    if row.split not in ("train", "test"):
        raise DataError(f"{row.where}: split: expected train or test, got {row.split!r}. Mend the table.")
    defect = {"normal": GOOD, "anomaly": DEFECT}.get(row.label)
    if defect is None:
        raise DataError(f"{row.where}: label: expected normal or anomaly, got {row.label!r}. Mend the table.")
    has_mask = bool(row.mask) and defect != GOOD
    return Sample(
        path=root / place_below(root, row.image, row.where),
        split=cast(Split, row.split),
        defect=defect,
        mask=root / place_below(root, row.mask, row.where) if has_mask else None,
        # Masks of VisA hold class numbers (1, 2, ...), all of which look black as grey levels.
        is_mask_indexed=has_mask,
    )
