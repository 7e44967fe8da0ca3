"""Tables of images in Parquet: a column of paths or URLs, or one of the bytes themselves, as data sets come."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from flawscope.errors import ArgumentError, DataError, FlawscopeError, ImageError, MissingExtra
from flawscope.imaging.images import most_encoded_bytes
from flawscope.runtime.scale.inputs.archives import check_archive_size, opened
from flawscope.runtime.scale.inputs.items import Item
from flawscope.runtime.scale.inputs.urls import is_url, reason_of, shown

_ROWS = 16
"""Images of a table that are in memory together."""
_KEPT = 8
"""Groups of them that are kept: threads that read ahead ask for rows a little out of order."""
_KEPT_BYTES = 64 << 20
"""Bytes of these groups; the last two are kept, whatever they have."""
_TRIES = 3
"""How often a row that cannot be read is tried: networks come back, damage stays, and a try reads all rows before."""
_OPEN = 4
"""Tables that are kept open."""
_PATHS_AT_ONCE = 4096
_NAMES = ("image", "img", "photo", "frame", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
_PATH_NAMES = ("path", "image_path", "img_path", "file", "filename", "file_name", "filepath", "file_path", "image_file")
_URL_NAMES = ("url", "image_url", "uri", "image_uri", "key", "location")


def list_table(name: str, top: str, column: str | None) -> Iterator[Item | str]:
    """Yield an item for each row of a column of bytes, or the path or URL in each row of a column of texts.

    Args:
        name: Path or URL of the table.
        top: Folder that places lie in.
        column: The column; None: by type and name.

    Raises:
        MissingExtra: If pyarrow is not installed.
        DataError: If it cannot be opened, or is no table.
        ArgumentError: If no column can hold images, or several can.
    """
    called = shown(name)
    with opened(name) as (file, size), _readable(called, name), _table(file) as table:
        column, has_bytes = _column_of(called, table.schema_arrow, column)
        row = 0
        digits = len(str(max(0, table.metadata.num_rows - 1)))
        for group in range(table.metadata.num_row_groups):
            if not has_bytes:
                yield from _texts(called, table, group, column, row)
            for number in range(table.metadata.row_group(group).num_rows):
                if has_bytes:
                    place = "/".join(filter(None, (top, f"{row:0{digits}d}")))
                    yield Item(f"{called}::{row}", place, -1, "parquet", (name, group, number, column, size))
                row += 1


def _texts(called: str, table: Any, group: int, column: str, row: int) -> Iterator[Item | str]:
    for batch in table.iter_batches(_PATHS_AT_ONCE, row_groups=[group], columns=[column]):
        for text in batch.column(0).to_pylist():
            if text:
                yield text
            else:
                image = f"{called}::{row}"
                yield Item(image, "", fault=f"{image}: expected a path or URL in the column {column}, got none.")
            row += 1


def _table(file: IO[bytes]) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as err:
        raise MissingExtra("reading tables of images", "pyarrow", "parquet") from err
    # Not the whole of a group at once: one may have all images of a table.
    return parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)


@contextlib.contextmanager
def _readable(called: str, name: str) -> Iterator[None]:
    """Turn what pyarrow raises for a table into a DataError; a GeneratorExit is of whoever listens no more."""
    try:
        yield
    except FlawscopeError:
        raise
    except Exception as err:  # a table of strangers: whatever it is, it cannot be read
        raise DataError(
            f"{called}: expected a Parquet table that can be read, got: {reason_of(err, name)}. Make it again."
        ) from err


def _column_of(called: str, schema: Any, asked: str | None) -> tuple[str, bool]:
    """Return the column of images, and whether it has their bytes."""
    kinds = {field.name: kind for field in schema if (kind := _kind_of(field.type)) is not None}
    if twice := [name for name in kinds if schema.names.count(name) > 1]:
        raise ArgumentError(
            f"{called}: expected names of columns that are there once, got {twice[0]} twice. Rename one in the table."
        )
    there = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    if asked is not None:
        if asked not in kinds:
            raise ArgumentError(
                f"{called}: expected a column {asked} of bytes, of paths or of URLs, got the columns {there}. Name "
                "another with --column."
            )
        return asked, kinds[asked]
    has_bytes = [name for name, kind in kinds.items() if kind]
    texts = [name for name, kind in kinds.items() if not kind]
    for names, known in ((has_bytes, _NAMES), (texts, _PATH_NAMES), (texts, _URL_NAMES), (texts, _NAMES)):
        named = [name for name in names if name.lower() in known]
        # Of bytes one alone is it, whatever it is called; of texts it may be a label.
        chosen = named or (names if names is has_bytes else [])
        if len(chosen) == 1:
            return chosen[0], kinds[chosen[0]]
        if chosen:
            raise ArgumentError(
                f"{called}: expected one column of images, got {', '.join(chosen)}. Name one with --column."
            )
    raise ArgumentError(
        f"{called}: expected a column of images, as bytes, paths or URLs, got the columns {there}. Name it with "
        "--column."
    )


def _kind_of(kind: Any) -> bool | None:
    """Return whether a type of columns is one of bytes; False of texts, None of neither."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_struct(kind):  # as of the library `datasets`: bytes, and where they came from
        return True if any(field.name == "bytes" and _is_binary(field.type) for field in kind) else None
    if _is_binary(kind):
        return True
    return False if types.is_string(kind) or types.is_large_string(kind) or _is(types, "is_string_view", kind) else None


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or _is(types, "is_binary_view", kind))


