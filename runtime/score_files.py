"""Files that `flawscope score` writes: a table, a folder of results, and drawings; each whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flawscope.errors import ArgumentError
from flawscope.files import (
    atomic_file,
    atomic_folder,
    check_new_file,
    check_new_files,
    check_replaceable,
    storage_errors,
)
from flawscope.imaging.images import grey_as_rgb, prepare
from flawscope.imaging.png import write_png
from flawscope.runtime.image_sources import Source, read_source_image
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.origin import largest_golden
from flawscope.runtime.reconstruction_strip import write_reconstruction
from flawscope.runtime.results import Result
from flawscope.runtime.scale.inputs import Item
from flawscope.runtime.score_summary import ScoreReport
from flawscope.text import encode_json, printable

RESULTS, REPORT = "results.jsonl", "report.json"
COLUMNS = (
    "image",
    "decision",
    "score",
    "threshold",
    "ratio",
    "threshold_revision",
    "zone",
    "product",
    "regions",
    "reason",
    "notes",
    "latency_ms",
    "map",
)
"""Of the table, in their order; later ones may be added behind them."""
_FORMULA = ("=", "+", "-", "@")


def check_outputs_apart(outputs: Mapping[str, Path | None]) -> None:
    """Raise ArgumentError if one output of a command would lie in another, which is seen only after all the work.

    A table may lie among maps or other drawings: these are written into the folder, and replace no folder.

    Args:
        outputs: Option -> its file or folder; None where it was not given.
    """
    places = {option: (path, os.path.realpath(path)) for option, path in outputs.items() if path is not None}
    for (option, (path, place)), (other, (above, upper)) in itertools.permutations(places.items(), 2):
        is_below = place.startswith(f"{upper}{os.sep}")
        if place == upper or (is_below and other in ("--csv", "--out")):
            raise ArgumentError(
                f"{option} {path}: expected a place outside of {other} {above}, got "
                f"{'one in it' if is_below else 'the same'}. Choose another name."
            )


def result_line(result: Result) -> bytes:
    """Return the line of a result in `results.jsonl`, without its end.

    It has no time, which is another one each time: the same images give the same file.
    """
    return encode_json({key: value for key, value in result.to_json().items() if key != "latency_ms"})


class Drawings:
    """Where drawings of a command go.

    Args:
        maps: Folder for images under their maps; None for none.
        drawn: Folder for input, reconstruction and maps; None for none.

    Attributes:
        missing: Drawings that could not be written.
    """

    def __init__(self, maps: Path | None, drawn: Path | None) -> None:
        self.maps, self.drawn = maps, drawn

    def check(self, *, overwrite: bool) -> None:
        """Check, before the work, that they can be written; as `check_new_files`."""
        for folder in (self.maps, self.drawn):
            check_new_files(folder, overwrite=overwrite)

    def make_folders(self) -> None:
        """Make the folders. Only when bundle and options proved valid: a refused command must not leave empty ones."""
        for folder in (self.maps, self.drawn):
            if folder is not None:
                with storage_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)

    def draw(self, item: Item, image: Source, result: Result, inspector: Inspector) -> str | None:
        """Write the drawings of an image, and return the place of its map below `maps`; None where it has none.

        Args:
            item: What was named or found.
            image: Its image: a path, or bytes.
            result: What came of it.
            inspector: What inspected it.

        Raises:
            FlawscopeError: If one cannot be written, or the image is gone.
        """
        if not result.has_map:
            return None
        name = None
        if self.maps is not None:
            name = f"{item.place}.png"
            write_png(self.maps / name, result.draw(image))
        if self.drawn is not None:
            manifest = inspector.manifest
            pixels = read_source_image(image, result.image, "rgb", manifest.input.bits).pixels
            prepared = prepare(grey_as_rgb(pixels), manifest.input)
            thresholds = inspector.thresholds
            # With zones the largest of their thresholds.
            reference = (
                largest_golden(manifest, inspector.precision, inspector.backend)
                if thresholds is None
                else thresholds.pixel.value
            )
            write_reconstruction(self.drawn, item.place, prepared, inspector.reconstruct(prepared[None]), reference)
        return name


class Records:
    """The table and the folder of results of a command; written while it runs, named when it is done.

    Args:
        table: The file for `--csv`; None for none.
        out: The folder for `--out`; None for none.
        overwrite: Whether earlier ones may be replaced.
    """

    def __init__(self, table: Path | None, out: Path | None, *, overwrite: bool) -> None:
        self._table, self._out, self._overwrite = table, out, overwrite
        self._rows: Any = None
        self._lines: BinaryIO | None = None
        self._folder: Path | None = None

    def check(self) -> None:
        """Check, before the work, that they can be written; as `check_new_file` and `check_replaceable`."""
        check_new_file(self._table, overwrite=self._overwrite, kind="csv")
        if self._out is not None:
            check_replaceable(self._out, REPORT, overwrite=self._overwrite)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep them open in the block; without an error they have their names afterwards."""
        with contextlib.ExitStack() as stack:
            if self._table is not None:
                temporary = stack.enter_context(atomic_file(self._table))
                file = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
                self._rows = csv.writer(file, lineterminator="\n")
                self._rows.writerow(COLUMNS)
            if self._out is not None:
                self._folder = stack.enter_context(
                    atomic_folder(self._out, replace_if=REPORT, overwrite=self._overwrite, own=(RESULTS, REPORT))
                )
                self._lines = stack.enter_context((self._folder / RESULTS).open("wb"))
            yield

    def add(self, result: Result, place: str | None) -> None:
        """Write a result; `place` is that of its map."""
        if self._rows is not None:
            self._rows.writerow(_row(result, place))
        if self._lines is not None:
            self._lines.write(result_line(result) + b"\n")

    def finish(self, report: ScoreReport) -> None:
        """Write the report."""
        if self._folder is not None:
            (self._folder / REPORT).write_bytes(msgspec.json.format(encode_json(report), indent=1) + b"\n")


def _row(result: Result, place: str | None) -> list[object]:
    return [
        _path_cell(result.image),
        result.decision,
        result.score,
        result.threshold,
        result.ratio,
        result.threshold_revision,
        _cell(result.zone),
        _cell(result.product),
        len(result.boxes),
        _cell(result.reason),
        _cell("; ".join(result.notes)),
        result.timings_ms.get("total"),
        _path_cell(place),
    ]


def _cell(text: str | None) -> str:
    """Return a text for a cell: in one line, and nothing that a spreadsheet would compute."""
    shown = printable(text or "")
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _path_cell(text: str | None) -> str:
    """Return a path for a cell; it still leads to the file."""
    shown = printable(text or "")
    return f"./{shown}" if shown.startswith(_FORMULA) else shown
