"""VisA layout: one CSV table with split, label, image and mask for every category ("object").

The table has the columns object, split, label, image, mask. It lies in the dataset's root, or in `split_csv/` below it
as published; the paths in it are relative to the root, or to the one folder directly below it that holds them (`visa/`
beside `visa.csv`). As spreadsheets save it, cells may be separated by semicolons or
tabs, the text be Windows-1252 or UTF-16, and paths have backslashes.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from flawscope.datasets.problems import Problem
from flawscope.datasets.record_paths import backslash_remark, folder_of_paths, place_below
from flawscope.datasets.samples import Dataset, Sample, Split, in_order
from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, list_folder, open_regular, read_regular
from flawscope.part_words import GOOD

DEFECT = "bad"
"""The one defect type of VisA, under the name that its conversions to the MVTec layout use."""

_COLUMNS = ["object", "split", "label", "image", "mask"]
_PUBLISHED = Path("split_csv", "1cls.csv")


_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_HEADER_BYTES = 400
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Table(NamedTuple):
    separator: str
    encoding: str
    rows: list[_Row]


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
            start = file.read(_HEADER_BYTES)
    except OSError:
        return False
    encoding = "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"
    # A last half character is left out with what is behind the header.
    return _header(start.decode(encoding, errors="ignore")) is not None


def _header(text: str) -> tuple[str, int] | None:
    """Return the separator of a table and the number of lines before its rows, or None if it is another one."""
    lines = text.splitlines()
    # Spreadsheets may say the separator first.
    skipped = 1 if lines and lines[0].lower().startswith("sep=") else 0
    for separator in _SEPARATORS if len(lines) > skipped else ():
        try:
            cells = next(csv.reader(lines[skipped : skipped + 1], delimiter=separator), [])
        except csv.Error:
            continue
        if [cell.lower() for cell in _used(cells)] == _COLUMNS:
            return separator, skipped + 1
    return None


def _used(cells: list[str]) -> list[str]:
    """Return the cells of a line, stripped, without the empty ones that spreadsheets add behind the last column."""
    stripped = [cell.strip() for cell in cells]
    return stripped if any(stripped[len(_COLUMNS) :]) else stripped[: len(_COLUMNS)]


def categories(table: Path) -> tuple[str, ...]:
    """Return the categories a table names, in alphabetical order."""
    return tuple(sorted({row.category for row in _read(table).rows}))


def read_visa(root: Path, table: Path, category: str, base: Path | None = None) -> Dataset:
    """Index one category of VisA.

    Args:
        root: Folder of the dataset.
        table: Its table.
        category: Name of the category, which the table has.
        base: Folder that the table's paths are relative to; None finds it below `root`.

    Raises:
        DataError: If a line of the table is wrong, or several folders hold what it names.
    """
    read = _read(table)
    rows = [row for row in read.rows if row.category == category]
    # Checked, whichever folder they are in.
    places = [place_below(root, row.image, row.where) for row in rows]
    if base is None and places:
        base = folder_of_paths(root, places[0], f"{rows[0].where}: image")
    base = base or root
    samples = in_order(_sample(base, row) for row in rows)
    return Dataset(root, category, "visa", samples, remarks=tuple(_remarks(base, table, read, rows)))


def find_table_beside(folder: Path) -> Path | None:
    """Return the VisA table beside a folder of VisA's categories (`visa.csv` beside `visa/`), or None.

    Raises:
        DataError: As `find_table`.
    """
    if not any((path / "Data" / "Images").is_dir() for path in list_folder(folder)):
        return None
    above = folder.resolve().parent  # resolved: `.` has no parent of its own
    # An ancestor may forbid listing it, which is nobody's fault here: then there is no table.
    return find_table(above) if os.access(above, os.R_OK | os.X_OK) else None


def _remarks(root: Path, table: Path, read: _Table, rows: list[_Row]) -> Iterator[Problem]:
    if read.separator != "," or not read.encoding.startswith("utf-8"):
        text = f"was read with {_SEPARATORS[read.separator]} between cells, in {read.encoding}"
        yield Problem("table_form", table, text, "note")
    paths = [cell for row in rows for cell in (row.image, row.mask) if "\\" in cell]
    if count := sum("\\" not in place_below(root, cell, "").as_posix() for cell in paths):
        yield backslash_remark(table, count)


def _read(table: Path) -> _Table:
    try:
        text, encoding = _decode(read_regular(table, RECORD_BYTES))
        # `_is_table` has seen it; it may have changed.
        separator, line = _header(text) or (",", 1)
        # newline="" leaves line ends to csv.
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        rows = []
        for cells in reader:
            where = f"{table}, line {reader.line_num}"
            if not any(cells) or reader.line_num <= line:
                continue
            cells = _used(cells)
            if len(cells) != len(_COLUMNS):
                raise DataError(f"{where}: expected {len(_COLUMNS)} columns, got {len(cells)}. Mend the table.")
            rows.append(_Row(where, *cells))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{table}: expected a CSV table in UTF-8, got: {err}.") from err
    return _Table(separator, encoding, rows)


def _decode(data: bytes) -> tuple[str, str]:
    """Return the text of a table and its encoding."""
    if data.startswith(_UTF_16):
        return data.decode("utf-16"), "utf-16"
    try:
        # Without the byte order mark of spreadsheets.
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252"), "windows-1252"


def _sample(root: Path, row: _Row) -> Sample:
    if (split := row.split.lower()) not in ("train", "test"):
        raise DataError(f"{row.where}: split: expected train or test, got {row.split!r}. Mend the table.")
    defect = {"normal": GOOD, "anomaly": DEFECT}.get(row.label.lower())
    if defect is None:
        raise DataError(f"{row.where}: label: expected normal or anomaly, got {row.label!r}. Mend the table.")
    has_mask = bool(row.mask) and defect != GOOD
    return Sample(
        path=root / place_below(root, row.image, row.where),
        split=cast(Split, split),
        defect=defect,
        mask=root / place_below(root, row.mask, row.where) if has_mask else None,
        # Masks of VisA hold class numbers (1, 2, ...), all of which look black as grey levels.
        is_mask_indexed=has_mask,
    )