def _is(types: Any, test: str, kind: Any) -> bool:
    return hasattr(types, test) and bool(getattr(types, test)(kind))  # views are newer


class _Rows(NamedTuple):
    """Rows that were read: their group, the number of the first in it, and what is in them, with its bytes."""

    group: int
    first: int
    values: list[Any]
    size: int


class _Failure(NamedTuple):
    """What failed in a group: from which row on, how often, and why."""

    first: int
    times: int
    reason: str


class _OpenTable:
    """A table that is read from front to back, with the last rows at hand."""

    def __init__(self, image: str, name: str, column: str, size: int) -> None:
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._column = column
        self._recent: deque[_Rows] = deque(maxlen=_KEPT)
        self._batches: Iterator[Any] = iter(())
        self._group, self._next = -1, 0
        self._failed: dict[int, _Failure] = {}
        with contextlib.ExitStack() as stack:
            file, now = stack.enter_context(opened(name))
            check_archive_size(image, shown(name), now, size)
            self._table = stack.enter_context(_table(file))
            self._stack = stack.pop_all()

    def value(self, group: int, row: int) -> Any:
        """Return what is in a row of a group.

        Raises:
            Exception: What pyarrow raises; of a group that failed often, the same again for the rows behind.
        """
        with self._lock:
            for rows in self._recent:
                if rows.group == group and rows.first <= row < rows.first + len(rows.values):
                    return rows.values[row - rows.first]
            failed = self._failed.get(group, _Failure(0, 0, ""))
            if failed.times >= _TRIES and row >= failed.first:
                raise OSError(failed.reason)
            try:
                value = self._read_on(group, row)
            except Exception as err:
                self._failed[group] = _Failure(self._next, failed.times + 1, str(err))
                self._group = -1  # an error ends the batches
                raise
            if row >= failed.first:
                self._failed.pop(group, None)
            return value

    def _read_on(self, group: int, row: int) -> Any:
        if group != self._group or row < self._next:
            self._batches = self._table.iter_batches(_ROWS, row_groups=[group], columns=[self._column])
            self._group, self._next = group, 0
        while True:
            if (batch := next(self._batches, None)) is None:
                raise OSError(f"{self._next} rows in its group, and not the one that was listed")
            column = batch.column(self._column)  # by its name: a.b may also be the part b of a column a
            first = self._next
            self._next += len(column)
            if row < self._next:  # those before stay as they are: making Python's bytes of them is the larger part
                rows = _Rows(group, first, column.to_pylist(), column.nbytes)
                self._recent.append(rows)
                while len(self._recent) > 2 and sum(kept.size for kept in self._recent) > _KEPT_BYTES:
                    self._recent.popleft()
                return rows.values[row - first]

    def close(self) -> None:
        """Close the table."""
        with self._lock:
            self._batches = iter(())
            self._recent.clear()
            self._stack.close()


class TableReader:
    """Reads rows of tables of bytes."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[str, str, int], _OpenTable] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, item: Item) -> bytes:
        """Return the bytes in a row.

        Raises:
            DataError: If the table cannot be read, or has another size than when it was listed.
            ImageError: If there are none in the row.
        """
        name, group, row, column, size = item.where
        with _readable(item.name, str(name)):
            table = self._opened(item.name, str(name), str(column), int(size))
            value = table.value(int(group), int(row))
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise ImageError(
                f"{item.name}: expected the bytes of an image in the column {column}, got none. Store them in the "
                "table, or name a column of paths."
            )
        data = bytes(value)
        if len(data) > (most := most_encoded_bytes()):
            raise ImageError(f"{item.name}: it has more than {most:,} bytes, the most that is read.")
        return data

    def _opened(self, image: str, name: str, column: str, size: int) -> _OpenTable:
        with self._lock:
            key = (name, column, size)
            if key not in self._tables:
                self._tables[key] = _OpenTable(image, name, column, size)
                if len(self._tables) > _OPEN:
                    self._tables.popitem(last=False)  # closed once no thread reads from it any more
            self._tables.move_to_end(key)
            return self._tables[key]

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            for table in self._tables.values():
                table.close()
            self._tables.clear()


def beside(table: str, text: str) -> str:
    """Return what a row of a table names: a URL or an absolute path, or a path below the table's own folder."""
    if is_url(text) or text.startswith("/"):
        return text
    return f"{table[: table.rfind('/') + 1]}{text}"
